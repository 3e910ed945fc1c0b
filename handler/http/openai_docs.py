"""What the OpenAPI document says of the routes in `handler.http.openai`.

It is written out, because models of pydantic would be compiled at every cold start.
"""

from http import HTTPStatus
from typing import Any

Schema = dict[str, Any]

_IMAGE = (  # a real GIF of one pixel, so that the example works when pasted
    "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
)
_TEXT, _WHOLE = {"type": "string"}, {"type": "integer"}
_NUMBERS = {"type": "array", "items": {"type": "number"}}


def _object(**properties: Schema) -> Schema:
    """An object that has all of these."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _constant(value: str) -> Schema:
    return {"type": "string", "const": value}


def _optional(description: str, *values: object) -> Schema:
    return {"enum": [*values, None], "description": description}


_PART = {
    "anyOf": [
        _object(type=_constant("text"), text=_TEXT),
        _object(type=_constant("image_url"), image_url=_object(url=_TEXT)),
    ]
}
_ITEM = {
    "description": "a text or an image; a string is a text, unless it begins with `data:image/` or "
    "`s3://`, and so is an image",
    "anyOf": [
        _TEXT,
        _object(text=_TEXT),
        _object(image=_TEXT),
        _object(content={"type": "array", "minItems": 1, "maxItems": 1, "items": _PART}),
    ],
}
_REQUEST = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {"anyOf": [_ITEM, {"type": "array", "minItems": 1, "items": _ITEM}]},
        "model": {"type": ["string", "null"], "description": "an id of `GET /v1/models`"},
        "encoding_format": _optional(
            "numbers, the default, or base64 of them as float32, little-endian", "float", "base64"
        ),
        "dimensions": {
            "type": ["integer", "null"],
            "description": "how many numbers a vector has; there is no choice",
        },
        "modality": _optional(
            "what strings are; by default only `data:image/...` and `s3://...` are images",
            *("text", "image"),
        ),
        "truncate": _optional(
            "whether a text of more than 77 tokens is cut, and not refused", True, False
        ),
    },
}
_EXAMPLES = {
    "a text": {"value": {"model": "ViT-B-32", "input": "a photo of a cat"}},
    "a text and an image": {
        "value": {"input": ["a photo of a cat", _IMAGE], "encoding_format": "base64"}
    },
}

_EMBEDDING = _object(
    object=_constant("embedding"), index=_WHOLE, embedding={"anyOf": [_NUMBERS, _TEXT]}
)
_EMBEDDINGS = _object(
    object=_constant("list"),
    data={"type": "array", "items": _EMBEDDING},
    model=_TEXT,
    usage=_object(prompt_tokens=_WHOLE, total_tokens=_WHOLE),
)
_MODEL = _object(id=_TEXT, object=_constant("model"), created=_WHOLE, owned_by=_TEXT)
_MODELS = _object(object=_constant("list"), data={"type": "array", "items": _MODEL})
_ERROR = _object(
    error=_object(
        message=_TEXT,
        type=_TEXT,
        param={"type": ["string", "null"], "description": "what is wrong, such as input[3]"},
        code=_TEXT,
    )
)

_ERRORS = (400, 403, 404, 408, 413, 415, 422, 503)
_HEADERS = {
    "X-Clip-Fingerprint": "names what made the vectors: images', texts', or both, comma separated",
    "X-Clip-Truncated": "there if the end of a text was cut off",
}

Responses = dict[int | str, dict[str, Any]]
"""What FastAPI takes as ``responses`` of a route."""


def _responses(good: Schema) -> Responses:
    schemas = {200: good} | dict.fromkeys(_ERRORS, _ERROR)
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": schema}},
        }
        for status, schema in schemas.items()
    }


REQUEST = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _REQUEST, "examples": _EXAMPLES}},
    }
}
EMBEDDINGS = _responses(_EMBEDDINGS)
EMBEDDINGS[200]["headers"] = {
    name: {"description": description, "schema": _TEXT} for name, description in _HEADERS.items()
}
MODELS = _responses(_MODELS)
MODEL = _responses(_MODEL)
