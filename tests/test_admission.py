"""Bodies that arrive at the same time, step by step. With sockets and in time: test_server.py."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable

import pytest
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Message

from handler.config import Config, available_cpus
from handler.errors import BodyTooLarge, BodyTooSlow, NotAnImage, Overloaded
from handler.http.admission import Admission, Bodies
from handler.http.bodies import Body
from tests.conftest import in_a_loop


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

    in_a_loop(with_bodies())


async def all_leave(senders: Iterable[Sender]) -> None:
    """Have all who are not sent away hang up."""
    for sender in senders:
        sender.leave()
        with pytest.raises((BodyTooSlow, ClientDisconnect)):
            await sender.answer()


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
        await all_leave(stopped)

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


def test_who_has_just_begun_is_not_the_slowest_however_slow() -> None:
    async def scenario(bodies: Bodies) -> None:
        slow = Sender(bodies)
        slow.send(b"y")
        await settle()
        await asyncio.sleep(0.3)
        others = [Sender(bodies) for _ in range(4)]
        for other in others:
            other.send(b"x" * 9)
        await settle()
        slow.send(b"y" * 4, last=True)
        assert await slow.answer() == b"yyyyy"
        await settle()
        assert sum(other.result.done() for other in others) == 1
        await all_leave(others)

    run(scenario)


def test_who_stopped_is_slower_than_who_still_sends_a_little() -> None:
    async def scenario(bodies: Bodies) -> None:
        stopped, dripping = Sender(bodies), Sender(bodies)
        stopped.send(b"x" * 10)
        for _ in range(6):
            dripping.send(b"y")
            await asyncio.sleep(0.05)
        others = [Sender(bodies) for _ in range(3)]
        for other in others:
            other.send(b"z" * 10, last=True)
        with pytest.raises(BodyTooSlow, match="slowest"):
            await stopped.answer()
        dripping.send(b"", last=True)
        assert await dripping.answer() == b"y" * 6
        for other in others:
            assert await other.answer() == b"z" * 10

    run(scenario)


def test_every_upload_that_comes_on_top_costs_another() -> None:
    async def scenario(bodies: Bodies) -> None:
        senders = []
        for number in range(10):
            senders.append(Sender(bodies))
            senders[-1].send(b"x" * 10)
            await settle()
            sent_away = sum(sender.result.done() for sender in senders)
            assert sent_away == max(0, number + 1 - 4)
        await all_leave(senders)

    run(scenario)


def test_what_a_sender_is_told_word_for_word() -> None:
    async def scenario() -> None:
        bodies = Bodies(Config(max_body_bytes=1000, body_seconds=0.05))
        with pytest.raises(BodyTooSlow) as late:
            await Sender(bodies).answer()
        large = Sender(bodies)
        large.send(b"x" * 1001)
        with pytest.raises(BodyTooLarge) as over:
            await large.answer()
        held = [Sender(bodies) for _ in range(4)]
        for sender in held:
            sender.send(b"x" * 1000, last=True)
        await settle()
        newest = Sender(bodies)
        newest.send(b"y")
        with pytest.raises(Overloaded) as short:
            await newest.answer()
        for sender in held:
            await sender.answer()
        assert [caught.value.detail for caught in (late, over, short)] == [
            "the request body did not arrive within 0.05 s",
            "the request body is over 1,000 bytes",
            "too many large requests at once: try again in a second",
        ]

    in_a_loop(scenario())


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


# --- requests whose bodies are complete -----------------------------------------------------------


class Desk:
    """Work that takes as long as a test wants, and counts how much of it goes on at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun: list[bytes] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def work(self, content_type: str, body: Body) -> Response:
        with self._lock:
            self.begun.append(bytes(body))
            self._now += 1
            self.most = max(self.most, self._now)
        self.open.wait(5)
        with self._lock:
            self._now -= 1
        return Response(bytes(body), media_type=content_type)


def request_of(body: bytes, *, on_lambda: bool = False) -> tuple[Request, asyncio.Queue[Message]]:
    """A request whose body is there, and what its client does next."""
    messages: asyncio.Queue[Message] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": body})
    scope = {"type": "http", "headers": [(b"content-type", b"image/jpeg")]}
    return Request(scope | ({"aws.event": {}} if on_lambda else {}), messages.get), messages


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def test_as_many_are_worked_on_as_there_are_cpus_and_the_others_wait() -> None:
    async def scenario() -> None:
        admission, desk = Admission(Config()), Desk()
        running = [
            asyncio.create_task(admission.answer(request_of(b"%d" % number)[0], desk.work))
            for number in range(8)
        ]
        await until(lambda: len(desk.begun) == available_cpus())
        await asyncio.sleep(0.05)
        desk.open.set()
        answers = await asyncio.gather(*running)
        assert [bytes(answer.body) for answer in answers] == [b"%d" % n for n in range(8)]
        assert {answer.media_type for answer in answers} == {"image/jpeg"}
        assert desk.most == available_cpus()

    in_a_loop(scenario())


def test_one_too_many_is_told_so_and_there_is_room_again_after_the_others() -> None:
    async def scenario() -> None:
        admission, desk = Admission(Config(max_pending=3)), Desk()
        running = [
            asyncio.create_task(admission.answer(request_of(b"x")[0], desk.work)) for _ in range(3)
        ]
        await settle()
        with pytest.raises(Overloaded) as caught:
            await admission.answer(request_of(b"x")[0], desk.work)
        assert caught.value.detail == "too many requests at once: try again in a second"
        desk.open.set()
        await asyncio.gather(*running)
        for _ in range(4):
            await admission.answer(request_of(b"y")[0], desk.work)

    in_a_loop(scenario())


@pytest.mark.parametrize("on_lambda", [False, True])
def test_who_leaves_before_the_work_began_has_none_done_but_on_lambda(on_lambda: bool) -> None:
    async def scenario() -> None:
        admission, desk = Admission(Config()), Desk()
        running = [
            asyncio.create_task(admission.answer(request_of(b"x")[0], desk.work))
            for _ in range(available_cpus())
        ]
        await until(lambda: len(desk.begun) == available_cpus())
        request, messages = request_of(b"leaves", on_lambda=on_lambda)
        leaving = asyncio.create_task(admission.answer(request, desk.work))
        await settle()
        messages.put_nowait({"type": "http.disconnect"})
        await settle()
        assert leaving.done() is not on_lambda
        desk.open.set()
        await asyncio.gather(*running)
        if on_lambda:
            assert (await leaving).body == b"leaves"
        else:
            with pytest.raises(ClientDisconnect):
                await leaving
        assert (b"leaves" in desk.begun) is on_lambda

    in_a_loop(scenario())


def test_who_leaves_while_the_work_goes_on_does_not_end_it() -> None:
    async def scenario() -> None:
        admission, desk = Admission(Config()), Desk()
        request, messages = request_of(b"x")
        running = asyncio.create_task(admission.answer(request, desk.work))
        await until(lambda: desk.begun == [b"x"])
        messages.put_nowait({"type": "http.disconnect"})
        await settle()
        assert not running.done()
        desk.open.set()
        assert (await running).body == b"x"

    in_a_loop(scenario())


def test_what_the_work_raises_is_the_answer_and_gives_its_place_back() -> None:
    def refuse(content_type: str, body: Body) -> Response:
        raise NotAnImage("so it is")

    async def scenario() -> None:
        admission = Admission(Config(max_pending=1))
        for _ in range(3):
            with pytest.raises(NotAnImage):
                await admission.answer(request_of(b"x")[0], refuse)

    in_a_loop(scenario())
