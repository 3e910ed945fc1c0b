"""What stands around every request, one wrapper each: its address, its log line, its faults."""

import logging
import math
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler import answers, telemetry
from handler.errors import ClipError, InternalError

LONGEST_PATH = 256
"""Characters of a path in the log; none of ours has more than 20."""

log = logging.getLogger("clip")


class Addresses:
    """Finds a request's own path, wherever the service is served.

    A gateway or proxy may serve it under a path of its own (``/prod/health``), which becomes the
    scope's ``root_path``, so that ``/docs`` finds its schema. A slash at the end is left out.
    """

    def __init__(self, app: ASGIApp, base_path: str) -> None:
        self.app = app
        self.base_path = base_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on one request, with the two parts of its path told apart."""
        if scope["type"] == "http":
            event = scope.get("aws.event") or {}
            before, path = _split_path(own_path(scope), self.base_path, event)
            if path != "/":
                path = path.removesuffix("/")
            root = scope.get("root_path", "") + before
            scope = {**scope, "root_path": root, "path": root + path}
        await self.app(scope, receive, send)


def own_path(scope: Scope) -> str:
    """The path without the ``root_path`` that it begins with, as ASGI has it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def answer_bytes(scope: Scope) -> float:
    """Bytes that the answer to a request may have; infinite where no event of Lambda brought it."""
    event = scope.get("aws.event")
    if event is None:
        return math.inf
    return answers.LOAD_BALANCER if "elb" in event["requestContext"] else answers.LAMBDA


def _split_path(path: str, base_path: str, event: Mapping[str, Any]) -> tuple[str, str]:
    """A request's path -> what the gateway put before it, maybe nothing, and what is ours.

    Under a custom domain the path begins with `base_path`. At API Gateway's own address a named
    stage comes first: an HTTP API leaves it in the path; a REST API takes it out of the path and
    has the whole in the request's context.
    """
    context = event.get("requestContext") or {}
    stage = f"/{context['stage']}" if context.get("stage") else ""
    if stage and context.get("path") == stage + path:
        return stage, path
    before = ""
    for prefix in (base_path, stage):
        if prefix and path.startswith(f"{prefix}/"):
            before += prefix
            path = path.removeprefix(prefix)
    return before or base_path, path  # a proxy may have taken the base path out already


class LogLines:
    """Writes one line for each request, and gives every answer the headers that all have."""

    def __init__(
        self,
        app: ASGIApp,
        fingerprint: str,
        observe: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Take the fingerprint for those answers that do not name their own.

        `observe` is given what the line says, once the request is over.
        """
        self.app = app
        self.fingerprint = fingerprint.encode()
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note what came and what was answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # On Lambda the record is the event's. (A server's requests may inherit a stale one of the
        # connection's last, so whether there is one does not say.)
        on_lambda = "aws.event" in scope
        opened = nullcontext(telemetry.current()) if on_lambda else _open_record(scope)
        with opened as record:
            record |= {"method": scope["method"], "path": own_path(scope)[:LONGEST_PATH]}

            async def send_with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    record["status"] = message["status"]
                    headers = list(message.get("headers", []))
                    if b"x-clip-fingerprint" not in dict(headers):
                        headers.append((b"x-clip-fingerprint", self.fingerprint))
                    headers.append((b"x-request-id", record["request_id"].encode()))
                    message["headers"] = headers
                await send(message)

            await self.app(scope, receive, send_with_headers)
        if self.observe:
            self.observe(record)


def _open_record(scope: Scope) -> AbstractContextManager[dict[str, Any]]:
    """A new record under the caller's ``X-Request-Id`` where that is one, else under a new id."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    known = re.fullmatch(r"[\w.=:/+-]{1,128}", given, re.ASCII)
    return telemetry.request("http", given if known else str(uuid.uuid4()))


class Heads:
    """Answers HEAD as GET is answered, less the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on one request, as GET if it is HEAD."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, send_head)


class Faults:
    """Answers a fault of ours with a 500 that tells the caller nothing, and logs it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on one request; whatever it raises is answered here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            telemetry.note(status=499, code="client_disconnected")  # nobody is left to answer
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            error = InternalError("the service failed; the fault is logged")
            await error_response(error)(scope, receive, send)


def error_response(error: ClipError) -> JSONResponse:
    """The answer that says `error`, which is noted in the request's line in the log."""
    telemetry.note(code=error.code)
    headers = {}
    if error.status == 503:
        headers = {"Retry-After": "1"}
    elif error.status == 408:  # the rest of the body is not wanted
        headers = {"Connection": "close"}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)
