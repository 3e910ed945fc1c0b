"""Images given as a string: base64, a ``data:`` URI, or ``s3://bucket/key``."""

import binascii
import re

from handler.errors import InvalidBase64, InvalidField
from handler.images.s3 import Image, parse_uri

IMAGE_HELP = "base64 of an image file, a data: URI, or s3://bucket/key"

_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]{1,30}://")
_WHITESPACE = re.compile(r"[ \t\r\n]")


def read_string(text: str) -> Image:
    """The image's bytes, or its place in S3.

    Raises:
        InvalidField: an s3:// URI without a bucket or a key, or a URL, which is not fetched.
        InvalidBase64: neither base64 nor a base64 data: URI; the detail says how to make it.
    """
    if text.startswith("s3://"):
        return parse_uri(text)
    if _URL.match(text):
        raise InvalidField("URLs are not fetched: send the image itself, or s3://bucket/key")
    return decode_base64(text)


def decode_base64(
    text: str, wanted: str = f"the image is not valid base64: send {IMAGE_HELP}"
) -> bytes:
    """``"<base64>"`` or ``"data:image/png;base64,<base64>"`` -> bytes. Line breaks are allowed.

    `wanted` is the error's text.

    Raises:
        InvalidBase64: not base64; the detail says how to make it.
    """
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise InvalidBase64("a data: URI must be of the form data:<type>;base64,<data>")
    try:
        # A text of many megabytes is copied only where there is something to take out.
        encoded: str | bytes = text
        if _WHITESPACE.search(text):
            encoded = text.encode("ascii").translate(None, b" \t\r\n")
        return binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError:  # not ASCII, or not base64
        raise InvalidBase64(wanted) from None
