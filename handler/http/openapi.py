"""What the OpenAPI document says of bodies that FastAPI cannot see, and of answers.

The routes read bodies by their Content-Type, so FastAPI knows nothing of them. This module is
imported when somebody asks for the document.
"""

from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from handler.http.models import (
    BatchResponse,
    ErrorBody,
    Health,
    RankResponse,
    TextBatchResponse,
)
from handler.schemas import (
    EncodeBatchRequest,
    EncodeRequest,
    EncodeTextRequest,
    EncodeTextsRequest,
    RankItem,
    RankRequest,
)

IMAGE = (  # a real 8 x 8 PNG, so that the examples work when pasted
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAGUlEQVR4"
    "2mNkYGhQYWDARCwMKgxYweCUAACHmwKWKHHObgAAAABJRU5ErkJggg=="
)
_FILE = {"type": "string", "format": "binary"}


def _bodies(**content: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": content}


def _json(model: type[BaseModel], **examples: object) -> dict[str, Any]:
    return {
        "application/json": {
            "schema": _schema(model),
            "examples": {
                name.replace("_", " "): {"value": value} for name, value in examples.items()
            },
        }
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """A request's schema, without references, and without the defaults of what may be left out."""
    schema = model.model_json_schema()
    properties = schema["properties"]
    if "s3" in properties:
        properties["s3"] = schema.pop("$defs")["S3Object"]
        del properties["s3"]["properties"]["version_id"]["default"]
    for field in properties.values():
        if field.get("default", 0) in ("", None):
            del field["default"]
    return schema


def _rank_schema() -> dict[str, Any]:
    schema = _schema(RankRequest)
    for name in ("queries", "candidates"):
        schema["properties"][name]["items"] = _schema(RankItem)
    return schema


def _form(field: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": [field], "properties": {field: schema}}}


ENCODE_IMAGE = _bodies(
    **{
        "multipart/form-data": _form("image", _FILE),
        **_json(
            EncodeRequest,
            base64={"image": IMAGE},
            data_URI={"image": f"data:image/png;base64,{IMAGE}"},
        ),
        "image/*": {"schema": _FILE},
        "application/octet-stream": {"schema": _FILE},
    }
)

ENCODE_IMAGES = _bodies(
    **{
        "multipart/form-data": _form("images", {"type": "array", "minItems": 1, "items": _FILE}),
        **_json(EncodeBatchRequest, one_good_one_bad={"images": [IMAGE, "not base64"]}),
    }
)

ENCODE_TEXT = _bodies(
    **_json(
        EncodeTextRequest,
        a_caption={"text": "a pair of red shoes"},
        cut_if_it_is_long={"text": "red shoes, " * 40, "truncate": True},
    )
)

ENCODE_TEXTS = _bodies(
    **_json(
        EncodeTextsRequest,
        one_good_one_bad={"texts": ["a pair of red shoes", 7]},
    )
)

_LABELS = [{"text": "shoe"}, {"text": "cat"}]
RANK = _bodies(
    **_json(
        RankRequest,
        what_an_image_shows={
            "queries": [{"image": IMAGE}],
            "candidates": _LABELS,
            "templates": ["a photo of a {}.", "a drawing of a {}."],
        },
        images_for_a_text={
            "queries": [{"text": "a pair of red shoes"}],
            "candidates": [{"image": IMAGE}, {"image": "not base64"}],
        },
    )
)
RANK["content"]["application/json"]["schema"] = _rank_schema()

FINGERPRINT = {
    "X-Clip-Fingerprint": {
        "description": "names what made the vectors: images', texts', or both with a comma between",
        "schema": {"type": "string"},
    }
}
TRUNCATED = {
    "X-Clip-Truncated": {
        "description": "there if the end of a text was cut off",
        "schema": {"type": "string", "const": "true"},
    }
}

ERRORS = {
    400: "The request cannot be read",
    403: "An image in S3 that this service may not read",
    404: "An image that S3 does not have",
    408: "The body came too slowly",
    413: "Too many bytes, pixels, images or texts, or an answer that would be too large",
    415: "A Content-Type that is not read here",
    422: "Not an image that can be encoded, or one that costs too much to decode; or a text that "
    "is too long; or what this service was set up without",
    503: "Not now: too busy, out of time, S3 does not deliver, or the model is at fault",
}


class Operation(NamedTuple):
    """What a route reads and answers."""

    body: dict[str, Any] | None
    answer: type[BaseModel] | None
    """The model of its JSON; None: one vector, as JSON or as bytes."""
    headers: dict[str, Any]


OPERATIONS = {
    ("post", "/encode_image"): Operation(ENCODE_IMAGE, None, FINGERPRINT),
    ("post", "/encode_images"): Operation(ENCODE_IMAGES, BatchResponse, FINGERPRINT),
    ("post", "/encode_text"): Operation(ENCODE_TEXT, None, FINGERPRINT | TRUNCATED),
    ("post", "/encode_texts"): Operation(ENCODE_TEXTS, TextBatchResponse, FINGERPRINT | TRUNCATED),
    ("post", "/rank"): Operation(RANK, RankResponse, FINGERPRINT | TRUNCATED),
    ("get", "/health"): Operation(None, Health, FINGERPRINT),
}


def complete(document: dict[str, Any], embedding_size: int) -> dict[str, Any]:
    """FastAPI's document, with what the routes of `OPERATIONS` read and answer."""
    models: list[type[BaseModel]] = [ErrorBody]
    models += [operation.answer for operation in OPERATIONS.values() if operation.answer]
    _, definitions = models_json_schema(
        [(model, "serialization") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= definitions["$defs"]
    for (method, path), operation in OPERATIONS.items():
        described = document["paths"][path][method]
        if operation.body:
            described["requestBody"] = operation.body
        described["responses"] = _responses(operation, embedding_size)
    return document


def _responses(operation: Operation, embedding_size: int) -> dict[str, Any]:
    if operation.answer is None:
        good = _embedding(embedding_size)
    else:
        good = {"description": "Done", "content": _content(operation.answer)}
    responses = {"200": good | {"headers": operation.headers}}
    for status, description in ERRORS.items():
        # An unhealthy service says why in the same form as a healthy one.
        answer = ErrorBody if operation.body else Health
        if operation.body or status == 503:
            responses[str(status)] = {"description": description, "content": _content(answer)}
    return responses


def _embedding(size: int) -> dict[str, Any]:
    numbers = {
        "type": "array",
        "items": {"type": "number"},
        "minItems": size,
        "maxItems": size,
    }
    return {
        "description": f"{size} numbers of unit length; float32 bytes, little-endian, if `Accept` "
        "asks",
        "content": {
            "application/json": {"schema": numbers},
            "application/octet-stream": {"schema": _FILE},
        },
    }


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
