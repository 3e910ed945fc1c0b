"""What callers send, over HTTP and in direct invokes alike, and the images and texts in it."""

import math
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from handler.config import Config
from handler.engines import Embedding
from handler.errors import (
    InvalidField,
    InvalidJson,
    MissingField,
    TooManyImages,
    TooManyTexts,
)
from handler.images.s3 import Image, Source
from handler.images.strings import IMAGE_HELP, decode_base64, read_string
from handler.outcome import Outcome
from handler.rank import Entry, Lists

TEXT_HELP = "a text of at most 77 tokens, which are about 60 words"
TRUNCATE_HELP = "whether the end of a text of more than 77 tokens is cut off, not refused"
EMBEDDING_HELP = "a vector of this service: its numbers, or base64 of them as float32 bytes"

MOST_FIELDS = 100
"""In one object. No request has more than seven, and of each that is unknown pydantic makes an
error of a kilobyte."""
MOST_TEMPLATES = 1000
"""In one ranking. For as many that are wrong, pydantic makes as many errors."""
MOST_ITEMS = 1024
"""In both lists of one ranking together. With half of them in each there are 262,144 pairs, and
two numbers are answered for each: up to 8.4 MB of JSON."""

_building = threading.Lock()


class Request(BaseModel):
    """What a caller sends as JSON."""

    model_config = ConfigDict(extra="forbid")
    example: ClassVar[str]
    """What to send, for the error of someone who sent no JSON object at all."""
    most_values: ClassVar[int] = 2048
    """About, in one body. Each is a byte or more, which parsing makes an object of a hundred."""


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


class OfTexts(Request):
    """A request that may hold texts.

    Such models are compiled when the first of them comes (see `validate`), because a cold start
    that answers an image needs none of them.
    """

    model_config = ConfigDict(defer_build=True)
    # Texts have commas too: this allows 256 for each of 256 texts. Were they all values of JSON,
    # parsing would make 10 MB of them.
    most_values = 2**16
    truncate: bool = Field(False, strict=True, description=TRUNCATE_HELP)


class EncodeTextRequest(OfTexts):
    """One text."""

    example = '{"text": "a red shoe"}'
    text: str = Field(description=TEXT_HELP)

    def read(self) -> str:
        """The text; raises as `read_text`."""
        return read_text(self.text)


class EncodeTextsRequest(OfTexts):
    """Many texts; an item of the wrong type fails alone, so the type is checked per item."""

    example = '{"texts": ["a red shoe", "a photo of a cat"]}'
    texts: list[Any] = Field(min_length=1, description=f"each {TEXT_HELP}")


class RankItem(Request):
    """An image, a text or a vector."""

    model_config = ConfigDict(
        defer_build=True,
        json_schema_extra={
            "oneOf": [{"required": [name]} for name in ("image", "s3", "text", "embedding")]
        },
    )
    example = '{"image": "<base64 of a file>"}, {"s3": {...}}, {"text": ...} or {"embedding": ...}'
    image: str | None = Field(None, description=IMAGE_HELP)
    s3: S3Object | None = None
    text: str | None = Field(None, description=TEXT_HELP)
    embedding: Any = Field(
        None,
        description=EMBEDDING_HELP,
        json_schema_extra={
            "anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]
        },
    )

    def read(self, size: int) -> Entry:
        """The one thing that this is; `size` is how many numbers a vector has.

        Raises:
            InvalidField: it is none, or several, or a vector of another size, of no direction, or
                of numbers that are not finite.
            InvalidBase64, MissingField: see `read_image` and `read_embedding`.
        """
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise InvalidField(f"an item must be one of {self.example}, and only one")
        if self.text is not None:
            return read_text(self.text)
        if self.embedding is not None:
            return read_embedding(self.embedding, size)
        return EncodeRequest(image=self.image or "", s3=self.s3).read()


# Longer ones could not be read, and each would be copied once for each text.
_TEMPLATE = Field(max_length=1000, json_schema_extra={"pattern": r"\{\}"})


class RankRequest(OfTexts):
    """Queries, and candidates that are ranked for each of them."""

    example = '{"queries": [{"image": "s3://photos/1.jpg"}], "candidates": [{"text": "a shoe"}]}'
    # Room for 500 vectors as lists of numbers. Parsing makes at most 50 MB of so many values.
    most_values = 2**18
    queries: list[Any] = Field(min_length=1, description=f"each {RankItem.example}")
    candidates: list[Any] = Field(min_length=1, description="each as a query")
    templates: list[Annotated[str, _TEMPLATE]] = Field(
        [],
        max_length=MOST_TEMPLATES,
        description="texts with {} where a candidate's text is put, such as 'a photo of a {}.': "
        "the candidate's vector is the mean of those of all templates, made of unit length",
    )

    def read(self, config: Config, size: int) -> Lists:
        """The lists to rank; a bad item becomes its error.

        Raises:
            InvalidField: there are more than `MOST_ITEMS`, or a template has no place for a text.
            TooManyImages, TooManyTexts: a text counts as often as there are templates.
        """
        count = len(self.queries) + len(self.candidates)
        if count > MOST_ITEMS:
            raise InvalidField(
                f"{count:,} items in one ranking, the limit is {MOST_ITEMS:,}: send several of them"
            )
        for template in self.templates:
            _check_template(template)
        queries, candidates = (
            [Outcome.of(partial(read_item, item, size)) for item in items]
            for items in (self.queries, self.candidates)
        )
        entries = [item.value for item in (*queries, *candidates)]
        check_count(sum(isinstance(entry, Image) for entry in entries), config.max_images)
        texts = sum(isinstance(item.value, str) for item in candidates)
        texts *= max(1, len(self.templates))
        texts += sum(isinstance(item.value, str) for item in queries)
        check_text_count(texts, config.max_texts)
        return Lists(queries, candidates, self.templates, self.truncate)


class RankEvent(Request):
    """A direct invoke that ranks: it has the request as a field."""

    model_config = ConfigDict(defer_build=True)
    example = f'{{"rank": {RankRequest.example}}}'
    rank: RankRequest


def validate(schema: type[Schema], body: bytes | bytearray | Mapping[str, Any]) -> Schema:
    """JSON text or a decoded object -> `schema`.

    Raises:
        InvalidJson, MissingField, InvalidField: what is wrong and where, never the value.
    """
    fields = body if isinstance(body, Mapping) else decode(body, schema.example, schema.most_values)
    if len(fields) > MOST_FIELDS:
        raise InvalidField(f"the request has {len(fields):,} fields, far more than there are")
    _build(schema)
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(map(str, problem["loc"]))
    match problem["type"]:
        case "missing":
            raise MissingField(f"the field {name!r} is missing: send {schema.example}")
        case "model_type":
            raise InvalidField(f"the field {name!r} is wrong: it should be an object")
        case "extra_forbidden":
            known = ", ".join(schema.model_fields)
            raise InvalidField(f"unknown field {name[:64]!r}; known: {known}")
        case _:
            raise InvalidField(f"the field {name!r} is wrong: {problem['msg'].lower()}")


def decode(body: bytes | bytearray, example: str, most_values: int) -> dict[str, Any]:
    """JSON text -> the object that it is; `example` is what should have been sent.

    Raises:
        InvalidJson: it is none, or one of more than about `most_values`.
    """
    # Counted before parsing: base64 holds none of these, an object key of S3 seldom, and of texts
    # it is known.
    values = body.count(b",") + body.count(b"{") + body.count(b"[")
    if values > most_values:
        raise InvalidJson(f"the body holds {values:,} values, far more than a request needs")
    try:
        decoded = from_json(body)
    except ValueError as error:
        raise InvalidJson(f"the body is not a JSON object ({error}): send {example}") from None
    if not isinstance(decoded, dict):
        raise InvalidJson(f"the body is not a JSON object: send {example}")
    return decoded


def _build(schema: type[Request]) -> None:
    """Compile a model that was not compiled when it was imported; once, whoever else asks."""
    if not schema.__pydantic_complete__:
        with _building:  # pydantic does not keep two threads from doing it at once
            schema.model_rebuild()


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


def read_texts(items: Sequence[object], limit: int) -> list[Outcome[str]]:
    """Each item of ``texts``; one that is no text becomes its error.

    Raises:
        TooManyTexts: more than `limit`.
    """
    check_text_count(len(items), limit)
    return [Outcome.of(partial(read_text, item)) for item in items]


def read_text(item: object) -> str:
    """An item of ``texts``.

    Raises:
        InvalidField: it is no string, or one that no UTF-8 can hold.
    """
    if not isinstance(item, str):
        raise InvalidField("a text must be a string")
    try:
        item.encode()
    except UnicodeEncodeError:  # JSON can write such a thing: "\\ud800"
        raise InvalidField(
            "the text holds half of a surrogate pair, which is no character: send it whole"
        ) from None
    return item


def check_text_count(count: int, limit: int) -> None:
    """Raise `TooManyTexts` over `limit`."""
    if count > limit:
        raise TooManyTexts(
            f"{count:,} texts in one request (a text counts once for each template), the limit is "
            f"{limit:,}: send several requests"
        )


def _check_template(template: str) -> None:
    if template.count("{}") != 1:
        raise InvalidField(
            "a template must have {} once, in the place of the text: 'a photo of a {}.'"
        )


def read_item(item: object, size: int) -> Entry:
    """An item of ``queries`` or ``candidates``; `size` is how many numbers a vector has.

    Raises:
        RequestError: it is none, or as `RankItem.read`.
    """
    if not isinstance(item, dict):
        raise InvalidField(f"an item must be one of {RankItem.example}")
    return validate(RankItem, item).read(size)


def read_embedding(value: object, size: int) -> Embedding:
    """A vector that the caller has -> float32 [size], unit length.

    Raises:
        InvalidField: it is no list of `size` finite numbers, nor base64 of so many, or all are 0.
        InvalidBase64: it is a string, but not base64.
    """
    numbers = np.asarray(_numbers(value, size))
    if not np.isfinite(numbers).all() or not numbers.any():
        raise InvalidField("the numbers of an embedding must be finite, and not all of them 0")
    vector = numbers.astype(np.float64)
    vector /= np.abs(vector).max()  # so that no square is too large or too small for a float
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _numbers(value: object, size: int) -> Sequence[float] | NDArray[np.float32]:
    """`size` numbers, of whatever value."""
    if isinstance(value, str):
        data = decode_base64(value, "the embedding is not valid base64: send " + EMBEDDING_HELP)
        if len(data) == 4 * size:
            return np.frombuffer(data, "<f4")
    elif isinstance(value, list) and len(value) == size:
        try:
            if all(type(number) in (int, float) for number in value):  # True is an int too
                return [float(number) for number in value]
        except OverflowError:  # an int that no float can hold
            return [math.inf] * size
    raise InvalidField(
        f"an embedding must be a list of {size} numbers, or base64 of {4 * size:,} bytes, which "
        "are float32 numbers, little-endian"
    )
