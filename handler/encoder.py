"""Images in, unit vectors out: the one path that every way into the service shares."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice
from typing import TypeVar

import numpy as np

from handler import health, telemetry
from handler.budget import Budget
from handler.config import Config, available_cpus
from handler.engines import Embedding, Embeddings, Engine, Pixels, Turns, load_engine
from handler.errors import ModelUnhealthy
from handler.images import s3, sandbox
from handler.images.processes import Zygote
from handler.images.s3 import File, Image
from handler.images.sandbox import Decoder
from handler.images.wire import SIZE, Decoded
from handler.model import Model
from handler.outcome import Outcome

CHUNK = 8
"""Images of one inference: more gain no speed (see the benchmark), and make others wait."""

T = TypeVar("T")

log = logging.getLogger("clip")


class Encoder:
    """Encodes images with one loaded engine; thread-safe."""

    def __init__(
        self, engine: Engine, model: Model, config: Config, decoder: Decoder | None = None
    ) -> None:
        """Take a loaded engine and a decoder, by default a new one, and run the self-check."""
        self.engine = engine
        self.model = model
        self.config = config
        self.decoder = decoder or sandbox.start(config)
        self.fingerprint = model.fingerprint(engine.precision, config.preprocess, config.jpeg_draft)
        self._threads = ThreadPoolExecutor(available_cpus(), "decode")
        # An inference uses every CPU: two at once would only wait for each other.
        self._one_at_a_time = Turns()
        self.fault = health.self_check(engine, model, self.decoder)

    def encode(self, image: Image, budget: Budget | None = None) -> Embedding:
        """One image, its file's bytes or its place in S3 -> float32 [512] of unit length.

        Raises:
            RequestError: the image cannot be encoded, and why.
            SourceUnavailable: S3 did not deliver it.
            OutOfTime: `budget` is spent.
            ModelUnhealthy: the self-check failed.
        """
        (outcome,) = self.encode_batch([Outcome(image)], budget)
        return outcome.get()

    def health(self) -> dict[str, object]:
        """The health body; see `health.report`."""
        return health.report(self.engine, self.model, self.fingerprint, self.fault)

    def inference_seconds(self) -> float:
        """For how long the inference of this moment has been going on; 0 while there is none."""
        return self._one_at_a_time.seconds()

    def encode_batch(
        self, images: Sequence[Outcome[Image]], budget: Budget | None = None
    ) -> list[Outcome[Embedding]]:
        """Encode many images, one outcome each, in order. A bad one fails alone.

        Those in S3 are read, and all are decoded, while the engine works on the ones before. An
        item that is an error already (bad base64, say) keeps its place and stays one. Images whose
        turn comes when `budget` is spent fail with OutOfTime.

        Raises:
            ModelUnhealthy: the self-check failed.
        """
        if self.fault:
            raise ModelUnhealthy(
                "the model failed its start-up self-check; see /health and the log"
            )
        budget = budget or Budget()
        fetched = s3.fetch(images, self.config, budget)
        outcomes: list[Outcome[Embedding]] = []
        for chunk in _chunks(self._decode_ahead(fetched, budget)):
            outcomes += self._encode_chunk(chunk, budget)
        failed = sum(outcome.error is not None for outcome in outcomes)
        telemetry.note(images=len(outcomes), failed=failed)
        return outcomes

    def _decode_ahead(
        self, files: Iterable[Outcome[File]], budget: Budget
    ) -> Iterator[Outcome[Decoded]]:
        """Decode `files`, in order, up to a chunk of them ahead of the one that is asked for."""
        ahead: deque[Future[Outcome[Decoded]]] = deque()
        for file in files:
            # In a copy of this request's context, so that it is this request's line in the log.
            run = copy_context().run
            ahead.append(self._threads.submit(run, self._decode, file, budget))
            if len(ahead) > CHUNK:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _decode(self, file: Outcome[File], budget: Budget) -> Outcome[Decoded]:
        def decode(data: File) -> Decoded:
            budget.check()
            with telemetry.timed("decode_ms"):
                decoded = self.decoder.decode(data, self.config, budget.spend)
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
        x: Pixels = np.frombuffer(pixels, np.uint8).reshape(len(images), SIZE, SIZE, 3)
        with self._one_at_a_time, telemetry.timed("engine_ms"):
            return self.engine.encode(x)  # [n, 512]


def _chunks(items: Iterator[T]) -> Iterator[list[T]]:
    while True:
        chunk = list(islice(items, CHUNK))
        if not chunk:
            return
        yield chunk


def load_encoder(config: Config, zygote: Zygote | None = None) -> Encoder:
    """Model folder -> primed encoder; `zygote` is what `sandbox.prepare` gave, if it was called.

    Raises:
        ModelError: the model folder cannot be used.
        ImportError: the engine asked for is not installed.
    """
    model = Model.load(config.model_dir)
    decoder = sandbox.start(config, zygote)
    encoder = Encoder(load_engine(config, model), model, config, decoder)
    if model.weights == "synthetic":
        log.warning("the weights are SYNTHETIC: vectors are well-formed but mean nothing")
    return encoder


def load_from_env(zygote: Zygote | None = None) -> Encoder:
    """Settings of the environment -> primed encoder; what prevents it is one line in the log."""
    try:
        config = Config.from_env()
        telemetry.configure(config.log_level)
        return load_encoder(config, zygote)
    except Exception as error:
        telemetry.configure("INFO")
        log.critical("the service cannot start: %s", error)
        raise
