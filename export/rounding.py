"""Float matrices -> 8-bit integers, so that what they are multiplied with notices it least."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export import ExportError
from export.calibration import Channels, Moments
from export.graph import Matrix

LARGEST = 127
PAIR = 128
"""Most that the magnitudes of two neighbouring inputs' weights may add up to.

x86 processors without VNNI multiply unsigned bytes with signed ones and add each product to its
neighbour's in 16 signed bits, which saturate in silence: 255 * 128 = 32,640 still fits.
"""
DAMPING = 0.1
"""Part of the mean second moment that is added to each channel's own.

Callers' pictures differ from those of the calibration: a channel that was silent there may not be.
A hundredth, as is usual, gives black and white dots a cosine of 0.9949 over heavy-tailed weights;
a tenth 0.9960.
"""
BLOCK = 128
"""Columns that are rounded between two large products, for speed alone."""


@dataclass(frozen=True)
class Rounded:
    """A matrix in integers: ``values * scale[:, None]`` is nearly what it was."""

    values: NDArray[np.int8]
    """[out, in]."""
    scale: Matrix
    """[out]."""
    outliers: Channels = ()
    """Input channels that stay in float: their `values` are zero."""


def gptq(weight: Matrix, moments: Moments, outliers: Channels = ()) -> Rounded:
    """Weights [out, in] and the second moments [in, in] of what they read -> integers.

    Columns are rounded one by one, and later ones make up for the errors of earlier ones.

    The error of the layer's output is ``x @ E.T``, where ``E`` is the error of the weights. Its
    mean square is ``|E @ L|**2`` for ``moments = L @ L.T``. L is lower triangular, so column j of
    ``E @ L`` depends on the columns of E from j on: the last is rounded to the nearest, and each
    before it to what brings its column of ``E @ L`` nearest to zero. (This is GPTQ, which is
    usually written with the inverse of the moments, in the equivalent form of Babai's algorithm.)

    Neighbouring columns keep to `PAIR`: of two, the first takes what room the second leaves.

    The columns of `outliers`, which are multiplied in float, are left out.

    Raises:
        ExportError: the moments are no numbers.
    """
    weight, moments = _without(outliers, weight, moments)
    inputs = weight.shape[1]
    mean = np.trace(moments) / inputs
    if not np.isfinite(mean):
        raise ExportError(
            "the weights given make activations that are no numbers: no model written"
        )
    damping = DAMPING * mean if mean > 0 else 1.0
    factor = np.linalg.cholesky(moments + damping * np.eye(inputs)).astype(np.float32)  # L
    scale = pair_safe_scale(weight)
    columns = np.ascontiguousarray(weight.T)  # [in, out]: a column of the weights is a row here
    errors = np.zeros_like(columns)
    values = np.zeros_like(columns)
    for stop in range(inputs, 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        # What the columns that are done have contributed to these columns of E @ L.
        carried = factor[stop:, start:stop].T @ errors[stop:]
        for j in reversed(range(start, stop)):
            within = factor[j + 1 : stop, j] @ errors[j + 1 : stop]
            target = columns[j] + (carried[j - start] + within) / factor[j, j]
            room = LARGEST if j % 2 else np.minimum(PAIR - np.abs(values[j + 1]), LARGEST)
            values[j] = np.clip(np.rint(target / scale), -room, room)
            errors[j] = columns[j] - values[j] * scale
    return Rounded(values.T.astype(np.int8), scale, outliers)


def _without(channels: Channels, weight: Matrix, moments: Moments) -> tuple[Matrix, Moments]:
    """Copy weights and moments, with zeros for some input channels."""
    kept = np.ones(weight.shape[1], np.float32)
    kept[list(channels)] = 0
    return weight * kept, moments * kept * kept[:, None]


def pair_safe_scale(weight: Matrix) -> Matrix:
    """The smallest scale of each row that keeps every pair of its weights within `PAIR`: [out]."""
    magnitudes = np.abs(weight)
    pairs = magnitudes[:, 0::2] + magnitudes[:, 1::2]
    scale = np.maximum(pairs.max(axis=1) / PAIR, magnitudes.max(axis=1) / LARGEST)
    # A row of zeros needs no scale of its own.
    return np.where(scale > 0, scale, 1).astype(np.float32)
