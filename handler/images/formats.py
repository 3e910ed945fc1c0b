"""What a file is, by its first bytes. Nothing is decoded here.

To serve another format that Pillow reads, add a line to `FORMATS`, and its signature to
`SIGNATURES` if it is not there yet. The sandbox bounds what its decoder may cost. A test then asks
for a picture of the new format in the parity set, and for a hostile file in ``tests/bombs.py``.
"""

from handler.errors import NotAnImage, UnsupportedFormat

FORMATS = {
    "JPEG": ("JpegImagePlugin", "MpoImagePlugin"),
    "PNG": ("PngImagePlugin",),
    "WEBP": ("WebPImagePlugin",),
    "GIF": ("GifImagePlugin",),
    "BMP": ("BmpImagePlugin",),
    "TIFF": ("TiffImagePlugin",),
    "AVIF": ("AvifImagePlugin",),
}
"""The formats that are decoded, each with Pillow's modules for it. Of animations, the first frame.

An MPO is a JPEG with further pictures behind the first; Pillow's JPEG plugin hands it on to MPO's.
"""

_NAMES = [name.replace("WEBP", "WebP") for name in FORMATS]
SERVED = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"

_ISO_MEDIA = "ISO media"
"""A file in boxes (ISO 14496-12): its brands, not its signature, say whether it is AVIF or HEIC."""

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    # (offset, bytes, format)
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),  # BigTIFF, whose offsets have 64 bits
    (0, b"MM\0+", "TIFF"),
    (4, b"ftyp", _ISO_MEDIA),
    # What follows is not served. It is known so that the answer can name it.
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"8BPS", "Photoshop (PSD)"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\0\0\2\0", "CUR"),
    (0, b"icns", "ICNS"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw format"),
    (0, b"IIU\0", "a camera's raw format"),
    (0, b"DDS ", "DDS"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"qoif", "QOI"),
    (0, b"P1", "PBM"),
    (0, b"P4", "PBM"),
    (0, b"P2", "PGM"),
    (0, b"P5", "PGM"),
    (0, b"P3", "PPM"),
    (0, b"P6", "PPM"),
    (0, b"\x1a\x45\xdf\xa3", "a video"),
    (0, b"RIFF", "a RIFF file that is no WebP"),
)

_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"), "HEIC"),
}
"""Brands of ISO media, the telling ones. ``mif1`` alone says only that there is an image in it."""

_TGA_FOOTER = b"TRUEVISION-XFILE.\0"


def sniff(data: bytes | memoryview) -> str:
    """Name the format by its signature, so that only its own decoder ever sees the bytes.

    Raises:
        NotAnImage: no known signature.
        UnsupportedFormat: a known one that is not in `FORMATS`; the text says what to send instead.
    """
    head = bytes(data[:64])
    kind = next((kind for at, sign, kind in SIGNATURES if head.startswith(sign, at)), None)
    if kind == _ISO_MEDIA:
        kind = _by_brand(head)
    # A Targa file begins as a cursor does, but has its name at the end.
    if kind not in FORMATS and bytes(data[-len(_TGA_FOOTER) :]) == _TGA_FOOTER:
        kind = "TGA"
    if kind is None:
        raise NotAnImage(f"the data is not an image: send {SERVED}")
    if kind in FORMATS:
        return kind
    if kind == "HEIC":
        raise UnsupportedFormat("HEIC is not supported: convert the picture to JPEG first")
    raise UnsupportedFormat(f"{kind} is not supported: send {SERVED}")


def _by_brand(head: bytes) -> str:
    """AVIF or HEIC, by the brands in the file's first box, of which the first is the major one."""
    length = int.from_bytes(head[:4], "big")
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(length, len(head)), 4))]
    kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    if kinds:
        return kinds[0]
    # An image of which nothing says how it is compressed: libavif finds out.
    return "AVIF" if brands[0] in (b"mif1", b"msf1") else "a video"
