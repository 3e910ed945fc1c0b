"""The parity gate: every exported engine against ``clip`` itself, image by image."""

import io
from dataclasses import asdict, dataclass

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
from handler.precision import PRECISIONS, Gate

FULL = Config(jpeg_draft=0)
"""JPEGs at their full size, as clip decodes them. ``benchmarks/accuracy.py`` measures the rest."""


@dataclass(frozen=True)
class Row:
    """One image's vector from one engine, compared with clip's."""

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
        """Whether it is within every limit; written so that NaN is not."""
        gate = limits(self.precision)
        close = self.cosine >= gate.min_cosine and self.max_difference <= gate.max_difference
        return self.identical_pixels and close


def limits(precision: str) -> Gate:
    """How far vectors of a precision that the export writes may be from clip's."""
    gate = PRECISIONS[precision].gate
    if gate is None:
        raise ValueError(f"the export does not write {precision}, so it has no gate")
    return gate


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
    """One line for each image and engine; those that failed say so."""
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
    return {
        "images": len({row.name for row in rows}),
        "engines": sorted({row.engine for row in rows}),
        "identical_pixels": all(row.identical_pixels for row in rows),
        "min_cosine": min(row.cosine for row in rows),
        "max_difference": max(row.max_difference for row in rows),
        "limits": asdict(limits(precision)),
    }
