"""The models of all answers. Only the OpenAPI document needs them, so only that imports them."""

from pydantic import BaseModel, Field


class ErrorBody(BaseModel):
    """Every answer that is not 2xx."""

    code: str = Field(description="stable, for programs", examples=["truncated_image"])
    detail: str = Field(
        description="for people", examples=["the JPEG image ends before its data is complete"]
    )


class BatchError(ErrorBody):
    """One image or text of a batch that could not be encoded."""

    index: int = Field(description="position in the request, from 0")


class BatchResponse(BaseModel):
    """The answer to a batch, in the order of the request."""

    embeddings: list[list[float] | None]
    errors: list[BatchError]


class TextBatchResponse(BatchResponse):
    """The answer to a batch of texts."""

    truncated: list[int] = Field(description="which texts were encoded without their ends")


Rows = list[list[float | None] | None]


class RankError(BatchError):
    """An item of a ranking that could not be encoded."""

    list: str = Field(description="queries or candidates: where the item is")


class RankResponse(BaseModel):
    """How well candidates fit queries: a row is a query, a column a candidate.

    The row of a query that could not be encoded is null, and so is the number of such a candidate
    in every row.
    """

    probabilities: Rows = Field(
        description="how probable it is, by CLIP, that of all these candidates it is this one that "
        "fits the query; each row's sum is 1"
    )
    cosine_similarities: Rows = Field(description="from -1 to 1, whatever the other candidates")
    errors: list[RankError]


class Health(BaseModel):
    """Whether vectors can be trusted, and what made them."""

    status: str = Field(description="healthy, synthetic (weights that mean nothing) or unhealthy")
    model: str
    device: str
    embedding_size: int
    engine: str
    weights: str = Field(description="openai, custom or synthetic")
    version: str
    fingerprint: str | None = Field(
        description="of vectors of images, null where none are served; never mix vectors of "
        "unequal fingerprints"
    )
    cpu_features: list[str] = Field(
        description="what the processor has, by the kernel's words, of the features that decide "
        "how fast the engine is; empty where the kernel says nothing",
        examples=[["avx2", "avx512f", "avx512_vnni"]],
    )
    sandbox: dict[str, bool] | None = Field(
        description="what a decoder that was taken over is kept from, tried at the start; null "
        "where no images are decoded",
        examples=[{"memory": True, "cpu": True, "files": True, "syscalls": False}],
    )
    towers: list[str] = Field(description="what is encoded here: image, text, or both")
    text_fingerprint: str | None = Field(
        description="of vectors of texts, null before the first text. They may be compared with "
        "those of images whose fingerprints begin with the same three parts"
    )
    logit_scale: float = Field(
        description="what cosines are multiplied by before a softmax makes probabilities of them"
    )
