"""What callers get: vectors and errors written out."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handler.engines import Embedding
from handler.outcome import Outcome
from handler.rank import Ranking
from handler.text.tokenizer import Tokens


def to_json(embedding: Embedding) -> str:
    """float32 [size] -> a JSON array of the shortest decimals that give the same float32 back."""
    return f"[{','.join(map(str, embedding))}]"


def to_floats(embedding: Embedding) -> list[float]:
    """The same decimals as `to_json`, as Python floats: what Lambda's own serialiser will print."""
    floats: list[float] = json.loads(to_json(embedding))
    return floats


def to_bytes(embedding: Embedding) -> bytes:
    """float32 [size] -> four bytes a number, little-endian: 2,048 of ViT-B/32's 512 numbers."""
    return embedding.astype("<f4").tobytes()


def batch_truncated(texts: Sequence[Outcome[Tokens]]) -> list[int]:
    """The ``truncated`` of a batch response: which texts were encoded without their ends."""
    return [index for index, text in enumerate(texts) if text.value and text.value.truncated]


def batch_errors(outcomes: Sequence[Outcome[Embedding]]) -> list[dict[str, Any]]:
    """The ``errors`` of a batch response."""
    errors = [(index, outcome.error) for index, outcome in enumerate(outcomes)]
    return [{"index": index, **error.body()} for index, error in errors if error]


def batch_floats(outcomes: Sequence[Outcome[Embedding]]) -> list[list[float] | None]:
    """The ``embeddings`` of a batch response: `None` where there is an error."""
    return [None if outcome.error else to_floats(outcome.get()) for outcome in outcomes]


def batch_json(outcomes: Sequence[Outcome[Embedding]], **more: object) -> str:
    """A batch response as JSON text; `more` are fields beside its own."""
    embeddings = ["null" if outcome.error else to_json(outcome.get()) for outcome in outcomes]
    rest = json.dumps({"errors": batch_errors(outcomes), **more}, separators=(",", ":"))
    return f'{{"embeddings":[{",".join(embeddings)}],{rest[1:]}'


def rank_json(ranking: Ranking) -> str:
    """The answer to a ranking as JSON text."""
    failed = [query.error is not None for query in ranking.queries]
    errors = [
        {"list": name, **error}
        for name, outcomes in (("queries", ranking.queries), ("candidates", ranking.candidates))
        for error in batch_errors(outcomes)
    ]
    return (
        f'{{"probabilities":{_rows_json(ranking.probabilities, failed)},'
        f'"cosine_similarities":{_rows_json(ranking.cosines, failed)},'
        f'"errors":{json.dumps(errors, separators=(",", ":"))}}}'
    )


def rank_floats(ranking: Ranking) -> dict[str, Any]:
    """The same, decoded: what Lambda's own serialiser will print."""
    decoded: dict[str, Any] = json.loads(rank_json(ranking))
    return decoded


def _rows_json(numbers: NDArray[np.float32], failed: Sequence[bool]) -> str:
    """float32 [rows, columns] -> JSON text: `null` for a row that failed, and for a NaN."""
    rows = [
        "null" if is_null else to_json(row).replace("nan", "null")
        for row, is_null in zip(numbers, failed, strict=True)
    ]
    return f"[{','.join(rows)}]"
