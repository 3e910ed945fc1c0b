"""``python -m benchmarks.inputs DIR``: make the photographs, events and models of the benchmark,
and what exactness is judged by.

This is a process of its own. The one that measures must not load the files that the measured ones
load, because mapped files cannot be dropped from the page cache.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

import export.__main__ as exporter
from benchmarks import accuracy, fastembed_files
from benchmarks.subjects import CHECKPOINT
from events.generate import MULTIPART, multipart, rest
from export import parity, texts
from export.checkpoint import Reference, load_reference
from export.images import PHOTOGRAPHS, encoded, parity_images, photograph
from export.sources import VIT_B_32
from handler.engines.torch_clip import import_clip

IMAGES = {  # name -> size, Pillow format and options
    "640x480 JPEG": ((640, 480), "JPEG", {"quality": 90}),
    "1600x1200 JPEG": ((1600, 1200), "JPEG", {"quality": 90}),
    "12 MP JPEG": ((4000, 3000), "JPEG", {"quality": 90}),
    "12 MP PNG": ((4000, 3000), "PNG", {}),
    "2 MP WebP": ((1632, 1224), "WEBP", {"quality": 85}),
}
TEN_TOKENS = "a photo of a brown dog in snow"
SEVENTY_SEVEN_TOKENS = (
    "a photo of a dog and a cat on the grass in the sun " * 5 + "and a bird by water"
)
"""Each word is one token, and a text's start and end are one each."""
LARGEST_JUDGED = 12.5e6
"""Pixels. The accuracy check has photographs of 48 MP too, which would take most of the time."""


def picture(size: tuple[int, int]) -> Image.Image:
    """A photograph at `size`, with a sensor's noise: an enlarged one alone decodes too easily."""
    image = photograph("coffee").resize(size, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 3, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def write_images(directory: Path) -> None:
    """Each of `IMAGES` as ``<name>.image``, and the REST event that carries the first."""
    for name, (size, kind, options) in IMAGES.items():
        (directory / f"{name}.image").write_bytes(encoded(picture(size), kind, **options))
    small = (directory / "640x480 JPEG.image").read_bytes()
    event = rest("POST", "/encode_image", MULTIPART, multipart("image", small))
    (directory / "event.json").write_text(json.dumps(event))


def write_judged(directory: Path, reference: Reference, images: dict[str, bytes]) -> None:
    """What contenders are judged by: files ``0.image`` and so on, and what clip makes of them.

    ``names.json`` lists them, ``pixels.npy`` is uint8 [n, 224, 224, 3], clip's own, ``vectors.npy``
    float32 [n, 512], clip's too, of unit length.
    """
    directory.mkdir(exist_ok=True)
    samples = parity.samples(reference, images)
    for number, data in enumerate(images.values()):
        (directory / f"{number}.image").write_bytes(data)
    (directory / "names.json").write_text(json.dumps(list(images)))
    np.save(directory / "pixels.npy", np.stack([sample.input for sample in samples]))
    np.save(directory / "vectors.npy", np.stack([sample.embedding for sample in samples]))


def large_photographs() -> dict[str, bytes]:
    """The JPEGs of the accuracy check that are not too large: name -> encoded file."""
    draft = accuracy.FAST.jpeg_draft_for(VIT_B_32.resolution)
    return {
        f"{name} at {size[0]} x {size[1]}": accuracy.enlarged(name, size)
        for name in PHOTOGRAPHS
        for size in accuracy.sizes(name, draft)
        if size[0] * size[1] <= LARGEST_JUDGED
    }


def write_texts(directory: Path, reference: Reference) -> None:
    """The texts that are timed, and what exactness is judged by.

    ``texts.json``: name -> the texts of one request. ``judged/texts.json``: texts, and
    ``judged/texts.npy`` clip's vectors of them, float32 [n, 512] of unit length.
    """
    judged = list(texts.captions())
    tokens = import_clip().tokenize(judged)  # [n, 77], with zeros behind a text's end
    lengths = zip(judged, (tokens != 0).sum(dim=1).tolist(), strict=True)
    usual = [text for text, length in lengths if 6 <= length <= 20]
    timed = {
        "10 tokens": [TEN_TOKENS],
        "77 tokens": [SEVENTY_SEVEN_TOKENS],
        "64 captions": usual[:64],
    }
    (directory / "texts.json").write_text(json.dumps(timed))
    (directory / "judged").mkdir(exist_ok=True)
    (directory / "judged/texts.json").write_text(json.dumps(judged))
    np.save(directory / "judged/texts.npy", parity.reference_text_embeddings(reference, tokens))


def write_images_only(directory: Path, model: Path) -> None:
    """The benchmark's folder with a model that was exported without the text tower.

    Its files are links to those of `model`, a folder with both towers.
    """
    (directory / "model").mkdir(parents=True, exist_ok=True)
    for file in model.glob("visual.*"):
        link = directory / "model" / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file)
    card = json.loads((model / "model.json").read_bytes())
    del card["towers"]["text"]
    (directory / "model/model.json").write_text(json.dumps(card))
    (directory / "event.json").write_bytes((model.parent / "event.json").read_bytes())


def main(directory: Path) -> int:
    """Write everything; speed does not depend on the weights' values, so they are synthetic."""
    directory.mkdir(parents=True, exist_ok=True)
    write_images(directory)
    if status := exporter.main(
        ["--synthetic", "--precision", "int8", "--out", str(directory / "model")]
    ):
        return status
    reference = load_reference(CHECKPOINT, synthetic=True)
    images = parity_images(VIT_B_32.resolution) | large_photographs()
    write_judged(directory / "judged", reference, images)
    write_texts(directory, reference)
    write_images_only(directory / "images-only", directory / "model")
    fastembed_files.write_image_model(directory / "fastembed", reference)
    if find_spec("fastembed"):
        fastembed_files.write_text_model(directory / "fastembed-text", reference)
    (directory / "complete").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
