"""What the OpenAPI document says of the routes in `handler.http.openai`.

It is written out and not made of models: unlike ours, these routes take almost anything.
"""

from collections.abc import Mapping
from typing import Any

from handler.http.openai import ITEM_HELP
from handler.http.openapi import ERRORS, FINGERPRINT, IMAGE, TRUNCATED

Schema = dict[str, Any]

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
    "description": ITEM_HELP,
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
        "value": {
            "input": ["a photo of a cat", f"data:image/png;base64,{IMAGE}"],
            "encoding_format": "base64",
        }
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


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, with what the routes of OpenAI's API read and answer."""
    paths = document["paths"]
    embeddings = paths["/v1/embeddings"]["post"]
    embeddings["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": _REQUEST, "examples": _EXAMPLES}},
    }
    embeddings["responses"] = _responses(_EMBEDDINGS, ERRORS)
    embeddings["responses"]["200"]["headers"] = FINGERPRINT | TRUNCATED
    paths["/v1/models"]["get"]["responses"] = _responses(_MODELS, {})
    paths["/v1/models/{model_id}"]["get"]["responses"] = _responses(
        _MODEL, {404: "There is no such model"}
    )
    return document


def _responses(good: Schema, errors: Mapping[int, str]) -> dict[str, Any]:
    """What an answer is like, and each of the errors that may come in its place."""
    told = {"200": _answer("Done", good)}
    return told | {str(status): _answer(text, _ERROR) for status, text in errors.items()}


def _answer(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
