"""What a caller may give as an image, and what is sent of it."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clip_encoder.errors import EncoderError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    Image: TypeAlias = str | Path | bytes | bytearray | memoryview | Picture
else:
    Image: TypeAlias = Any
    """A file's path, a file's bytes, a Pillow image, or ``s3://bucket/key``."""

Payload: TypeAlias = bytes | str
"""What is sent: a file's bytes, or ``s3://bucket/key`` of an image that the service fetches."""

MODEL_SIDE = 224
"""Pixels of each side of what the model sees."""
TIMES = 3
"""An image that was shrunk is so many times as large as what the service makes of it."""
QUALITY = 95
"""JPEG's, of an image that was shrunk."""


def is_in_s3(image: object) -> bool:
    """Whether `image` names an object in S3."""
    return isinstance(image, str) and image.startswith("s3://")


def is_picture(image: object) -> bool:
    """Whether `image` is one of Pillow's, which need not be installed to ask."""
    return any(kind.__module__ == "PIL.Image" for kind in type(image).__mro__)


def payload(image: Image, shrink: bool = False) -> Payload:
    """What is sent of `image`; with `shrink`, a smaller file of it where it is large.

    Raises:
        EncoderError: a file that cannot be read; or `shrink` without Pillow.
        TypeError: not an `Image`.
    """
    if isinstance(image, str) and is_in_s3(image):
        return image
    data = _file(image)
    return shrunk(data) if shrink else data


def _file(image: Image) -> bytes:
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = getattr(error, "strerror", None) or str(error)
            raise EncoderError("unreadable_file", f"{image}: {reason}") from error
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if is_picture(image):
        return lossless(image)
    raise TypeError(
        "an image is a path, bytes, a Pillow image or s3://bucket/key, "
        f"not a {type(image).__name__}"
    )


def lossless(picture: "Picture") -> bytes:
    """A Pillow image as a file that holds the same pixels in the same mode: PNG, or else TIFF."""
    kind = "PNG" if picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "TIFF"
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def shrunk(data: bytes) -> bytes:
    """An image file -> a smaller JPEG of the same picture, of 672 pixels on the shorter side.

    The model sees 224 pixels of it, so the vector changes little, but it does change: see
    ``docs/client.md`` for how much. Where it could change more, the file stays as it is: an image
    that is not much larger than that, has transparency or a palette, or is no image at all.

    Raises:
        EncoderError: Pillow is not installed.
    """
    try:
        from PIL import Image as Pillow  # here: only those who shrink need it
    except ImportError as error:
        detail = "shrinking needs Pillow: pip install 'clip-encoder[images]'"
        raise EncoderError("missing_package", detail) from error
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            return _smaller(picture, data)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        return data  # the service says what is wrong with it


def _smaller(picture: "Picture", data: bytes) -> bytes:
    shorter, longer = sorted(picture.size)
    is_plain = picture.mode in ("RGB", "L") and "transparency" not in picture.info
    if not is_plain or shorter * 0.75 < TIMES * MODEL_SIDE:
        return data
    exif = picture.info.get("exif", b"")  # the service may turn the image by it
    # A multiple of the very size that the service resizes to, which it rounds down: otherwise it
    # might crop the two by a pixel differently, which changes a vector most.
    long_side = TIMES * int(MODEL_SIDE * longer / shorter)
    short_side = TIMES * MODEL_SIDE
    is_wide = picture.width >= picture.height
    size = (long_side, short_side) if is_wide else (short_side, long_side)
    file = io.BytesIO()
    small = picture.resize(size)  # bicubic, as the service resizes
    small.save(file, "JPEG", quality=QUALITY, subsampling=0, exif=exif)
    return file.getvalue() if file.tell() < len(data) else data
