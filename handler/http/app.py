"""The HTTP interface: routes, and how errors become responses."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from handler import __version__, answers, schemas, telemetry
from handler.budget import Budget
from handler.config import on_lambda
from handler.encoder import Encoder
from handler.engines import Embedding
from handler.errors import ClipError
from handler.http import bodies, openai
from handler.http.admission import Admission
from handler.http.bodies import JSON, OCTETS, Body
from handler.http.headers import own_headers, preferred
from handler.http.requests import (
    Addresses,
    Faults,
    Heads,
    LogLines,
    answer_bytes,
    error_response,
)
from handler.rank import rank as ranking_of

if TYPE_CHECKING:
    from handler.http.server import WebServer


class Service(FastAPI):
    """The web application; its OpenAPI document is made when somebody asks for it.

    FastAPI would compile a model for each error of each route when the route is added: 15 ms of
    every cold start for a page that few read.
    """

    def __init__(self, encoder: Encoder, **settings: Any) -> None:
        super().__init__(
            title="CLIP encoder",
            version=__version__,
            description="An image or a text in, the embedding of OpenAI CLIP "
            f"{encoder.model.name} out: {encoder.model.embedding_size} numbers, of length 1.",
            redirect_slashes=False,  # `Addresses` leaves a slash at the end out
            **settings,
        )
        self._embedding_size = encoder.model.embedding_size

    def openapi(self) -> dict[str, Any]:
        """The document: FastAPI's, and what the routes read and answer."""
        if self.openapi_schema is None:
            from handler.http import openai_docs, openapi

            document = openapi.complete(super().openapi(), self._embedding_size)
            self.openapi_schema = openai_docs.complete(document)
        return self.openapi_schema


def create_app(encoder: Encoder) -> FastAPI:
    """Build the service around a loaded encoder."""
    admission = Admission(encoder.config)
    server = _web_server(encoder, admission)
    app = Service(encoder, **(server.settings() if server else {}))
    _add_wrappers(app, encoder, server)
    _add_error_responses(app)
    _add_image_routes(app, encoder, admission)
    _add_text_routes(app, encoder, admission)
    _add_rank_route(app, encoder, admission)
    openai.add_routes(app, encoder, admission)
    _add_health_route(app, encoder)
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
    app.add_middleware(openai.Errors)
    origins = encoder.config.cors_origins
    if origins:
        # Here, so that a cold start without origins does not pay for it.
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Clip-Fingerprint", "X-Clip-Truncated", "X-Request-Id"],
        )
    app.add_middleware(Heads)
    observe = server.observe if server else None
    app.add_middleware(LogLines, fingerprint=encoder.fingerprint, observe=observe)
    app.add_middleware(Addresses, base_path=encoder.config.base_path)


def _add_image_routes(app: FastAPI, encoder: Encoder, admission: Admission) -> None:
    @app.post("/encode_image")
    async def encode_image(request: Request) -> Response:
        """Encode one image: as multipart field `image`, as base64 in JSON, in S3, or as the raw
        body.
        """

        def encode(content_type: str, body: Body) -> Response:
            image = bodies.read_image(content_type, body)
            embedding = encoder.encode(image, _budget(request, encoder))
            return _embedding_response(request, embedding)

        return await admission.answer(request, encode)

    @app.post("/encode_images")
    async def encode_images(request: Request) -> Response:
        """Encode many images in one pass; a bad one gets `null` and an entry in `errors`."""

        def encode(content_type: str, body: Body) -> Response:
            images = bodies.read_images(content_type, body, encoder.config.max_images)
            size = encoder.model.embedding_size
            answers.check_vectors(len(images), size, answer_bytes(request.scope))
            outcomes = encoder.encode_images(images, _budget(request, encoder))
            return Response(answers.batch_json(outcomes), media_type=JSON)

        return await admission.answer(request, encode)


def _add_text_routes(app: FastAPI, encoder: Encoder, admission: Admission) -> None:
    @app.post("/encode_text")
    async def encode_text(request: Request) -> Response:
        """Encode one text. If it has more than 77 tokens, it is refused or, with `truncate`, cut:
        then the answer has the header `X-Clip-Truncated: true`.
        """

        def encode(content_type: str, body: Body) -> Response:
            sent = bodies.read_json(content_type, body, schemas.EncodeTextRequest)
            budget = _budget(request, encoder)
            tokens = encoder.tokenize(sent.read(), sent.truncate, budget)
            embedding = encoder.encode(tokens, budget)
            return _embedding_response(request, embedding, _of_texts(encoder, tokens.truncated))

        return await admission.answer(request, encode)

    @app.post("/encode_texts")
    async def encode_texts(request: Request) -> Response:
        """Encode many texts in one pass; a bad one gets `null` and an entry in `errors`."""

        def encode(content_type: str, body: Body) -> Response:
            sent = bodies.read_json(content_type, body, schemas.EncodeTextsRequest)
            texts = schemas.read_texts(sent.texts, encoder.config.max_texts)
            size = encoder.model.embedding_size
            answers.check_vectors(len(texts), size, answer_bytes(request.scope))
            budget = _budget(request, encoder)
            tokens = encoder.tokenize_all(texts, sent.truncate, budget)
            outcomes = encoder.encode_texts(tokens, budget)
            cut = answers.batch_truncated(tokens)
            return Response(
                answers.batch_json(outcomes, truncated=cut),
                headers=_of_texts(encoder, bool(cut)),
                media_type=JSON,
            )

        return await admission.answer(request, encode)


def _add_rank_route(app: FastAPI, encoder: Encoder, admission: Admission) -> None:
    @app.post("/rank")
    async def rank(request: Request) -> Response:
        """Say how well each candidate fits each query. Both are images, texts or vectors, in any
        mixture; a bad one gets `null` and an entry in `errors`.
        """

        def answer(content_type: str, body: Body) -> Response:
            sent = bodies.read_json(content_type, body, schemas.RankRequest)
            lists = sent.read(encoder.config, encoder.model.embedding_size)
            most = answer_bytes(request.scope)
            answers.check_ranking(len(lists.queries), len(lists.candidates), most)
            ranking = ranking_of(encoder, lists, _budget(request, encoder))
            headers = own_headers(ranking.fingerprints, ranking.truncated)
            return Response(answers.rank_json(ranking), headers=headers, media_type=JSON)

        return await admission.answer(request, answer)


def _add_health_route(app: FastAPI, encoder: Encoder) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Whether vectors can be trusted: the verdicts of the towers' self-checks."""
        return JSONResponse(encoder.health(), status_code=503 if encoder.fault else 200)


def _embedding_response(
    request: Request, embedding: Embedding, headers: Mapping[str, str] | None = None
) -> Response:
    """One vector, as numbers in JSON or, if `request` prefers that, as bytes."""
    accept = ",".join(request.headers.getlist("accept"))
    if preferred(accept, (JSON, OCTETS)) == OCTETS:
        return Response(answers.to_bytes(embedding), headers=headers, media_type=OCTETS)
    return Response(answers.to_json(embedding), headers=headers, media_type=JSON)


def _of_texts(encoder: Encoder, truncated: bool) -> dict[str, str]:
    """The headers of an answer that has vectors of texts."""
    fingerprint = encoder.texts and encoder.texts.fingerprint
    return own_headers([fingerprint] if fingerprint else [], truncated)


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
    named = [f"{method} {route.path_format}" for route in paths for method in route.methods or ()]
    return ", ".join([*named, "GET /docs"])
