"""A page of pictures with their scores. It is one file, and takes nothing from anywhere else."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

SIDE = 240
"""Pixels of a small picture's longer side."""

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; font-family: sans-serif; }}
  ol {{ display: flex; flex-wrap: wrap; gap: 1rem; padding: 0; list-style: none; }}
  li {{ width: {side}px; overflow-wrap: anywhere; }}
  img {{ max-width: 100%; display: block; }}
  b {{ font-variant-numeric: tabular-nums; }}
</style>
<h1>{title}</h1>
<ol>
{rows}
</ol>
</html>
"""


def page(title: str, rows: Sequence[tuple[str, float]]) -> str:
    """An HTML page of the images `rows`, each a name and a score, in this order.

    An image that cannot be read here, such as one in S3, is shown by its name alone. So are all
    where Pillow is not installed, which makes the small pictures.
    """
    shown = "\n".join(
        f"<li>{_picture(name)}<b>{score:.4f}</b> {html.escape(_printable(name))}</li>"
        for name, score in rows
    )
    return _PAGE.format(title=html.escape(_printable(title)), side=SIDE, rows=shown)


def _printable(name: str) -> str:
    """A name in which bytes that are no UTF-8 are replaced, since HTML cannot hold them."""
    return name.encode("utf-8", "replace").decode()


def _picture(name: str) -> str:
    data = _small(Path(name))
    if data is None:
        return ""
    address = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return f'<img alt="" src="{address}">'


def _small(path: Path) -> bytes | None:
    """A small JPEG of an image file, upright; None where there is none to be had."""
    try:
        from PIL import Image, ImageOps  # here: only pages need it
    except ImportError:
        return None
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    upright.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    upright.save(file, "JPEG", quality=80)
    return file.getvalue()
