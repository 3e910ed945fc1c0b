"""The HTTP interface: routes, and the one place where errors become responses."""

import asyncio
import json
import logging
import re
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler import __version__, schemas, telemetry
from handler.config import Config, available_cpus
from handler.encoder import Encoder
from handler.errors import BodyTooLarge, ClipError, InternalError, Overloaded, UnsupportedMediaType
from handler.http import openapi
from handler.images.s3 import Source

OCTETS = "application/octet-stream"
EXISTING = "POST /encode_image, POST /encode_images, GET /health, GET /docs"
log = logging.getLogger("clip")


def create_app(encoder: Encoder) -> FastAPI:
    """Build the service around a loaded encoder."""
    app = FastAPI(
        title="CLIP image encoder",
        version=__version__,
        description="An image in, OpenAI CLIP ViT-B/32's embedding out: 512 numbers of unit length.",
        responses=openapi.ERRORS,
    )
    app.add_middleware(_Outermost, encoder=encoder, with_cors=_cors(encoder.config.cors_origins))
    _add_error_responses(app)
    _add_routes(app, encoder)
    return app


def _add_routes(app: FastAPI, encoder: Encoder) -> None:
    config, turns = encoder.config, _Turns(encoder.config)

    @app.post("/encode_image", openapi_extra=openapi.ENCODE_IMAGE, responses=openapi.EMBEDDING)
    async def encode_image(request: Request) -> Response:
        """Encode one image: as multipart field `image`, as base64 in JSON, in S3, or as the raw
        body.
        """

        def encode(content_type: str, body: bytes) -> Response:
            embedding = encoder.encode(_read_image(content_type, body))
            if OCTETS in request.headers.get("accept", ""):
                return Response(schemas.to_bytes(embedding), media_type=OCTETS)
            return Response(schemas.to_json(embedding), media_type="application/json")

        return await turns.take(request, encode)

    @app.post(
        "/encode_images",
        openapi_extra=openapi.ENCODE_IMAGES,
        responses={200: {"model": schemas.BatchResponse}},
    )
    async def encode_images(request: Request) -> Response:
        """Encode many images in one pass; a bad one gets `null` and an entry in `errors`."""

        def encode(content_type: str, body: bytes) -> Response:
            results = encoder.encode_batch(_read_images(content_type, body, config.max_images))
            embeddings = (
                "null" if isinstance(r, ClipError) else schemas.to_json(r) for r in results
            )
            errors = json.dumps(schemas.batch_errors(results), separators=(",", ":"))
            text = f'{{"embeddings":[{",".join(embeddings)}],"errors":{errors}}}'
            return Response(text, media_type="application/json")

        return await turns.take(request, encode)

    # To HEAD the server sends what GET has, less its body; to list it would be to list one
    # operation twice.
    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=schemas.Health)
    async def health() -> Response:
        """Whether vectors can be trusted: the start-up self-check's verdict."""
        return JSONResponse(encoder.health(), status_code=503 if encoder.fault else 200)


class _Turns:
    """Bodies are read at once, up to a limit for all together; as many are worked on as there are
    CPUs.
    """

    def __init__(self, config: Config) -> None:
        self.most = config.max_body_bytes
        self.held = 0  # bytes of all bodies in memory
        # Our own: anyio's threads end with the event loop, and Mangum makes a loop for each
        # request.
        self.threads = ThreadPoolExecutor(available_cpus())

    async def take(self, request: Request, work: Callable[[str, bytes], Response]) -> Response:
        """Answer with `work(content_type, body)`, done in a thread."""
        content_type = str(request.headers.get("content-type", ""))
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                self.held += len(chunk)
                if len(body) > self.most:
                    raise BodyTooLarge(f"the request body is over {self.most:,} bytes")
                if self.held > 4 * self.most:
                    raise Overloaded("too many large requests at once: try again in a second")
            in_context = partial(copy_context().run, work, content_type, bytes(body))
            return await asyncio.get_running_loop().run_in_executor(self.threads, in_context)
        finally:
            self.held -= len(body)


def _read_image(content_type: str, body: bytes) -> bytes | Source:
    """The one image of a request, in whichever of the three forms it came."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return schemas.multipart_parts(content_type, body, "image")[0]
    if kind == "application/json":
        return schemas.validate(schemas.EncodeRequest, body).read()
    if kind.startswith("image/") or kind == OCTETS:
        return body
    raise UnsupportedMediaType(
        f"the Content-Type {kind[:64]!r} is not read here: send multipart/form-data with a field "
        '"image", application/json with {"image": "<base64>"}, image/* or application/octet-stream'
    )


def _read_images(content_type: str, body: bytes, limit: int) -> list[bytes | ClipError | Source]:
    """The images of a batch request, in order."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        parts = schemas.multipart_parts(content_type, body, "images", most=2 * limit)
        schemas.check_count(len(parts), limit)
        return list(parts)
    if kind == "application/json":
        return schemas.read_images(schemas.validate(schemas.EncodeBatchRequest, body).images, limit)
    raise UnsupportedMediaType(
        f"the Content-Type {kind[:64]!r} is not read here: send multipart/form-data with fields "
        '"images", or application/json with {"images": ["<base64>", ...]}'
    )


def _add_error_responses(app: FastAPI) -> None:
    @app.exception_handler(ClipError)
    async def clip_error(_: Request, error: ClipError) -> Response:
        return _error_response(error)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        # Starlette's own: no such path, no such method, a body that broke off.
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        telemetry.note(code=code)
        detail = f"there is only {EXISTING}" if error.status_code == 404 else error.detail
        body = {"code": code, "detail": detail}
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)


class _Outermost:
    """Around every request: its log line, the headers every response has, and an answer to any
    fault.
    """

    def __init__(
        self, app: ASGIApp, encoder: Encoder, with_cors: Callable[[ASGIApp], ASGIApp]
    ) -> None:
        self.app = app
        self.answer = with_cors(self._answer)
        self.fingerprint = encoder.fingerprint.encode()
        self.max_pending = encoder.config.max_pending
        self.pending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # On Lambda the record is the event's. (A server's requests may inherit a stale one of the
        # connection's last, so whether there is one does not say.)
        on_lambda = "aws.event" in scope
        opened = nullcontext(telemetry.current()) if on_lambda else _open_record(scope)
        with opened as record:
            record |= {"method": scope["method"], "path": scope["path"]}

            async def send_with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    record["status"] = message["status"]
                    ours = [
                        (b"x-clip-fingerprint", self.fingerprint),
                        (b"x-request-id", record["request_id"].encode()),
                    ]
                    message["headers"] = [*message.get("headers", []), *ours]
                await send(message)

            await self.answer(scope, receive, send_with_headers)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Health is answered whatever the load: it takes no turn of its own.
        if scope["path"] != "/health" and self.pending >= self.max_pending:
            error: ClipError = Overloaded("too many requests at once: try again in a second")
            await _error_response(error)(scope, receive, send)
            return
        self.pending += 1
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            telemetry.note(status=499, code="client_disconnected")  # nobody is left to answer
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            error = InternalError("the service failed; the fault is logged")
            await _error_response(error)(scope, receive, send)
        finally:
            self.pending -= 1


def _cors(origins: Sequence[str]) -> Callable[[ASGIApp], ASGIApp]:
    """What wraps an application so that browsers let pages from `origins` call it and read its
    answers.
    """
    if not origins:
        return lambda app: app
    from starlette.middleware.cors import (
        CORSMiddleware,  # a cold start without origins does not pay for it
    )

    return partial(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["*"],
        expose_headers=["X-Clip-Fingerprint", "X-Request-Id"],
    )


def _open_record(scope: Scope) -> AbstractContextManager[dict[str, Any]]:
    """A new record under the caller's ``X-Request-Id`` where that is one, else under a new id."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    known = re.fullmatch(r"[\w.=:/+-]{1,128}", given, re.ASCII)
    return telemetry.request("http", given if known else str(uuid.uuid4()))


def _error_response(error: ClipError) -> JSONResponse:
    telemetry.note(code=error.code)
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse(error.body(), status_code=error.status, headers=headers)
