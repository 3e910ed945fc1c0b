"""The HTTP interface: routes, and the one place where errors become responses."""

import logging

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler import __version__, openapi, schemas
from handler.encoder import Encoder
from handler.errors import BodyTooLarge, ClipError, InternalError, UnsupportedType

OCTETS = "application/octet-stream"
log = logging.getLogger("clip")


def create_app(encoder: Encoder) -> FastAPI:
    """Build the service around a loaded encoder."""
    app = FastAPI(
        title="CLIP image encoder",
        version=__version__,
        description="An image in, OpenAI CLIP ViT-B/32's embedding out: 512 numbers of unit length.",
        responses=openapi.ERRORS,
    )
    app.add_middleware(_Outermost, fingerprint=encoder.fingerprint)
    _add_error_responses(app)
    _add_routes(app, encoder)
    return app


def _add_routes(app: FastAPI, encoder: Encoder) -> None:
    config = encoder.config

    @app.post("/encode_image", openapi_extra=openapi.ENCODE_IMAGE, responses=openapi.EMBEDDING)
    async def encode_image(request: Request) -> Response:
        """Encode one image: as multipart field `image`, as base64 in JSON, or as the raw body."""
        content_type = _content_type(request)
        body = await _read_body(request, config.max_body_bytes)

        def encode() -> Response:
            embedding = encoder.encode(_read_image(content_type, body))
            if OCTETS in request.headers.get("accept", ""):
                return Response(schemas.to_bytes(embedding), media_type=OCTETS)
            return Response(schemas.to_json(embedding), media_type="application/json")

        return await run_in_threadpool(encode)

    @app.post(
        "/encode_images",
        openapi_extra=openapi.ENCODE_IMAGES,
        responses={200: {"model": schemas.BatchResponse}},
    )
    async def encode_images(request: Request) -> Response:
        """Encode many images in one pass; a bad one gets `null` and an entry in `errors`."""
        content_type = _content_type(request)
        body = await _read_body(request, config.max_body_bytes)

        def encode() -> Response:
            results = encoder.encode_batch(_read_images(content_type, body, config.max_images))
            embeddings = ("null" if isinstance(r, ClipError) else schemas.to_json(r) for r in results)
            errors = JSONResponse(schemas.batch_errors(results)).body
            text = f'{{"embeddings":[{",".join(embeddings)}],"errors":{bytes(errors).decode()}}}'
            return Response(text, media_type="application/json")

        return await run_in_threadpool(encode)

    @app.get("/health", response_model=schemas.Health)
    async def health() -> Response:
        """Whether vectors can be trusted: the start-up self-check's verdict."""
        return JSONResponse(encoder.health(), status_code=503 if encoder.fault else 200)


def _content_type(request: Request) -> str:
    return str(request.headers.get("content-type", ""))


async def _read_body(request: Request, limit: int) -> bytes:
    """Read the whole body, giving up as soon as it is over `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLarge(f"the request body is over {limit:,} bytes")
    return bytes(body)


def _read_image(content_type: str, body: bytes) -> bytes:
    """The one image of a request, in whichever of the three forms it came."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return schemas.multipart_parts(content_type, body, "image")[0]
    if kind == "application/json":
        return schemas.decode_base64(schemas.validate(schemas.EncodeRequest, body).image)
    if kind.startswith("image/") or kind == OCTETS:
        return body
    raise UnsupportedType(
        f"the Content-Type {kind[:64]!r} is not read here: send multipart/form-data with a field "
        '"image", application/json with {"image": "<base64>"}, image/* or application/octet-stream'
    )


def _read_images(content_type: str, body: bytes, limit: int) -> list[bytes | ClipError]:
    """The images of a batch request, in order."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        parts = schemas.multipart_parts(content_type, body, "images")
        schemas.check_count(len(parts), limit)
        return list(parts)
    if kind == "application/json":
        request = schemas.validate(schemas.EncodeBatchRequest, body)
        return schemas.decode_base64_batch(request.images, limit)
    raise UnsupportedType(
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
        body = {"code": code, "detail": error.detail}
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)


class _Outermost:
    """Around every request: the fingerprint on each response, and no fault without an answer."""

    def __init__(self, app: ASGIApp, fingerprint: str) -> None:
        self.app = app
        self.header = (b"x-clip-fingerprint", fingerprint.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_with_header(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), self.header]
            await send(message)

        try:
            await self.app(scope, receive, send_with_header if scope["type"] == "http" else send)
        except Exception:
            if started:
                raise
            log.exception("%s %s failed", scope.get("method"), scope.get("path"))
            error = InternalError("the service failed; the fault is logged")
            await _error_response(error)(scope, receive, send_with_header)


def _error_response(error: ClipError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status)
