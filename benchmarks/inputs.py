"""``python -m benchmarks.inputs DIR``: make the photographs, events and models of the benchmark,
and what exactness is judged by.

This is a process of its own. The one that measures must not load the files that the measured ones
load, because mapped files cannot be dropped from the page cache.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import export.__main__ as exporter
from benchmarks import accuracy
from benchmarks.subjects import CHECKPOINT
from events.generate import MULTIPART, multipart, rest
from export import parity
from export.checkpoint import VIT_B_32, Reference, load_reference
from export.images import PHOTOGRAPHS, encoded, parity_images, photograph
from export.towers import MEAN, STD

IMAGES = {  # name -> size, Pillow format and options
    "640x480 JPEG": ((640, 480), "JPEG", {"quality": 90}),
    "1600x1200 JPEG": ((1600, 1200), "JPEG", {"quality": 90}),
    "12 MP JPEG": ((4000, 3000), "JPEG", {"quality": 90}),
    "12 MP PNG": ((4000, 3000), "PNG", {}),
    "2 MP WebP": ((1632, 1224), "WEBP", {"quality": 85}),
}
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


def write_fastembed(directory: Path, reference: Reference) -> None:
    """What ``fastembed`` downloads for ``Qdrant/clip-ViT-B-32-vision``, of the same weights.

    Theirs is torch's own ONNX export of the image tower in fp32, and a preprocessing card.
    """
    directory.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's newer exporter needs another package
        torch.onnx.export(
            reference.model.visual,
            (torch.zeros(1, 3, 224, 224),),
            directory / "model.onnx",
            dynamo=False,
            input_names=["pixel_values"],
            output_names=["image_embeds"],
            dynamic_axes={"pixel_values": {0: "n"}, "image_embeds": {0: "n"}},
        )
    card = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "do_convert_rgb": True,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(card))


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
    write_fastembed(directory / "fastembed", reference)
    (directory / "complete").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
