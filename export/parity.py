"""The parity gate: every exported engine against ``clip`` itself, image by image."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from export.checkpoint import Reference
from export.images import PHOTOGRAPH
from handler.config import Config
from handler.engines import Embedding, Embeddings, Engine, Pixels
from handler.images import sandbox
from handler.images.wire import SIZE
from handler.precision import PRECISIONS, Gate

FULL = Config(jpeg_draft=0)
"""JPEGs at their full size, as clip decodes them. ``benchmarks/accuracy.py`` measures the rest."""


@dataclass(frozen=True)
class Sample:
    """One image as the engines take it, and what clip makes of it."""

    name: str
    pixels: NDArray[np.uint8]
    """As the service decodes it: RGB [224, 224, 3]."""
    identical_pixels: bool
    """Equal to ``preprocess`` before normalisation."""
    embedding: Embedding
    """clip's."""


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
    same_in_batches: bool = True
    """Whether the vector is the same to the bit in every batch that the gate asks for."""

    @property
    def passed(self) -> bool:
        """Whether it is within every limit."""
        return self.identical_pixels and self.same_in_batches and self.close

    @property
    def close(self) -> bool:
        """Whether the vector is as near to clip's as it must be; written so that NaN is not."""
        gate = limits(self.precision)
        least = gate.min_cosine
        if self.is_photograph and gate.min_cosine_photographs is not None:
            least = gate.min_cosine_photographs
        return self.cosine >= least and self.max_difference <= gate.max_difference

    @property
    def is_photograph(self) -> bool:
        """Whether the image is a photograph as it is."""
        return self.name.startswith(PHOTOGRAPH)


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


def samples(reference: Reference, images: dict[str, bytes]) -> list[Sample]:
    """Decode every image and encode it with clip."""
    decoder = sandbox.start(FULL)
    found = []
    for name, data in tqdm(images.items(), desc="clip", unit="image"):
        picture = Image.open(io.BytesIO(data))
        decoded = decoder.decode(data, FULL, spend=lambda _: None)
        pixels = np.frombuffer(decoded.pixels, np.uint8).reshape(SIZE, SIZE, 3)
        identical = np.array_equal(pixels, reference_pixels(reference, picture))
        embedding = reference_embedding(reference, picture)
        found.append(Sample(name, pixels, identical, embedding))
    decoder.close()
    return found


def compare(engines: Sequence[Engine], samples: Sequence[Sample]) -> list[Row]:
    """Encode every image with each engine: by itself, and in the batches that its gate asks for."""
    rows = []
    for engine in engines:
        title = f"{engine.name} {engine.precision}"
        one_by_one = tqdm(samples, desc=title, unit="image")
        alone = np.concatenate([engine.encode(sample.pixels[None]) for sample in one_by_one])
        same = _same_in_batches(engine, samples, alone)
        for sample, ours, is_same in zip(samples, alone, same, strict=True):
            rows.append(_row(sample, ours, engine.name, engine.precision, bool(is_same)))
    return rows


def close_enough(
    samples: Sequence[Sample], embeddings: Embeddings, engine: str, precision: str
) -> bool:
    """Whether vectors of `samples` are as near to clip's as `precision` asks for."""
    rows = [
        _row(sample, ours, engine, precision)
        for sample, ours in zip(samples, embeddings, strict=True)
    ]
    return all(row.close for row in rows) and mean_passed(rows, precision)


def _row(
    sample: Sample, ours: Embedding, engine: str, precision: str, same_in_batches: bool = True
) -> Row:
    theirs = sample.embedding
    cosine, difference = float(ours @ theirs), float(np.abs(ours - theirs).max())
    pixels = sample.identical_pixels
    return Row(sample.name, engine, pixels, cosine, difference, precision, same_in_batches)


def _same_in_batches(
    engine: Engine, samples: Sequence[Sample], alone: Embeddings
) -> NDArray[np.bool_]:
    """Whether each vector is the same, to the bit, in batches of different pictures: [images]."""
    same = np.ones(len(samples), np.bool_)
    for size in limits(engine.precision).batches:
        for start in range(0, len(samples), size):
            # The last batch is filled up with the first images.
            indices = [i % len(samples) for i in range(start, start + size)]
            batch: Pixels = np.stack([samples[i].pixels for i in indices])
            same[indices] &= (engine.encode(batch) == alone[indices]).all(axis=1)
    return same


def mean_passed(rows: Sequence[Row], precision: str) -> bool:
    """Whether the mean cosine of one precision's rows is what its gate asks for."""
    least = limits(precision).min_mean_cosine
    return least is None or _mean_cosine(rows, precision) >= least


def passed(rows: Sequence[Row]) -> bool:
    """Whether all rows and all means are within their limits."""
    precisions = {row.precision for row in rows}
    return all(row.passed for row in rows) and all(mean_passed(rows, p) for p in precisions)


def _mean_cosine(rows: Sequence[Row], precision: str) -> float:
    return float(np.mean([row.cosine for row in rows if row.precision == precision]))


def table(rows: Sequence[Row]) -> str:
    """One line for each image and engine, and for each mean; those that failed say so."""
    lines = [f"{'image':36} {'engine':7} {'':5} {'pixels':10} {'cosine':>12} {'difference':>11}"]
    for row in rows:
        pixels = "identical" if row.identical_pixels else "DIFFERENT"
        line = f"{row.name:36} {row.engine:7} {row.precision:5} {pixels:10}"
        line += f" {row.cosine:12.8f} {row.max_difference:11.1e}"
        if not row.same_in_batches:
            line += "  other bits in a batch"
        lines.append(line if row.passed else f"{line}  FAILED")
    for precision in sorted({row.precision for row in rows}):
        line = f"{'mean':36} {'':7} {precision:5} {'':10} {_mean_cosine(rows, precision):12.8f}"
        lines.append(line if mean_passed(rows, precision) else f"{line}  FAILED")
    return "\n".join(lines)


def summary(rows: Sequence[Row], precision: str) -> dict[str, object]:
    """The figures of one precision that ``model.json`` records."""
    rows = [row for row in rows if row.precision == precision]
    gate = asdict(limits(precision))
    return {
        "images": len({row.name for row in rows}),
        "engines": sorted({row.engine for row in rows}),
        "identical_pixels": all(row.identical_pixels for row in rows),
        "min_cosine": min(row.cosine for row in rows),
        "min_cosine_photographs": min(
            (row.cosine for row in rows if row.is_photograph), default=None
        ),
        "mean_cosine": _mean_cosine(rows, precision),
        "max_difference": max(row.max_difference for row in rows),
        "limits": {name: limit for name, limit in gate.items() if limit not in (None, ())},
    }
