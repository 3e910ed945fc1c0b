"""Two sets of vectors of the same images, in figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SAME = 0.99999
"""Least cosine of vectors that are the same: what the service's export holds its engines to."""
UNIT = 0.01
"""How far from 1 the length of a vector may be that was normalised, perhaps in half precision."""
NEIGHBOURS = 10
QUERIES = 2000
"""Images whose neighbours are looked for, at most; all are looked at as neighbours."""
WORST = 10

Verdict = Literal["the same", "the same after normalising", "different"]

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Lengths:
    """How long the vectors of one side are."""

    least: float
    median: float
    most: float

    @property
    def are_unit(self) -> bool:
        """Whether all were normalised."""
        return abs(self.least - 1) <= UNIT and abs(self.most - 1) <= UNIT


@dataclass(frozen=True)
class Comparison:
    """How alike the vectors of two sides are."""

    names: Sequence[str]
    old: Lengths
    new: Lengths
    cosines: NDArray[np.float64]
    """[n], of each image's two vectors."""
    overlap: float | None
    """Mean share of an image's ten nearest neighbours that are the same on both sides, from 0 to 1;
    None where there are not two images."""
    least_same: float

    @property
    def verdict(self) -> Verdict:
        """What to make of it."""
        if float(self.cosines.min()) < self.least_same:
            return "different"
        if self.old.are_unit and self.new.are_unit:
            return "the same"
        return "the same after normalising"

    @property
    def worst(self) -> list[int]:
        """The places of the images whose vectors differ most, the worst first."""
        return [int(place) for place in np.argsort(self.cosines, kind="stable")[:WORST]]


def compare(
    names: Sequence[str], old: Vectors, new: Vectors, least_same: float = SAME
) -> Comparison:
    """Compare the vectors [n, 512] of two sides, row by row; n is at least 1."""
    old_lengths, new_lengths = _lengths(old), _lengths(new)
    old, new = unit(old), unit(new)
    return Comparison(
        names=names,
        old=old_lengths,
        new=new_lengths,
        cosines=cosines(old, new),
        overlap=_overlap(old, new) if len(names) > 1 else None,
        least_same=least_same,
    )


def unit(vectors: Vectors) -> Vectors:
    """[n, 512] -> the same, each of length 1; a vector of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalised: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return normalised


def cosines(old: Vectors, new: Vectors) -> NDArray[np.float64]:
    """[n, 512] of any length, twice -> [n], from -1 to 1."""
    old_exact, new_exact = old.astype(np.float64), new.astype(np.float64)
    products = np.einsum("nd,nd->n", old_exact, new_exact)
    lengths = np.linalg.norm(old_exact, axis=1) * np.linalg.norm(new_exact, axis=1)
    found: NDArray[np.float64] = products / np.maximum(lengths, np.finfo(np.float32).tiny)
    return np.clip(found, -1, 1)


def _lengths(vectors: Vectors) -> Lengths:
    lengths = np.linalg.norm(vectors, axis=1)
    return Lengths(float(lengths.min()), float(np.median(lengths)), float(lengths.max()))


def _overlap(old: Vectors, new: Vectors) -> float:
    """The mean share of common neighbours, over at most `QUERIES` images spread over all."""
    count = len(old)
    k = min(NEIGHBOURS, count - 1)
    queries = np.unique(np.linspace(0, count - 1, min(count, QUERIES)).astype(int))
    common = 0
    for query in queries:
        common += len(_nearest(old, query, k) & _nearest(new, query, k))
    return common / (k * len(queries))


def _nearest(vectors: Vectors, query: int, k: int) -> set[int]:
    """The places of the `k` vectors that are nearest to vector `query`, without itself."""
    likeness = vectors @ vectors[query]
    likeness[query] = -np.inf
    return set(np.argpartition(-likeness, k - 1)[:k].tolist())
