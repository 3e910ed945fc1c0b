"""Whether the vectors can be trusted, and what ``/health`` says of it."""

import re
from pathlib import Path

from handler import __version__
from handler.model import Model
from handler.towers.image import ImageTower
from handler.towers.text import TextTower

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux says what the processor can do."""
CPU_FEATURES = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8"),  # x86
    *("asimddp", "i8mm"),  # arm64
)
"""The kernel's names of those features by which ONNX Runtime chooses how it multiplies matrices."""


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


def report(model: Model, images: ImageTower | None, texts: TextTower | None) -> dict[str, object]:
    """The health body: the old service's four fields first, then what identifies a vector.

    The text tower is loaded by the first text. Until then nothing is known of its self-check, and
    `text_fingerprint` is None.
    """
    towers = [tower for tower in (images, texts) if tower]
    engine = towers[0].engine
    status = "synthetic" if model.weights == "synthetic" else "healthy"
    return {
        "status": "unhealthy" if any(tower.fault for tower in towers) else status,
        "model": model.name,
        "device": engine.device,
        "embedding_size": model.embedding_size,
        "engine": engine.name,
        "weights": model.weights,
        "version": __version__,
        "fingerprint": images.fingerprint if images else None,
        "cpu_features": cpu_features(),
        "sandbox": _sandbox(images),
        "towers": [tower.name for tower in towers],
        "text_fingerprint": texts.fingerprint if texts else None,
        "logit_scale": model.logit_scale,
    }


def _sandbox(images: ImageTower | None) -> dict[str, bool] | None:
    """Return which walls hold decoders; None where no image is decoded."""
    walls = images.decoder.walls if images else None
    return walls._asdict() if walls else None
