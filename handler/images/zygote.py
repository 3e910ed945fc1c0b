"""The program that decodes: a small process that forks decoders, and what a decoder does.

``processes.py`` starts it, with nothing in its environment, and speaks to it over a socket pair. It
has one thread and has imported all that decoding needs, so that to fork it is safe at any time and
takes a few milliseconds. It never sees an image; its children, the decoders, see nothing else.
"""

import gc
import importlib
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from handler.errors import ClipError, ImageTooCostly, InvalidImage
from handler.images.confine import (
    KEPT,
    become_nobody,
    confine,
    find_walls,
    keep_memory,
    release_memory,
)
from handler.images.walls import Walls
from handler.images.wire import (
    ANSWER,
    CONTROL,
    FORK,
    HELLO,
    ORDER,
    REPLY,
    REQUEST,
    Decoded,
    Limits,
)

ToPixels = Callable[[bytes, str, Limits], Decoded]


# What only another interpreter or a confined process runs is not measured.


def main(module: str, function: str) -> None:  # pragma: no cover
    """Fork a decoder, or end one, whenever the service says so, until the service has left."""
    with suppress(OSError):  # Ctrl-C is for the service, which finishes what it began
        os.setsid()
    service, control = os.getppid(), socket.socket(fileno=CONTROL)
    _close_all_from(CONTROL + 1)
    to_pixels = to_pixels_of(module, function)
    _silence()
    become_nobody()
    # The collector writes into what it visits, and memory that is written to is shared no longer.
    gc.freeze()
    walls = find_walls(service)
    decoders: set[int] = set()
    try:
        while (order := _next_order(control)) is not None:
            control.send(REPLY.pack(_carry_out(order, decoders, to_pixels, walls)))
    finally:
        # The service may have been killed while a decoder is busy and sees nothing of it.
        for decoder in decoders:
            _kill(decoder)


class _Order(NamedTuple):
    """Ask for a new decoder at `connection` or, where that is None, for the end of `number`."""

    connection: int | None
    number: int
    """Megabytes that a new decoder may take; or a process id."""
    seconds: float
    """Seconds of CPU that an image may take."""


def _next_order(control: socket.socket) -> _Order | None:  # pragma: no cover
    """Wait for an order; None when the service has left."""
    message, files, _, _ = socket.recv_fds(control, ORDER.size, 1)
    if not message:
        return None
    order, number, seconds = ORDER.unpack(message)
    return _Order(files[0] if order == FORK else None, number, seconds)


def _carry_out(  # pragma: no cover
    order: _Order, decoders: set[int], to_pixels: ToPixels, walls: Walls
) -> int:
    """Fork or end a decoder, of which `decoders` is the list, and return the reply."""
    if order.connection is not None:
        decoder = _fork(order.connection, to_pixels, order, walls)
        decoders.add(decoder)
        return decoder
    if order.number not in decoders:  # of a zygote before this one, and ended with it
        return signal.SIGKILL
    decoders.remove(order.number)
    _kill(order.number)
    return os.waitpid(order.number, 0)[1]


def _kill(decoder: int) -> None:  # pragma: no cover
    """Kill a decoder, if it still lives."""
    with suppress(ProcessLookupError):
        os.kill(decoder, signal.SIGKILL)


def _close_all_from(first: int) -> None:  # pragma: no cover
    """Close the files that the service's parent may have left open in all its children."""
    most = os.sysconf("SC_OPEN_MAX")  # -1 where the kernel does not tell
    os.closerange(first, most if most > 0 else 2**16)


def to_pixels_of(module: str, function: str) -> ToPixels:
    """What decodes: `function` of `module`."""
    found: ToPixels = getattr(importlib.import_module(module), function)
    return found


def _silence() -> None:  # pragma: no cover
    """Let standard input, output and error lead nowhere: decoders chatter, past any logging."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)


def _fork(  # pragma: no cover
    connection: int, to_pixels: ToPixels, order: _Order, walls: Walls
) -> int:
    """Start a decoder that answers at `connection`, and return its process id."""
    zygote = os.getpid()
    child = os.fork()
    if child:
        os.close(connection)
        return child
    try:
        os.dup2(connection, CONTROL)  # which closes the zygote's own socket here
        os.close(connection)
        stream = socket.socket(fileno=CONTROL)
        keep_memory()
        confine(order.number, zygote)
        stream.sendall(HELLO.pack(*walls))
        serve(stream, to_pixels, order.seconds)
    finally:
        os._exit(0)


def serve(connection: socket.socket, to_pixels: ToPixels, seconds: float) -> None:
    """Decode one image after another, until the service closes the connection."""
    while True:
        header = _receive(connection, REQUEST.size)
        if not header:
            return
        number, length, kind, *limits = REQUEST.unpack(header)
        data = _receive(connection, length)
        # The kernel ends this process when an image has taken so much CPU time, in whatever code.
        _set_timer(seconds)
        done, image, text = _decode(to_pixels, data, kind.rstrip(b"\0").decode(), Limits(*limits))
        _set_timer(0)
        connection.sendall(ANSWER.pack(number, done, len(text), *image) + text)
        _, width, height = image
        if not done or len(data) + 4 * width * height > KEPT:
            del data
            _forget()


def _set_timer(seconds: float) -> None:
    """End this process after `seconds` of CPU time; never with 0.

    Where the kernel has no such timer the service alone watches the time, as it does anyway.
    """
    with suppress(OSError):
        signal.setitimer(signal.ITIMER_PROF, seconds)


Image = tuple[bytes, int, int]
"""Format, width and height."""


def _decode(
    to_pixels: ToPixels, data: bytes, kind: str, limits: Limits
) -> tuple[bool, Image, bytes]:
    """Whether there are pixels; what the image is; its pixels, or its error's code and text."""
    error: ClipError
    try:
        decoded = _try_twice(to_pixels, data, kind, limits)
        return True, (decoded.format.encode(), *decoded.size), decoded.pixels
    except ClipError as refusal:
        error = refusal
    except MemoryError:
        error = ImageTooCostly("decoding the image takes too much memory")
    except Exception:  # noqa: BLE001  # whatever it is, this image is why
        error = InvalidImage(f"the {kind} image cannot be decoded")
    return False, (b"", 0, 0), f"{error.code} {error.detail}".encode()


def _try_twice(to_pixels: ToPixels, data: bytes, kind: str, limits: Limits) -> Decoded:
    """As `to_pixels`; once more if there was not memory enough, which images before may hold."""
    with suppress(MemoryError):
        return to_pixels(data, kind, limits)
    _forget()
    return to_pixels(data, kind, limits)


def _forget() -> None:
    """Give back all memory that no image needs any more."""
    gc.collect()  # some of Pillow's images are in cycles
    release_memory()


def _receive(connection: socket.socket, length: int) -> bytes:
    """Exactly `length` bytes; fewer only when the service has closed the connection."""
    buffer = bytearray(length)
    view, received = memoryview(buffer), 0
    while received < length:
        count = connection.recv_into(view[received:])
        if count == 0:
            return b""
        received += count
    return bytes(buffer)
