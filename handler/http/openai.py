"""OpenAI's embeddings API over both towers, for programs that speak it: texts and images alike.

::

    from openai import OpenAI

    client = OpenAI(base_url="http://localhost:3000/v1", api_key="none")
    client.embeddings.create(model="ViT-B-32", input=["red shoes", "s3://photos/shoes.jpg"])

Only the shape of requests and answers is made here. The vectors are those of ``/encode_text`` and
``/encode_image``. The shape has no errors for single items, so one bad item fails its request.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler import answers, schemas
from handler.budget import Budget
from handler.config import Config
from handler.encoder import Encoder, Item
from handler.engines import Embedding
from handler.errors import ClipError, InvalidField, MissingField, ModelNotFound
from handler.http import bodies
from handler.http.admission import Admission
from handler.http.bodies import Body
from handler.http.headers import own_headers
from handler.http.requests import answer_bytes, own_path
from handler.images.s3 import Image
from handler.images.strings import read_string
from handler.model import Model
from handler.outcome import Outcome
from handler.text.tokenizer import Tokens

PREFIX = "/v1/"
"""What the paths of this API begin with."""
EXAMPLE = '{"input": ["a photo of a cat", "s3://photos/cat.jpg"]}'
"""What to send, for the error of someone who sent no request at all."""
ITEM_HELP = (
    'a string, {"text": "..."}, {"image": "<base64, data: or s3://>"}, or {"content": [...]} with '
    'one part, {"type": "text", "text": "..."} or {"type": "image_url", "image_url": {"url": ...}}'
)

T = TypeVar("T")


def add_routes(app: FastAPI, encoder: Encoder, admission: Admission) -> None:
    """Add the paths of this API. What is wrong, `Errors` tells in its shape."""
    model = encoder.model

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        """Encode texts and images, in the shape of OpenAI's API; one bad item fails the request."""
        return await admission.answer(request, partial(_embed, encoder, request))

    @app.get("/v1/models")
    async def models() -> Response:
        """List the one model that there is, in the shape of OpenAI's API."""
        return JSONResponse({"object": "list", "data": [_model_card(model)]})

    @app.get("/v1/models/{model_id:path}")
    async def one_model(model_id: str) -> Response:
        """Describe the model of this id, in the shape of OpenAI's API."""
        _check_model(model_id, model)
        return JSONResponse(_model_card(model))


def _embed(encoder: Encoder, request: Request, content_type: str, body: Body) -> Response:
    """Answer one request to ``/v1/embeddings``."""
    config = encoder.config
    budget = Budget.of_request(config, request.scope.get("aws.context"))
    fields = _read_fields(content_type, body)
    options = _read_options(request, fields, encoder.model)
    given = fields.get("input")
    with _about(request, "input"):
        found = _read_input(given, options, config)
        most, size = answer_bytes(request.scope), encoder.model.embedding_size
        answers.check_vectors(len(found), size, most, options.as_base64)
    is_list = isinstance(given, list)
    places = [f"input[{index}]" if is_list else "input" for index in range(len(found))]

    def tokenized(item: str | Image) -> Item:
        return encoder.tokenize(item, options.truncate, budget) if isinstance(item, str) else item

    items = [item.then(tokenized) for item in found]
    _values(request, places, items)  # so that no work is done where one is bad already
    vectors = _values(request, places, encoder.encode_all(items, budget))
    return _answer(encoder, options, items, vectors)


# --- requests -------------------------------------------------------------------------------------


class Options(NamedTuple):
    """What a request asks for beside its items."""

    as_base64: bool
    """Whether vectors are answered as base64 of float32, little-endian, and not as numbers."""
    modality: str | None
    """``text`` or ``image``: what strings are; None: each is what it looks like."""
    truncate: bool
    """Whether texts of more than 77 tokens are cut. OpenAI's API does not have this."""


@contextmanager
def _about(request: Request, param: str) -> Iterator[None]:
    """Let `Errors` know, if the block fails, which part of `request` was wrong: ``input[3]``."""
    try:
        yield
    except ClipError:
        request.state.param = param
        raise


def _read_fields(content_type: str, body: Body) -> dict[str, Any]:
    """The fields of a request's body.

    Raises:
        UnsupportedMediaType: it is not sent as JSON.
        InvalidJson: it is not a JSON object, or holds far too much.
    """
    bodies.check_json(content_type, EXAMPLE)
    return schemas.decode(body, EXAMPLE, schemas.OfTexts.most_values)


def _read_options(request: Request, fields: dict[str, Any], model: Model) -> Options:
    """Everything but the input. Fields that are not known here are no error in OpenAI's API.

    Raises:
        ModelNotFound: another model is asked for.
        InvalidField: a field has a value that cannot be served.
    """

    def choice(name: str, *allowed: object) -> Any:
        value = fields.get(name)
        if value is None or value in allowed:
            return value
        names = " or ".join(json.dumps(each) for each in allowed)
        with _about(request, name):
            raise InvalidField(f"the field {name!r} must be {names}, or left out")

    with _about(request, "model"):
        _check_model(fields.get("model"), model)
    choice("dimensions", model.embedding_size)
    return Options(
        as_base64=choice("encoding_format", "float", "base64") == "base64",
        modality=choice("modality", "text", "image"),
        truncate=bool(choice("truncate", False, True)),
    )


def _read_input(given: object, options: Options, config: Config) -> list[Outcome[str | Image]]:
    """The field ``input``: one item, or a list of them -> texts and images, or their errors.

    Raises:
        MissingField, InvalidField: there is no item.
        TooManyTexts, TooManyImages: more than a request may have.
    """
    if given is None:
        raise MissingField(f"the field 'input' is missing: send {EXAMPLE}")
    listed = given if isinstance(given, list) else [given]
    if not listed:
        raise InvalidField(f"the field 'input' is an empty list: send {EXAMPLE}")
    items = [Outcome.of(partial(_read_item, item, options.modality)) for item in listed]
    schemas.check_text_count(sum(isinstance(item.value, str) for item in items), config.max_texts)
    schemas.check_count(sum(isinstance(item.value, Image) for item in items), config.max_images)
    return items


def _read_item(item: object, modality: str | None) -> str | Image:
    """One item of ``input`` -> a text, or an image.

    Raises:
        InvalidField: neither, or a URL, which is not fetched, or tokens.
        InvalidBase64: an image that is not base64.
    """
    known = {"text", "image", "content"}
    if isinstance(item, dict) and len(known & item.keys()) > 1:
        raise InvalidField(f"an item of 'input' must be one of these: {ITEM_HELP}")
    match item:
        case str(text):
            return _read_string(text, modality)
        case {"text": str(text)} | {"content": [{"type": "text", "text": str(text)}]}:
            return text
        case {"image": str(image)} | {
            "content": [{"type": "image_url", "image_url": {"url": str(image)}}]
        }:
            return read_string(image)
        case int() | list():
            raise InvalidField(
                "tokens are not read here: send the texts themselves. LangChain does so with "
                "OpenAIEmbeddings(check_embedding_ctx_length=False)"
            )
        case _:
            raise InvalidField(f"an item of 'input' must be {ITEM_HELP}")


def _read_string(string: str, modality: str | None) -> str | Image:
    """A string is what `modality` says or else what it looks like: a text, or an image."""
    if modality == "text":
        return string
    if modality == "image" or string.startswith(("data:image/", "s3://")):
        return read_string(string)
    if _is_url(string):
        raise InvalidField(
            "URLs are not fetched: send the image itself as data:image/..., or s3://bucket/key. "
            'To encode the URL as a text, send {"text": "..."}'
        )
    return string


def _is_url(string: str) -> bool:
    """Whether a string is the address of something in the web, and nothing else."""
    words = string.split(maxsplit=1)
    return len(words) == 1 and words[0][:8].lower().startswith(("http://", "https://"))


def _check_model(asked: object, model: Model) -> None:
    """Refuse every model but ours; who names none means ours."""
    if asked not in (None, model.name, _model_id(model)):
        raise ModelNotFound(f"there is one model here, {_model_id(model)}: name it, or none")


# --- answers --------------------------------------------------------------------------------------


def _values(request: Request, places: Sequence[str], outcomes: Sequence[Outcome[T]]) -> list[T]:
    """The value of every outcome.

    Raises:
        ClipError: the first error among them. `Errors` says its place, one of `places`.
    """
    values = []
    for place, outcome in zip(places, outcomes, strict=True):
        with _about(request, place):
            values.append(outcome.get())
    return values


def _answer(
    encoder: Encoder,
    options: Options,
    items: Sequence[Outcome[Item]],
    vectors: Sequence[Embedding],
) -> Response:
    """The vectors of `items`, and headers that say what made them and whether a text was cut."""
    write = _to_base64 if options.as_base64 else answers.to_floats
    texts = [item.value for item in items if isinstance(item.value, Tokens)]
    tokens = sum(len(text.ids) for text in texts)
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": write(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": _model_id(encoder.model),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    was_cut = any(text.truncated for text in texts)
    return JSONResponse(body, headers=own_headers(encoder.fingerprints(items), was_cut))


def _to_base64(embedding: Embedding) -> str:
    """float32 [512] -> base64 of 2,048 bytes, little-endian."""
    return base64.b64encode(answers.to_bytes(embedding)).decode()


def _model_id(model: Model) -> str:
    """The model's name as its id, ``ViT-B-32``: a slash would part the paths that hold it."""
    return model.name.replace("/", "-")


def _model_card(model: Model) -> dict[str, object]:
    """The model as OpenAI's API describes one."""
    return {
        "id": _model_id(model),
        "object": "model",
        "created": 0,  # seconds since 1970, which the model folder does not record
        "owned_by": model.weights,
    }


class Errors:
    """Gives every error under ``/v1/`` the shape in which OpenAI's API tells one.

    It stands around all that answers, so that it has the errors too that no route makes: unknown
    paths, wrong methods, bodies that are too large, and faults.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on one request, and its answer, which is written anew where it is an error."""
        if scope["type"] != "http" or not own_path(scope).startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        started: list[Message] = []

        async def send_in_shape(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                started.append(message)  # its headers say how long the body is, which changes
            elif started:
                start = started.pop()
                answer = _error_response(start, message["body"], state.get("param"))
                await answer(scope, receive, send)
            else:
                await send(message)

        await self.app(scope, receive, send_in_shape)


def _error_response(start: Message, body: bytes, param: str | None) -> JSONResponse:
    """An error of ours, ``{"code", "detail"}``, in OpenAI's shape; it comes in one piece.

    `param` says which part of the request was wrong: ``input[3]``.
    """
    error = json.loads(body)
    status = start["status"]
    said = {
        "message": error["detail"],
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": param,
        "code": error["code"],
    }
    answer = JSONResponse({"error": said}, status_code=status)
    ours = (b"content-length", b"content-type")
    answer.raw_headers += [header for header in start["headers"] if header[0] not in ours]
    return answer
