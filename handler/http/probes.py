"""What an orchestrator asks a web server: whether it lives, and whether it may have requests.

``/live`` fails when only a restart would help, ``/ready`` also when waiting will. ``/health`` is
about the vectors instead: it says what made them, and is the same on Lambda.
"""

import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Literal

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from handler.encoder import Encoder

STUCK_SECONDS = 120.0
"""An inference that goes on for this long is stuck.

It is one of eight images at most, which takes the largest model, on a quarter of a CPU, half of
this time.
"""


class Probes:
    """Knows whether the server starts, serves or ends, and asks the encoder how it is."""

    def __init__(self, encoder: Encoder) -> None:
        """The server starts; `lifespan` says when it has."""
        self._encoder = encoder
        self._phase: Literal["starting", "ready", "draining"] = "starting"

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Around the time in which the server serves; ASGI servers enter and leave it."""
        self._phase = "ready"
        with _on_sigterm(self._drain):
            yield
        self._drain()

    def _drain(self) -> None:
        self._phase = "draining"

    def add_routes(self, app: FastAPI) -> None:
        """Serve ``/live`` and ``/ready``. Both are answered at once, whatever else goes on."""

        @app.get("/live", include_in_schema=False)
        async def live() -> Response:
            """503 when an inference is stuck, and only a restart helps."""
            stuck = self._encoder.inference_seconds() > STUCK_SECONDS
            return _answer("stuck" if stuck else "alive", good=not stuck)

        @app.get("/ready", include_in_schema=False)
        async def ready() -> Response:
            """503 while the server starts or ends, and when its model failed the self-check."""
            if self._encoder.fault:
                return _answer("unhealthy", good=False)
            return _answer(self._phase, good=self._phase == "ready")


def _answer(status: str, *, good: bool) -> Response:
    return JSONResponse({"status": status}, status_code=200 if good else 503)


@contextmanager
def _on_sigterm(tell: Callable[[], None]) -> Iterator[None]:
    """Have `tell` called at the signal that asks the server to end, before it is handled.

    The server then still finishes what it began, and clients that keep their connection may ask.
    """
    before = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not (in_main_thread and callable(before)):  # Python lets no other thread handle signals
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        tell()
        before(number, frame)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
