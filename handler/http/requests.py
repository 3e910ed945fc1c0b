"""What stands around every request: its log line, its headers, and an answer to any fault."""

import logging
import re
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler import telemetry
from handler.encoder import Encoder
from handler.errors import ClipError, InternalError, Overloaded

log = logging.getLogger("clip")


class Outermost:
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
        """Answer one request."""
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
            await error_response(error)(scope, receive, send)
            return
        self.pending += 1
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            telemetry.note(status=499, code="client_disconnected")  # nobody is left to answer
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            error = InternalError("the service failed; the fault is logged")
            await error_response(error)(scope, receive, send)
        finally:
            self.pending -= 1


def cors(origins: Sequence[str]) -> Callable[[ASGIApp], ASGIApp]:
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


def error_response(error: ClipError) -> JSONResponse:
    """The answer that says `error`, which is noted in the request's line in the log."""
    telemetry.note(code=error.code)
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse(error.body(), status_code=error.status, headers=headers)
