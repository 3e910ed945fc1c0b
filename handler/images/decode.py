"""Bytes -> decoded picture -> pixels, in OpenAI's own steps. Runs in a process of the sandbox.

The steps and their order are those of OpenAI's ``clip._transform``: resize, crop, and only then
convert to RGB. Peers that convert first, or floor the crop's offset, get other vectors.

Nothing here guesses what a file will cost its decoder: the kernel stops it (see ``sandbox.py``).
This module must not import NumPy, which would double the memory and the start of that process.
"""

import importlib
import io
from contextlib import suppress
from typing import NoReturn

from PIL import (
    AvifImagePlugin,
    Image,
    ImageChops,
    ImageOps,
    ImageStat,
    UnidentifiedImageError,
)

from handler.errors import (
    ClipError,
    ExtremeShape,
    ImageTooCostly,
    InvalidImage,
    TooManyPixels,
    TruncatedImage,
)
from handler.images.formats import FORMATS
from handler.images.wire import Decoded, Limits

_FULL_SIZE = (0, 0)
"""Key in ``Image.info`` of the size before `_reduce`. No text: a file could set any text key."""

REDUCTION_SHOWS = 1.0
"""Root mean square, of 255 levels, of what halving a reduced picture once more may change."""

# Pillow's own limit raises at a number of pixels that is not ours; `_check_shape` has ours.
Image.MAX_IMAGE_PIXELS = None

# A process that decodes can open no file (see ``confine.py``), so it cannot import anything either.
# What Pillow would import at its first use is imported here: a format's own modules, and its own
# first choice of formats, without which it would import all forty.
Image.preinit()
for _plugins in FORMATS.values():
    for _plugin in _plugins:
        importlib.import_module(f"PIL.{_plugin}")
for _module in ("PIL.ImageCms", "PIL.ImageColor", "copy"):  # LAB; a colour's name; GIF's frames
    importlib.import_module(_module)

# libavif would start a thread for each CPU. As many images as there are CPUs are decoded at once
# already, and the sandbox lets no decoder start threads.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def to_pixels(data: bytes, kind: str, limits: Limits) -> Decoded:
    """An image file of format `kind` -> what the model sees of it.

    Raises:
        TooManyPixels, ExtremeShape: over the limits.
        TruncatedImage, InvalidImage: the data ends early or is corrupt.
        ImageTooCostly: decoding takes more memory than there is.
    """
    image = decode(data, kind, limits)
    pixels = preprocess(image, limits.side, corrected=limits.corrected)
    if image.size != full_size(image) and _reduction_shows(image, pixels):
        image = decode(data, kind, limits._replace(jpeg_draft=0))
        pixels = preprocess(image, limits.side)
    return Decoded(pixels.tobytes(), str(image.format), full_size(image))


def decode(data: bytes, kind: str, limits: Limits) -> Image.Image:
    """Decode `data` completely, once its header has passed every limit.

    A large JPEG comes out at 1/2, 1/4 or 1/8 of its size, as ``jpeg_draft`` says; `preprocess`
    allows for it. Raises as `to_pixels`.
    """
    try:
        formats = (kind, "MPO") if kind == "JPEG" else (kind,)
        image = Image.open(io.BytesIO(data), formats=formats)
        _check_shape(image.size, limits)
        if kind == "JPEG":
            _reduce(image, limits)
        image.load()
    except ClipError:
        raise
    except Exception as error:  # noqa: BLE001  # decoders raise anything; this image is why
        _raise_undecodable(kind, error)
    return image


def preprocess(image: Image.Image, side: int, corrected: bool = False) -> Image.Image:
    """Decoded picture -> RGB, `side` x `side`: ``clip._transform(side)`` up to its ``ToTensor``.

    Bit for bit torchvision's ``Resize(side, BICUBIC)`` and ``CenterCrop(side)``, including the
    rounding of a crop offset that falls on a half. With `corrected`, after `correct`.

    Raises:
        InvalidImage, ImageTooCostly: it cannot become RGB, or not in the memory there is.
    """
    try:
        if corrected:
            image = correct(image)
        width, height = full_size(image)
        long_side = int(side * max(width, height) / min(width, height))
        size = (side, long_side) if width <= height else (long_side, side)
        left, top = (round((length - side) / 2.0) for length in size)
        image = image.resize(size, Image.Resampling.BICUBIC, _picture_in(image))
        return image.crop((left, top, left + side, top + side)).convert("RGB")
    except Exception as error:  # noqa: BLE001  # as in `decode`
        _raise_undecodable(image.format or image.mode, error)


def _picture_in(image: Image.Image) -> tuple[float, float, float, float]:
    """The part of `image` that is picture: left, top, right, bottom, in pixels and their fractions.

    A JPEG that was decoded at 1/8 has whole pixels: 1,001 of them became 126, of which the picture
    fills 125.125. What was decoded in full fills all of it.
    """
    width, height = full_size(image)
    reduced_by = round(width / image.width)  # 1, 2, 4 or 8
    return (0, 0, width / reduced_by, height / reduced_by)


def _reduce(image: Image.Image, limits: Limits) -> None:
    """Have a large JPEG decoded at the smallest scale that leaves ``jpeg_draft`` pixels a side.

    The decoder then skips most of its work. Shrinking further in `preprocess` hides the difference
    in all but the pictures that `_reduction_shows` finds: cosine to full decoding is at least
    0.9998, measured by ``benchmarks/accuracy.py``.
    """
    # `correct` may turn the picture, and its full size would have to turn with it.
    if limits.jpeg_draft and not limits.corrected:
        image.info[_FULL_SIZE] = image.size
        image.draft(None, (limits.jpeg_draft, limits.jpeg_draft))


def _reduction_shows(image: Image.Image, pixels: Image.Image) -> bool:
    """Whether `pixels` would be others if `image`, which they were made of, were not reduced.

    What halving it once more changes tells: where that is little, the scale before changed less.
    Photographs change little. In the dots of printed pictures and in fine stripes a reduced scale
    leaves patterns that full decoding does not, and other ones at each scale. Looking at green
    alone takes a millisecond of the 23 that a picture of 12 megapixels takes.
    """
    green = image.getchannel("G") if image.mode == "RGB" else image
    halved = green.reduce(2)
    again = preprocess(halved, pixels.width)
    change = ImageChops.difference(pixels.getchannel("G"), again.getchannel("G"))
    return ImageStat.Stat(change).rms[0] > REDUCTION_SHOWS


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
        ImageOps.exif_transpose(image, in_place=True)  # copies only what it turns
    if image.mode.startswith("I"):  # I;16 and its kin, and I: what Pillow makes of 16-bit PNGs
        eight_bits = [value // 257 for value in range(65536)]  # 65,535 becomes 255
        image = image.convert("I").point(eight_bits, "L")
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """The picture as it looks on white paper; in strips, because a whole one takes three copies."""
    paper = Image.new("RGB", image.size)
    for top in range(0, image.height, 256):
        bottom = min(top + 256, image.height)
        strip = image.crop((0, top, image.width, bottom)).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        paper.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return paper


def _check_shape(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise TooManyPixels(
            f"the image has {width:,} x {height:,} pixels; "
            f"the limit is {limits.max_pixels:,} in all"
        )
    # The short side becomes the model's: to 224, 1 x 20,000 pixels would be 224 x 4,480,000.
    if max(size) > limits.max_aspect_ratio * min(size):
        raise ExtremeShape(
            f"the image is {width:,} x {height:,}: one side may be at most "
            f"{limits.max_aspect_ratio} times the other"
        )


def _raise_undecodable(kind: str, error: Exception) -> NoReturn:
    text = str(error).lower()
    if isinstance(error, (EOFError, IndexError)) or "truncated" in text:
        raise TruncatedImage(f"the {kind} image ends before its data is complete") from error
    if isinstance(error, MemoryError):
        raise ImageTooCostly(f"decoding the {kind} image takes too much memory") from error
    if isinstance(error, UnidentifiedImageError):
        raise InvalidImage(f"the data begins like {kind} but its header cannot be read") from error
    raise InvalidImage(
        f"the {kind} image is corrupt, or of a kind that cannot become RGB"
    ) from error
