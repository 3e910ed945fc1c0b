"""Bytes -> decoded image -> pixels. Every limit on size, pixels, shape and format is here.

The steps and their order are those of OpenAI's ``clip._transform``: resize, crop, and only then
convert to RGB. Peers that convert first, or floor the crop's offset, get other vectors.
"""

import io
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from handler.config import Config
from handler.errors import (
    ExtremeShape,
    ImageTooLarge,
    InvalidImage,
    MissingField,
    NotAnImage,
    TooManyPixels,
    TruncatedImage,
    UnsupportedFormat,
)

SIZE = 224
"""Side of the square the model sees, in pixels."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is ever opened; of animations, the first frame."""

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes, format
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftypmif1", "AVIF"),
    (4, b"ftypmsf1", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG"),
)
_SERVED = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"


def decode(data: bytes, config: Config) -> Image.Image:
    """Decode `data` completely, once its header has passed every limit.

    Raises:
        MissingField, ImageTooLarge: no bytes, or over ``max_image_bytes``.
        NotAnImage, UnsupportedFormat: not one of `FORMATS`.
        TooManyPixels, ExtremeShape: over ``max_pixels`` or ``max_aspect_ratio``.
        TruncatedImage, InvalidImage: the data ends early or is corrupt.

    """
    if not data:
        raise MissingField("the image is empty: send the bytes of an image file")
    if len(data) > config.max_image_bytes:
        raise ImageTooLarge(f"the image has {len(data):,} bytes, the limit is {config.max_image_bytes:,}")
    kind = sniff(data)
    try:
        # MPO is a JPEG with more pictures behind the first; it opens through the JPEG plugin.
        image = Image.open(io.BytesIO(data), formats=(kind, "MPO") if kind == "JPEG" else (kind,))
        _check_shape(image.size, config)
        image.load()
    except (ExtremeShape, TooManyPixels):
        raise
    except Exception as error:  # noqa: BLE001  # decoders raise anything; whatever it is, this image is why
        _raise_undecodable(kind, error)
    return image


def sniff(data: bytes) -> str:
    """Name the format by its signature, so that only its own decoder ever sees the bytes.

    Raises:
        NotAnImage: no known signature.
        UnsupportedFormat: a known one that is not in `FORMATS`.

    """
    for offset, signature, kind in _SIGNATURES:
        if data.startswith(signature, offset):
            if kind not in FORMATS:
                raise UnsupportedFormat(f"{kind} is not supported: send {_SERVED}")
            return kind
    raise NotAnImage(f"the data is not an image: send {_SERVED}")


def preprocess(image: Image.Image) -> NDArray[np.uint8]:
    """Decoded image -> uint8 RGB [224, 224, 3]: ``clip._transform`` up to its ``ToTensor``.

    Bit for bit torchvision's ``Resize(224, BICUBIC)`` and ``CenterCrop(224)``, including the
    rounding of a crop offset that falls on a half. EXIF rotation is not applied there either.

    Raises:
        InvalidImage: pixels of a kind that cannot become RGB.

    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    resized = int(SIZE * long / short)
    size = (SIZE, resized) if width <= height else (resized, SIZE)
    left, top = (round((side - SIZE) / 2.0) for side in size)
    try:
        image = image.resize(size, Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + SIZE, top + SIZE)).convert("RGB")
    except (ValueError, OSError) as error:
        raise InvalidImage(f"pixels of mode {image.mode} cannot be converted to RGB") from error
    return np.asarray(image)


def _check_shape(size: tuple[int, int], config: Config) -> None:
    width, height = size
    if width * height > config.max_pixels:
        raise TooManyPixels(
            f"the image has {width:,} x {height:,} pixels, the limit is {config.max_pixels:,} in all"
        )
    # The resized image is 224 on its short side: 1 x 20,000 pixels would become 224 x 4,480,000.
    if max(size) > config.max_aspect_ratio * min(size):
        raise ExtremeShape(
            f"the image is {width:,} x {height:,}: one side may be at most "
            f"{config.max_aspect_ratio} times the other"
        )


def _raise_undecodable(kind: str, error: Exception) -> NoReturn:
    text = str(error).lower()
    if isinstance(error, (EOFError, IndexError)) or "truncated" in text:
        raise TruncatedImage(f"the {kind} image ends before its data is complete") from error
    if isinstance(error, (MemoryError, Image.DecompressionBombError)):
        raise TooManyPixels(f"decoding the {kind} image takes more memory than is allowed") from error
    if isinstance(error, UnidentifiedImageError):
        raise InvalidImage(f"the data begins like {kind} but its header cannot be read") from error
    raise InvalidImage(f"the {kind} image is corrupt and cannot be decoded") from error
