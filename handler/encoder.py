"""Images in, unit vectors out: the one path that every transport shares."""

import logging
import threading
import warnings
from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from handler import __version__, telemetry
from handler.config import Config
from handler.engines import Engine, load_engine
from handler.errors import ClipError, ModelUnhealthy
from handler.images import decode, s3
from handler.model import Model
from handler.precision import PRECISIONS

Embedding = NDArray[np.float32]
"""float32 [512], unit length."""

CHUNK = 8
"""Images of one inference: more gain no speed (see the benchmark), and make others wait."""

log = logging.getLogger("clip")


class Encoder:
    """Encodes images with one loaded engine; thread-safe."""

    def __init__(self, engine: Engine, model: Model, config: Config) -> None:
        """Take a loaded engine and run the self-check, which also warms every code path."""
        self.engine = engine
        self.model = model
        self.config = config
        self.fingerprint = model.fingerprint(engine.precision, config.preprocess, config.jpeg_draft)
        self._one_at_a_time = threading.Lock()  # an inference uses every CPU: two at once only wait
        self.fault = self._self_check()

    def encode(self, data: bytes | s3.Source) -> Embedding:
        """Encoded image file, here or in S3 -> float32 [512] of unit length.

        Raises:
            RequestError: the image cannot be encoded, and why.
            SourceUnavailable: S3 did not deliver it.
            ModelUnhealthy: the self-check failed.
        """
        (result,) = self.encode_batch([data])
        if isinstance(result, ClipError):
            try:
                raise result
            finally:
                del result  # else its traceback holds this frame, which holds it
        return result

    def encode_batch(
        self, images: Iterable[bytes | ClipError | s3.Source]
    ) -> list[Embedding | ClipError]:
        """Encode many images, reading those in S3 meanwhile; a bad one becomes its error, alone.

        An item that already is an error (bad base64, say) keeps its place and stays one.

        Raises:
            ModelUnhealthy: the self-check failed.
        """
        if self.fault:
            raise ModelUnhealthy(
                "the model failed its start-up self-check; see /health and the log"
            )
        fetched = s3.fetch(images, self.config)
        results: list[Embedding | ClipError] = []
        while chunk := self._encode_chunk(islice(fetched, CHUNK)):
            results += chunk
        failed = sum(isinstance(result, ClipError) for result in results)
        telemetry.note(images=len(results), failed=failed)
        return results

    def _encode_chunk(self, images: Iterable[bytes | ClipError]) -> list[Embedding | ClipError]:
        pixels: list[NDArray[np.uint8]] = []
        results: list[Embedding | ClipError | int] = []  # an int is a row of the engine's answer
        for data in images:
            try:
                pixels.append(self._pixels(data))
                results.append(len(pixels) - 1)
            except ClipError as error:
                # Bare: its traceback's frames hold the image, and this one, which holds the error.
                error.__cause__ = error.__context__ = None
                results.append(error.with_traceback(None))
        if not pixels:
            return [r for r in results if not isinstance(r, int)]
        with self._one_at_a_time, telemetry.timed("engine_ms"):
            embeddings = self.engine.encode(np.stack(pixels))  # [n, 512]
        return [embeddings[r] if isinstance(r, int) else r for r in results]

    def _pixels(self, data: bytes | ClipError) -> NDArray[np.uint8]:
        if isinstance(data, ClipError):
            raise data
        with telemetry.timed("decode_ms"):
            decoded = decode.decode(data, self.config)
            telemetry.note(format=decoded.format, size=decode.full_size(decoded), bytes=len(data))
            return decode.preprocess(decoded, self.config.preprocess)

    def _self_check(self) -> str | None:
        """Encode the golden image; None when its vector is clip's own, else what is wrong."""
        try:
            # Under the default limits: tight ones are no fault of the model.
            pixels = decode.preprocess(decode.decode(self.model.golden_image, Config()))
            cosine = float(self.engine.encode(pixels[None])[0] @ self.model.golden_embedding)
        except Exception:
            log.exception("self-check: the golden image cannot be encoded")
            return "the golden image cannot be encoded"
        if cosine >= PRECISIONS[self.engine.precision].self_check:
            return None
        fault = f"the golden image's vector has cosine {cosine:.6f} with the recorded one"
        log.error("self-check: %s: the model files are not those that model.json describes", fault)
        return fault

    def health(self) -> dict[str, object]:
        """The health body: the old service's four fields first, then what identifies a vector."""
        status = "synthetic" if self.model.weights == "synthetic" else "healthy"
        return {
            "status": "unhealthy" if self.fault else status,
            "model": self.model.name,
            "device": self.engine.device,
            "embedding_size": self.model.embedding_size,
            "engine": self.engine.name,
            "weights": self.model.weights,
            "version": __version__,
            "fingerprint": self.fingerprint,
        }


def load_encoder(config: Config) -> Encoder:
    """Model folder -> primed encoder.

    Raises:
        ModelError: the model folder cannot be used.
        ImportError: the engine asked for is not installed.
    """
    model = Model.load(config.model_dir)
    encoder = Encoder(load_engine(config, model), model, config)
    if model.weights == "synthetic":
        log.warning("the weights are SYNTHETIC: vectors are well-formed but mean nothing")
    return encoder


def load_from_env() -> Encoder:
    """Settings of the environment -> primed encoder; what prevents it is one line in the log."""
    warnings.filterwarnings("ignore", module="PIL")  # advice on images, which are the callers'
    try:
        config = Config.from_env()
        telemetry.configure(config.log_level)
        return load_encoder(config)
    except Exception as error:
        telemetry.configure("INFO")
        log.critical("the service cannot start: %s", error)
        raise
