"""Small HTTP servers for the client's tests, which answer whatever a test tells them to."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Request:
    """What came in."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What goes out. A status of 0 closes the connection instead."""

    status: int = 200
    body: Any = None
    """Sent as JSON, if it is not bytes."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Peer:
    """A server that runs."""

    address: str
    requests: list[Request]
    """All that came in, in order."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, address: Any) -> None:
        """Say what went wrong, unless it is that the client was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, address)


@contextmanager
def peer(answer: Callable[[Request], Reply]) -> Iterator[Peer]:
    """Serve what `answer` makes of each request, on a port of its own."""
    requests: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("content-length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(length)
            if len(body) < length:  # the client was killed
                return
            request = Request(self.command, self.path, headers, body)
            requests.append(request)
            self._reply(answer(request))

        do_POST = do_GET  # noqa: N815  # http.server's name

        def _reply(self, reply: Reply) -> None:
            if reply.status == 0:
                self.close_connection = True
                return
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Peer(f"http://127.0.0.1:{server.server_port}", requests)
        finally:
            server.shutdown()
            thread.join()


def in_turn(*replies: Reply) -> Callable[[Request], Reply]:
    """Answer with each reply once, in order, and with the last from then on."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def vector(number: int) -> list[float]:
    """A vector of unit length that only `number` has."""
    values = np.random.default_rng(number).standard_normal(512).astype(np.float32)
    unit: list[float] = (values / np.linalg.norm(values)).tolist()
    return unit
