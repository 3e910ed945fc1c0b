"""What passes through the linear layers of the float graph, over the calibration's inputs."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from export import graph
from export.graph import Graph, Inputs, Linear, Matrix, grouped

BATCH = 16
"""Pictures or texts of one run: enough for the speed of large products, and few for memory."""

Moments = NDArray[np.float64]
"""The mean of ``outer(x, x)`` over the rows x that a linear layer reads: [in, in]."""

Channels = tuple[int, ...]
"""Indices of input channels of a linear layer, ascending."""
OUTLIER = 24
"""Least magnitude of an outlier, in root mean squares of its row without the largest channels.

Its row's scale would round the other channels by 5 % of their size. Rows of layers with uniform,
Gaussian or heavy-tailed weights stay below 15; massive activations are 40 to 400.
"""
TRIMMED = 64
"""One of so many channels of a row, the largest, is left out of that root mean square."""

Build = Callable[[Linear], ModelProto]
"""What makes a graph with the linear layers that it is given, of one tower with some weights."""


class Tapped:
    """Linear layers in float, which note what each of them is and what it reads."""

    def __init__(self) -> None:
        self.inputs: dict[str, str] = {}
        """Name of the layer -> name of the value that its weights are multiplied by."""
        self.weights: dict[str, Matrix] = {}
        """Name of the layer -> its weights, [out, in]."""
        self.read_pixels: set[str] = set()
        """Names of the layers that read pixels."""

    def __call__(self, g: Graph, x: str, name: str, weight: Matrix, bias: Matrix) -> str:
        """See `graph.Linear`."""
        self._note(g, name, x, weight)
        return graph.FLOAT(g, x, name, weight, bias)

    def of_pixels(self, g: Graph, x: str, name: str, weight: Matrix, bias: Matrix) -> str:
        """See `graph.Linear`. Integers take pixels by their distance from 128."""
        x = g.op("Cast", x, to=TensorProto.FLOAT)
        self._note(g, name, g.op("Sub", x, g.scalar(128)), weight)
        self.read_pixels.add(name)
        return graph.FLOAT(g, x, name, weight, bias)

    def _note(self, g: Graph, name: str, x: str, weight: Matrix) -> None:
        self.inputs[name] = x
        self.weights[name] = weight
        g.output(x, "n", "tokens", weight.shape[1])


class Calibration:
    """Runs a float graph over pictures or texts and sums up what its linear layers read."""

    def __init__(self, build: Build, inputs: Inputs) -> None:
        tapped = Tapped()
        model = build(tapped)
        self.weights = tapped.weights
        """Name of each linear layer, in the order of the graph -> its weights, [out, in]."""
        self._inputs = tapped.inputs
        self._read_pixels = tapped.read_pixels
        self._given = inputs
        self._session = graph.session(model.SerializeToString())

    def peaks(self, names: Iterable[str]) -> dict[str, Matrix]:
        """Layer -> the largest magnitude of each channel that it reads: [in]."""
        peaks: dict[str, Matrix] = {}
        for name, rows in self._rows(names):
            largest = np.abs(rows).max(axis=0)
            peaks[name] = np.maximum(peaks.get(name, largest), largest)
        return peaks

    def moments(self, names: Iterable[str]) -> dict[str, Moments]:
        """Layer -> the second moments of what it reads.

        Each is [in, in] in float64, up to 75 MB: ask for a few layers at a time.
        """
        sums: dict[str, Moments] = {}
        counts: dict[str, int] = {}
        for name, rows in self._rows(names):
            # A batch is small enough for float32, the sum of all is not.
            product = rows.T @ rows
            if name in sums:
                sums[name] += product
            else:
                sums[name] = product.astype(np.float64)
            counts[name] = counts.get(name, 0) + len(rows)
        for name in sums:
            sums[name] /= counts[name]
        return sums

    def outliers(self) -> dict[str, Channels]:
        """Find each layer's input channels that are an outlier in any row of it.

        Trained transformers have a few, the same for all inputs: https://arxiv.org/abs/2208.07339.
        """
        found = {name: np.zeros(weight.shape[1], np.bool_) for name, weight in self.weights.items()}
        for name, rows in self._rows(self.weights.keys() - self._read_pixels):
            found[name] |= (np.abs(rows) > OUTLIER * typical(rows)).any(axis=0)
        return {
            name: tuple(np.flatnonzero(stands_out).tolist()) for name, stands_out in found.items()
        }

    def _rows(self, names: Iterable[str]) -> Iterator[tuple[str, Matrix]]:
        """(layer, what it reads: [rows, in]), for each batch of inputs and each of the layers."""
        names = list(names)
        values = [self._inputs[name] for name in names]
        options = ort.RunOptions()
        options.only_execute_path_to_fetches = True  # nothing behind the layers asked for
        takes = self._session.get_inputs()[0].name
        for batch in grouped(self._given, BATCH):
            feeds = {takes: batch}
            for name, x in zip(names, self._session.run(values, feeds, options), strict=True):
                yield name, x.reshape(-1, x.shape[-1])


def typical(rows: Matrix) -> Matrix:
    """Compute the root mean square of each row without its largest channels: [rows, 1]."""
    kept = rows.shape[1] - rows.shape[1] // TRIMMED
    squares: Matrix = np.partition(np.square(rows), kept - 1, axis=1)[:, :kept]
    root: Matrix = np.sqrt(squares.mean(axis=1, keepdims=True))
    return root
