"""The HTTP interface: routes, and how errors become responses."""

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from handler import __version__, answers, telemetry
from handler.budget import Budget
from handler.config import on_lambda
from handler.encoder import Encoder
from handler.errors import ClipError
from handler.http import bodies, openapi
from handler.http.admission import Admission
from handler.http.bodies import JSON, OCTETS, Body
from handler.http.headers import preferred
from handler.http.requests import Addresses, Faults, Heads, LogLines, error_response

if TYPE_CHECKING:
    from handler.http.server import WebServer


def create_app(encoder: Encoder) -> FastAPI:
    """Build the service around a loaded encoder."""
    admission = Admission(encoder.config)
    server = _web_server(encoder, admission)
    app = FastAPI(
        title="CLIP image encoder",
        version=__version__,
        description="An image in, OpenAI CLIP ViT-B/32's embedding out: 512 numbers, of length 1.",
        responses=openapi.ERRORS,
        redirect_slashes=False,  # `Addresses` leaves a slash at the end out
        **(server.settings() if server else {}),
    )
    _add_wrappers(app, encoder, server)
    _add_error_responses(app)
    _add_routes(app, encoder, admission)
    if server:
        server.add_routes(app)
    if _has_page(encoder):
        from handler.http.page import add_page  # here, so that no cold start without it pays for it

        add_page(app)
    return app


def _web_server(encoder: Encoder, admission: Admission) -> "WebServer | None":
    """What a web server has besides the service; None on Lambda."""
    if on_lambda():
        return None
    from handler.http.server import WebServer  # here, so that no cold start pays for it

    return WebServer(encoder, admission)


def _has_page(encoder: Encoder) -> bool:
    """Whether the page to try the service on is wanted."""
    wanted = encoder.config.page
    return wanted == "on" or (wanted == "auto" and not on_lambda())


def _add_wrappers(app: FastAPI, encoder: Encoder, server: "WebServer | None") -> None:
    """Put what stands around every request around it, from the inside out."""
    app.add_middleware(Faults)
    origins = encoder.config.cors_origins
    if origins:
        # Here, so that a cold start without origins does not pay for it.
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Clip-Fingerprint", "X-Request-Id"],
        )
    app.add_middleware(Heads)
    observe = server.observe if server else None
    app.add_middleware(LogLines, fingerprint=encoder.fingerprint, observe=observe)
    app.add_middleware(Addresses, base_path=encoder.config.base_path)


def _add_routes(app: FastAPI, encoder: Encoder, admission: Admission) -> None:
    config = encoder.config

    @app.post("/encode_image", openapi_extra=openapi.ENCODE_IMAGE, responses=openapi.EMBEDDING)
    async def encode_image(request: Request) -> Response:
        """Encode one image: as multipart field `image`, as base64 in JSON, in S3, or as the raw
        body.
        """

        def encode(content_type: str, body: Body) -> Response:
            image = bodies.read_image(content_type, body)
            embedding = encoder.encode(image, _budget(request, encoder))
            accept = ",".join(request.headers.getlist("accept"))
            if preferred(accept, (JSON, OCTETS)) == OCTETS:
                return Response(answers.to_bytes(embedding), media_type=OCTETS)
            return Response(answers.to_json(embedding), media_type=JSON)

        return await admission.answer(request, encode)

    @app.post(
        "/encode_images",
        openapi_extra=openapi.ENCODE_IMAGES,
        responses={200: {"model": answers.BatchResponse}},
    )
    async def encode_images(request: Request) -> Response:
        """Encode many images in one pass; a bad one gets `null` and an entry in `errors`."""

        def encode(content_type: str, body: Body) -> Response:
            images = bodies.read_images(content_type, body, config.max_images)
            outcomes = encoder.encode_images(images, _budget(request, encoder))
            return Response(answers.batch_json(outcomes), media_type=JSON)

        return await admission.answer(request, encode)

    @app.get("/health", response_model=answers.Health)
    async def health() -> Response:
        """Whether vectors can be trusted: the start-up self-check's verdict."""
        return JSONResponse(encoder.health(), status_code=503 if encoder.fault else 200)


def _budget(request: Request, encoder: Encoder) -> Budget:
    """What `request` may spend; on Lambda its scope has the invocation's context."""
    return Budget.of_request(encoder.config, request.scope.get("aws.context"))


def _add_error_responses(app: FastAPI) -> None:
    @app.exception_handler(ClipError)
    async def clip_error(_: Request, error: ClipError) -> Response:
        return error_response(error)

    @app.exception_handler(404)
    async def not_found(_: Request, error: HTTPException) -> Response:
        telemetry.note(code="not_found")
        body = {"code": "not_found", "detail": f"there is only {_operations(app)}"}
        return JSONResponse(body, status_code=404)

    @app.exception_handler(405)
    async def method_not_allowed(_: Request, error: HTTPException) -> Response:
        telemetry.note(code="method_not_allowed")
        methods = set((error.headers or {})["Allow"].split(", "))
        allowed = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        body = {"code": "method_not_allowed", "detail": f"this path takes {allowed}"}
        return JSONResponse(body, status_code=405, headers={"Allow": allowed})


def _operations(app: FastAPI) -> str:
    """What can be asked of the service: ``POST /encode_image`` and so on."""
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    paths = [route for route in routes if not route.path.startswith("/docs")]
    named = [f"{method} {route.path}" for route in paths for method in route.methods or ()]
    return ", ".join([*named, "GET /docs"])
