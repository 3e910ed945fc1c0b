"""Bodies that arrive at the same time, step by step. With sockets and in time: test_server.py."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from handler.config import Config
from handler.errors import BodyTooLarge, BodyTooSlow, Overloaded
from handler.http.admission import Bodies


class Sender:
    """A client that sends what a test tells it to, to `bodies`."""

    def __init__(self, bodies: Bodies) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._bodies = bodies
        self.answered = asyncio.Event()
        """Until then its body, once complete, is held."""
        self.result = asyncio.create_task(self._read())

    async def _read(self) -> bytes:
        request = Request({"type": "http", "headers": []}, self._messages.get)
        async with self._bodies.read(request) as body:
            await self.answered.wait()
            return bytes(body)

    def send(self, chunk: bytes, last: bool = False) -> None:
        self._messages.put_nowait({"type": "http.request", "body": chunk, "more_body": not last})

    def leave(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})

    async def answer(self) -> bytes:
        self.answered.set()
        return await self.result


def run(scenario: Callable[[Bodies], Awaitable[None]]) -> None:
    """`scenario`, where a body may have 10 bytes and all together 40."""

    async def with_bodies() -> None:
        await scenario(Bodies(Config(max_body_bytes=10)))

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(with_bodies())
    finally:
        loop.close()


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_body_comes_in_pieces_or_in_one() -> None:
    async def scenario(bodies: Bodies) -> None:
        pieces, one, nothing = Sender(bodies), Sender(bodies), Sender(bodies)
        for piece in (b"ab", b"", b"cd"):
            pieces.send(piece)
        pieces.send(b"", last=True)
        one.send(b"0123456789", last=True)
        nothing.send(b"", last=True)
        assert await pieces.answer() == b"abcd"
        assert await one.answer() == b"0123456789"
        assert await nothing.answer() == b""

    run(scenario)


def test_one_byte_too_many() -> None:
    async def scenario(bodies: Bodies) -> None:
        for chunks in ([b"0123456789", b"+"], [b"0123456789+"]):
            sender = Sender(bodies)
            for chunk in chunks:
                sender.send(chunk)
            with pytest.raises(BodyTooLarge, match="over 10 bytes"):
                await sender.answer()

    run(scenario)


def test_the_slowest_is_sent_away_even_if_its_end_comes_at_that_moment() -> None:
    async def scenario(bodies: Bodies) -> None:
        slow, *others, newest = (Sender(bodies) for _ in range(5))
        slow.send(b"x" * 9)
        for other in others:
            other.send(b"x" * 10)
        await settle()
        newest.send(b"yy", last=True)
        slow.send(b"z", last=True)
        with pytest.raises(BodyTooSlow, match="slowest"):
            await slow.answer()
        assert await newest.answer() == b"yy"
        for other in others:
            other.send(b"", last=True)
            assert await other.answer() == b"x" * 10

    run(scenario)


def test_who_stopped_goes_at_once_and_not_who_has_just_begun() -> None:
    async def scenario(bodies: Bodies) -> None:
        stopped = [Sender(bodies) for _ in range(3)]
        for sender in stopped:
            sender.send(b"x" * 10)
        await settle()
        await asyncio.sleep(0.3)
        begun, newest = Sender(bodies), Sender(bodies)
        begun.send(b"y")
        await settle()
        newest.send(b"z" * 10, last=True)
        await settle()
        assert sum(sender.result.done() for sender in stopped) == 1
        begun.send(b"y", last=True)
        assert await begun.answer() == b"yy"
        assert await newest.answer() == b"z" * 10
        for sender in stopped:
            sender.leave()
            with pytest.raises((BodyTooSlow, ClientDisconnect)):
                await sender.answer()

    run(scenario)


def test_who_is_no_longer_new_may_be_the_slowest_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.http.admission.GRACE", 0.0)

    async def scenario(bodies: Bodies) -> None:
        *others, slow = (Sender(bodies) for _ in range(5))
        for other in others:
            other.send(b"x" * 10)
        await settle()
        await asyncio.sleep(0.05)
        slow.send(b"y")
        with pytest.raises(BodyTooSlow, match="slowest"):
            await slow.answer()
        for other in others:
            other.send(b"", last=True)
            assert await other.answer() == b"x" * 10

    run(scenario)


def test_complete_bodies_are_never_sent_away() -> None:
    async def scenario(bodies: Bodies) -> None:
        complete = [Sender(bodies) for _ in range(4)]
        for sender in complete:
            sender.send(b"x" * 10, last=True)
        await settle()
        for _ in range(2):
            newest = Sender(bodies)
            newest.send(b"y", last=True)
            with pytest.raises(Overloaded):
                await newest.answer()
        for sender in complete:
            assert await sender.answer() == b"x" * 10

    run(scenario)


def test_memory_is_free_again_whatever_became_of_a_body() -> None:
    async def scenario(bodies: Bodies) -> None:
        for _ in range(50):
            left, large, whole = Sender(bodies), Sender(bodies), Sender(bodies)
            for sender in (left, large, whole):
                sender.send(b"x" * 10)
            await settle()
            left.leave()
            large.send(b"x")
            whole.send(b"", last=True)
            with pytest.raises(ClientDisconnect):
                await left.answer()
            with pytest.raises(BodyTooLarge):
                await large.answer()
            await whole.answer()

    run(scenario)
