"""What callers send, over HTTP and in direct invokes alike, and the images in it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from handler.errors import InvalidField, InvalidJson, MissingField, TooManyImages
from handler.images.s3 import Image, Source
from handler.images.strings import IMAGE_HELP, read_string
from handler.outcome import Outcome

MOST_VALUES = 2048
"""About, in one JSON body. Each is a few bytes, which parsing makes an object of a hundred."""


class Request(BaseModel):
    """What a caller sends as JSON."""

    model_config = ConfigDict(extra="forbid")
    example: ClassVar[str]
    """What to send, for the error of someone who sent no JSON object at all."""


Schema = TypeVar("Schema", bound=Request)


class S3Object(BaseModel):
    """An image in S3, in one of the buckets of ``CLIP_S3_BUCKETS``."""

    model_config = ConfigDict(extra="forbid")
    bucket: str = Field(min_length=1)
    key: str = Field(min_length=1, description="as it is, not percent-encoded")
    version_id: str | None = None


class EncodeRequest(Request):
    """One image, sent or in S3."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["image"]}, {"required": ["s3"]}]}
    )
    example = '{"image": "<base64 of a file>"} or {"s3": {"bucket": "photos", "key": "cat.jpg"}}'
    image: str = Field("", description=IMAGE_HELP, json_schema_extra={"minLength": 1})
    s3: S3Object | None = None

    def read(self) -> Image:
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
            raise MissingField(f"the field 'image' is missing or empty: send {self.example}")
        return read_string(self.image)


class EncodeBatchRequest(Request):
    """Many images; an item of the wrong type fails alone, so the type is checked per item."""

    example = '{"images": ["<base64 of a file>", "s3://photos/cat.jpg"]}'
    images: list[Any] = Field(min_length=1, description=f'each {IMAGE_HELP}, or {{"s3": {{...}}}}')


def validate(schema: type[Schema], body: bytes | bytearray | Mapping[str, Any]) -> Schema:
    """JSON text or a decoded object -> `schema`.

    Raises:
        InvalidJson, MissingField, InvalidField: what is wrong and where, never the value.
    """
    if isinstance(body, bytes | bytearray):
        # Counted before parsing: base64 holds none of these, and an object key of S3 seldom.
        values = body.count(b",") + body.count(b"{") + body.count(b"[")
    else:
        values = len(body)
    if values > MOST_VALUES:
        raise InvalidJson(f"the body holds {values:,} values, far more than a request needs")
    try:
        if isinstance(body, bytes | bytearray):
            return schema.model_validate_json(body)
        return schema.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(map(str, problem["loc"]))
    match problem["type"]:
        case "json_invalid" | "model_type" | "dataclass_type" if not name:
            raise InvalidJson(f"the body is not a JSON object: send {schema.example}")
        case "missing":
            raise MissingField(f"the field {name!r} is missing: send {schema.example}")
        case "extra_forbidden":
            known = ", ".join(schema.model_fields)
            raise InvalidField(f"unknown field {name[:64]!r}; known: {known}")
        case _:
            raise InvalidField(f"the field {name!r} is wrong: {problem['msg'].lower()}")


def read_images(items: Sequence[object], limit: int) -> list[Outcome[Image]]:
    """Each item of ``images``, a string or an `EncodeRequest`; a bad one becomes its error.

    Raises:
        TooManyImages: more than `limit`.
    """
    check_count(len(items), limit)
    return [Outcome.of(partial(read_image, item)) for item in items]


def read_image(item: object) -> Image:
    """An item of ``images``: a string, or an `EncodeRequest`.

    Raises:
        RequestError: neither, or as `EncodeRequest.read`.
    """
    if not isinstance(item, (str, dict)):
        raise InvalidField(f"an image must be a string ({IMAGE_HELP}) or {EncodeRequest.example}")
    return validate(EncodeRequest, item if isinstance(item, dict) else {"image": item}).read()


def check_count(count: int, limit: int) -> None:
    """Raise `TooManyImages` over `limit`."""
    if count > limit:
        raise TooManyImages(
            f"{count} images in one request, the limit is {limit}: send several requests"
        )
