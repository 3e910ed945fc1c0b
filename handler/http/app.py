"""The HTTP interface: routes, and how errors become responses."""

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from handler import __version__, answers, telemetry
from handler.budget import Budget
from handler.encoder import Encoder
from handler.errors import ClipError
from handler.http import bodies, openapi
from handler.http.admission import Admission
from handler.http.bodies import JSON, OCTETS, Body
from handler.http.headers import preferred
from handler.http.requests import Addresses, Faults, Heads, LogLines, error_response


def create_app(encoder: Encoder) -> FastAPI:
    """Build the service around a loaded encoder."""
    model = encoder.model
    app = FastAPI(
        title="CLIP image encoder",
        version=__version__,
        description=f"An image in, OpenAI CLIP {model.name}'s embedding out: "
        f"{model.embedding_size} numbers, of length 1.",
        responses=openapi.ERRORS,
        redirect_slashes=False,  # `Addresses` leaves a slash at the end out
    )
    _add_wrappers(app, encoder)
    _add_error_responses(app)
    _add_routes(app, encoder)
    return app


def _add_wrappers(app: FastAPI, encoder: Encoder) -> None:
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
    app.add_middleware(LogLines, fingerprint=encoder.fingerprint)
    app.add_middleware(Addresses, base_path=encoder.config.base_path)


def _add_routes(app: FastAPI, encoder: Encoder) -> None:
    config, admission = encoder.config, Admission(encoder.config)
    embedding_answer = openapi.embedding(encoder.model.embedding_size)

    @app.post("/encode_image", openapi_extra=openapi.ENCODE_IMAGE, responses=embedding_answer)
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
        body = {"code": "not_found", "detail": f"there is only {_operations(app)}, GET /docs"}
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
    return ", ".join(f"{method} {route.path}" for route in routes for method in route.methods or ())
