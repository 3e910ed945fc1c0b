"""What `/docs` says of bodies that FastAPI cannot see, because routes read them by Content-Type."""

from typing import Any

from pydantic import BaseModel

from handler.answers import ErrorBody
from handler.schemas import EncodeBatchRequest, EncodeRequest

_IMAGE = (  # a real 8 x 8 PNG, so that the examples work when pasted
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAGUlEQVR4"
    "2mNkYGhQYWDARCwMKgxYweCUAACHmwKWKHHObgAAAABJRU5ErkJggg=="
)
_FILE = {"type": "string", "format": "binary"}


def _bodies(**content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """A schema without references, which here would point outside the document."""
    schema = model.model_json_schema()
    if "s3" in schema["properties"]:
        schema["properties"]["s3"] = schema.pop("$defs")["S3Object"]
        del (
            schema["properties"]["image"]["default"],
            schema["properties"]["s3"]["properties"]["version_id"]["default"],
        )
    return schema


def _form(field: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": [field], "properties": {field: schema}}}


ENCODE_IMAGE = _bodies(
    **{
        "multipart/form-data": _form("image", _FILE),
        "application/json": {
            "schema": _schema(EncodeRequest),
            "examples": {
                "base64": {"value": {"image": _IMAGE}},
                "data: URI": {"value": {"image": f"data:image/png;base64,{_IMAGE}"}},
            },
        },
        "image/*": {"schema": _FILE},
        "application/octet-stream": {"schema": _FILE},
    }
)

ENCODE_IMAGES = _bodies(
    **{
        "multipart/form-data": _form("images", {"type": "array", "minItems": 1, "items": _FILE}),
        "application/json": {
            "schema": _schema(EncodeBatchRequest),
            "examples": {"one good, one bad": {"value": {"images": [_IMAGE, "not base64"]}}},
        },
    }
)

Answers = dict[int | str, dict[str, Any]]
"""Status -> what an answer of that status holds, as FastAPI takes it."""


def embedding(size: int) -> Answers:
    """The answer that is one vector of `size` numbers."""
    numbers = {"type": "array", "items": {"type": "number"}, "minItems": size, "maxItems": size}
    return {
        200: {
            "description": f"{size} numbers of unit length; float32 bytes, little-endian, "
            "if `Accept` asks",
            "content": {
                "application/json": {"schema": numbers},
                "application/octet-stream": {"schema": _FILE},
            },
        }
    }


ERRORS: Answers = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request cannot be read",
        403: "An image in S3 that this service may not read",
        404: "An image that S3 does not have",
        408: "The body came too slowly",
        413: "Too many bytes, pixels or images",
        415: "A Content-Type that is not read here",
        422: "Not an image that can be encoded, or one that costs too much to decode",
        503: "Not now: too busy, out of time, S3 does not deliver, or the model is at fault",
    }.items()
}
