"""Many images or texts as few requests: how they are grouped, and sent side by side."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, TypeVar

from clip_encoder.errors import EncoderError
from clip_encoder.images import Payload

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Item:
    """One image or text of many, on its way."""

    index: int
    source: Any
    """As the caller gave it."""
    payload: Payload = b""
    """What is sent of it."""
    error: EncoderError | None = None
    """Why it cannot be sent."""

    @property
    def size(self) -> int:
        """Bytes that it takes in a request's JSON, at most."""
        if self.error is not None:
            return 0
        if isinstance(self.payload, bytes):
            return len(self.payload) // 3 * 4 + 8  # base64, quotes and a comma
        return 6 * len(self.payload) + 4  # each character may be escaped as \uXXXX


class Batcher:
    """Groups items, in order, so that each group fits into one request."""

    def __init__(self, most_items: int, most_bytes: int) -> None:
        self._most_items = most_items
        self._most_bytes = most_bytes
        self._items: list[Item] = []
        self._bytes = 0

    def add(self, item: Item) -> list[Item]:
        """Take one more item; gives the group before it, if that is full now, or an empty list.

        An item that is too large for any group becomes a group of its own.
        """
        is_full = len(self._items) == self._most_items
        would_overflow = self._bytes + item.size > self._most_bytes
        ready = self.rest() if is_full or would_overflow else []
        self._items.append(item)
        self._bytes += item.size
        return ready

    def rest(self) -> list[Item]:
        """The items that were given since the last group, which may be none."""
        items = self._items
        self._items, self._bytes = [], 0
        return items


def batches(items: Iterable[Item], batcher: Batcher) -> Iterator[list[Item]]:
    """All of `items` in groups, each as soon as it is full."""
    for item in items:
        if ready := batcher.add(item):
            yield ready
    if rest := batcher.rest():
        yield rest


def side_by_side(
    work: Callable[[T], U], things: Iterable[T], pool: Executor, ahead: int
) -> Iterator[U]:
    """What `work` makes of each thing, in order; up to `ahead` of them are begun before.

    Nothing is taken from `things` before it is needed, so they may be a generator of a million.
    """
    begun: deque[Future[U]] = deque()
    try:
        for thing in things:
            begun.append(pool.submit(work, thing))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


async def side_by_side_async(
    work: Callable[[T], Awaitable[U]],
    things: AsyncIterator[T],
    ahead: int,
    tasks: set[asyncio.Future[Any]],
) -> AsyncIterator[U]:
    """`side_by_side` for asyncio. What is begun and not done is in `tasks`, to be ended by others
    where nobody asks for the rest.
    """
    begun: deque[asyncio.Future[U]] = deque()
    try:
        async for thing in things:
            task: asyncio.Future[U] = asyncio.ensure_future(work(thing))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            begun.append(task)
            if len(begun) > ahead:
                yield await begun.popleft()
        while begun:
            yield await begun.popleft()
    finally:
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)
