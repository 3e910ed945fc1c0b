"""Decoding: what is refused, why, and at what cost. (That pixels are clip's own: test_parity.py.)"""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
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
from handler.images.decode import decode, preprocess
from handler.images.formats import jpeg_scans, sniff, webp_size

CONFIG = Config()


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
        decode(data, CONFIG)
    assert type(caught.value) is error


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_that_ends_early_is_refused(kind: str) -> None:
    data = images.encoded(images.photograph("chelsea"), kind)
    assert sniff(data) == kind
    assert decode(data, CONFIG).size == (451, 300)
    with pytest.raises((TruncatedImage, InvalidImage)):
        decode(data[: len(data) // 2], CONFIG)


def test_a_small_file_cannot_claim_much_memory() -> None:
    """157 bytes that claim 1 x 20,000 pixels cost a peer 13 s and 4.1 GB."""
    bomb = png(1, 20_000, b"\0" * 80_000)
    tracemalloc.start()
    with pytest.raises(ExtremeShape, match="1 x 20,000"):
        decode(bomb, CONFIG)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_the_limits_are_exact() -> None:
    config = Config(max_pixels=100, max_aspect_ratio=4)
    assert decode(png(5, 20, b"\0" * 16 * 20), config).size == (5, 20)
    with pytest.raises(TooManyPixels):
        decode(png(6, 20), config)
    with pytest.raises(ExtremeShape):
        decode(png(4, 17), config)


def test_a_decoder_never_sees_another_formats_bytes() -> None:
    """A file is opened as what its signature says, so a polyglot reaches one decoder only."""
    data = images.encoded(images.photograph("chelsea"), "PNG")
    with pytest.raises(NotAnImage):
        decode(b"\0" + data, CONFIG)


def test_a_16_bit_tiff_of_floats_is_served_or_refused_but_never_a_fault() -> None:
    file = io.BytesIO()
    Image.new("F", (30, 20), 0.5).save(file, "TIFF")
    assert decode(file.getvalue(), CONFIG).mode == "F"


def test_a_webps_size_is_known_before_it_is_opened() -> None:
    for options in (
        {"lossless": True},
        {"quality": 50},
        {"quality": 50, "exif": b"Exif\0\0" + b"x" * 20},
    ):
        data = images.encoded(images.photograph("chelsea").crop((0, 0, 301, 77)), "WEBP", **options)
        assert webp_size(data) == (301, 77)
    liar = bytearray(data)
    liar[24:30] = b"\xfe\x3f\0\xfe\x3f\0"  # VP8X: a canvas of 16383 x 16383
    with pytest.raises(TooManyPixels, match="16,383 x 16,383"):
        decode(bytes(liar), CONFIG)


def test_a_jpegs_scans_are_counted_in_its_first_picture_only() -> None:
    rocket = images.photograph("rocket")
    baseline = images.encoded(rocket, "JPEG")
    progressive = images.encoded(rocket, "JPEG", progressive=True)
    scans = progressive.count(b"\xff\xda")
    assert jpeg_scans(baseline, 99) == 1
    assert jpeg_scans(progressive, 99) == scans > 5
    assert jpeg_scans(progressive + b"\xff\xda" * 1000, 99) == scans  # a video behind it
    # Each further scan of a picture costs its decoder a pass over all of it.
    scan = progressive[progressive.rindex(b"\xff\xda") : progressive.rindex(b"\xff\xd9")]
    many = progressive[:-2] + scan * 500 + b"\xff\xd9"
    assert jpeg_scans(many, 9999) == scans + 500
    assert jpeg_scans(many, 99) == 100
    with pytest.raises(TooManyPixels, match="scans"):
        decode(many, Config(max_pixels=640 * 427))


def test_the_corrected_profile_does_what_people_expect() -> None:
    chelsea = images.photograph("chelsea")
    upright = preprocess(chelsea, "corrected")
    np.testing.assert_array_equal(upright, preprocess(chelsea))  # nothing to correct

    exif = Image.Exif()
    exif[0x0112] = 6
    turned = images.encoded(chelsea.rotate(90, expand=True), "PNG", exif=exif)
    np.testing.assert_array_equal(preprocess(decode(turned, CONFIG), "corrected"), upright)
    assert not np.array_equal(preprocess(decode(turned, CONFIG)), upright)

    broken = images.encoded(chelsea, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40)
    np.testing.assert_array_equal(preprocess(decode(broken, CONFIG), "corrected"), upright)

    hidden = chelsea.copy()
    hidden.putalpha(0)
    assert preprocess(hidden, "corrected").min() == 255  # white shines through
    palette = decode(images.encoded(chelsea.quantize(64), "PNG", transparency=bytes(64)), CONFIG)
    assert preprocess(palette, "corrected").min() == 255

    grey = np.asarray(chelsea.convert("L"))
    deep = decode(images.encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), CONFIG)
    expected = preprocess(Image.fromarray(grey), "corrected")
    np.testing.assert_array_equal(preprocess(deep, "corrected"), expected)
    assert preprocess(deep).mean() > 250  # what OpenAI's pipeline makes of it: almost white
