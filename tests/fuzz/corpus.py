"""What the fuzzer starts from: a small sound file of every kind, and every event."""

import io
import json
import struct
import zlib
from typing import Any

from PIL import Image

from events.generate import HERE
from tests import bombs

SIZE = (40, 30)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _picture() -> Image.Image:
    ramp = Image.linear_gradient("L").resize(SIZE)
    disc = Image.radial_gradient("L").resize(SIZE)
    return Image.merge("RGB", (ramp, disc, ramp.rotate(180)))


def _with_alpha(mode: str) -> Image.Image:
    image = _picture().convert(mode)
    image.putalpha(Image.radial_gradient("L").resize(SIZE))
    return image


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2024:03:12 21:00:00"
    return exif


def images() -> dict[str, bytes]:
    """``"png palette"`` -> bytes; the first word is the format."""
    return _jpegs() | _pngs() | _webps() | _gifs() | _bmps() | _tiffs() | _avifs()


def _jpegs() -> dict[str, bytes]:
    rgb = _picture()
    return {
        "jpeg": _encoded(rgb, "JPEG"),
        "jpeg 4:4:4": _encoded(rgb, "JPEG", subsampling=0, quality=95),
        "jpeg grey": _encoded(rgb.convert("L"), "JPEG"),
        "jpeg progressive": _encoded(rgb, "JPEG", progressive=True),
        "jpeg restarts": _encoded(rgb, "JPEG", restart_marker_blocks=1),
        "jpeg cmyk": _encoded(rgb.convert("CMYK"), "JPEG"),
        "jpeg exif": _encoded(
            rgb, "JPEG", exif=_exif(), icc_profile=b"p" * 200, comment="c", dpi=(72, 72)
        ),
        "jpeg mpo": _encoded(rgb, "MPO", save_all=True, append_images=[rgb.rotate(180)]),
    }


def _pngs() -> dict[str, bytes]:
    rgb = _picture()
    palette = rgb.quantize(16)
    extras = (
        bombs.png_chunk(b"tEXt", b"k\0v")
        + bombs.png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"v" * 100))
        + bombs.png_chunk(b"iTXt", b"k\0\1\0en\0k\0" + zlib.compress(b"v" * 100))
        + bombs.png_chunk(b"iCCP", b"k\0\0" + zlib.compress(b"p" * 100))
        + bombs.png_chunk(b"gAMA", struct.pack(">I", 45455))
        + bombs.png_chunk(b"pHYs", struct.pack(">IIB", 72, 72, 1))
        + bombs.png_chunk(b"eXIf", _exif().tobytes()[6:])
    )
    return {
        **{
            f"png {mode}": _encoded(rgb.convert(mode), "PNG")
            for mode in ("1", "L", "LA", "RGB", "RGBA")
        },
        "png 16-bit": _encoded(rgb.convert("L").convert("I").convert("I;16"), "PNG"),
        "png palette": _encoded(palette, "PNG"),
        "png palette, one transparent": _encoded(palette, "PNG", transparency=3),
        "png palette, alpha": _encoded(palette, "PNG", transparency=bytes(range(16))),
        "png animated": _encoded(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)]),
        "png extras": bombs.png(*SIZE, before=extras),
        "png interlaced": _interlaced(),
    }


def _interlaced() -> bytes:
    """Adam7, 8 x 8 grey: seven passes, each with its own rows."""
    passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]  # width, height
    rows = b"".join((b"\0" + bytes(range(width))) * height for width, height in passes)
    header = bombs.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1))
    data = bombs.png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + data + bombs.png_chunk(b"IEND")


def _webps() -> dict[str, bytes]:
    rgb = _picture()
    frames = {"save_all": True, "append_images": [rgb.rotate(180), rgb.rotate(90)]}
    return {
        "webp lossy": _encoded(rgb, "WEBP"),
        "webp lossy alpha": _encoded(_with_alpha("RGB"), "WEBP"),
        "webp lossless": _encoded(rgb, "WEBP", lossless=True),
        "webp lossless alpha": _encoded(_with_alpha("RGB"), "WEBP", lossless=True),
        "webp animated": _encoded(rgb, "WEBP", **frames),
        "webp exif": _encoded(rgb, "WEBP", exif=_exif(), icc_profile=b"p" * 50, xmp=b"<x/>"),
    }


def _gifs() -> dict[str, bytes]:
    palette = _picture().quantize(16)
    frames = {"save_all": True, "append_images": [palette.rotate(180), palette.rotate(90)]}
    return {
        "gif": _encoded(palette, "GIF", interlace=False),
        "gif interlaced": _encoded(palette, "GIF", interlace=True, comment="c"),
        "gif transparent": _encoded(palette, "GIF", transparency=3, background=1),
        "gif transparent, animated": _encoded(palette, "GIF", transparency=3, disposal=2, **frames),
        "gif animated": _encoded(palette, "GIF", duration=50, loop=0, disposal=2, **frames),
    }


def _bmps() -> dict[str, bytes]:
    rgb = _picture()
    return {
        **{f"bmp {mode}": _encoded(rgb.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB")},
        "bmp alpha": _encoded(_with_alpha("RGB"), "BMP"),
        "bmp 5-6-5": _bitfields(),
        "bmp of OS/2": b"BM"
        + struct.pack("<IHHIIHHHH", 38, 0, 0, 26, 12, 2, 2, 1, 24)
        + bytes(range(16)),
        "bmp rle": bombs.bmp(
            8, 3, b"\10\1\0\0\3\2\0\5\1\2\3\4\5\0\0\0\0\2\1\0\7\7\0\1", compression=1
        ),
    }


def _bitfields() -> bytes:
    """8 x 4 pixels of 16 bits, with masks that say which are red, green and blue."""
    info = struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, 16, 3, 64, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    return b"BM" + struct.pack("<IHHI", 130, 0, 0, 66) + info + masks + bytes(range(64))


def _tiffs() -> dict[str, bytes]:
    rgb = _picture()
    compressions = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "lzma", "zstd")
    modes = ("1", "L", "LA", "P", "CMYK", "YCbCr", "LAB", "RGBA", "I", "F")
    lab = Image.merge("LAB", rgb.split())
    page = {"save_all": True, "append_images": [rgb.rotate(180)]}
    return {
        **{f"tiff {name}": _encoded(rgb, "TIFF", compression=name) for name in compressions},
        **{
            f"tiff {mode}": _encoded(
                lab if mode == "LAB" else rgb.convert("L").convert(mode), "TIFF"
            )
            if mode in ("I", "F", "LAB")
            else _encoded(rgb.convert(mode), "TIFF")
            for mode in modes
        },
        "tiff group3": _encoded(rgb.convert("1"), "TIFF", compression="group3"),
        "tiff group4": _encoded(rgb.convert("1"), "TIFF", compression="group4"),
        "tiff 16-bit": _encoded(rgb.convert("L").convert("I").convert("I;16"), "TIFF"),
        "tiff big": _encoded(rgb, "TIFF", big_tiff=True),
        "tiff pages": _encoded(rgb, "TIFF", compression="tiff_lzw", **page),
        "tiff exif": _encoded(rgb, "TIFF", exif=_exif(), dpi=(72, 72)),
        "tiff strips": _encoded(rgb, "TIFF", compression="tiff_lzw", strip_size=240),
        "tiff planar": bombs.tiff(
            width=8,
            height=4,
            data=bytes(range(96)),
            t258=(3, [8] * 3),
            t262=(3, [2]),
            t273=(4, [8, 40, 72]),
            t277=(3, [3]),
            t279=(4, [32] * 3),
            t284=(3, [2]),
        ),
        "tiff tiles": bombs.tiff_tiled(16, 1, struct.pack("<12I", *[200] * 12)),
    }


def _avifs() -> dict[str, bytes]:
    rgb = _picture()
    return {
        "avif": _encoded(rgb, "AVIF", speed=10),
        "avif alpha": _encoded(_with_alpha("RGB"), "AVIF", speed=10),
        "avif exif": _encoded(rgb, "AVIF", speed=10, exif=_exif(), icc_profile=b"p" * 200),
        "avif animated": _encoded(
            rgb, "AVIF", speed=10, save_all=True, append_images=[rgb.rotate(180)]
        ),
        "avif grid": bombs.avif_grid(2, 2),
    }


def events() -> dict[str, Any]:
    """Every file in ``events/``, decoded."""
    return {path.name: json.loads(path.read_text()) for path in sorted(HERE.glob("*.json"))}
