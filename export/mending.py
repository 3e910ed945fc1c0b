"""Layers that integers hurt too much go back to float, one by one, until a gate is passed."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from tqdm import tqdm

from export import graph
from export.graph import Graph, Inputs, Matrix, grouped
from export.int8 import Integer, Tower

SHOWN = 4
"""Calibration inputs, those that integers hold worst, that a layer's damage is measured with."""
BATCH = 8
LITTLE_GAIN = 0.7
"""Part of fp32's time from which on integers are hardly worth their errors."""

CloseEnough = Callable[[Callable[[Inputs], Matrix]], bool]
"""Whether what turns inputs into vectors does so exactly enough."""


def mend(tower: Tower, inputs: Inputs, close_enough: CloseEnough) -> Tower:
    """Put back into float as many layers as it takes, those that hurt most first.

    `inputs` are the calibration's: the layers are chosen by others than those that
    `close_enough` judges by. With every layer in float the vectors are fp32's, so there is an end.
    """
    integers = Vectors(tower.model())
    if close_enough(integers):
        return tower
    print("int8        not exact enough with these weights: layers go back to float")
    exact = Vectors(tower.build(graph.FLOAT))
    mended, vectors = tower, integers
    for name, turned in damage(tower, _worst(exact, integers, inputs)).items():
        mended = mended.mended(name)
        vectors = Vectors(mended.model())
        print(f"int8        {name} in float; in integers, alone, it cost {turned:.1e} of cosine")
        if close_enough(vectors):
            break
    megabytes = (vectors.bytes - integers.bytes) / 1e6
    print(cost(mended, megabytes, *_milliseconds(inputs[0], integers, vectors, exact)))
    return mended


def cost(mended: Tower, megabytes: float, before: float, now: float, fp32: float) -> str:
    """What mending took, in words: `megabytes` more, and so many milliseconds an image or text.

    They are those `before` it, those `now`, and those of the graph in float, on this machine.
    """
    text = (
        f"int8        {len(mended.in_float)} of {len(mended.weights)} layers are in float: "
        f"{megabytes:+.1f} MB; one inference takes {now:.0f} ms instead of {before:.0f} "
        f"(fp32: {fp32:.0f})"
    )
    if now > LITTLE_GAIN * fp32:
        text += (
            "\nWARNING     INTEGERS GAIN NEXT TO NOTHING WITH THESE WEIGHTS: so much went back to "
            "float\n            that int8 is hardly faster than fp32. Use fp32, which is exact."
        )
    return text


class Vectors:
    """A graph as a function from what its tower takes to vectors."""

    def __init__(self, model: ModelProto) -> None:
        serialized = model.SerializeToString()
        self.bytes = len(serialized)
        self._session = graph.session(serialized)
        self._takes = self._session.get_inputs()[0].name

    def __call__(self, inputs: Inputs, layer: int | None = None) -> Matrix:
        """`inputs` -> vectors [n, size]; `layer`: for a graph with that further input."""
        found = []
        for batch in grouped(inputs, BATCH):
            feeds = {self._takes: batch}
            if layer is not None:
                feeds["layer"] = np.full((len(batch), 1, 1), layer)
            found += self._session.run(["embeddings"], feeds)
        return np.concatenate(found)


def _milliseconds(given: NDArray[np.generic], *graphs: Vectors) -> list[float]:
    """The best time of one inference in each of the graphs, which take turns."""
    times = []
    for _ in range(5):
        for vectors in graphs:
            start = time.perf_counter()
            vectors([given])
            times.append(time.perf_counter() - start)
    return [min(times[i :: len(graphs)]) * 1000 for i in range(len(graphs))]


def _worst(exact: Vectors, integers: Vectors, inputs: Inputs) -> Inputs:
    """The `SHOWN` of `inputs` whose vectors integers turn furthest."""
    cosines = (exact(inputs) * integers(inputs)).sum(axis=1)
    return [inputs[i] for i in np.argsort(cosines)[:SHOWN]]


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


def damage(tower: Tower, inputs: Inputs) -> dict[str, float]:
    """Layer -> how far its integers alone turn the vectors of `inputs`: 1 - cosine, the mean.

    Worst first. Each is looked at in a graph whose other layers are in float: where several layers
    spoil everything, a graph with one of them in float is no better than one with none.
    """
    strategy = OneInIntegers(Integer(tower.rounded))
    vectors = Vectors(tower.build(strategy))
    exact = vectors(inputs, layer=-1)  # none of them
    found = {}
    for index, name in enumerate(tqdm(strategy.names, desc="damage", unit="layer")):
        cosines = (vectors(inputs, layer=index) * exact).sum(axis=1)
        found[name] = float(1 - np.nan_to_num(cosines, nan=-1).mean())
    return dict(sorted(found.items(), key=lambda item: -item[1]))
