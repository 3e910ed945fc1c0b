"""Images in, unit vectors out."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice
from typing import TypeVar

import numpy as np

from handler import telemetry
from handler.budget import Budget
from handler.config import Config, available_cpus
from handler.engines import Embedding, Embeddings, Engine, Pixels, Turns
from handler.images import s3
from handler.images.s3 import File, Image
from handler.images.sandbox import Decoder
from handler.images.wire import Decoded
from handler.model import Golden, Model
from handler.outcome import Outcome
from handler.towers import self_check

CHUNK = 8
"""Images of one inference: more gain no speed (see the benchmark), and make others wait."""

T = TypeVar("T")


class ImageTower:
    """Reads, decodes and encodes images; thread-safe."""

    name = "image"

    def __init__(
        self,
        engine: Engine,
        model: Model,
        config: Config,
        decoder: Decoder,
        one_at_a_time: Turns,
    ) -> None:
        """Take a loaded engine and a decoder, and run the self-check.

        Who holds `one_at_a_time` may use the engine.
        """
        self.engine = engine
        self.decoder = decoder
        self._side = model.architecture.resolution
        jpeg_draft = config.jpeg_draft_for(self._side)
        self.fingerprint = model.fingerprint(engine.precision, config.preprocess, jpeg_draft)
        self._threads = ThreadPoolExecutor(available_cpus(), "decode")
        self._one_at_a_time = one_at_a_time
        golden = model.towers[self.name].golden
        self.fault = self_check(
            self.name, engine.precision, golden.embedding, lambda: self._encode_golden(golden)
        )
        """What the self-check found, in words for the log; None: nothing."""

    def encode(
        self, images: Sequence[Outcome[Image]], config: Config, budget: Budget
    ) -> list[Outcome[Embedding]]:
        """Encode many images, one outcome each, in order. A bad one fails alone.

        Those in S3 are read, and all are decoded, while the engine works on the ones before. An
        item that is an error already (bad base64, say) keeps its place and stays one. Images whose
        turn comes when `budget` is spent fail with OutOfTime.
        """
        fetched = s3.fetch(images, config, budget)
        outcomes: list[Outcome[Embedding]] = []
        for chunk in _chunks(self._decode_ahead(fetched, config, budget)):
            outcomes += self._encode_chunk(chunk, budget)
        return outcomes

    def _encode_golden(self, golden: Golden) -> Embedding:
        # Under the default limits on what an image may be: tight ones are no fault of the model.
        # What it may cost, its process was told when it was started.
        decoded = self.decoder.decode(golden.input, Config(), spend=lambda _: None)
        embedding: Embedding = self._infer([decoded])[0]
        return embedding

    def _decode_ahead(
        self, files: Iterable[Outcome[File]], config: Config, budget: Budget
    ) -> Iterator[Outcome[Decoded]]:
        """Decode `files`, in order, up to a chunk of them ahead of the one that is asked for."""
        ahead: deque[Future[Outcome[Decoded]]] = deque()
        for file in files:
            # In a copy of this request's context, so that it is this request's line in the log.
            run = copy_context().run
            ahead.append(self._threads.submit(run, self._decode, file, config, budget))
            if len(ahead) > CHUNK:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _decode(self, file: Outcome[File], config: Config, budget: Budget) -> Outcome[Decoded]:
        def decode(data: File) -> Decoded:
            budget.check()
            with telemetry.timed("decode_ms"):
                decoded = self.decoder.decode(data, config, budget.spend)
            telemetry.note(format=decoded.format, size=decoded.size, bytes=len(data))
            return decoded

        return file.then(decode)

    def _encode_chunk(
        self, chunk: Sequence[Outcome[Decoded]], budget: Budget
    ) -> list[Outcome[Embedding]]:
        """One inference over the images of `chunk` that could be decoded."""

        def in_time(decoded: Decoded) -> Decoded:
            budget.check_clock()
            return decoded

        chunk = [outcome.then(in_time) for outcome in chunk]
        decoded = [outcome.get() for outcome in chunk if outcome.error is None]
        embeddings = iter(self._infer(decoded) if decoded else ())
        return [outcome.then(lambda _: next(embeddings)) for outcome in chunk]

    def _infer(self, images: Sequence[Decoded]) -> Embeddings:
        pixels = b"".join(image.pixels for image in images)
        x: Pixels = np.frombuffer(pixels, np.uint8).reshape(len(images), self._side, self._side, 3)
        with self._one_at_a_time, telemetry.timed("engine_ms"):
            return self.engine.encode(x)  # [n, embedding size]


def _chunks(items: Iterator[T]) -> Iterator[list[T]]:
    while True:
        chunk = list(islice(items, CHUNK))
        if not chunk:
            return
        yield chunk
