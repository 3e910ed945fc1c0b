"""The parity gate: every exported engine against ``clip`` itself, image by image, text by text."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from export.checkpoint import Reference
from export.images import PHOTOGRAPH
from handler.config import Config
from handler.engines import Embedding, Embeddings, Engine
from handler.engines.torch_clip import import_clip
from handler.images import sandbox
from handler.precision import PRECISIONS, Gate
from handler.text.tokenizer import Tokenizer

FULL = Config(jpeg_draft=0)
"""JPEGs at their full size, as clip decodes them. ``benchmarks/accuracy.py`` measures the rest."""


@dataclass(frozen=True)
class Sample:
    """One image or text as the engines take it, and what clip makes of it."""

    name: str
    input: NDArray[np.generic]
    """As the service has it: an image's pixels, RGB [side, side, 3], or a text's tokens, [t]."""
    identical: bool
    """Whether that is what clip has too: of images, ``preprocess`` before normalisation."""
    embedding: Embedding
    """clip's."""
    tower: str = "image"
    """What encodes it: ``image`` or ``text``."""


@dataclass(frozen=True)
class Row:
    """The vector that one engine makes of one image or text, compared with clip's."""

    name: str
    engine: str
    identical: bool
    """As in `Sample`."""
    cosine: float
    max_difference: float
    """Largest difference of one element of two unit vectors."""
    precision: str = "fp32"
    same_in_batches: bool = True
    """Whether the vector is the same to the bit in every batch that the gate asks for."""
    tower: str = "image"
    """As in `Sample`."""

    @property
    def passed(self) -> bool:
        """Whether it is within every limit."""
        return self.identical and self.same_in_batches and self.close

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
    """uint8 RGB [side, side, 3] as clip's own ``preprocess`` has it just before ``ToTensor``."""
    for transform in reference.preprocess.transforms[:-2]:  # type: ignore[attr-defined]
        picture = transform(picture)
    return np.asarray(picture)


@torch.inference_mode()
def reference_embedding(reference: Reference, picture: Image.Image) -> NDArray[np.float32]:
    """float32 [embedding size] of unit length: ``clip``'s model over ``clip``'s preprocessing."""
    x = reference.model.encode_image(reference.preprocess(picture).unsqueeze(0))[0]
    embedding: NDArray[np.float32] = (x / x.norm()).numpy()
    return embedding


@torch.inference_mode()
def reference_text_embeddings(reference: Reference, tokens: torch.Tensor) -> Embeddings:
    """Int [n, 77] -> float32 [n, embedding size] of unit length, by ``clip``'s model."""
    x = reference.model.encode_text(tokens)
    embeddings: Embeddings = (x / x.norm(dim=-1, keepdim=True)).numpy()
    return embeddings


def text_samples(reference: Reference, tokenizer: Tokenizer, texts: Iterable[str]) -> list[Sample]:
    """Tokenize every text and encode it with clip."""
    clip = import_clip()
    found = []
    for text in tqdm(texts, desc="clip", unit="text"):
        theirs = clip.tokenize(text, truncate=True)  # [1, 77]
        ours = tokenizer.tokenize(text, truncate=True).ids
        embedding = reference_text_embeddings(reference, theirs)[0]
        identical = same_tokens(ours, theirs[0].numpy())
        found.append(Sample(repr(text), ours, identical, embedding, "text"))
    return found


def same_tokens(ours: NDArray[np.int32], theirs: NDArray[np.integer[Any]]) -> bool:
    """Whether tokens [t] are clip's, which are [77] and have zeros at the end."""
    return np.array_equal(ours, theirs[: len(ours)]) and not theirs[len(ours) :].any()


def samples(reference: Reference, images: dict[str, bytes]) -> list[Sample]:
    """Decode every image and encode it with clip."""
    side = reference.architecture.resolution
    decoder = sandbox.start(FULL, side)
    found = []
    for name, data in tqdm(images.items(), desc="clip", unit="image"):
        picture = Image.open(io.BytesIO(data))
        decoded = decoder.decode(data, FULL, spend=lambda _: None)
        pixels = np.frombuffer(decoded.pixels, np.uint8).reshape(side, side, 3)
        identical = np.array_equal(pixels, reference_pixels(reference, picture))
        embedding = reference_embedding(reference, picture)
        found.append(Sample(name, pixels, identical, embedding))
    decoder.close()
    return found


def compare(engines: Sequence[Engine], samples: Sequence[Sample]) -> list[Row]:
    """Encode every sample with each engine: alone, and in the batches that its gate asks for."""
    rows = []
    for engine in engines:
        title = f"{engine.name} {engine.precision}"
        one_by_one = tqdm(samples, desc=title)
        alone = np.concatenate([engine.encode(sample.input[None]) for sample in one_by_one])
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
    return Row(
        sample.name,
        engine,
        sample.identical,
        cosine,
        difference,
        precision,
        same_in_batches,
        sample.tower,
    )


def _same_in_batches(
    engine: Engine, samples: Sequence[Sample], alone: Embeddings
) -> NDArray[np.bool_]:
    """Whether each vector is the same, to the bit, in batches of different samples: [samples].

    A batch holds samples of one shape: images, or texts of equally many tokens.
    """
    same = np.ones(len(samples), np.bool_)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        by_shape.setdefault(sample.input.shape, []).append(i)
    for size, places in product(limits(engine.precision).batches, by_shape.values()):
        for start in range(0, len(places), size):
            # The last batch is filled up with the first samples.
            indices = [places[i % len(places)] for i in range(start, start + size)]
            batch = np.stack([samples[i].input for i in indices])
            same[indices] &= (engine.encode(batch) == alone[indices]).all(axis=1)
    return same


def mean_passed(rows: Sequence[Row], precision: str) -> bool:
    """Whether the mean cosine of one precision's rows is what its gate asks for."""
    least = limits(precision).min_mean_cosine
    return least is None or _mean_cosine(rows, precision) >= least


def passed(rows: Sequence[Row]) -> bool:
    """Whether all rows and all means are within their limits."""
    means = all(mean_passed(group, precision) for (_, precision), group in _groups(rows).items())
    return all(row.passed for row in rows) and means


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each tower and precision."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.tower, row.precision)):
        groups.setdefault((row.tower, row.precision), []).append(row)
    return groups


def _mean_cosine(rows: Sequence[Row], precision: str) -> float:
    return float(np.mean([row.cosine for row in rows if row.precision == precision]))


def table(rows: Sequence[Row]) -> str:
    """One line for each sample and engine, and for each mean; those that failed say so."""
    lines = [f"{'sample':36} {'engine':7} {'':5} {'input':10} {'cosine':>12} {'difference':>11}"]
    for row in rows:
        given = "identical" if row.identical else "DIFFERENT"
        line = f"{row.name[:36]:36} {row.engine:7} {row.precision:5} {given:10}"
        line += f" {row.cosine:12.8f} {row.max_difference:11.1e}"
        if not row.same_in_batches:
            line += "  other bits in a batch"
        lines.append(line if row.passed else f"{line}  FAILED")
    for (tower, precision), group in _groups(rows).items():
        mean = f"{_mean_cosine(group, precision):12.8f}"
        line = f"{f'mean, {tower}':36} {'':7} {precision:5} {'':10} {mean}"
        lines.append(line if mean_passed(group, precision) else f"{line}  FAILED")
    return "\n".join(lines)


def summary(rows: Sequence[Row], precision: str) -> dict[str, object]:
    """The figures of one precision that ``model.json`` records."""
    rows = [row for row in rows if row.precision == precision]
    gate = asdict(limits(precision))
    return {
        "samples": len({row.name for row in rows}),
        "engines": sorted({row.engine for row in rows}),
        "identical_inputs": all(row.identical for row in rows),
        "min_cosine": min(row.cosine for row in rows),
        "min_cosine_photographs": min(
            (row.cosine for row in rows if row.is_photograph), default=None
        ),
        "mean_cosine": _mean_cosine(rows, precision),
        "max_difference": max(row.max_difference for row in rows),
        "limits": {name: limit for name, limit in gate.items() if limit not in (None, ())},
    }
