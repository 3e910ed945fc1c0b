"""Decoding: what is refused, and why. (That pixels are clip's own: test_parity.py.)"""

import io
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export import images
from handler.config import Config
from handler.errors import (
    ClipError,
    ExtremeShape,
    ImageTooLarge,
    InvalidImage,
    MissingField,
    NotAnImage,
    TooManyPixels,
    TruncatedImage,
    UnsupportedFormat,
)
from handler.images.decode import correct, decode
from handler.images.formats import FORMATS, SIGNATURES, sniff
from handler.images.wire import Limits
from tests import bombs
from tests.conftest import SIDE, pixels_of

CONFIG = Config()
LIMITS = Limits(CONFIG.max_pixels, CONFIG.max_aspect_ratio, 0, corrected=False, side=SIDE)


def png(width: int, height: int, data: bytes = b"", color: int = 2) -> bytes:
    """A PNG that claims to be `width` x `height`."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    idat = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + idat + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", MissingField),
        (b"hello", NotAnImage),
        (b"\0" * 100, NotAnImage),
        (b"<html>", NotAnImage),
        (b"<svg xmlns='...'/>", UnsupportedFormat),
        (b"%PDF-1.7", UnsupportedFormat),
        (b"\0\0\0\x18ftypheic", UnsupportedFormat),
        (b"\xff\xd8\xff", InvalidImage),
        (b"\x89PNG\r\n\x1a\n", InvalidImage),
        (b"RIFF\x10\0\0\0WEBPVP8 ", InvalidImage),
        (b"\0\0\0\x18ftypavif", InvalidImage),
        (b"x" * (CONFIG.max_image_bytes + 1), ImageTooLarge),
        (png(30_000, 30_000), TooManyPixels),
        (png(1, 20_000), ExtremeShape),
        (png(20_000, 1), ExtremeShape),
        (png(0, 5), InvalidImage),
    ],
)
def test_refusals(data: bytes, error: type[ClipError]) -> None:
    with pytest.raises(error) as caught:
        pixels_of(data, CONFIG)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not supported: convert .* to JPEG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC is not supported: convert .* to JPEG"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0miafMiHBheix", "HEIC is not supported"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2", "a video is not supported"),
        (b"\0\0\1\0\1\0", "ICO is not supported: send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"),
        (b"\xff\x0a", "JPEG XL is not supported"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 is not supported"),
        (b"8BPS\0\1", "Photoshop"),
        (b"P6\n1 1\n255\n", "PPM is not supported"),
        (bytes(40) + b"TRUEVISION-XFILE.\0", "TGA is not supported"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "a RIFF file that is no WebP is not supported"),
    ],
)
def test_known_kinds_that_are_not_served_are_named(data: bytes, words: str) -> None:
    with pytest.raises(UnsupportedFormat, match=words):
        sniff(data)


@pytest.mark.parametrize(
    "head",
    [
        b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf",
        b"\0\0\0\x20ftypavis\0\0\0\0",
        b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf",
        b"\0\0\0\x14ftypmif1\0\0\0\0mif1",
        b"\0\0\0\x14ftypmsf1\0\0\0\0mif1heic",  # what follows the box is not a brand
    ],
)
def test_a_file_in_boxes_is_what_its_brands_say(head: bytes) -> None:
    assert sniff(head) == "AVIF"


@pytest.mark.parametrize(("offset", "signature", "kind"), SIGNATURES)
def test_every_signature_is_found_where_it_stands(offset: int, signature: bytes, kind: str) -> None:
    data = b"\1" * offset + signature + b"\1" * 40
    if kind in FORMATS:
        assert sniff(data) == kind
        return
    name = "a video" if signature == b"ftyp" else kind  # without a telling brand
    with pytest.raises(UnsupportedFormat, match=re.escape(name)):
        sniff(data)
    with pytest.raises(NotAnImage):
        sniff(b"\1" + data)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_ends_early_is_refused(kind: str) -> None:
    data = images.encoded(images.photograph("chelsea"), kind)
    assert sniff(data) == kind
    assert decode(data, kind, LIMITS).size == (451, 300)
    with pytest.raises((TruncatedImage, InvalidImage)):
        decode(data[: len(data) // 2], kind, LIMITS)


def test_a_small_file_cannot_claim_much_memory() -> None:
    """157 bytes that claim 1 x 20,000 pixels cost a peer 13 s and 4.1 GB."""
    bomb = png(1, 20_000, b"\0" * 80_000)
    tracemalloc.start()
    with pytest.raises(ExtremeShape, match="1 x 20,000"):
        decode(bomb, "PNG", LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_the_limits_are_exact() -> None:
    limits = LIMITS._replace(max_pixels=100, max_aspect_ratio=4)
    assert decode(png(5, 20, b"\0" * 16 * 20), "PNG", limits).size == (5, 20)
    with pytest.raises(TooManyPixels, match="6 x 20 pixels; the limit is 100 in all"):
        decode(png(6, 20), "PNG", limits)
    with pytest.raises(ExtremeShape, match="4 x 17: one side may be at most 4 times"):
        decode(png(4, 17), "PNG", limits)


def test_the_limit_of_pixels_is_ours_alone() -> None:
    """Pillow's own would refuse what has more than 179 million."""
    wide = png(14_000, 14_000)
    with pytest.raises(TruncatedImage):
        decode(wide, "PNG", LIMITS._replace(max_pixels=200_000_000))
    with pytest.raises(TooManyPixels):
        decode(wide, "PNG", LIMITS._replace(max_pixels=190_000_000))


def test_a_decoder_never_sees_another_formats_bytes() -> None:
    """A file is opened as what its signature says, so a polyglot reaches one decoder only."""
    data = images.encoded(images.photograph("chelsea"), "PNG")
    with pytest.raises(NotAnImage):
        pixels_of(b"\0" + data, CONFIG)
    with pytest.raises(InvalidImage):
        decode(data, "JPEG", LIMITS)


def test_a_16_bit_tiff_of_floats_is_served_or_refused_but_never_a_fault() -> None:
    file = io.BytesIO()
    Image.new("F", (30, 20), 0.5).save(file, "TIFF")
    assert decode(file.getvalue(), "TIFF", LIMITS).mode == "F"


def test_kinds_of_a_format_that_cost_much_are_served_because_their_cost_is_bounded() -> None:
    runs = b"\x08\x05\0\0" * 6 + b"\0\1"  # six rows of eight pixels of colour 5
    assert decode(bombs.bmp(8, 6, runs, compression=1), "BMP", LIMITS).getpixel((7, 5)) == 5
    big = images.encoded(images.photograph("chelsea"), "TIFF", big_tiff=True)
    assert big[2] == 43
    np.testing.assert_array_equal(
        pixels_of(big), pixels_of(images.encoded(images.photograph("chelsea"), "TIFF"))
    )


def corrected(image: Image.Image, kind: str = "PNG", **options: object) -> NDArray[np.uint8]:
    """What the profile ``corrected`` makes of `image` written as a file."""
    return pixels_of(images.encoded(image, kind, **options), Config(preprocess="corrected"))


def test_the_corrected_profile_does_what_people_expect() -> None:
    chelsea = images.photograph("chelsea")
    upright = pixels_of(images.encoded(chelsea, "PNG"))
    np.testing.assert_array_equal(corrected(chelsea), upright)  # nothing to correct

    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = chelsea.rotate(90, expand=True)
    np.testing.assert_array_equal(corrected(sideways, exif=exif), upright)
    assert not np.array_equal(pixels_of(images.encoded(sideways, "PNG", exif=exif)), upright)
    broken = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40
    np.testing.assert_array_equal(corrected(chelsea, exif=broken), upright)

    hidden = chelsea.copy()
    hidden.putalpha(0)
    assert corrected(hidden).min() == 255  # white shines through
    assert corrected(chelsea.quantize(64), transparency=bytes(64)).min() == 255

    grey = chelsea.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    np.testing.assert_array_equal(corrected(deep), corrected(grey))
    # What OpenAI's pipeline makes of it: almost white.
    assert pixels_of(images.encoded(deep, "PNG")).mean() > 250


def test_the_corrected_profile_scales_every_kind_of_16_bits() -> None:
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    expected = (ramp // 257).astype(np.uint8)
    for mode in ("I;16", "I;16B", "I"):
        image = Image.fromarray(ramp.astype(np.int32) if mode == "I" else ramp)
        image = image if mode != "I;16B" else image.convert("I").convert("I;16B")
        np.testing.assert_array_equal(np.asarray(correct(image))[:, :, 0], expected)
    beyond = Image.fromarray(np.array([[-5, 70_000]], np.int32))
    assert np.asarray(correct(beyond))[0, :, 0].tolist() == [0, 255]
