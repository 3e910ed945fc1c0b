"""Layers that integers hurt too much go back to float, one after another, until a gate is passed."""

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from tqdm import tqdm

from export import graph
from export.graph import Graph, Matrix
from export.int8 import Integer, Tower

SHOWN = 4
"""Calibration pictures, those that integers hold worst, that a layer's damage is measured with."""
BATCH = 8


class OneInIntegers:
    """Linear layers in float, but for one, which each element of the batch names for itself."""

    def __init__(self, integer: Integer) -> None:
        self.integer = integer
        self.names: list[str] = []

    def __call__(self, g: Graph, x: str, name: str, weight: Matrix, bias: Matrix) -> str:
        """See `graph.Linear`."""
        chosen = self._chosen(g, name)
        integer = self.integer(g, x, name, weight, bias)
        return g.op("Where", chosen, integer, graph.FLOAT(g, x, name, weight, bias))

    def of_pixels(self, g: Graph, x: str, name: str, weight: Matrix, bias: Matrix) -> str:
        """See `graph.Linear`."""
        chosen = self._chosen(g, name)
        integer = self.integer.of_pixels(g, x, name, weight, bias)
        return g.op("Where", chosen, integer, graph.FLOAT.of_pixels(g, x, name, weight, bias))

    def _chosen(self, g: Graph, name: str) -> str:
        self.names.append(name)
        layer = g.input("layer", TensorProto.INT64, "n", 1, 1)
        return g.op("Equal", layer, g.constant(len(self.names) - 1))


def damage(tower: Tower, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Layer -> how far its integers alone turn the vectors of `pixels`: 1 - cosine, the mean.

    Worst first. Each is looked at in a graph whose other layers are in float: where several layers
    spoil everything, a graph with one of them in float is no better than one with none.
    """
    strategy = OneInIntegers(Integer(tower.rounded))
    model = tower.build(strategy)
    session = ort.InferenceSession(model.SerializeToString())

    def vectors(index: int) -> Matrix:
        """With that layer in integers; -1: with none."""
        layers = np.full((len(pixels), 1, 1), index)
        (embeddings,) = session.run(["embeddings"], {"pixels": pixels, "layer": layers})
        found: Matrix = embeddings
        return found

    exact = vectors(-1)
    found = {}
    for index, name in enumerate(tqdm(strategy.names, desc="damage", unit="layer")):
        cosines = (vectors(index) * exact).sum(axis=1)
        found[name] = float(1 - cosines.mean())
    return dict(sorted(found.items(), key=lambda item: -item[1]))
