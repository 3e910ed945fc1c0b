"""What a file is, and how large it claims to be, from its first bytes: no decoder has run yet."""

import re

from handler.errors import NotAnImage, UnsupportedFormat

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is ever opened; of animations, the first frame."""

SERVED = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"

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
    # Known, so that the answer can name them. HEIC has no decoder in Pillow, and its plugins bring
    # a codec of their own with every file the internet sends.
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


def sniff(data: bytes) -> str:
    """Name the format by its signature, so that only its own decoder ever sees the bytes.

    Raises:
        NotAnImage: no known signature.
        UnsupportedFormat: a known one that is not in `FORMATS`.
    """
    for offset, signature, kind in _SIGNATURES:
        if data.startswith(signature, offset):
            if kind not in FORMATS:
                raise UnsupportedFormat(f"{kind} is not supported: send {SERVED}")
            return kind
    raise NotAnImage(f"the data is not an image: send {SERVED}")


def webp_size(data: bytes) -> tuple[int, int]:
    """Canvas width and height of a WebP file, (0, 0) where its first chunk is of no known kind.

    libwebp allocates two canvases as soon as the file is opened, so this comes before opening.
    Source: RFC 9649, sections 2.5 to 2.7 (VP8, VP8L, VP8X).
    """
    chunk, body = data[12:16], data[20:30].ljust(10, b"\0")
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
        return width, height
    return 0, 0


def jpeg_scans(data: bytes) -> int:
    """How often a JPEG decoder will pass over the picture: once, or once per progressive scan.

    Source: ITU T.81, annex B. Pictures and videos appended after the first picture do not count.
    """
    if data.count(_SCAN) <= 16:  # what nearly every file takes: a search at memory speed
        return data.count(_SCAN)
    scans, position = 0, 2
    while marker := _MARKER.search(data, position):
        if marker.group() == b"\xff\xd9":  # end of image
            break
        scans += marker.group() == _SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not a stuffed zero, a restart or a fill byte
