"""What the client gives back: vectors, or the errors in their place."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_encoder.errors import EncoderError

Vector = NDArray[np.float32]
"""float32 [512], of unit length."""


@dataclass(frozen=True)
class Result:
    """What became of one image or text of many: its vector, or its error, never both."""

    index: int
    """Its place among those that were given, from 0."""
    source: Any = field(repr=False)
    """The image or text as it was given."""
    vector: Vector | None = None
    """float32 [512], of unit length; None where there is an error."""
    error: EncoderError | None = None

    @property
    def code(self) -> str | None:
        """The error's stable code; None where there is a vector."""
        return self.error.code if self.error else None

    def get(self) -> Vector:
        """The vector, float32 [512].

        Raises:
            EncoderError: there is none.
        """
        if self.error is not None:
            raise self.error
        assert self.vector is not None
        return self.vector


@dataclass(frozen=True)
class RankError:
    """One query or candidate that could not be ranked."""

    list: str
    """``queries`` or ``candidates``."""
    index: int
    """Its place in that list, from 0."""
    code: str
    detail: str


@dataclass(frozen=True)
class Ranking:
    """How well each candidate fits each query. What failed is NaN, and named in `errors`."""

    probabilities: NDArray[np.float64]
    """[queries, candidates]; a row adds up to 1 over the candidates that did not fail."""
    cosine_similarities: NDArray[np.float64]
    """[queries, candidates], from -1 to 1."""
    errors: list[RankError]
