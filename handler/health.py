"""Whether the vectors can be trusted, and what ``/health`` says of it."""

import logging

import numpy as np
from numpy.typing import NDArray

from handler import __version__
from handler.config import Config
from handler.engines import Engine
from handler.images.sandbox import Decoder
from handler.images.wire import SIZE
from handler.model import Model
from handler.precision import PRECISIONS

log = logging.getLogger("clip")


def self_check(engine: Engine, model: Model, decoder: Decoder) -> str | None:
    """Encode the golden image, once, at the start; it also warms every code path.

    None when its vector is clip's own, else what is wrong, in words for the log.
    """
    try:
        cosine = _golden_cosine(engine, model, decoder)
    except Exception:
        log.exception("self-check: the golden image cannot be encoded")
        return "the golden image cannot be encoded"
    if cosine >= PRECISIONS[engine.precision].self_check:
        return None
    fault = f"the golden image's vector has cosine {cosine:.6f} with the recorded one"
    log.error("self-check: %s: the model files are not those that model.json describes", fault)
    return fault


def _golden_cosine(engine: Engine, model: Model, decoder: Decoder) -> float:
    """Between the golden image's vector and the one that clip itself gave at export."""
    # Under the default limits on what an image may be: tight ones are no fault of the model. What
    # it may cost, its process was told when it was started.
    decoded = decoder.decode(model.golden_image, Config(), spend=lambda _: None)
    pixels: NDArray[np.uint8] = np.frombuffer(decoded.pixels, np.uint8).reshape(1, SIZE, SIZE, 3)
    return float(engine.encode(pixels)[0] @ model.golden_embedding)


def report(engine: Engine, model: Model, fingerprint: str, fault: str | None) -> dict[str, object]:
    """The health body: the old service's four fields first, then what identifies a vector."""
    status = "synthetic" if model.weights == "synthetic" else "healthy"
    return {
        "status": "unhealthy" if fault else status,
        "model": model.name,
        "device": engine.device,
        "embedding_size": model.embedding_size,
        "engine": engine.name,
        "weights": model.weights,
        "version": __version__,
        "fingerprint": fingerprint,
    }
