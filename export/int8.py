"""The graph with its linear layers in 8-bit integers: half the size, three times as fast.

Each row of what a layer reads, which is one token of one picture or text, has a scale of its own,
so that a vector does not depend on the others of its batch. So has each column of the weights.

Outlier channels are multiplied in float (as by LLM.int8, https://arxiv.org/abs/2208.07339): a
trained transformer has a few that are so much larger than the rest of their row that its scale
would round the rest to nothing.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from tqdm import tqdm

from export import graph, rounding
from export.calibration import Build, Calibration
from export.graph import ONNX_RUNTIME, Graph, Inputs, Linear, Matrix, Weights
from export.rounding import Rounded
from handler.precision import PRECISIONS

MIDDLE = 128
"""The unsigned byte that stands for zero."""
STANDS_OUT = 2
"""A channel is smoothed that is so many times larger than the middle one."""
BEHIND_NORMS = {
    "attn.qkv": ("ln_1", "attn.in_proj_weight"),
    "attn.kv": ("ln_1", "attn.in_proj_weight"),
    "mlp.c_fc": ("ln_2", "mlp.c_fc.weight"),
}
"""How the names of the layers end that read a LayerNorm's output -> in the same block, the name of
the norm, and of the matrix that the layer is made of."""
AT_A_TIME = 17
"""Layers whose second moments are in memory at one time, 400 MB: those of four blocks."""

Peaks = Mapping[str, Matrix]
"""Name of a linear layer -> the largest magnitude of each channel that it reads."""


class Integer:
    """A linear layer in integers."""

    def __init__(self, rounded: Mapping[str, Rounded], in_float: Collection[str] = ()) -> None:
        self.rounded = rounded
        self.in_float = in_float
        """Names of the layers that stay as they are."""

    def __call__(self, g: Graph, x: str, name: str, weight: Matrix, bias: Matrix) -> str:
        """See `graph.Linear`."""
        if name in self.in_float:
            return graph.FLOAT(g, x, name, weight, bias)
        outliers = list(self.rounded[name].outliers)
        if outliers:
            few = g.op("Gather", x, g.initializer(f"{name}.outliers", np.array(outliers)), axis=-1)
            x = _without(g, x, name, weight.shape[1], outliers)
        scale = self.scale(g, x)
        middle = _byte(g, f"{name}.middle")
        x = g.op("QuantizeLinear", g.op("Mul", x, g.op("Reciprocal", scale)), g.scalar(1), middle)
        product = g.op("Mul", self._product(g, x, name, middle), scale)
        if not outliers:
            return g.op("Add", product, g.initializer(f"{name}.int8.bias", bias))
        # The bias is the column of one more channel, which is 1 in every row. To add it by itself
        # would be one more pass over the whole output.
        few = g.op("Concat", few, g.op("Div", scale, scale), axis=-1)
        columns = np.vstack([weight.T[outliers], bias])
        in_float = g.op("MatMul", few, g.weight(f"{name}.outliers.weight", columns))
        return g.op("Add", product, in_float)

    def of_pixels(self, g: Graph, x: str, name: str, weight: Matrix, bias: Matrix) -> str:
        """See `graph.Linear`. Pixels are bytes already, and taken as they are.

        The integers see their distance from 128. What 128 itself contributes is part of the bias,
        by the weights as they were: it is far larger than any picture's own contribution.
        """
        if name in self.in_float:
            return graph.FLOAT.of_pixels(g, x, name, weight, bias)
        product = self._product(g, x, name, _byte(g, f"{name}.middle"))
        offset = MIDDLE * weight.astype(np.float64).sum(axis=1)
        return g.op(
            "Add", product, g.initializer(f"{name}.int8.bias", (bias + offset).astype(np.float32))
        )

    def scale(self, g: Graph, x: str) -> str:
        """Of each row, what its largest magnitude is divided by to become 127: [..., 1].

        A row of zeros gets a scale too. ReduceMax overlooks what is not a number, and rounding
        would turn it into one: the sum, times zero, keeps it.
        """
        last = g.constant(-1)
        largest = g.op("ReduceMax", g.op("Abs", x), last, keepdims=1)
        scale = g.op("Max", g.op("Mul", largest, g.scalar(1 / rounding.LARGEST)), g.scalar(1e-30))
        nothing = g.op("Mul", g.op("ReduceSum", x, last, keepdims=1), g.scalar(0))
        return g.op("Add", scale, nothing)

    def _product(self, g: Graph, x: str, name: str, middle: str) -> str:
        """``(x - 128) @ weights``, x in bytes; the weights' scales are part of it."""
        rounded = self.rounded[name]
        values = g.initializer(f"{name}.int8.weight", np.ascontiguousarray(rounded.values.T))
        scale = g.initializer(f"{name}.int8.scale", rounded.scale)
        operands = (x, values, g.scalar(1), scale, middle)
        return g.op("MatMulIntegerToFloat", *operands, domain=ONNX_RUNTIME)


def _without(g: Graph, x: str, name: str, width: int, outliers: list[int]) -> str:
    """Write ``x`` [..., width] with zeros in the place of its outliers."""
    kept = np.ones(width, np.float32)
    kept[outliers] = 0
    return g.op("Mul", x, g.initializer(f"{name}.inliers", kept))


def _byte(g: Graph, name: str) -> str:
    return g.initializer(name, np.array(MIDDLE, np.uint8))


@dataclass(frozen=True)
class Tower:
    """A tower, with every linear layer in float and in integers, to choose from."""

    build: Build
    """Makes the graph of the smoothed weights."""
    weights: Mapping[str, Matrix]
    """Name of each linear layer -> its weights in float."""
    rounded: Mapping[str, Rounded]
    """Name of each linear layer -> the same in integers."""
    in_float: tuple[str, ...] = ()
    """The layers that stay in float."""

    def mended(self, name: str) -> "Tower":
        """The same with one more layer in float."""
        return replace(self, in_float=(*self.in_float, name))

    def model(self) -> ModelProto:
        """The graph."""
        return self.build(Integer(self.rounded, self.in_float))


def save(model: ModelProto, path: Path) -> None:
    """Write the graph, which names its scheme: the engine loads no other."""
    onnx.helper.set_model_props(model, {"scheme": PRECISIONS["int8"].scheme})
    graph.save(model, path)


def quantize(
    weights: Weights, build_with: Callable[[Weights, Linear], ModelProto], inputs: Inputs
) -> Tower:
    """Weights -> integers, calibrated with `inputs`; `build_with` makes the tower's graph."""
    before = Calibration(partial(build_with, weights), inputs)
    behind_norms = [name for name in before.weights if name.endswith(tuple(BEHIND_NORMS))]
    weights = smoothed(weights, before.peaks(behind_norms))
    del before  # its session holds a copy of all weights
    build = partial(build_with, weights)
    calibration = Calibration(build, inputs)
    names = list(calibration.weights)
    outliers = calibration.outliers()
    rounded = {}
    with tqdm(total=len(names), desc="int8", unit="layer") as bar:
        for start in range(0, len(names), AT_A_TIME):
            moments = calibration.moments(names[start : start + AT_A_TIME])
            for name in list(moments):
                rounded[name] = rounding.gptq(
                    calibration.weights[name], moments.pop(name), outliers[name]
                )
                bar.update()
    return Tower(build, calibration.weights, rounded)


def smoothed(weights: Weights, peaks: Peaks) -> Weights:
    """Hand over, from LayerNorms to the matrices behind them, the size of channels that stand out.

    One large channel would decide the scale of its whole row, and all others would be lost in
    rounding. Where its LayerNorm's gain and bias are divided by f, and the matrix's column is
    multiplied by it, the function is the same. f is the square root of the channel's peak over the
    column's (SmoothQuant, with alpha 0.5), in units of the middle channel's, where that is more
    than `STANDS_OUT`; elsewhere smoothing would cost exactness. It is rounded to a power of two, so
    that nothing but exponents changes, to the bit.
    """
    weights = dict(weights)
    for layer, channels in peaks.items():
        end = next(end for end in BEHIND_NORMS if layer.endswith(end))
        block = layer.removesuffix(end)
        norm, matrix = BEHIND_NORMS[end]
        _smooth(weights, f"{block}{norm}", f"{block}{matrix}", channels)
    return weights


def _smooth(weights: Weights, norm: str, matrix: str, peaks: Matrix) -> None:
    column_peaks = np.abs(weights[matrix]).max(axis=0)
    tiny = np.finfo(np.float32).tiny
    factors = np.sqrt(np.maximum(peaks, tiny) / np.maximum(column_peaks, tiny))
    factors /= np.median(factors)
    powers = np.exp2(np.rint(np.log2(factors)))
    powers = np.where(factors > STANDS_OUT, powers, 1).astype(np.float32)
    weights[f"{norm}.weight"] = weights[f"{norm}.weight"] / powers
    weights[f"{norm}.bias"] = weights[f"{norm}.bias"] / powers
    weights[matrix] = weights[matrix] * powers
