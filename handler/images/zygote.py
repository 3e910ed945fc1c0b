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
import time
from collections.abc import Callable
from contextlib import suppress

from handler.errors import ClipError, ImageTooCostly, InvalidImage
from handler.images.confine import KEPT, confine, keep_memory, release_memory
from handler.images.wire import (
    ANSWER,
    CONTROL,
    FORK,
    NOT_CONFINED,
    ORDER,
    REPLY,
    REQUEST,
    Decoded,
    Limits,
)

ToPixels = Callable[[bytes, str, Limits], Decoded]


# What only another interpreter or a confined process runs is not measured.


def main(module: str, function: str) -> None:  # pragma: no cover
    """Fork a decoder, or end one, whenever the service says so; leave when the service has left."""
    control = socket.socket(fileno=CONTROL)
    os.closerange(CONTROL + 1, os.sysconf("SC_OPEN_MAX"))
    to_pixels = to_pixels_of(module, function)
    _silence()
    decoders: set[int] = set()
    # The collector writes into what it visits, and memory that is written to is shared no longer.
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(control, ORDER.size, 1)
        if not message:
            return
        order, number, seconds = ORDER.unpack(message)
        if order == FORK:
            (connection,) = files
            reply = _fork(connection, to_pixels, number, seconds)
            decoders.add(reply)
        elif number in decoders:
            decoders.remove(number)
            reply = _end(number)
        else:  # of a zygote before this one, and ended with it
            reply = signal.SIGKILL
        control.send(REPLY.pack(reply))


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
    connection: int, to_pixels: ToPixels, megabytes: int, seconds: float
) -> int:
    """A new decoder that answers at `connection`: its process id."""
    zygote = os.getpid()
    child = os.fork()
    if child:
        os.setpgid(child, child)  # here too, because the child may not have come to it yet
        os.close(connection)
        return child
    status = NOT_CONFINED
    try:
        os.dup2(connection, CONTROL)  # which closes the zygote's own socket here
        os.close(connection)
        service = socket.socket(fileno=CONTROL)
        os.setpgid(0, 0)
        keep_memory()
        confine(megabytes, zygote)
        status = 0
        serve(service, to_pixels, seconds)
    finally:
        os._exit(status)


def _end(decoder: int) -> int:  # pragma: no cover
    """Kill a decoder, if it still lives, and all that it may have started: how it ended."""
    with suppress(ProcessLookupError):
        os.killpg(decoder, signal.SIGKILL)
    return os.waitpid(decoder, 0)[1]


def serve(connection: socket.socket, to_pixels: ToPixels, seconds: float) -> None:
    """Decode one image after another, until the service closes the connection."""
    while True:
        header = _receive(connection, REQUEST.size)
        if not header:
            return
        number, length, kind, *limits = REQUEST.unpack(header)
        data = _receive(connection, length)
        # The kernel ends this process when an image has taken so much CPU time, in whatever code.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        start = time.process_time()
        done, image, text = _decode(to_pixels, data, kind.rstrip(b"\0").decode(), Limits(*limits))
        used = time.process_time() - start
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.sendall(ANSWER.pack(number, done, used, len(text), *image) + text)
        _, width, height = image
        if not done or len(data) + 4 * width * height > KEPT:
            del data
            _forget()


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
