"""What a file is and what it would cost, from its own bytes: no decoder has run yet.

Decoders take one step, of Python or of memory, per segment, chunk, tag or scan, and a few megabytes
can hold millions of those. Each walk here counts them and gives up at a number no real file
reaches.
"""

import math
import re
import struct
from collections.abc import Iterator

from handler.errors import InvalidImage, NotAnImage, UnsupportedFormat

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
    (4, b"ftypavi", "AVIF"),
    (4, b"ftypmif1", "AVIF"),
    (4, b"ftypmsf1", "AVIF"),
    # Known, so that the answer can name them. HEIC has no decoder in Pillow, and its plugins bring
    # a codec of their own with every file the internet sends.
    (4, b"ftyphe", "HEIC"),
    (0, b"II+\0", "BigTIFF"),
    (0, b"MM\0+", "BigTIFF"),
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


MAX_SEGMENTS = 512  # of a JPEG before its picture; Pillow appends each to the ones before
MAX_JUNK = 65_536  # bytes between a JPEG's segments, each a step of Python in Pillow
MAX_BLOCKS = 65_536  # chunks of a PNG, blocks of a GIF before its picture
MAX_VALUES = 32_768  # of one TIFF tag, such as the strips' offsets
MAX_META = 32_768  # bytes of an AVIF's item list, which libavif searches once per item
MAX_TILE = 4096 * 4096  # pixels of one TIFF tile
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not a stuffed zero, a restart or a fill byte


_BARE = frozenset(
    (0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE))
)  # markers after which Pillow skips nothing


def check_structure(kind: str, data: bytes) -> None:
    """Refuse a file whose parts are too many to be decoded in good time.

    What is merely malformed passes: its decoder says so better.

    Raises:
        InvalidImage: more parts than any real file has.
        UnsupportedFormat: a run-length encoded BMP, which Pillow decodes byte by byte in Python.
    """
    if kind == "JPEG":
        _check_jpeg(data)
    elif kind == "PNG":
        _check_count(kind, _png_chunks(data))
    elif kind == "GIF":
        _check_count(kind, _gif_blocks(data))
    elif kind == "TIFF":
        _check_tiff(data)
    elif kind == "AVIF":
        _check_avif(data)
    elif kind == "BMP" and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        raise UnsupportedFormat(f"run-length encoded BMP is not supported: send {SERVED}")


def _check_count(kind: str, parts: Iterator[int]) -> None:
    for count, _ in enumerate(parts):
        if count > MAX_BLOCKS:
            raise InvalidImage(f"the {kind} image has more than {MAX_BLOCKS:,} blocks")


def _check_jpeg(data: bytes) -> None:
    segments, junk, position = 0, 0, 2
    while (marker := _MARKER.search(data, position)) and marker.group() != _SCAN:
        segments, junk, position = segments + 1, junk + marker.start() - position, marker.end()
        if data[position - 1] not in _BARE:
            position += int.from_bytes(data[position : position + 2], "big")
        if segments > MAX_SEGMENTS:
            raise InvalidImage(
                f"the JPEG image has more than {MAX_SEGMENTS} segments before its picture"
            )
    if junk + (marker.start() if marker else len(data)) - position > MAX_JUNK:
        raise InvalidImage("the JPEG image has more filling than header")


def _png_chunks(data: bytes) -> Iterator[int]:
    position = 8
    while position < len(data):
        yield position
        position += 12 + int.from_bytes(data[position : position + 4], "big")


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Positions up to the first picture's; sub-blocks count as blocks. As Pillow reads, flaws and
    all.
    """
    flags = data[10] if len(data) > 10 else 0
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while position < len(data) and data[position] != ord(","):
        yield position
        if data[position : position + 1] != b"!":  # neither picture nor extension
            position += 1
            continue
        label, position, blocks = data[position + 1 : position + 2], position + 2, 0
        # Sub-blocks end with an empty one, except that the first ones of some extensions always
        # count.
        least = (label != b"\xfe") + (
            label == b"\xff" and data.startswith(b"NETSCAPE2.0", position + 1)
        )
        while position < len(data) and (data[position] or blocks < least):
            yield position
            position, blocks = position + 1 + data[position], blocks + 1
        position += 1


_TYPE_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
}


def _check_tiff(data: bytes) -> None:
    """The first directory's tags: (tag, type, count, value or where the values are)."""
    order = "<" if data.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, start)
        table = [
            struct.unpack_from(f"{order}HHI4s", data, start + 2 + 12 * i) for i in range(entries)
        ]
    except struct.error:
        return
    sizes = [_TYPE_SIZES.get(kind, 0) for _, kind, _, _ in table]
    if sum(size * entry[2] for size, entry in zip(sizes, table, strict=True)) > len(data):
        raise InvalidImage("the TIFF image's tags claim more bytes than the file has")
    # Texts may be long, and bytes of tags that hold whole documents (from XMP's, 700, upwards).
    if any(
        n > MAX_VALUES and kind != 2 and (kind not in (1, 7) or tag < 700)
        for tag, kind, n, _ in table
    ):
        raise InvalidImage(f"a tag of the TIFF image has more than {MAX_VALUES:,} values")
    tile = [
        (kind, value) for tag, kind, _, value in table if tag in (322, 323)
    ]  # TileWidth, TileLength
    if any(kind not in (3, 4) for kind, _ in tile):
        raise InvalidImage("the TIFF image's tiles have no proper size")
    sides = [
        struct.unpack(f"{order}I" if kind == 4 else f"{order}Hxx", value)[0] for kind, value in tile
    ]
    if len(sides) > 1 and math.prod(sorted(sides)[-2:]) > MAX_TILE:
        raise InvalidImage("the TIFF image's tiles are larger than any real ones")


def _check_avif(data: bytes) -> None:
    """Source: ISO 14496-12, boxes: size, type, and a size of 64 bits where the first is 1."""
    position = 0
    for _ in range(MAX_BLOCKS):
        size, kind = (
            int.from_bytes(data[position : position + 4], "big"),
            data[position + 4 : position + 8],
        )
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if kind == b"meta" and (size > MAX_META or size == 0):
            raise InvalidImage("the AVIF image has more parts than can be searched in good time")
        if size < 8 or (position := position + size) >= len(data):
            return


def jpeg_scans(data: bytes, most: int) -> int:
    """How often a JPEG decoder will pass over the picture: once, or once per progressive scan.

    Counting stops over `most`. Pictures and videos appended after the first picture do not count.
    Source: ITU T.81, annex B.
    """
    scans = data.count(_SCAN)
    if scans <= most:  # nearly every file: a search at memory speed
        return scans
    scans, position = 0, 2
    while scans <= most and (marker := _MARKER.search(data, position)):
        if marker.group() == b"\xff\xd9":  # end of image
            break
        scans += marker.group() == _SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans
