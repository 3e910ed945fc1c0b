"""What a preprocessing that differs from OpenAI's would have made of an image, as an image file.

The service does to such a file only what is left to do, so that its vector of the file is what the
other preprocessing's service makes of the original, if that is how it differs.
"""

import io
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clip_encoder import images

SIDE = 224
"""Pixels of each side of what the model sees."""
ORIENTATION = 0x0112

EXIF, RGB, SQUASH, SQUASH_BILINEAR = "exif", "rgb_first", "squash", "squash_bilinear"
DIFFERENCES = {
    EXIF: "turns pictures as their EXIF data says",
    RGB: "converts to RGB before it resizes, so that transparency and palettes come out otherwise",
    SQUASH: f"squashes pictures to {SIDE} x {SIDE} instead of cropping them",
    SQUASH_BILINEAR: f"squashes pictures to {SIDE} x {SIDE}, bilinearly, instead of cropping them",
}
"""Ways for a preprocessing to differ, in words that follow "the old service"."""


def combinations() -> list[frozenset[str]]:
    """Every way to differ and every combination of them, the simple ones first."""
    squashes = [set(), {SQUASH}, {SQUASH_BILINEAR}]
    every = [frozenset(a | b | c) for a, b, c in product([set(), {EXIF}], [set(), {RGB}], squashes)]
    return sorted((ways for ways in every if ways), key=len)


def changed(data: bytes, ways: frozenset[str]) -> bytes | None:
    """An image file as those `ways` would make it; None where they make no difference to it.

    Raises:
        OSError, ValueError, SyntaxError: Pillow cannot read it.
    """
    with Image.open(io.BytesIO(data)) as opened:
        picture: Image.Image = opened
        is_turned = EXIF in ways and opened.getexif().get(ORIENTATION, 1) != 1
        if is_turned:
            picture = ImageOps.exif_transpose(picture)
        is_converted = RGB in ways and picture.mode != "RGB"
        if is_converted:
            picture = picture.convert("RGB")
        is_squashed = bool({SQUASH, SQUASH_BILINEAR} & ways) and picture.width != picture.height
        if is_squashed:
            how = Image.Resampling.BICUBIC if SQUASH in ways else Image.Resampling.BILINEAR
            picture = picture.resize((SIDE, SIDE), how)
        if not (is_turned or is_converted or is_squashed):
            return None
        return images.lossless(picture)


def neutral(data: bytes) -> NDArray[np.uint8]:
    """An image file -> RGB pixels [224, 224, 3] of it, to which no preprocessing does anything.

    Raises:
        OSError, ValueError, SyntaxError: Pillow cannot read it.
    """
    with Image.open(io.BytesIO(data)) as picture:
        fitted = ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(fitted)


def nudged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same pixels, but for the one in the middle, which is brighter or darker by one step."""
    nudged = pixels.copy()
    nudged[SIDE // 2, SIDE // 2] ^= 1
    return nudged


def png(pixels: NDArray[np.uint8]) -> bytes:
    """RGB pixels as a file."""
    return images.lossless(Image.fromarray(pixels))
