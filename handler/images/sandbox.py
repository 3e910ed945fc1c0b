"""Decoding in processes of their own, bounded by the kernel.

An image is a program for its decoder, written by a stranger. So the service never decodes. It sends
the file to a decoder process over a socket pair, and pixels come back, or an error's code and
text::

    service ── orders ───────────────> zygote     a new interpreter: one thread, no environment
       │                                 │ forks
       └── files ──> <── pixels ──── decoders     as many as CPUs, one image at a time each

What an image may cost is enforced by the kernel: CPU time by a timer that ends the process, memory
by a limit on its address space, and everything else by what ``confine.py`` takes away. Where the
kernel does not, ``watch.py`` sees to CPU time and memory from outside. A process like them tries
what holds (`Walls`), and `/health` says so. A process that ends, for whatever reason, takes one
image with it. The next image gets a new process, which takes a few milliseconds.
"""

import logging
import os
import platform
import signal
import threading
import time
import weakref
from contextlib import nullcontext
from typing import Protocol

from handler import telemetry
from handler.config import Config, available_cpus
from handler.errors import (
    ClipError,
    ImageTooCostly,
    ImageTooLarge,
    InvalidImage,
    MissingField,
    Overloaded,
)
from handler.images import walls
from handler.images.formats import sniff
from handler.images.processes import Ended, Garbled, Process, Spend, Zygote
from handler.images.walls import Walls
from handler.images.watch import too_slow
from handler.images.wire import Decoded, Limits

log = logging.getLogger("clip")


class Decoder(Protocol):
    """What turns files into pixels. Thread-safe."""

    walls: Walls | None
    """What confines it; None until it has decoded something."""

    def decode(self, data: bytes | memoryview, config: Config, spend: Spend) -> Decoded:
        """An image file -> the pixels that the model sees, within the limits of `config`.

        Raises:
            MissingField, ImageTooLarge: no bytes, or over ``max_image_bytes``.
            NotAnImage, UnsupportedFormat: not one of `formats.FORMATS`.
            TooManyPixels, ExtremeShape: over ``max_pixels`` or ``max_aspect_ratio``.
            TruncatedImage, InvalidImage: the data ends early, is corrupt, or crashes its decoder.
            ImageTooCostly: over ``decode_seconds`` or ``decode_mb``.
            Overloaded, InternalError: the sandbox could not do its work; try again.
        """

    def close(self) -> None:
        """End every process."""


def prepare() -> Zygote | None:
    """Start the process that will fork decoders; it gets ready by itself.

    None: not on Linux, or ``CLIP_TOWERS`` has it that only texts are served. (That variable is read
    here already, because this process is started before the settings are.)
    """
    if os.environ.get("CLIP_TOWERS", "").strip() == "text":
        return None
    return Zygote() if platform.system() == "Linux" else None


def start(config: Config, side: int, zygote: Zygote | None = None) -> Decoder:
    """The sandbox, around what `prepare` gave, if it was called before.

    `side` is that of the square that the model sees, in pixels. Where the platform has no sandbox:
    the service itself, and a warning.
    """
    zygote = zygote or prepare()
    if zygote is not None:
        return Sandbox(config, side, zygote)
    log.warning("this platform cannot confine decoders: images are decoded in the service itself")
    return Unconfined(side)


def _check(data: bytes | memoryview, config: Config) -> str:
    """The format of an image that is worth a decoder's time."""
    if not data:
        raise MissingField("the image is empty: send the bytes of an image file")
    if len(data) > config.max_image_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes, the limit is {config.max_image_bytes:,}"
        )
    return sniff(data)


def _limits(config: Config, side: int) -> Limits:
    return Limits(
        config.max_pixels,
        config.max_aspect_ratio,
        config.jpeg_draft_for(side),
        corrected=config.preprocess == "corrected",
        side=side,
    )


class Unconfined:
    """Decodes in the service itself, unbounded but for the limits on size."""

    walls: Walls | None = walls.NONE

    def __init__(self, side: int) -> None:
        """The model sees a square of `side` pixels."""
        self._side = side

    def decode(self, data: bytes | memoryview, config: Config, spend: Spend) -> Decoded:
        """As `Decoder.decode`, without ImageTooCostly for CPU time."""
        from handler.images import decode  # Pillow, which the service has no other use for

        kind = _check(data, config)
        begin = time.thread_time()
        try:
            return decode.to_pixels(bytes(data), kind, _limits(config, self._side))
        finally:
            spend(time.thread_time() - begin)

    def close(self) -> None:
        """There is nothing to end."""


class Sandbox:
    """Decodes in confined processes, as many at once as this service has CPUs."""

    walls: Walls | None = None

    def __init__(self, config: Config, side: int, zygote: Zygote | None = None) -> None:
        """Every process has the limits of `config`. `zygote`, by default a new one, is its own.

        The model sees a square of `side` pixels.
        """
        self._side = side
        self._seconds = config.decode_seconds
        self._megabytes = config.decode_mb
        self._zygote = zygote or Zygote()
        self._idle: list[Process] = []
        self._finalizer = weakref.finalize(self, _close_all, self._idle)
        self._free = threading.Semaphore(available_cpus())
        self._alone = threading.Lock()

    def decode(self, data: bytes | memoryview, config: Config, spend: Spend) -> Decoded:
        """As `Decoder.decode`."""
        kind, limits = _check(data, config), _limits(config, self._side)
        with self._free:
            try:
                return self._attempt(self._take(), data, kind, limits, spend)
            except _Inconclusive as first:
                log.warning("an image is decoded once more: %s", first.error)
            try:
                # In a new process: whatever ended one may be about to end those that wait, too.
                return self._attempt(self._fork(), data, kind, limits, spend)
            except _Inconclusive as second:
                raise second.error from None

    def processes(self) -> list[int]:
        """The ids of the zygote and of the decoders that wait for an image."""
        return [self._zygote.pid, *(process.pid for process in self._idle)]

    def close(self) -> None:
        """End every process."""
        self._finalizer()
        self._zygote.close()

    def _attempt(
        self,
        process: Process,
        data: bytes | memoryview,
        kind: str,
        limits: Limits,
        spend: Spend,
    ) -> Decoded:
        limited = process.walls.memory and process.walls.cpu
        try:
            # Nothing else bounds what images take where neither kernel nor service can.
            with nullcontext() if limited else self._alone:
                decoded = process.decode(data, kind, limits, spend)
        except Ended:
            raise self._reason(self._give_up(process), kind) from None
        except Garbled:
            self._give_up(process)
            # Perhaps it is the rest of an answer to the image before.
            error = InvalidImage(f"the {kind} image is corrupt: its decoder answers nonsense")
            raise _Inconclusive(error) from None
        except (ImageTooCostly, Overloaded):
            self._give_up(process)  # what it still does or holds is not known
            raise
        except ClipError:
            self._idle.append(process)  # it has refused an image, and is sound
            raise
        self._idle.append(process)
        return decoded

    def _give_up(self, process: Process) -> int | None:
        """End a process that an image ended or spoilt; how it ended, as `Zygote.end` says it."""
        telemetry.count(decoders_killed=1)
        return self._zygote.end(process)

    def _fork(self) -> Process:
        """Start a process that is ready for an image, and take down what confines it."""
        process = self._zygote.fork(self._megabytes, self._seconds, self._side)
        try:
            process.greet()
        except (Ended, Overloaded):
            log.warning("a decoder ended with status %s before its image", self._give_up(process))
            raise _Inconclusive(
                Overloaded("the image's decoder could not be started: try again")
            ) from None
        if process.walls != self.walls:
            self.walls = process.walls
            walls.report(process.walls)
        return process

    def _take(self) -> Process:
        """A process that waits for an image: one that has decoded before, or a new one."""
        while True:
            try:
                process = self._idle.pop()
            except IndexError:
                return self._fork()
            if process.is_alive():
                return process
            self._zygote.end(process)

    def _reason(self, status: int | None, kind: str) -> Exception:
        """Why a process has ended in the middle of an image, from how it ended."""
        by = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
        if status is None or by == signal.SIGKILL:
            text = "the image's decoder was killed, perhaps for want of memory: try again"
            return _Inconclusive(Overloaded(text))
        if by == signal.SIGPROF:
            return too_slow(kind, self._seconds)
        log.warning("a decoder of %s ended with status %s", kind, status)
        return InvalidImage(f"the {kind} image is corrupt: its decoder crashes")


def _close_all(idle: list[Process]) -> None:
    for process in idle:
        process.close()
    idle.clear()


class _Inconclusive(Exception):
    """The attempt says nothing of the image; `error` is the answer if it happens again."""

    def __init__(self, error: ClipError) -> None:
        self.error = error
