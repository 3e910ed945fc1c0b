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

Schema = TypeVar("Schema", bound=BaseModel)

IMAGE_HELP = "base64 of an image file, or a data: URI"


class EncodeRequest(BaseModel):
    """One image."""

    model_config = ConfigDict(extra="forbid")
    image: str = Field(description=IMAGE_HELP, json_schema_extra={"minLength": 1})


class EncodeBatchRequest(BaseModel):
    """Many images; an item of the wrong type fails alone, so the type is checked per item."""

    model_config = ConfigDict(extra="forbid")
    images: list[Any] = Field(min_length=1, description=f"each {IMAGE_HELP}")


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


def validate(schema: type[Schema], body: bytes | Mapping[str, Any], most: int = 16) -> Schema:
    """JSON text or a decoded object of at most about `most` values -> `schema`.

    Raises:
        InvalidJson, MissingField, InvalidField: what is wrong and where, never the value.
    """
    # Before parsing: a value of a few bytes becomes an object of a hundred. Base64 holds none of these.
    values = sum(map(body.count, (b",", b"{", b"["))) if isinstance(body, bytes) else len(body)
    if values > most + 16:
        raise InvalidJson(f"the body holds {values:,} values, far more than a request needs")
    try:
        return schema.model_validate_json(body) if isinstance(body, bytes) else schema.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    fields = ", ".join(schema.model_fields)
    name = ".".join(map(str, problem["loc"]))
    match problem["type"]:
        case "json_invalid" | "model_type" | "dataclass_type":
            raise InvalidJson(f'the body is not a JSON object: send {{"{fields}": ...}}')
        case "missing":
            raise MissingField(f"the field {name!r} is missing")
        case "extra_forbidden":
            raise InvalidField(f"unknown field {name[:64]!r}; known: {fields}")
        case _:
            raise InvalidField(f"the field {name!r} is wrong: {problem['msg'].lower()}")


def decode_base64(text: object) -> bytes:
    """``"<base64>"`` or ``"data:image/png;base64,<base64>"`` -> bytes. Line breaks are allowed.

    Raises:
        InvalidField: not a string.
        InvalidBase64: not base64; the detail says how to make it.
    """
    if not isinstance(text, str):
        raise InvalidField(f"an image must be a string holding {IMAGE_HELP}")
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise InvalidBase64("a data: URI must be of the form data:<type>;base64,<data>")
    try:
        data = text.encode("ascii")
        return binascii.a2b_base64(data.translate(None, b" \t\r\n"), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise InvalidBase64(f"the image is not valid base64: send {IMAGE_HELP}") from None


def decode_base64_batch(texts: Sequence[object], limit: int) -> list[bytes | ClipError]:
    """Like `decode_base64` for each item; a bad one becomes its error.

    Raises:
        TooManyImages: more than `limit`.
    """
    check_count(len(texts), limit)
    images: list[bytes | ClipError] = []
    for text in texts:
        try:
            images.append(decode_base64(text))
        except ClipError as error:
            images.append(error)
    return images


def check_count(count: int, limit: int) -> None:
    """Raise `TooManyImages` over `limit`."""
    if count > limit:
        raise TooManyImages(f"{count} images in one request, the limit is {limit}: send several requests")


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


def batch_errors(results: Sequence[Embedding | ClipError]) -> list[dict[str, object]]:
    """The ``errors`` of a batch response."""
    return [{"index": i, **r.body()} for i, r in enumerate(results) if isinstance(r, ClipError)]
