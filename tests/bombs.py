"""Small files that claim, or cost, a great deal: what the internet sends to image services.

Each builder gives the bytes; `test_bombs.py` measures what the service spends on them.
"""

import array
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

MAX = 32 * 2**20 - 4096
"""Bytes: as large as an image may be."""
WIDE, HIGH = 8192, 6144
"""The largest image by the default limit on pixels."""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def small() -> Image.Image:
    ramp = Image.linear_gradient("L").resize((64, 48))
    return Image.merge("RGB", (ramp, ramp.rotate(180), ramp))


def zeros() -> bytes:
    """100 MB of zeros, deflated to 97 KB."""
    return zlib.compress(bytes(100_000_000), 9)


# --- PNG ------------------------------------------------------------------------------------------


def png_chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int = 8, height: int = 8, before: bytes = b"", data: bytes | None = None) -> bytes:
    """RGB; `before` stands before the pixels, whose chunks are `data`."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    if data is None:
        data = png_chunk(b"IDAT", zlib.compress(bytes(height * (width * 3 + 1))))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + png_chunk(b"IEND")


def png_of_many(chunk: bytes) -> bytes:
    return png(before=chunk * (MAX // len(chunk)))


def png_of_tiny_idats() -> bytes:
    pixels = zlib.compress(bytes(1000 * 3001), 0)[: MAX // 13]
    return png(1000, 1000, data=b"".join(png_chunk(b"IDAT", bytes([byte])) for byte in pixels))


# --- JPEG -----------------------------------------------------------------------------------------


def jpeg_with(inserted: bytes) -> bytes:
    """A sound JPEG with `inserted` as its first segments."""
    return b"\xff\xd8" + inserted + encoded(small(), "JPEG")[2:]


def fractions(count: int) -> bytes:
    """EXIF whose horizontal resolution, one fraction in any real file, is `count` of them."""
    directory = struct.pack(">HHHIII", 1, 0x011A, 5, count, 26, 0)
    exif = b"MM\0*" + struct.pack(">I", 8) + directory + bytes([0, 0, 0, 72, 0, 0, 0, 1]) * count
    step = 65_527  # of a segment of 65,535 bytes, its own length and six for the word Exif
    parts = (exif[start : start + step] for start in range(0, len(exif), step))
    return b"".join(
        b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts
    )


def jpeg_claiming(width: int, height: int) -> bytes:
    data = encoded(small(), "JPEG")
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def jpeg_of_scans(count: int, width: int = WIDE, height: int = HIGH) -> bytes:
    """Progressive, and its last scan, a few bytes that touch every pixel, `count` times more."""
    data = encoded(Image.new("RGB", (width, height)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * count + b"\xff\xd9"


def jpeg_of_empty_scans() -> bytes:
    data = encoded(small(), "JPEG")
    scan = b"\xff\xda\0\2"
    return data[: data.index(b"\xff\xda")] + scan * (MAX // 4)


# --- GIF, BMP -------------------------------------------------------------------------------------


def gif(
    width: int = 8, height: int = 8, before: bytes = b"", frame: tuple[int, int] | None = None
) -> bytes:
    """One frame with next to no pixels in it."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0, 0, 0) + b"\0\0\0\xff\xff\xff"
    descriptor = b"," + struct.pack("<HHHHB", 0, 0, *(frame or (width, height)), 0)
    return screen + before + descriptor + b"\2\2\x44\1\0;"


def bmp(width: int, height: int, body: bytes = b"", bits: int = 8, compression: int = 0) -> bytes:
    start = 14 + 40 + 1024
    file = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 256, 0
    )
    return file + info + bytes(1024) + body


# --- WebP -----------------------------------------------------------------------------------------


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff_chunk(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def _u24(number: int) -> bytes:
    return number.to_bytes(3, "little")


def vp8x(width: int, height: int, animated: bool = True) -> bytes:
    flags = bytes([2 * animated, 0, 0, 0])
    return riff_chunk(b"VP8X", flags + _u24(width - 1) + _u24(height - 1))


def webp_frames(count: int) -> bytes:
    """An ANIM chunk and `count` frames of 64 x 48."""
    picture = encoded(small(), "WEBP")[12:]
    place = _u24(0) + _u24(0) + _u24(63) + _u24(47) + _u24(100) + b"\0"
    return riff_chunk(b"ANIM", bytes(6)) + riff_chunk(b"ANMF", place + picture) * count


# --- TIFF -----------------------------------------------------------------------------------------

_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 9: "i"}  # BYTE, SHORT, LONG, SBYTE, SLONG
Entries = dict[int, tuple[int, list[int] | bytes]]


def tiff(width: int, height: int, compression: int = 1, data: bytes = b"", **tags: Any) -> bytes:
    """8-bit grey in one strip; `tags` like ``t278=(4, [1])`` replace an entry, ``None`` removes it."""
    entries: dict[int, Any] = (
        {
            256: (4, [width]),
            257: (4, [height]),
            258: (3, [8]),
            259: (3, [compression]),
            262: (3, [1]),
            273: (4, [8]),  # the strip: the file itself
            277: (3, [1]),
            278: (4, [height]),
            279: (4, [max(len(data), 1)]),
        }
        | {int(name[1:]): value for name, value in tags.items()}
    )
    rows = [(tag, *entry) for tag, entry in sorted(entries.items()) if entry]
    directory, values = struct.pack("<H", len(rows)), b""
    start = 8 + 2 + 12 * len(rows) + 4
    for tag, kind, numbers in rows:
        size = struct.calcsize(_TYPES[kind])
        value = (
            numbers
            if isinstance(numbers, bytes)
            else struct.pack(f"<{len(numbers)}{_TYPES[kind]}", *numbers)
        )
        directory += struct.pack("<HHI", tag, kind, len(value) // size)
        if len(value) <= 4:
            directory += value.ljust(4, b"\0")
        else:
            directory += struct.pack("<I", start + len(values))
            values += value
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + values + data


def tiff_of_jpeg(data: bytes, width: int, height: int) -> bytes:
    """A JPEG as the only strip."""
    # 128: the header, nine entries of the directory, and three bit depths
    bits, place = {"t258": (3, [8, 8, 8])}, {"t273": (4, [128])}
    return tiff(width, height, 7, data, **bits, **place, t262=(3, [6]), t277=(3, [3]))


def longs(count: int) -> bytes:
    return array.array("I", range(1000, 1000 + count)).tobytes()


def tiff_tiled(
    side: int, compression: int, offsets: bytes, width: int = 64, height: int = 48
) -> bytes:
    tiles = {"t322": (4, [side]), "t323": (4, [side]), "t324": (4, offsets), "t325": (4, [1000])}
    return tiff(width, height, compression, bytes(2000), t273=None, t278=None, t279=None, **tiles)


def tiff_of_signed_tiles() -> bytes:
    """Big-endian, so that the first two bytes of a tile's side are 0."""
    side = (9, struct.pack(">i", 20_000))
    words = {
        tag: (3, struct.pack(">HH", number, 0))
        for tag, number in ((258, 8), (259, 5), (262, 1), (277, 1))
    }
    sizes = {256: (4, struct.pack(">I", 64)), 257: (4, struct.pack(">I", 48)), 322: side, 323: side}
    places = {324: (4, struct.pack(">I", 300)), 325: (4, struct.pack(">I", 500))}
    entries = {**sizes, **places, **words}
    rows = b"".join(
        struct.pack(">HHI", tag, kind, 1) + value for tag, (kind, value) in sorted(entries.items())
    )
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + rows + bytes(3000)


# --- AVIF -----------------------------------------------------------------------------------------


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def avif_claiming(width: int, height: int) -> bytes:
    """A sound picture of 64 x 48 whose `ispe` property says otherwise."""
    data = encoded(small(), "AVIF")
    ispe = data.index(b"ispe") + 8
    return data[:ispe] + struct.pack(">II", width, height) + data[ispe + 8 :]


def avif_grid(rows: int, columns: int, before: bytes = b"") -> bytes:
    """A grid whose cells, each an item of its own, are all the same 64 x 64 picture."""
    source = encoded(small().resize((64, 64)), "AVIF")
    start = source.index(b"av1C") - 4
    av1c = source[start : start + int.from_bytes(source[start : start + 4])]
    picture = source[source.index(b"mdat") + 4 :]
    grid = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, columns * 64, rows * 64)
    cells, full = range(2, 2 + rows * columns), bytes(4)
    count = len(cells) + 1

    def items(mdat: int) -> bytes:
        places = [(1, mdat, len(grid)), *((cell, mdat + len(grid), len(picture)) for cell in cells)]
        iloc = b"".join(struct.pack(">HHHII", item, 0, 1, *place) for item, *place in places)
        infe = [box(b"infe", b"\2\0\0\0", struct.pack(">HH", 1, 0), b"grid\0")]
        infe += [
            box(b"infe", b"\2\0\0\0", struct.pack(">HH", cell, 0), b"av01\0") for cell in cells
        ]
        dimg = struct.pack(f">HH{len(cells)}H", 1, len(cells), *cells)
        sizes = [
            box(b"ispe", full, struct.pack(">II", *s))
            for s in ((columns * 64, rows * 64), (64, 64))
        ]
        uses = struct.pack(">HBB", 1, 1, 1) + b"".join(
            struct.pack(">HBBB", c, 2, 2, 0x83) for c in cells
        )
        return box(
            b"meta",
            full,
            box(b"hdlr", full, bytes(4), b"pict", bytes(13)),
            box(b"pitm", full, struct.pack(">H", 1)),
            box(b"iloc", full, b"\x44\0", struct.pack(">H", count), iloc),
            box(b"iinf", full, struct.pack(">H", count), *infe),
            box(b"iref", full, box(b"dimg", dimg)),
            box(
                b"iprp",
                box(b"ipco", *sizes, av1c),
                box(b"ipma", full, struct.pack(">I", count), uses),
            ),
        )

    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf") + before
    return head + items(len(head) + len(items(0)) + 8) + box(b"mdat", grid, picture)


# --- all of them ----------------------------------------------------------------------------------

EXIF = b"\xff\xe1\0\x0cExif\0\0MMMM"
# A marker without a length; who takes the two bytes behind it for one passes over 4,679 segments.
HIDING = b"\xff\xf0" + EXIF * 4679
# An extension that ends at once for who stops at its empty first block, before what looks like a
# picture.
HIDDEN = b"!\x01\0," + b"a" * 44 + b"\0"

HOSTILE: dict[str, Callable[[], bytes]] = {
    "PNG claiming 30,000 x 30,000": lambda: png(30_000, 30_000, data=png_chunk(b"IDAT", zeros())),
    "PNG claiming the largest size": lambda: png(
        WIDE, HIGH, data=png_chunk(b"IDAT", zeros())[:5000]
    ),
    "PNG, iTXt bomb": lambda: png(before=png_chunk(b"iTXt", b"k\0\1\0\0\0" + zeros())),
    "PNG, zTXt bombs": lambda: png(before=png_chunk(b"zTXt", b"k\0\0" + zeros()) * 20),
    "PNG, iCCP bomb": lambda: png(before=png_chunk(b"iCCP", b"k\0\0" + zeros())),
    "PNG, 200 zTXt of 1 MB": lambda: png(
        before=png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000))) * 200
    ),
    "PNG, millions of private chunks": lambda: png_of_many(png_chunk(b"abCd")),
    "PNG, millions of tEXt": lambda: png_of_many(png_chunk(b"tEXt", b"k\0v")),
    "PNG, millions of empty IDAT": lambda: png_of_many(png_chunk(b"IDAT")),
    "PNG, millions of 1-byte IDAT": png_of_tiny_idats,
    "JPEG claiming 65,500 x 65,500": lambda: jpeg_claiming(65_500, 65_500),
    "JPEG, thousands of EXIF segments": lambda: jpeg_with(EXIF * (4_500_000 // len(EXIF))),
    "JPEG, millions of EXIF segments": lambda: jpeg_with(EXIF * (MAX // len(EXIF))),
    "JPEG, EXIF segments behind a bare marker": lambda: jpeg_with(HIDING * 60),
    "JPEG, EXIF segments behind a second start": lambda: jpeg_with(
        (b"\xff\xd8" + EXIF * 4679) * 60
    ),
    "JPEG, a resolution of millions of fractions": lambda: jpeg_with(fractions(3_900_000)),
    "JPEG, millions of APP0": lambda: jpeg_with(b"\xff\xe0\0\2" * (MAX // 4)),
    "JPEG, millions of fill bytes": lambda: jpeg_with(b"\xff" * MAX),
    "JPEG, millions of junk bytes": lambda: jpeg_with(b"\xff\xe0\0\2" + bytes(MAX)),
    "JPEG, thousands of scans": lambda: jpeg_of_scans(5000, 2000, 2000),
    "JPEG, millions of empty scans": jpeg_of_empty_scans,
    "GIF claiming 65,535 x 65,535": lambda: gif(65_535, 65_535),
    "GIF, a frame of 65,535 x 65,535": lambda: gif(8, 8, frame=(65_535, 65_535)),
    "GIF, a comment in millions of blocks": lambda: gif(
        before=b"!\xfe" + b"\1a" * (MAX // 2) + b"\0"
    ),
    "GIF, millions of comments": lambda: gif(before=b"!\xfe\1a\0" * (MAX // 5)),
    "GIF, comments behind an empty block": lambda: gif(before=HIDDEN + b"!\xfe\1a\0" * (MAX // 5)),
    "GIF, millions of junk bytes": lambda: gif(before=bytes(MAX)),
    "BMP claiming 30,000 x 30,000": lambda: bmp(30_000, 30_000),
    "BMP claiming the largest size": lambda: bmp(WIDE, HIGH),
    "BMP RLE, rows of one pixel": lambda: bmp(WIDE, HIGH, b"\1\1\0\0" * HIGH, compression=1),
    "BMP RLE, millions of runs": lambda: bmp(
        5000, 3000, b"\1\1" * (MAX // 2 - 1000), compression=1
    ),
    "BMP RLE4, wide runs": lambda: bmp(8160, HIGH, (b"\xff\1" * 32 + b"\0\0") * HIGH, 4, 2),
    "WebP claiming 16,383 x 16,383": lambda: riff(vp8x(16_383, 16_383), webp_frames(1)),
    "WebP still, canvas 16,383 x 16,383": lambda: riff(
        vp8x(16_383, 16_383, animated=False), encoded(small(), "WEBP")[12:]
    ),
    "WebP, canvas after another chunk": lambda: riff(
        riff_chunk(b"XXXX"), vp8x(16_383, 16_383), webp_frames(1)
    ),
    "TIFF, a million strips in 4.4 MB": lambda: tiff(
        WIDE, HIGH, t273=(4, longs(1_100_000)), t278=(4, [1]), t279=None
    ),
    "TIFF, a million 1 x 1 tiles": lambda: tiff_tiled(1, 1, longs(1_100_000), WIDE, HIGH),
    "TIFF, a million strips, in bytes": lambda: tiff(
        WIDE, HIGH, t273=(1, bytes(range(256)) * 4300), t278=(4, [1]), t279=None
    ),
    "TIFF, 32 million bit depths, in bytes": lambda: tiff(64, 48, t258=(6, bytes(MAX))),
    "TIFF, tiles of 20,000 x 20,000, signed": tiff_of_signed_tiles,
    "TIFF, 16 million bit depths": lambda: tiff(64, 48, t258=(3, longs(MAX // 4))),
    "TIFF, tiles of 20,000 x 20,000": lambda: tiff_tiled(20_000, 5, struct.pack("<I", 200)),
    "TIFF, tiles of 65,520 x 65,520": lambda: tiff_tiled(65_520, 8, struct.pack("<I", 200)),
    "TIFF, one huge deflate strip": lambda: tiff(
        WIDE, HIGH, 8, bytes(200) + zeros(), t273=(4, [300]), t278=(4, [0xFFFFFFFF])
    ),
    "TIFF CCITT claiming 30,000 x 30,000": lambda: tiff(
        30_000, 30_000, 4, bytes(100), t258=(3, [1])
    ),
    "TIFF JPEG strip of another size": lambda: tiff(
        WIDE,
        HIGH,
        7,
        bytes(100) + encoded(small(), "JPEG"),
        t258=(3, [8, 8, 8]),
        t262=(3, [6]),
        t273=(4, [234]),
        t277=(3, [3]),
    ),
    "TIFF, a progressive JPEG in it": lambda: tiff_of_jpeg(jpeg_of_scans(200), WIDE, HIGH),
    "AVIF, 65,600 boxes before its list": lambda: avif_grid(255, 255, box(b"free") * 65_600),
    "AVIF claiming 16,384 x 16,384": lambda: avif_claiming(16_384, 16_384),
    "AVIF, grid of 16,320 x 16,320": lambda: avif_grid(255, 255),
}
"""Made to cost as much as can be for a decoder; refused, or served at a bounded cost."""

SERVED: dict[str, Callable[[], bytes]] = {
    "PNG, RGB": lambda: encoded(Image.new("RGB", (WIDE, HIGH)), "PNG"),
    "PNG": lambda: encoded(Image.new("RGBA", (WIDE, HIGH)), "PNG"),
    "JPEG": lambda: encoded(Image.new("CMYK", (WIDE, HIGH)), "JPEG"),
    "JPEG, 16 scans": lambda: jpeg_of_scans(6),
    "JPEG, many scans of a small picture": lambda: jpeg_of_scans(180, 2000, 2000),
    "GIF": lambda: encoded(Image.new("P", (WIDE, HIGH)), "GIF"),
    "BMP": lambda: encoded(Image.new("1", (WIDE, HIGH)), "BMP"),
    "TIFF": lambda: encoded(Image.new("RGBA", (WIDE, HIGH)), "TIFF", compression="tiff_lzw"),
    "WebP": lambda: encoded(
        Image.new("RGB", (WIDE, HIGH)), "WEBP", lossless=True, quality=0, method=0
    ),
    "WebP, a small frame on a large canvas": lambda: riff(vp8x(WIDE, HIGH), webp_frames(1)),
    "WebP, tens of thousands of frames": lambda: riff(vp8x(64, 48), webp_frames(100_000)),
    "AVIF": lambda: encoded(Image.new("RGB", (WIDE, HIGH)), "AVIF", speed=10),
    "AVIF, grid of 12,288 cells": lambda: avif_grid(96, 128),
    "AVIF, 500 frames": lambda: encoded(
        small(),
        "AVIF",
        speed=10,
        save_all=True,
        append_images=[small().rotate(i) for i in range(500)],
    ),
}
"""Within every limit and yet a few kilobytes: they may be served or refused, at a bounded cost."""
