"""Layers that integers hurt too much go back to float, one by one, until a gate is passed."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from tqdm import tqdm

from export import graph
from export.graph import Graph, Matrix
from export.int8 import Integer, Tower

SHOWN = 4
"""Calibration pictures, those that integers hold worst, that a layer's damage is measured with."""
BATCH = 8
LITTLE_GAIN = 0.7
"""Part of fp32's time from which on integers are hardly worth their errors."""

Pixels = NDArray[np.uint8]
CloseEnough = Callable[[Callable[[Pixels], Matrix]], bool]
"""Whether what turns pixels into vectors does so exactly enough."""


def mend(tower: Tower, pixels: Pixels, close_enough: CloseEnough) -> Tower:
    """Put back into float as many layers as it takes, those that hurt most first.

    `pixels` are the calibration's: the layers are chosen by other pictures than those that
    `close_enough` judges by. With every layer in float the vectors are fp32's, so there is an end.
    """
    integers = Vectors(tower.model())
    if close_enough(integers):
        return tower
    print("int8        not exact enough with these weights: layers go back to float")
    exact = Vectors(tower.build(graph.FLOAT))
    mended, vectors = tower, integers
    for name, turned in damage(tower, _worst(exact, integers, pixels)).items():
        mended = mended.mended(name)
        vectors = Vectors(mended.model())
        print(f"int8        {name} in float; in integers, alone, it cost {turned:.1e} of cosine")
        if close_enough(vectors):
            break
    megabytes = (vectors.bytes - integers.bytes) / 1e6
    print(cost(mended, megabytes, *_milliseconds(integers, vectors, exact)))
    return mended


def cost(mended: Tower, megabytes: float, before: float, now: float, fp32: float) -> str:
    """What mending took, in words: `megabytes` more, and so many milliseconds an image.

    They are those `before` it, those `now`, and those of the graph in float, on this machine.
    """
    text = (
        f"int8        {len(mended.in_float)} of {len(mended.weights)} layers are in float: "
        f"{megabytes:+.1f} MB; an image takes {now:.0f} ms instead of {before:.0f} "
        f"(fp32: {fp32:.0f})"
    )
    if now > LITTLE_GAIN * fp32:
        text += (
            "\nWARNING     INTEGERS GAIN NEXT TO NOTHING WITH THESE WEIGHTS: so much went back to "
            "float\n            that int8 is hardly faster than fp32. Use fp32, which is exact."
        )
    return text


class Vectors:
    """A graph as a function from pixels to vectors."""

    def __init__(self, model: ModelProto) -> None:
        serialized = model.SerializeToString()
        self.bytes = len(serialized)
        self._session = graph.session(serialized)

    def __call__(self, pixels: Pixels, **others: NDArray[np.int64]) -> Matrix:
        """uint8 [n, 224, 224, 3] -> float32 [n, 512]; `others`: further inputs of the graph."""
        found = []
        for start in range(0, len(pixels), BATCH):
            part = slice(start, start + BATCH)
            feeds = {"pixels": pixels[part]} | {name: x[part] for name, x in others.items()}
            found += self._session.run(["embeddings"], feeds)
        return np.concatenate(found)


def _milliseconds(*graphs: Vectors) -> list[float]:
    """The best time of one image in each of the graphs, which take turns."""
    pixels = np.zeros((1, 224, 224, 3), np.uint8)
    times = []
    for _ in range(5):
        for vectors in graphs:
            start = time.perf_counter()
            vectors(pixels)
            times.append(time.perf_counter() - start)
    return [min(times[i :: len(graphs)]) * 1000 for i in range(len(graphs))]


def _worst(exact: Vectors, integers: Vectors, pixels: Pixels) -> Pixels:
    """The `SHOWN` of `pixels` whose vectors integers turn furthest."""
    cosines = (exact(pixels) * integers(pixels)).sum(axis=1)
    return pixels[np.argsort(cosines)[:SHOWN]]


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


def damage(tower: Tower, pixels: Pixels) -> dict[str, float]:
    """Layer -> how far its integers alone turn the vectors of `pixels`: 1 - cosine, the mean.

    Worst first. Each is looked at in a graph whose other layers are in float: where several layers
    spoil everything, a graph with one of them in float is no better than one with none.
    """
    strategy = OneInIntegers(Integer(tower.rounded))
    vectors = Vectors(tower.build(strategy))

    def with_integers_in(index: int) -> Matrix:
        """The vectors with that layer in integers; -1: with none."""
        return vectors(pixels, layer=np.full((len(pixels), 1, 1), index))

    exact = with_integers_in(-1)
    found = {}
    for index, name in enumerate(tqdm(strategy.names, desc="damage", unit="layer")):
        cosines = (with_integers_in(index) * exact).sum(axis=1)
        found[name] = float(1 - np.nan_to_num(cosines, nan=-1).mean())
    return dict(sorted(found.items(), key=lambda item: -item[1]))
