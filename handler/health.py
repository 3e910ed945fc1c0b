"""Whether the vectors can be trusted, and what ``/health`` says of it."""

import logging
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handler import __version__
from handler.config import Config
from handler.engines import Engine
from handler.images.sandbox import Decoder
from handler.images.wire import SIZE
from handler.model import Model
from handler.precision import PRECISIONS

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux says what the processor can do."""
CPU_FEATURES = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8"),  # x86
    *("asimddp", "i8mm"),  # arm64
)
"""The kernel's names of those features by which ONNX Runtime chooses how it multiplies matrices."""

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


def cpu_features(cpuinfo: Path = CPUINFO) -> list[str]:
    """Those of `CPU_FEATURES` that the kernel says this processor has, in their order.

    They tell how fast the engine can be here, not which instructions it takes. The kernel's words
    are about the machine that this runs on now: under an emulator of processors they may be those
    of the machine below, and after SnapStart they are those of the machine on which the function
    was restored, while the engine chose its instructions before the snapshot. Hence they are read
    at each call, which takes 70 microseconds. Empty where there is no such file, as on macOS.
    """
    try:
        with cpuinfo.open() as file:
            first = file.read(8192)  # one of the processors, which are alike and may be hundreds
    except OSError:
        return []
    words = re.search(r"(?:flags|Features)\s*:(.*)", first)  # on x86, on arm64
    found = set(words[1].split()) if words else set()
    return [feature for feature in CPU_FEATURES if feature in found]


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
        "cpu_features": cpu_features(),
    }
