"""Ranking: how well each of some candidates fits each of some queries.

Queries and candidates are images, texts or vectors, in any mixture. Two things that fit each other
have vectors of nearly the same direction, so the cosine of the angle between them says how well.
CLIP makes probabilities of the cosines of all candidates by a softmax, after it has multiplied them
by a number that it has learned, the logit scale, which is 100 for OpenAI's models.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from handler.budget import Budget
from handler.encoder import Encoder, Item
from handler.engines import Embedding
from handler.images.s3 import Image
from handler.outcome import Outcome
from handler.text.tokenizer import Tokens

Entry = Image | str | Embedding
"""An image, a text, or a vector that is one already."""

T = TypeVar("T")


class Lists(NamedTuple):
    """What is to be ranked."""

    queries: list[Outcome[Entry]]
    candidates: list[Outcome[Entry]]
    templates: list[str]
    """Each has ``{}`` in the place where the text of a candidate is put; none: texts are as they
    are."""
    truncate: bool
    """Whether the ends of too long texts are cut off."""


class Ranking(NamedTuple):
    """What became of it. A row is a query, a column a candidate; what failed has NaN."""

    cosines: NDArray[np.float32]
    """float32 [queries, candidates]"""
    probabilities: NDArray[np.float32]
    """float32 [queries, candidates]; each row's sum is 1."""
    queries: list[Outcome[Embedding]]
    candidates: list[Outcome[Embedding]]
    fingerprints: list[str]
    """Of the vectors that were made: images' first, then texts'."""
    truncated: bool
    """Whether the end of a text was cut off."""


def rank(encoder: Encoder, lists: Lists, budget: Budget) -> Ranking:
    """Encode all that is no vector yet, and compare each query with each candidate.

    What cannot be encoded fails alone: the others are ranked without it.

    Raises:
        ModelUnhealthy: a tower that is needed cannot be used.
    """

    def items(entry: Outcome[Entry], templates: Sequence[str]) -> list[Outcome[Item]]:
        return _items(encoder, entry, templates, lists.truncate, budget)

    groups = [items(entry, ()) for entry in lists.queries]
    groups += [items(entry, lists.templates) for entry in lists.candidates]
    flat = list(chain.from_iterable(groups))
    encoded = iter(encoder.encode_all(flat, budget))  # all at once: the engine is faster so
    embeddings = [_mean(list(islice(encoded, len(group)))) for group in groups]
    queries, candidates = embeddings[: len(lists.queries)], embeddings[len(lists.queries) :]
    cosines = _cosines(queries, candidates)
    return Ranking(
        cosines,
        _softmax(encoder.model.logit_scale * cosines.astype(np.float64)).astype(np.float32),
        queries,
        candidates,
        encoder.fingerprints(flat),
        any(isinstance(item.value, Tokens) and item.value.truncated for item in flat),
    )


def _items(
    encoder: Encoder,
    entry: Outcome[Entry],
    templates: Sequence[str],
    truncate: bool,
    budget: Budget,
) -> list[Outcome[Item]]:
    """What is encoded for one entry: one item for each template if it is a text, else itself."""
    if not isinstance(entry.value, str):
        return [Outcome(entry.value, entry.error)]
    found: list[Outcome[Item]] = []
    for template in templates or ("{}",):
        text = template.replace("{}", entry.value)
        found.append(Outcome.of(partial(encoder.tokenize, text, truncate, budget)))
        if found[-1].error:
            break  # the entry has failed, and would need the time of all others
    return found


def _mean(embeddings: Sequence[Outcome[Embedding]]) -> Outcome[Embedding]:
    """The mean of unit vectors, of unit length itself; the first error, if there is one."""
    if len(embeddings) == 1:
        return embeddings[0]  # to the last bit what the other routes answer

    def mean() -> Embedding:
        total = np.sum([embedding.get() for embedding in embeddings], axis=0)
        return np.asarray(total / np.linalg.norm(total), np.float32)

    return Outcome.of(mean)


def _cosines(
    queries: Sequence[Outcome[Embedding]], candidates: Sequence[Outcome[Embedding]]
) -> NDArray[np.float32]:
    """float32 [queries, candidates], NaN where one of the two failed."""
    rows = [place for place, query in enumerate(queries) if query.error is None]
    columns = [place for place, candidate in enumerate(candidates) if candidate.error is None]
    cosines = np.full((len(queries), len(candidates)), np.nan, np.float32)
    if rows and columns:
        left = np.stack([queries[row].get() for row in rows])
        right = np.stack([candidates[column].get() for column in columns])
        # Rounding may make a vector's cosine with itself a little more than 1.
        cosines[np.ix_(rows, columns)] = np.clip(left @ right.T, -1, 1)
    return cosines


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over each row, leaving out what is NaN, which stays NaN."""
    there = np.isfinite(logits)
    # Of the largest logit the exponential is 1, and so none is too large.
    largest = np.max(logits, axis=1, keepdims=True, where=there, initial=-np.inf)
    powers = np.full_like(logits, np.nan)
    np.exp(logits - largest, where=there, out=powers)
    total = np.sum(powers, axis=1, keepdims=True, where=there)
    np.divide(powers, total, where=there, out=powers)
    return powers
