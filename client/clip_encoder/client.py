"""The client that blocks: for scripts, services with threads, and the command line."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self

from clip_encoder import flows, images, protocol
from clip_encoder.batching import Batcher, Item, batches, side_by_side
from clip_encoder.errors import EncoderError
from clip_encoder.flows import Flow, Flows
from clip_encoder.images import Image
from clip_encoder.results import Ranking, Result, Vector
from clip_encoder.retries import RETRIES
from clip_encoder.transports import connect

ADDRESS = "http://localhost:3000"
"""Where ``make run`` serves."""
CONCURRENCY = 4
"""Requests that are sent side by side, by default."""
TIMEOUT = 60.0
"""Seconds to wait for an answer, by default."""
READERS = 4
"""Threads that read, and shrink, images."""
READ_AHEAD = 16
"""Images that are read before they are asked for."""


class Client:
    """A connection to the service. Thread-safe; a context manager, or closed by `close`.

    ::

        with Client("http://localhost:3000") as client:
            vector = client.encode_image("photo.jpg")
            for result in client.encode_images(Path("photos").glob("*.jpg")):
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
        """Connect to a service; nothing is sent yet.

        `address` is ``http://host:port`` or ``https://...``; ``lambda://name:alias``, a function to
        be called directly; or ``local:folder``, an exported model to be loaded into this process.
        `api_key` is an API Gateway key, and `sigv4` signs requests with AWS's credentials of the
        environment: both are for HTTP. `fingerprint`: vectors of no other are taken. `shrink`:
        large JPEGs and PNGs are made smaller before they are sent, which changes their vectors
        slightly. `concurrency` requests are sent side by side by `encode_images` and
        `encode_texts`; each waits `timeout` seconds for its answer, and is sent again up to
        `retries` times where that may help.

        Raises:
            ValueError: `address` is none of these, or there is no use for a key or signature there.
            EncoderError: a package that is needed is missing, or the model cannot be loaded.
        """
        if concurrency < 1 or retries < 0:
            raise ValueError("concurrency must be at least 1, and retries at least 0")
        self._transport = connect(
            address, api_key=api_key, sigv4=sigv4, timeout=timeout, connections=concurrency
        )
        self._flows = Flows(fingerprint, retries)
        self._shrink = shrink
        self._concurrency = concurrency
        # Their threads are started by the first work that there is.
        self._senders = ThreadPoolExecutor(concurrency, "send")
        self._readers = ThreadPoolExecutor(READERS, "read")

    def encode_image(self, image: Image) -> Vector:
        """One image -> float32 [512], of unit length.

        `image` is a file's path, a file's bytes, a Pillow image, or ``s3://bucket/key`` of an
        object that the service may read.

        Raises:
            EncoderError: the file cannot be read, or the service refused or failed.
        """
        call = protocol.encode_image(images.payload(image, self._shrink))
        return protocol.read_vector(self._run(self._flows.call(call)))

    def encode_images(self, images: Iterable[Image]) -> Iterator[Result]:
        """Many images -> a result for each, in order; that of an image that fails has its error.

        `images` may be a generator of any length: no more of it is taken than is needed to keep the
        requests going, and no more is held.

        Raises:
            ServiceUnusable: nothing further can succeed: the service cannot be reached, or refuses
                this caller, or its fingerprint changed.
        """
        limits = self._transport.limits
        read = partial(read_item, shrink=self._shrink, limits=limits)
        items = side_by_side(read, enumerate(images), self._readers, READ_AHEAD)
        batcher = Batcher(limits.images, limits.body_bytes)
        return self._encode_many(batches(items, batcher), images_call)

    def encode_text(self, text: str, *, truncate: bool = False) -> Vector:
        """One text -> float32 [512], of unit length, to be compared with images' vectors.

        `truncate`: a text of more than 77 tokens is cut, instead of refused.

        Raises:
            EncoderError: the service refused or failed.
        """
        call = protocol.encode_text(text, truncate)
        return protocol.read_vector(self._run(self._flows.call(call)))

    def encode_texts(self, texts: Iterable[str], *, truncate: bool = False) -> Iterator[Result]:
        """Many texts -> a result for each, in order, as `encode_images` does.

        Raises:
            ServiceUnusable: nothing further can succeed.
        """
        limits = self._transport.limits
        batcher = Batcher(limits.texts, limits.body_bytes)
        return self._encode_many(
            batches(text_items(texts), batcher), partial(texts_call, truncate=truncate)
        )

    def rank(
        self,
        queries: Sequence[object],
        candidates: Sequence[object],
        templates: Sequence[str] | None = None,
        *,
        truncate: bool = False,
    ) -> Ranking:
        """How well each candidate fits each query: two arrays [queries, candidates], and errors.

        A query or candidate is a text (`str`), an image (`Path`, bytes, a Pillow image, or a `str`
        that begins with ``s3://``), or a vector (an array [512]). Each of `templates`, such as
        ``"a photo of a {}."``, is filled with each text candidate, and their vectors are averaged.

        Raises:
            EncoderError: a file cannot be read, or the service refused or failed as a whole.
        """
        call = protocol.rank(queries, candidates, templates, truncate)
        return protocol.read_ranking(self._run(self._flows.call(call)))

    def health(self) -> dict[str, Any]:
        """What the service says of itself: ``status``, ``fingerprint``, ``model`` and so on.

        A service that is unhealthy says so in ``status``, and nothing is raised.

        Raises:
            EncoderError: the service cannot be reached, or refuses this caller.
        """
        answer = self._run(self._flows.call(protocol.HEALTH))
        if not isinstance(answer.body, dict):
            raise EncoderError("foreign_answer", "what answered is not this service")
        return answer.body

    def expect(self, fingerprint: str) -> None:
        """Take image vectors of no other fingerprint from now on.

        Raises:
            FingerprintChanged: vectors of another were taken already.
        """
        self._flows.expect("image", fingerprint)

    def close(self) -> None:
        """Wait for what was begun, and close the connections."""
        self._readers.shutdown(cancel_futures=True)
        self._senders.shutdown(cancel_futures=True)
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _encode_many(
        self, groups: Iterable[list[Item]], call_for: Callable[[Sequence[Item]], protocol.Call]
    ) -> Iterator[Result]:
        def encode(group: list[Item]) -> list[Result]:
            return self._run(self._flows.batch(group, call_for))

        for results in side_by_side(encode, groups, self._senders, self._concurrency):
            yield from results

    def _run(self, flow: Flow[flows.T]) -> flows.T:
        return flows.run(flow, self._transport.send, time.sleep)


def read_item(numbered: tuple[int, Image], shrink: bool, limits: protocol.Limits) -> Item:
    """An image and its place -> what is sent of it, or why it cannot be sent."""
    index, image = numbered
    try:
        item = Item(index, image, images.payload(image, shrink))
    except EncoderError as error:
        return Item(index, image, error=error)
    if limits.is_strict and item.size > limits.body_bytes:
        detail = (
            f"{item.size / 2**20:.1f} MB as base64, and Lambda takes 6 MB a request: put it into "
            "S3 and give its s3:// address, or shrink it (shrink=True, --shrink)"
        )
        return Item(index, image, error=EncoderError("body_too_large", detail))
    return item


def text_items(texts: Iterable[str]) -> Iterator[Item]:
    """Texts as items, each with its place; one that cannot be sent has its error."""
    for index, text in enumerate(texts):
        try:
            yield Item(index, text, protocol.check_text(text))
        except EncoderError as error:
            yield Item(index, text, error=error)


def images_call(items: Sequence[Item]) -> protocol.Call:
    """One request for the vectors of images."""
    return protocol.encode_images([item.payload for item in items])


def texts_call(items: Sequence[Item], truncate: bool) -> protocol.Call:
    """One request for the vectors of texts."""
    return protocol.encode_texts([str(item.payload) for item in items], truncate)
