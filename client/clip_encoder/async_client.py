"""The client for asyncio, over HTTP."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from clip_encoder import flows, images, protocol
from clip_encoder.batching import Batcher, Item, side_by_side_async
from clip_encoder.client import (
    ADDRESS,
    CONCURRENCY,
    READ_AHEAD,
    TIMEOUT,
    images_call,
    read_item,
    text_items,
    texts_call,
)
from clip_encoder.errors import EncoderError
from clip_encoder.flows import Flow, Flows
from clip_encoder.images import Image
from clip_encoder.results import Ranking, Result, Vector
from clip_encoder.retries import RETRIES
from clip_encoder.transports.http import AsyncHttpTransport


class AsyncClient:
    """`Client` for asyncio: the same methods, to be awaited. An async context manager.

    ::

        async with AsyncClient("http://localhost:3000") as client:
            vector = await client.encode_image("photo.jpg")
            async for result in client.encode_images(paths):
                print(result.source, result.code or result.vector)
    """

    def __init__(
        self,
        address: str = ADDRESS,
        *,
        api_key: str | None = None,
        sigv4: bool = False,
        fingerprint: str | None = None,
        shrink: bool = False,
        concurrency: int = CONCURRENCY,
        retries: int = RETRIES,
        timeout: float = TIMEOUT,
    ) -> None:
        """Take what `Client` takes; `address` is an ``http://`` or ``https://`` one.

        Raises:
            ValueError: it is another.
            EncoderError: a package that is needed is missing.
        """
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"{address!r}: AsyncClient is for http:// and https:// addresses")
        if concurrency < 1 or retries < 0:
            raise ValueError("concurrency must be at least 1, and retries at least 0")
        self._transport = AsyncHttpTransport(address, api_key, sigv4, timeout, concurrency)
        self._flows = Flows(fingerprint, retries)
        self._shrink = shrink
        self._concurrency = concurrency
        self._tasks: set[asyncio.Future[Any]] = set()

    async def encode_image(self, image: Image) -> Vector:
        """One image -> float32 [512]; see `Client.encode_image`."""
        payload = await asyncio.to_thread(images.payload, image, self._shrink)
        answer = await self._run(self._flows.call(protocol.encode_image(payload)))
        return protocol.read_vector(answer)

    async def encode_images(
        self, images: Iterable[Image] | AsyncIterable[Image]
    ) -> AsyncIterator[Result]:
        """Many images, from an iterable of either kind -> results; see `Client.encode_images`."""
        limits = self._transport.limits
        read = partial(read_item, shrink=self._shrink, limits=limits)

        async def read_in_thread(numbered: tuple[int, Image]) -> Item:
            return await asyncio.to_thread(read, numbered)

        items = side_by_side_async(read_in_thread, _numbered(images), READ_AHEAD, self._tasks)
        batcher = Batcher(limits.images, limits.body_bytes)
        async for result in self._encode_many(_groups(items, batcher), images_call):
            yield result

    async def encode_text(self, text: str, *, truncate: bool = False) -> Vector:
        """One text -> float32 [512]; see `Client.encode_text`."""
        answer = await self._run(self._flows.call(protocol.encode_text(text, truncate)))
        return protocol.read_vector(answer)

    async def encode_texts(
        self, texts: Iterable[str], *, truncate: bool = False
    ) -> AsyncIterator[Result]:
        """Many texts -> results; see `Client.encode_texts`."""
        limits = self._transport.limits
        batcher = Batcher(limits.texts, limits.body_bytes)
        groups = _groups(_async(text_items(texts)), batcher)
        async for result in self._encode_many(groups, partial(texts_call, truncate=truncate)):
            yield result

    async def rank(
        self,
        queries: Sequence[object],
        candidates: Sequence[object],
        templates: Sequence[str] | None = None,
        *,
        truncate: bool = False,
    ) -> Ranking:
        """How well each candidate fits each query; see `Client.rank`."""
        call = await asyncio.to_thread(protocol.rank, queries, candidates, templates, truncate)
        return protocol.read_ranking(await self._run(self._flows.call(call)))

    async def health(self) -> dict[str, Any]:
        """What the service says of itself; see `Client.health`."""
        answer = await self._run(self._flows.call(protocol.HEALTH))
        if not isinstance(answer.body, dict):
            raise EncoderError("foreign_answer", "what answered is not this service")
        return answer.body

    async def close(self) -> None:
        """End what was begun, and close the connections."""
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def _encode_many(
        self,
        groups: AsyncIterator[list[Item]],
        call_for: Callable[[Sequence[Item]], protocol.Call],
    ) -> AsyncIterator[Result]:
        async def encode(group: list[Item]) -> list[Result]:
            return await self._run(self._flows.batch(group, call_for))

        async for results in side_by_side_async(encode, groups, self._concurrency, self._tasks):
            for result in results:
                yield result

    async def _run(self, flow: Flow[flows.T]) -> flows.T:
        return await flows.run_async(flow, self._transport.send, asyncio.sleep)


async def _groups(items: AsyncIterator[Item], batcher: Batcher) -> AsyncIterator[list[Item]]:
    async for item in items:
        if ready := batcher.add(item):
            yield ready
    if rest := batcher.rest():
        yield rest


async def _numbered(
    images: Iterable[Image] | AsyncIterable[Image],
) -> AsyncIterator[tuple[int, Image]]:
    index = 0
    async for image in _async(images):
        yield index, image
        index += 1


async def _async(things: Iterable[flows.T] | AsyncIterable[flows.T]) -> AsyncIterator[flows.T]:
    """An iterable of either kind, as one for asyncio."""
    if isinstance(things, AsyncIterable):
        async for thing in things:
            yield thing
    else:
        for thing in things:
            yield thing
