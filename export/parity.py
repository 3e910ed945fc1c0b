"""The parity gate: every exported engine against ``clip`` itself, image by image."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from export.checkpoint import Reference
from handler.config import Config
from handler.engines import Engine
from handler.images import sandbox
from handler.images.wire import SIZE

# What is promised is 0.9999 and 1e-3. GELU for QuickGELU, the classic mistake of CLIP ports, passes
# those (0.99998, 8.5e-4 on synthetic weights), so the gate is ten times as strict; sound exports
# are a hundred times better than the gate.
MIN_COSINE = 0.99999
MAX_DIFFERENCE = 1e-4
LIMITS = {"fp32": (MIN_COSINE, MAX_DIFFERENCE), "int8": (0.99, 1.0)}
"""Precision -> smallest cosine, largest difference."""

FULL = Config(jpeg_draft=0)
"""As clip decodes. What reduced decoding may cost is another question: ``benchmarks/accuracy.py``.
"""


@dataclass(frozen=True)
class Row:
    """One image through one engine, beside clip."""

    name: str
    engine: str
    identical_pixels: bool
    """Equal to ``preprocess`` before normalisation."""
    cosine: float
    max_difference: float
    """Largest difference of one element of two unit vectors."""
    precision: str = "fp32"

    @property
    def passed(self) -> bool:
        """Within every limit; written so that NaN fails."""
        min_cosine, max_difference = LIMITS[self.precision]
        close = self.cosine >= min_cosine and self.max_difference <= max_difference
        return self.identical_pixels and close


def reference_pixels(reference: Reference, picture: Image.Image) -> NDArray[np.uint8]:
    """uint8 RGB [224, 224, 3] as clip's own ``preprocess`` has it just before ``ToTensor``."""
    for transform in reference.preprocess.transforms[:-2]:  # type: ignore[attr-defined]
        picture = transform(picture)
    return np.asarray(picture)


@torch.inference_mode()
def reference_embedding(reference: Reference, picture: Image.Image) -> NDArray[np.float32]:
    """float32 [512] of unit length: ``clip``'s model over ``clip``'s preprocessing."""
    x = reference.model.encode_image(reference.preprocess(picture).unsqueeze(0))[0]
    embedding: NDArray[np.float32] = (x / x.norm()).numpy()
    return embedding


def compare(reference: Reference, engines: list[Engine], images: dict[str, bytes]) -> list[Row]:
    """Encode every image with clip and with each engine."""
    decoder = sandbox.start(FULL)
    rows = []
    for name, data in tqdm(images.items(), desc="parity", unit="image"):
        picture = Image.open(io.BytesIO(data))
        theirs = reference_embedding(reference, picture)
        decoded = decoder.decode(data, FULL, spend=lambda _: None)
        pixels = np.frombuffer(decoded.pixels, np.uint8).reshape(SIZE, SIZE, 3)
        identical = np.array_equal(pixels, reference_pixels(reference, picture))
        for engine in engines:
            ours = engine.encode(pixels[None])[0]
            cosine, difference = float(ours @ theirs), float(np.abs(ours - theirs).max())
            rows.append(Row(name, engine.name, identical, cosine, difference, engine.precision))
    decoder.close()
    return rows


def table(rows: list[Row]) -> str:
    """One line an image and engine; failures marked."""
    lines = [f"{'image':36} {'engine':7} {'':5} {'pixels':10} {'cosine':>12} {'difference':>11}"]
    for row in rows:
        pixels = "identical" if row.identical_pixels else "DIFFERENT"
        line = f"{row.name:36} {row.engine:7} {row.precision:5} {pixels:10}"
        line += f" {row.cosine:12.8f} {row.max_difference:11.1e}"
        lines.append(line if row.passed else f"{line}  FAILED")
    return "\n".join(lines)


def summary(rows: list[Row], precision: str) -> dict[str, object]:
    """The figures of one precision that ``model.json`` records."""
    rows = [row for row in rows if row.precision == precision]
    min_cosine, max_difference = LIMITS[precision]
    return {
        "images": len({row.name for row in rows}),
        "engines": sorted({row.engine for row in rows}),
        "identical_pixels": all(row.identical_pixels for row in rows),
        "min_cosine": min(row.cosine for row in rows),
        "max_difference": max(row.max_difference for row in rows),
        "limits": {"min_cosine": min_cosine, "max_difference": max_difference},
    }
