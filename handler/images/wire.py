"""What the service and its decoding processes say to each other, byte for byte.

Both ends are on one machine and of one version, so the forms are fixed and small. Integers have no
alignment between them (``<``).
"""

import struct
from typing import NamedTuple

CONTROL = 3
"""File descriptor of the socket that a process of the sandbox has: its only one."""

ORDER = struct.Struct("<cid")
"""Service -> zygote: `FORK`, megabytes and seconds of CPU, with a file descriptor beside them; or
`END`, a process id and 0."""
FORK, END = b"f", b"e"

REPLY = struct.Struct("<i")
"""Zygote -> service: the new decoder's process id; or how one ended, as `os.waitpid` says it."""

HELLO = struct.Struct("<9?")
"""Decoder -> service, before its first image: `Walls`, field by field."""

REQUEST = struct.Struct("<QQ8sQII?I")
"""Service -> decoder: a number, the file's length and format, and `Limits` field by field. Then the
file."""

ANSWER = struct.Struct("<Q?I8sQQ")
"""Decoder -> service: the number of the request; whether pixels follow, or the text of an error;
the length of what follows; of an image, its format, width and height."""


def pixel_bytes(side: int) -> int:
    """How many bytes the pixels of one image have, for a model that sees a square of `side`."""
    return side * side * 3


class Limits(NamedTuple):
    """What one image may be, and how it is treated, by the settings and by the model."""

    max_pixels: int
    max_aspect_ratio: int
    jpeg_draft: int
    corrected: bool
    side: int
    """Of the square that the model sees, in pixels."""


class Decoded(NamedTuple):
    """One image as the model sees it, and what the log says of it."""

    pixels: bytes
    """uint8 RGB [side, side, 3], row by row; see `pixel_bytes`."""
    format: str
    """Pillow's name of it, such as ``JPEG``."""
    size: tuple[int, int]
    """Width and height in the file."""
