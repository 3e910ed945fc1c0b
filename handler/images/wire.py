"""What the service and its decoding processes say to each other, byte for byte.

Both ends are on one machine and of one version, so the forms are fixed and small. Integers have no
alignment between them (``<``).
"""

import struct
from typing import NamedTuple

CONTROL = 3
"""File descriptor of the socket that a process of the sandbox has: its only one."""

ORDER = struct.Struct("<cid")
"""Service -> zygote: `FORK`, megabytes, seconds of CPU, and a file descriptor; or `END`, process id, 0."""
FORK, END = b"f", b"e"

REPLY = struct.Struct("<i")
"""Zygote -> service: the new decoder's process id, or how a decoder ended, as `os.waitpid` says it."""

NOT_CONFINED = 70
"""Exit status of a decoder that the kernel did not confine, and that therefore decodes nothing."""

REQUEST = struct.Struct("<QQ8sQII?")
"""Service -> decoder: a number, the file's length and format, `Limits` field by field; then the file."""

ANSWER = struct.Struct("<Q?dI8sQQ")
"""Decoder -> service: the number of the request; whether pixels follow, or the text of an error;
seconds of CPU; the length of what follows; of an image, its format, width and height."""

SIZE = 224
"""Side of the square that the model sees, in pixels."""


class Limits(NamedTuple):
    """What one image may be, and how it is treated: fields of `handler.config.Config`."""

    max_pixels: int
    max_aspect_ratio: int
    jpeg_draft: int
    corrected: bool


class Decoded(NamedTuple):
    """One image as the model sees it, and what the log says of it."""

    pixels: bytes
    """uint8 RGB [224, 224, 3], row by row: 150,528 bytes."""
    format: str
    """Pillow's name of it, such as ``JPEG``."""
    size: tuple[int, int]
    """Width and height in the file."""
