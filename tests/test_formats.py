"""What a file is, by its first bytes; and what is said of one that is not served."""

import pytest

from export.images import parity_images
from handler.errors import NotAnImage, UnsupportedFormat
from handler.images import formats
from handler.images.formats import FORMATS, SERVED, sniff
from tests.conftest import SIDE


def box(major: bytes, *compatible: bytes) -> bytes:
    """The first box of a file of ISO media, with more of the file behind it."""
    brands = major + b"\0\0\0\0" + b"".join(compatible)
    return (8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands + b"\0\0\0\x10metaheic" * 4


KNOWN = {
    "JPEG": [b"\xff\xd8\xff\xe0\0\x10JFIF", b"\xff\xd8\xff\xdb"],
    "PNG": [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"],
    "WEBP": [b"RIFF\x24\0\0\0WEBPVP8 "],
    "GIF": [b"GIF87a\1\0", b"GIF89a\1\0"],
    "BMP": [b"BM\x46\0\0\0"],
    "TIFF": [b"II*\0\x08", b"MM\0*\0", b"II+\0\x08", b"MM\0+\0"],
    "AVIF": [
        *(box(b"avif"), box(b"avis"), box(b"mif1"), box(b"msf1")),
        *(box(b"mif1", b"avif"), box(b"mif1", b"miaf", b"avif"), box(b"mp42", b"avis")),
        *(box(b"avif", b"heic"), box(b"avif")[:12]),
    ],
}


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_that_is_served_is_known_by_each_of_its_signatures(kind: str) -> None:
    for data in KNOWN[kind]:
        assert sniff(data) == kind
        assert sniff(memoryview(data)) == kind


def test_every_file_of_the_parity_set_is_known() -> None:
    assert {sniff(data) for data in parity_images(SIDE).values()} == set(FORMATS)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("JPEG XL", b"\xff\x0a\xfa"),
        ("JPEG XL", b"\0\0\0\x0cJXL \r\n"),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n"),
        ("JPEG 2000", b"\xff\x4f\xff\x51\0"),
        ("Photoshop (PSD)", b"8BPS\0\1"),
        ("ICO", b"\0\0\1\0\1"),
        ("CUR", b"\0\0\2\0\1\0"),
        ("TGA", b"\0\0\2" + bytes(100) + b"TRUEVISION-XFILE.\0"),  # which begins as CUR does
        ("TGA", b"\x1a\0\x0a" + bytes(100) + b"TRUEVISION-XFILE.\0"),
        ("PDF", b"%PDF-1.7"),
        ("SVG", b"<svg xmlns="),
        ("SVG", b"<?xml version="),
        ("a video", box(b"isom", b"mp41", b"avc1")),
        ("a video", box(b"qt  ")),
        ("a RIFF file that is no WebP", b"RIFF\x24\0\0\0WAVEfmt "),
    ],
)
def test_a_known_format_that_is_not_served_is_named(kind: str, data: bytes) -> None:
    with pytest.raises(UnsupportedFormat) as caught:
        sniff(data)
    assert caught.value.detail == f"{kind} is not supported: send {SERVED}"


@pytest.mark.parametrize(
    "data",
    [
        *(box(brand) for brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")),
        *(box(b"mif1", b"heic"), box(b"msf1", b"xxxx", b"hevc"), box(b"heic", b"avif")),
    ],
)
def test_what_to_do_with_heic_is_said(data: bytes) -> None:
    with pytest.raises(UnsupportedFormat) as caught:
        sniff(data)
    assert caught.value.detail == "HEIC is not supported: convert the picture to JPEG first"


def test_brands_are_read_in_the_first_box_alone_and_not_past_64_bytes() -> None:
    assert sniff(box(b"mif1", b"miaf")) == "AVIF"  # the next box says heic
    assert sniff(box(b"mif1", *[b"miaf"] * 12, b"heic")) == "AVIF"
    assert sniff(box(b"mif1", b"xhei", b"cxxx")) == "AVIF"  # a brand begins at every fourth byte
    with pytest.raises(UnsupportedFormat, match="HEIC"):
        sniff(box(b"mif1", *[b"miaf"] * 11, b"heic"))


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\x89PNG", b"hello", b"xGIF89a", b"JFIF", b"ftypavif", bytes(100)]
)
def test_anything_else_is_no_image(data: bytes) -> None:
    with pytest.raises(NotAnImage) as caught:
        sniff(data)
    assert caught.value.detail == f"the data is not an image: send {SERVED}"


def test_the_formats_are_listed_as_one_would_say_them() -> None:
    assert SERVED == "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"


def test_a_picture_with_a_targa_footer_behind_it_is_what_it_was() -> None:
    assert sniff(KNOWN["PNG"][0] + b"TRUEVISION-XFILE.\0") == "PNG"


def test_every_signature_names_a_format_of_its_own() -> None:
    """No signature is hidden by one before it."""
    for number, (offset, signature, kind) in enumerate(formats.SIGNATURES):
        file = bytes(offset) + signature
        before = formats.SIGNATURES[:number]
        assert not [other for at, other, _ in before if file.startswith(other, at)], kind
