"""Request and response bodies, shared by HTTP and direct invokes: bytes come out of requests here."""

import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from handler.encoder import Embedding
from handler.errors import (
    ClipError,
    InvalidBase64,
    InvalidField,
    InvalidJson,
    InvalidMultipart,
    MissingField,
    TooManyImages,
)
from handler.images.s3 import Source, parse_uri

Schema = TypeVar("Schema", bound=BaseModel)

IMAGE_HELP = "base64 of an image file, a data: URI, or s3://bucket/key"
MOST_VALUES = 2048
"""In one JSON body, about: before parsing, a value of a few bytes becomes an object of a hundred.
"""


class S3Object(BaseModel):
    """An image in S3, in one of the buckets of ``CLIP_S3_BUCKETS``."""

    model_config = ConfigDict(extra="forbid")
    bucket: str = Field(min_length=1)
    key: str = Field(min_length=1, description="as it is, not percent-encoded")
    version_id: str | None = None


class EncodeRequest(BaseModel):
    """One image, sent or in S3."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"oneOf": [{"required": ["image"]}, {"required": ["s3"]}]}
    )
    image: str = Field("", description=IMAGE_HELP, json_schema_extra={"minLength": 1})
    s3: S3Object | None = None

    def read(self) -> bytes | Source:
        """The image, or where it is.

        Raises:
            MissingField, InvalidField: none, or two.
            InvalidBase64: not base64; the detail says how to make it.
        """
        if self.s3 and self.image:
            raise InvalidField("send either 'image' or 's3', not both")
        if self.s3:
            return Source(self.s3.bucket, self.s3.key, self.s3.version_id or "")
        if not self.image:
            raise MissingField("the field 'image' is missing or empty")
        return (
            parse_uri(self.image) if self.image.startswith("s3://") else decode_base64(self.image)
        )


class EncodeBatchRequest(BaseModel):
    """Many images; an item of the wrong type fails alone, so the type is checked per item."""

    model_config = ConfigDict(extra="forbid")
    images: list[Any] = Field(min_length=1, description=f'each {IMAGE_HELP}, or {{"s3": {{...}}}}')


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


def validate(schema: type[Schema], body: bytes | Mapping[str, Any]) -> Schema:
    """JSON text or a decoded object -> `schema`.

    Raises:
        InvalidJson, MissingField, InvalidField: what is wrong and where, never the value.
    """
    # Counted before parsing: base64 holds none of these, and an object key of S3 seldom.
    values = sum(map(body.count, (b",", b"{", b"["))) if isinstance(body, bytes) else len(body)
    if values > MOST_VALUES:
        raise InvalidJson(f"the body holds {values:,} values, far more than a request needs")
    try:
        return (
            schema.model_validate_json(body)
            if isinstance(body, bytes)
            else schema.model_validate(body)
        )
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    fields = ", ".join(schema.model_fields)
    name = ".".join(map(str, problem["loc"]))
    match problem["type"]:
        case "json_invalid" | "model_type" | "dataclass_type" if not name:
            raise InvalidJson(f'the body is not a JSON object: send {{"{fields}": ...}}')
        case "missing":
            raise MissingField(f"the field {name!r} is missing")
        case "extra_forbidden":
            raise InvalidField(f"unknown field {name[:64]!r}; known: {fields}")
        case _:
            raise InvalidField(f"the field {name!r} is wrong: {problem['msg'].lower()}")


def decode_base64(text: str) -> bytes:
    """``"<base64>"`` or ``"data:image/png;base64,<base64>"`` -> bytes. Line breaks are allowed.

    Raises:
        InvalidBase64: not base64; the detail says how to make it.
    """
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise InvalidBase64("a data: URI must be of the form data:<type>;base64,<data>")
    try:
        data = text.encode("ascii")
        return binascii.a2b_base64(data.translate(None, b" \t\r\n"), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise InvalidBase64(f"the image is not valid base64: send {IMAGE_HELP}") from None


def read_images(items: Sequence[object], limit: int) -> list[bytes | ClipError | Source]:
    """Each item of ``images``, a string or an `EncodeRequest`; a bad one becomes its error.

    Raises:
        TooManyImages: more than `limit`.
    """
    check_count(len(items), limit)
    images: list[bytes | ClipError | Source] = []
    for item in items:
        try:
            images.append(read_image(item))
        except ClipError as error:
            images.append(error)
    return images


def read_image(item: object) -> bytes | Source:
    """An item of ``images``: a string, or an `EncodeRequest`.

    Raises:
        RequestError: neither, or as `EncodeRequest.read`.
    """
    if not isinstance(item, (str, dict)):
        raise InvalidField(f'an image must be a string ({IMAGE_HELP}) or an object {{"s3": ...}}')
    return validate(EncodeRequest, item if isinstance(item, dict) else {"image": item}).read()


def check_count(count: int, limit: int) -> None:
    """Raise `TooManyImages` over `limit`."""
    if count > limit:
        raise TooManyImages(
            f"{count} images in one request, the limit is {limit}: send several requests"
        )


def multipart_parts(content_type: str, body: bytes, field: str, most: int = 16) -> list[bytes]:
    """The bytes of every part named `field`, in order; of all names, at most `most` parts.

    Raises:
        InvalidMultipart: no boundary, or malformed.
        MissingField: no such part.
        TooManyImages: more parts than `most`.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidMultipart("the Content-Type has no boundary: let your HTTP client set it")
    parts = _parse_multipart(boundary, body, most)
    found = [bytes(data) for name, data in parts if name == field]
    if not found:
        names = ", ".join(sorted({repr(name[:64]) for name, _ in parts if name})[:10]) or "none"
        raise MissingField(f"no part named {field!r} in the form; parts sent: {names}")
    return found


def _parse_multipart(boundary: bytes, body: bytes, most: int) -> list[tuple[str, bytearray]]:
    """(name, data) of every part. The body is in memory already: no temporary files."""
    parts: list[tuple[str, bytearray]] = []
    header, value = bytearray(), bytearray()
    ended = False

    def on_header_end() -> None:
        if header.lower() == b"content-disposition":
            name = parse_options_header(bytes(value))[1].get(b"name", b"")
            parts[-1] = (name.decode("utf-8", "replace"), bytearray())
        header.clear()
        value.clear()

    def on_part_begin() -> None:
        parts.append(("", bytearray()))
        if len(parts) > most:
            raise TooManyImages(f"more than {most} parts in one form: send several requests")

    def on_end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": on_part_begin,
                "on_part_data": lambda data, start, end: parts[-1][1].extend(data[start:end]),
                "on_header_field": lambda data, start, end: header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: value.extend(data[start:end]),
                "on_header_end": on_header_end,
                "on_end": on_end,
            },
        )
        parser.write(body)
    except FormParserError:
        ended = False
    if not ended:
        raise InvalidMultipart("the body is not well-formed multipart/form-data, or ends too early")
    return parts


def to_json(embedding: Embedding) -> str:
    """float32 [512] -> a JSON array of the shortest decimals that give the same float32 back."""
    return f"[{','.join(map(str, embedding))}]"


def to_floats(embedding: Embedding) -> list[float]:
    """The same decimals as `to_json`, as Python floats: what Lambda's own serialiser will print."""
    floats: list[float] = json.loads(to_json(embedding))
    return floats


def to_bytes(embedding: Embedding) -> bytes:
    """float32 [512] -> 2,048 bytes, little-endian."""
    return embedding.astype("<f4").tobytes()


def batch_errors(results: Sequence[Embedding | ClipError]) -> list[dict[str, Any]]:
    """The ``errors`` of a batch response."""
    return [{"index": i, **r.body()} for i, r in enumerate(results) if isinstance(r, ClipError)]


def batch_floats(results: Sequence[Embedding | ClipError]) -> list[list[float] | None]:
    """The ``embeddings`` of a batch response."""
    return [None if isinstance(result, ClipError) else to_floats(result) for result in results]
