"""Bytes -> decoded image -> pixels. Every limit on size, pixels and shape is here.

The steps and their order are those of OpenAI's ``clip._transform``: resize, crop, and only then
convert to RGB. Peers that convert first, or floor the crop's offset, get other vectors.
"""

import io
from contextlib import suppress
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from handler.config import Config
from handler.errors import (
    ClipError,
    ExtremeShape,
    ImageTooLarge,
    InvalidImage,
    MissingField,
    TooManyPixels,
    TruncatedImage,
)
from handler.images.formats import check_structure, jpeg_scans, sniff, webp_size

SIZE = 224
"""Side of the square the model sees, in pixels."""

_FULL_SIZE = (0, 0)
"""Key in ``Image.info`` of the size before `_reduce`. Not text: a file could set any text key."""


def decode(data: bytes, config: Config) -> Image.Image:
    """Decode `data` completely, once its header has passed every limit.

    A large JPEG comes out at 1/2, 1/4 or 1/8 of its size, as ``jpeg_draft`` says; `preprocess`
    knows.

    Raises:
        MissingField, ImageTooLarge: no bytes, or over ``max_image_bytes``.
        NotAnImage, UnsupportedFormat: not one of `formats.FORMATS`.
        InvalidImage: made of more parts than any real file.
        TooManyPixels, ExtremeShape: over ``max_pixels`` or ``max_aspect_ratio``.
        TruncatedImage, InvalidImage: the data ends early or is corrupt.
    """
    if not data:
        raise MissingField("the image is empty: send the bytes of an image file")
    if len(data) > config.max_image_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes, the limit is {config.max_image_bytes:,}"
        )
    kind = sniff(data)
    check_structure(kind, data)
    if kind == "WEBP":
        _check_shape(kind, webp_size(data), "RGB", config)
    try:
        # MPO is a JPEG with more pictures behind the first; it opens through the JPEG plugin.
        image = Image.open(io.BytesIO(data), formats=(kind, "MPO") if kind == "JPEG" else (kind,))
        _check_shape(kind, image.size, image.mode, config)
        if kind == "JPEG":
            _check_scans(data, image.size, config)
            _reduce(image, config)
        image.load()
    except ClipError:
        raise
    # decoders raise anything; whatever it is, this image is why
    except Exception as error:  # noqa: BLE001
        _raise_undecodable(kind, error)
    return image


def preprocess(image: Image.Image, profile: str = "openai") -> NDArray[np.uint8]:
    """Decoded image -> uint8 RGB [224, 224, 3]: ``clip._transform`` up to its ``ToTensor``.

    Bit for bit torchvision's ``Resize(224, BICUBIC)`` and ``CenterCrop(224)``, including the
    rounding of a crop offset that falls on a half. With `profile` ``corrected``, after `correct`.

    Raises:
        InvalidImage, TooManyPixels: pixels that cannot become RGB, or not in the memory there is.
    """
    try:
        if profile == "corrected":
            image = correct(image)
        width, height = full_size(image)
        scale = round(width / image.width)
        box = (0, 0, width / scale, height / scale)  # 1001 pixels at 1/8 fill 125.125 of 126
        resized = int(SIZE * max(width, height) / min(width, height))
        size = (SIZE, resized) if width <= height else (resized, SIZE)
        left, top = (round((side - SIZE) / 2.0) for side in size)
        image = image.resize(size, Image.Resampling.BICUBIC, box)
        image = image.crop((left, top, left + SIZE, top + SIZE)).convert("RGB")
    except Exception as error:  # noqa: BLE001  # as in `decode`
        _raise_undecodable(image.format or image.mode, error)
    return np.asarray(image)


def _reduce(image: Image.Image, config: Config) -> None:
    """Have a large JPEG decoded at the smallest scale that leaves ``jpeg_draft`` pixels a side.

    The decoder then skips most of its work. Shrinking further in `preprocess` hides the difference:
    cosine to full decoding is at least 0.9998, measured by ``benchmarks/accuracy.py``.
    """
    # `correct` may turn the picture, and its full size would have to turn with it.
    if config.jpeg_draft and config.preprocess == "openai":
        image.info[_FULL_SIZE] = image.size
        image.draft(None, (config.jpeg_draft, config.jpeg_draft))


def full_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in the file, of an image that may have been decoded at a reduced scale."""
    size: tuple[int, int] = image.info.get(_FULL_SIZE, image.size)
    return size


def correct(image: Image.Image) -> Image.Image:
    """What people expect and OpenAI's pipeline does not do; the result is RGB.

    The EXIF rotation is applied, 16-bit grey is scaled rather than clipped, a palette is looked up
    before resizing, and transparency lets white shine through.
    """
    with suppress(Exception):  # of unreadable EXIF; a viewer would show the picture as it is
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # I;16 and its kin, and I: what Pillow makes of 16-bit PNGs
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _check_shape(kind: str, size: tuple[int, int], mode: str, config: Config) -> None:
    width, height = size
    # Four bytes a pixel, but libwebp takes sixteen, libavif eight, and alpha is multiplied in a
    # copy.
    limit = config.max_pixels // {"WEBP": 4, "AVIF": 2}.get(kind, 2 if "A" in mode.upper() else 1)
    if width * height > limit:
        raise TooManyPixels(
            f"the image has {width:,} x {height:,} pixels; the limit is {limit:,} in all for such a {kind}"
        )
    # The resized image is 224 on its short side: 1 x 20,000 pixels would become 224 x 4,480,000.
    if max(size) > config.max_aspect_ratio * min(size):
        raise ExtremeShape(
            f"the image is {width:,} x {height:,}: one side may be at most "
            f"{config.max_aspect_ratio} times the other"
        )


def _check_scans(data: bytes, size: tuple[int, int], config: Config) -> None:
    """A progressive JPEG is decoded once per scan, and a scan can be ten bytes: bound their
    product.

    Real files have about ten scans; 16 of the largest image allowed leaves room for all of them.
    """
    most = 16 * config.max_pixels // max(1, size[0] * size[1])
    if jpeg_scans(data, most) > most:
        raise TooManyPixels(
            f"the JPEG image has more than {most:,} scans of {size[0]:,} x {size[1]:,} pixels"
        )


def _raise_undecodable(kind: str, error: Exception) -> NoReturn:
    text = str(error).lower()
    if isinstance(error, (EOFError, IndexError)) or "truncated" in text:
        raise TruncatedImage(f"the {kind} image ends before its data is complete") from error
    if isinstance(error, (MemoryError, Image.DecompressionBombError)):
        raise TooManyPixels(
            f"decoding the {kind} image takes more memory than is allowed"
        ) from error
    if isinstance(error, UnidentifiedImageError):
        raise InvalidImage(f"the data begins like {kind} but its header cannot be read") from error
    raise InvalidImage(
        f"the {kind} image is corrupt, or of a kind that cannot become RGB"
    ) from error
