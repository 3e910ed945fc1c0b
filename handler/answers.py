"""What callers get: the models of every answer, and vectors written out."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from handler.engines import Embedding
from handler.outcome import Outcome


class ErrorBody(BaseModel):
    """Every answer that is not 2xx."""

    code: str = Field(description="stable, for programs", examples=["truncated_image"])
    detail: str = Field(
        description="for people", examples=["the JPEG image ends before its data is complete"]
    )


class BatchError(ErrorBody):
    """One image of a batch that could not be encoded."""

    index: int = Field(description="position in the request, from 0")


class BatchResponse(BaseModel):
    """The answer to a batch, in the order of the request."""

    embeddings: list[list[float] | None]
    errors: list[BatchError]


class Health(BaseModel):
    """Whether vectors can be trusted, and what made them."""

    status: str = Field(description="healthy, synthetic (weights that mean nothing) or unhealthy")
    model: str
    device: str
    embedding_size: int
    engine: str
    weights: str = Field(description="openai, custom or synthetic")
    version: str
    fingerprint: str = Field(description="never mix vectors of unequal fingerprints")
    cpu_features: list[str] = Field(
        description="what the processor has, by the kernel's words, of the features that decide "
        "how fast the engine is; empty where the kernel says nothing",
        examples=[["avx2", "avx512f", "avx512_vnni"]],
    )


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


def batch_errors(outcomes: Sequence[Outcome[Embedding]]) -> list[dict[str, Any]]:
    """The ``errors`` of a batch response."""
    errors = [(index, outcome.error) for index, outcome in enumerate(outcomes)]
    return [{"index": index, **error.body()} for index, error in errors if error]


def batch_floats(outcomes: Sequence[Outcome[Embedding]]) -> list[list[float] | None]:
    """The ``embeddings`` of a batch response: `None` where there is an error."""
    return [None if outcome.error else to_floats(outcome.get()) for outcome in outcomes]


def batch_json(outcomes: Sequence[Outcome[Embedding]]) -> str:
    """A batch response as JSON text."""
    embeddings = ["null" if outcome.error else to_json(outcome.get()) for outcome in outcomes]
    errors = json.dumps(batch_errors(outcomes), separators=(",", ":"))
    return f'{{"embeddings":[{",".join(embeddings)}],"errors":{errors}}}'
