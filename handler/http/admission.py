"""Which requests may come in, and how much of their bodies is held in memory.

A body is read as it comes, and only a request whose body is complete counts as one in progress. So
clients that send slowly, or nothing, hold nothing up: all that they take is memory, and where that
is short it is the slowest that are sent away.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from handler.config import Config, available_cpus
from handler.errors import BodyTooLarge, BodyTooSlow, Overloaded
from handler.http.bodies import Body

BODIES_HELD = 4
"""All bodies together may take this many times the size of the largest single one."""
GRACE = 1.0
"""Seconds that a new upload has before it can be the slowest."""
HALF_LIFE = 0.1
"""Seconds in which what came counts half as much, when it is asked who makes progress."""

Work = Callable[[str, Body], Response]
"""Makes the answer to a request from its Content-Type and its body."""


class Admission:
    """Takes requests in, and works on as many of them at once as there are CPUs."""

    def __init__(self, config: Config) -> None:
        self._bodies = Bodies(config)
        self._most_pending = config.max_pending
        self._pending = 0
        self._threads = ThreadPoolExecutor(available_cpus(), "request")

    @property
    def pending(self) -> int:
        """How many requests are in progress or waiting, their bodies complete."""
        return self._pending

    async def answer(self, request: Request, work: Work) -> Response:
        """Read the body, then answer with what `work` makes of it in a thread.

        Raises:
            Overloaded: ``max_pending`` requests are in progress, or too many bodies are.
            BodyTooLarge, BodyTooSlow: see `Bodies.read`.
            ClientDisconnect: the client has left, and no work was done for it.
        """
        self._check_pending()  # while there are too many, no body need be sent in vain
        async with self._bodies.read(request) as body:
            self._check_pending()
            self._pending += 1
            try:
                return await self._in_thread(request, work, body)
            finally:
                self._pending -= 1

    def _check_pending(self) -> None:
        if self._pending >= self._most_pending:
            raise Overloaded("too many requests at once: try again in a second")

    async def _in_thread(self, request: Request, work: Work, body: Body) -> Response:
        content_type = request.headers.get("content-type", "")
        # In a copy of this request's context, so that it is this request's line in the log.
        running = self._threads.submit(copy_context().run, work, content_type, body)
        answer = asyncio.wrap_future(running)
        if "aws.event" in request.scope:
            return await answer  # Lambda's callers wait, or are not told apart
        # After its body a client has nothing to say but that it leaves.
        leaving = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and running.cancel():  # its turn had not come
                raise ClientDisconnect
            return await answer
        finally:
            leaving.cancel()


class Upload:
    """One request's body: what has come of it, and how fast it comes."""

    def __init__(self, now: float) -> None:
        self.body: Body = bytearray()
        self.deadline = asyncio.Timeout(None)
        self.dropped = False
        """Whether it was sent away to make room."""
        self._begun = now
        self._recent = 0.0
        self._counted_at = now

    def add(self, chunk: bytes, last: bool, now: float) -> None:
        """Take in what came next."""
        self._recent = self._lately(now) + len(chunk)
        self._counted_at = now
        if last and not self.body:
            self.body = chunk  # it came in one piece, as always on Lambda: no copy is made
        else:
            self.body += chunk

    def pace(self, now: float) -> float:
        """How fast it comes of late: bytes, to compare with those of other uploads."""
        # Were an upload's pace only what came lately, one that has just begun would seem slow.
        share_lived = 1 - _faded(now - self._begun)
        return self._lately(now) / max(share_lived, 1e-6)

    def _lately(self, now: float) -> float:
        return self._recent * _faded(now - self._counted_at)

    def is_new(self, now: float) -> bool:
        """Whether it is too early to call it slow."""
        return now - self._begun < GRACE


def _faded(seconds: float) -> float:
    """What counted 1 so many seconds ago."""
    return float(0.5 ** (seconds / HALF_LIFE))


class Bodies:
    """The bodies of all requests, from their first byte until they are answered."""

    def __init__(self, config: Config) -> None:
        self._most = config.max_body_bytes
        self._seconds = config.body_seconds
        self._arriving: set[Upload] = set()
        self._held = 0  # bytes

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Body]:
        """The body, once it is complete; held until the block ends.

        Raises:
            BodyTooLarge: over ``max_body_bytes``, or going to be, by its Content-Length.
            BodyTooSlow: not complete within ``body_seconds``, or the slowest when memory is short.
            Overloaded: memory is short, and every other body is complete.
            ClientDisconnect: the client left before the end.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and float(declared) > self._most:
            raise self._too_large()  # before a client that asks first sends any of it
        upload = Upload(asyncio.get_running_loop().time())
        try:
            await self._receive(upload, request)
            yield upload.body
        finally:
            self._held -= len(upload.body)

    async def _receive(self, upload: Upload, request: Request) -> None:
        try:
            async with asyncio.timeout(self._seconds) as upload.deadline:
                self._arriving.add(upload)
                last = False
                while not last:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    last = not message.get("more_body", False)
                    self._take(upload, message.get("body", b""), last)
        except TimeoutError:
            raise self._too_slow(upload) from None
        finally:
            self._arriving.discard(upload)

    def _take(self, upload: Upload, chunk: bytes, last: bool) -> None:
        if upload.dropped:  # this came before it could be told
            raise self._too_slow(upload)
        if len(upload.body) + len(chunk) > self._most:
            raise self._too_large()
        now = asyncio.get_running_loop().time()
        upload.add(chunk, last, now)
        self._held += len(chunk)
        self._make_room(upload, now)

    def _make_room(self, newest: Upload, now: float) -> None:
        """Send uploads away, the slowest first, until all bodies are within their limit together.

        `newest` is the one that has just grown; it is the slowest only if it had its time.
        """
        while self._held > BODIES_HELD * self._most:
            others = [upload for upload in self._arriving if upload.body and upload is not newest]
            if not others:
                raise Overloaded("too many large requests at once: try again in a second")
            slowest = min(others, key=lambda upload: upload.pace(now))
            if not newest.is_new(now) and newest.pace(now) < slowest.pace(now):
                newest.dropped = True
                raise self._too_slow(newest)
            self._drop(slowest, now)

    def _drop(self, upload: Upload, now: float) -> None:
        self._held -= len(upload.body)
        upload.body = bytearray()
        upload.dropped = True
        upload.deadline.reschedule(now)  # which ends its waiting

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the request body is over {self._most:,} bytes")

    def _too_slow(self, upload: Upload) -> BodyTooSlow:
        if upload.dropped:
            return BodyTooSlow(
                "too many large requests at once, and this one came slowest: send it again"
            )
        return BodyTooSlow(f"the request body did not arrive within {self._seconds:g} s")
