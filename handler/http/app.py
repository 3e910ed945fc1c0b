"""The HTTP interface: routes, and how errors become responses."""

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from handler import __version__, answers, telemetry
from handler.budget import Budget
from handler.encoder import Encoder
from handler.errors import ClipError
from handler.http import bodies, openapi
from handler.http.admission import Turns
from handler.http.bodies import OCTETS
from handler.http.requests import Outermost, cors, error_response

EXISTING = "POST /encode_image, POST /encode_images, GET /health, GET /docs"


def create_app(encoder: Encoder) -> FastAPI:
    """Build the service around a loaded encoder."""
    app = FastAPI(
        title="CLIP image encoder",
        version=__version__,
        description="An image in, OpenAI CLIP ViT-B/32's embedding out: 512 numbers of unit length.",
        responses=openapi.ERRORS,
    )
    app.add_middleware(Outermost, encoder=encoder, with_cors=cors(encoder.config.cors_origins))
    _add_error_responses(app)
    _add_routes(app, encoder)
    return app


def _add_routes(app: FastAPI, encoder: Encoder) -> None:
    config, turns = encoder.config, Turns(encoder.config)

    @app.post("/encode_image", openapi_extra=openapi.ENCODE_IMAGE, responses=openapi.EMBEDDING)
    async def encode_image(request: Request) -> Response:
        """Encode one image: as multipart field `image`, as base64 in JSON, in S3, or as the raw
        body.
        """

        def encode(content_type: str, body: bytes) -> Response:
            image = bodies.read_image(content_type, body)
            embedding = encoder.encode(image, _budget(request, encoder))
            if OCTETS in request.headers.get("accept", ""):
                return Response(answers.to_bytes(embedding), media_type=OCTETS)
            return Response(answers.to_json(embedding), media_type="application/json")

        return await turns.take(request, encode)

    @app.post(
        "/encode_images",
        openapi_extra=openapi.ENCODE_IMAGES,
        responses={200: {"model": answers.BatchResponse}},
    )
    async def encode_images(request: Request) -> Response:
        """Encode many images in one pass; a bad one gets `null` and an entry in `errors`."""

        def encode(content_type: str, body: bytes) -> Response:
            images = bodies.read_images(content_type, body, config.max_images)
            outcomes = encoder.encode_batch(images, _budget(request, encoder))
            return Response(answers.batch_json(outcomes), media_type="application/json")

        return await turns.take(request, encode)

    # To HEAD the server sends what GET has, less its body; to list it would be to list one
    # operation twice.
    @app.head("/health", include_in_schema=False)
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

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        # Starlette's own: no such path, no such method, a body that broke off.
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        telemetry.note(code=code)
        detail = f"there is only {EXISTING}" if error.status_code == 404 else error.detail
        body = {"code": code, "detail": detail}
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)
