"""What callers get: vectors and errors written out, and how many of them fit into an answer."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handler.engines import Embedding
from handler.errors import ResultTooLarge
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


# --- how many fit into an answer ------------------------------------------------------------------
# Whatever carries an answer refuses one that is too large, and the caller then gets a 502 that says
# nothing. So a request whose answer may become too large is refused before any work.

LAMBDA = 6_291_556
"""Bytes that Lambda takes as the answer to one invocation."""
LOAD_BALANCER = 1_000_000
"""Bytes that an Application Load Balancer takes from Lambda: 1 MB, by AWS's quotas."""
STEP_FUNCTIONS = 262_144
"""Bytes that Step Functions takes as the result of one task."""

_FRAME = 4096
"""Most bytes of an answer's headers, and of all else that it holds once."""
_NUMBER = 17
"""Most bytes of a float32 from -1 to 1 as Lambda writes one in a list: ``-1.04776625e-07, ``."""
_AROUND = 100
"""Most bytes around one vector: brackets, and in OpenAI's shape names and an index."""
_ERROR = 1500
"""Most bytes of one item's error: it may quote 64 characters, which take up to 14 bytes each."""
_NULL = 6
"""Bytes of what stands in the place of a number that is missing: ``null, ``."""
_ROW = 4
"""Bytes around one row of numbers: ``[], ``."""


def check_vectors(count: int, size: int, most: float, as_base64: bool = False) -> None:
    """Refuse to answer `count` vectors of `size` numbers if they may take over `most` bytes.

    An item that fails takes fewer bytes than a vector.

    Raises:
        ResultTooLarge: they may; the text says how many may be sent.
    """
    numbers = 4 * math.ceil(4 * size / 3) if as_base64 else _NUMBER * size
    fit = (most - _FRAME) // (numbers + _AROUND)
    if count > fit:
        raise ResultTooLarge(
            f"the answer to {count:,} items may have over {most:,} bytes, the most that can be "
            f"answered here: send at most {fit:,} in one request"
        )


def check_ranking(queries: int, candidates: int, most: float) -> None:
    """Refuse to answer a ranking of so many items if it may take over `most` bytes.

    Raises:
        ResultTooLarge: it may; the text says how many pairs may be sent.
    """
    pairs, room = queries * candidates, most - _FRAME - 2 * _ROW * queries
    # Each item that fails adds the same number of bytes. So the answer is largest where no item
    # fails, or where all of a list, or of both, do.
    all_fail = 2 * _NULL * pairs + _ERROR * (queries + candidates)
    if max(2 * _NUMBER * pairs, all_fail) > room:
        raise ResultTooLarge(
            f"the answer to {queries:,} x {candidates:,} pairs may have over {most:,} bytes, the "
            f"most that can be answered here: send at most {room // (2 * _NUMBER):,} pairs at once"
        )
