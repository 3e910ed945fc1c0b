"""Images given as a string: base64, a ``data:`` URI, or ``s3://bucket/key``."""

import binascii

from handler.errors import InvalidBase64
from handler.images.s3 import Image, parse_uri

IMAGE_HELP = "base64 of an image file, a data: URI, or s3://bucket/key"


def read_string(text: str) -> Image:
    """The image's bytes, or its place in S3.

    Raises:
        InvalidField: an s3:// URI without a bucket or a key.
        InvalidBase64: neither base64 nor a base64 data: URI; the detail says how to make it.
    """
    return parse_uri(text) if text.startswith("s3://") else decode_base64(text)


def decode_base64(text: str) -> bytes:
    """``"<base64>"`` or ``"data:image/png;base64,<base64>"`` -> bytes. Line breaks are allowed.

    Raises:
        InvalidBase64: not base64; the detail says how to make it.
    """
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise InvalidBase64("a data: URI must be of the form data:<type>;base64,<data>")
    try:
        data = text.encode("ascii")
        return binascii.a2b_base64(data.translate(None, b" \t\r\n"), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise InvalidBase64(f"the image is not valid base64: send {IMAGE_HELP}") from None
