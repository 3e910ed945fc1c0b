"""Decoding in processes of their own, bounded by the kernel.

An image is a program for its decoder, written by a stranger. So the service never decodes. It sends
the file to a decoder process over a socket pair, and pixels come back, or an error's code and
text::

    service ── orders ───────────────> zygote     a new interpreter: one thread, no environment
       │                                 │ forks
       └── files ──> <── pixels ──── decoders     as many as CPUs, one image at a time each

What an image may cost is enforced by the kernel: CPU time by a timer that ends the process, memory
by a limit on its address space, and everything else by what ``confine.py`` takes away. A process
that ends, for whatever reason, takes one image with it. The next image gets a new process, which
takes a few milliseconds.
"""

import itertools
import logging
import math
import os
import platform
import select
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

from handler.config import Config, available_cpus
from handler.errors import (
    ClipError,
    ExtremeShape,
    ImageTooCostly,
    ImageTooLarge,
    InternalError,
    InvalidImage,
    MissingField,
    Overloaded,
    TooManyPixels,
    TruncatedImage,
)
from handler.images.formats import FORMATS, sniff
from handler.images.wire import (
    ANSWER,
    CONTROL,
    END,
    FORK,
    NOT_CONFINED,
    ORDER,
    REPLY,
    REQUEST,
    SIZE,
    Decoded,
    Limits,
)

PATIENCE = 30.0
"""Seconds to wait for a decoder that uses no CPU time, so that its timer does not end it."""

_SLICE = 1.0
_DECODER = "handler.images.decode", "to_pixels"
_ERRORS = {
    error.code: error
    for error in (TooManyPixels, ExtremeShape, TruncatedImage, InvalidImage, ImageTooCostly)
}
"""What a decoder may answer instead of pixels."""
_LONGEST_TEXT = 1000

T = TypeVar("T")
Spend = Callable[[float], object]
"""Is told the seconds of CPU that an image took."""

log = logging.getLogger("clip")


class Decoder(Protocol):
    """What turns files into pixels. Thread-safe."""

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


def prepare() -> "Zygote | None":
    """Start the process that will fork decoders; it gets ready by itself. None: not on Linux."""
    return Zygote() if platform.system() == "Linux" else None


def start(config: Config, zygote: "Zygote | None" = None) -> Decoder:
    """The sandbox, around what `prepare` gave, if it was called before.

    Where the platform has none: the service itself, and a warning.
    """
    zygote = zygote or prepare()
    if zygote is not None:
        return Sandbox(config, zygote)
    log.warning("this platform cannot confine decoders: images are decoded in the service itself")
    return Unconfined()


def _check(data: bytes | memoryview, config: Config) -> str:
    """The format of an image that is worth a decoder's time."""
    if not data:
        raise MissingField("the image is empty: send the bytes of an image file")
    if len(data) > config.max_image_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes, the limit is {config.max_image_bytes:,}"
        )
    return sniff(data)


def _limits(config: Config) -> Limits:
    corrected = config.preprocess == "corrected"
    return Limits(config.max_pixels, config.max_aspect_ratio, config.jpeg_draft, corrected)


class Unconfined:
    """Decodes in the service itself, unbounded but for the limits on size."""

    def decode(self, data: bytes | memoryview, config: Config, spend: Spend) -> Decoded:
        """As `Decoder.decode`, without ImageTooCostly for CPU time."""
        from handler.images import decode  # Pillow, which the service has no other use for

        kind = _check(data, config)
        begin = time.thread_time()
        try:
            return decode.to_pixels(bytes(data), kind, _limits(config))
        finally:
            spend(time.thread_time() - begin)

    def close(self) -> None:
        """There is nothing to end."""


class Sandbox:
    """Decodes in confined processes, as many at once as this service has CPUs."""

    def __init__(self, config: Config, zygote: "Zygote | None" = None) -> None:
        """Every process has the limits of `config`. `zygote`, by default a new one, is its own."""
        self._seconds = config.decode_seconds
        self._megabytes = config.decode_mb
        self._zygote = zygote or Zygote()
        self._idle: list[_Process] = []
        self._finalizer = weakref.finalize(self, _close_all, self._idle)
        self._free = threading.Semaphore(available_cpus())

    def decode(self, data: bytes | memoryview, config: Config, spend: Spend) -> Decoded:
        """As `Decoder.decode`."""
        kind, limits = _check(data, config), _limits(config)
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
        process: "_Process",
        data: bytes | memoryview,
        kind: str,
        limits: Limits,
        spend: Spend,
    ) -> Decoded:
        try:
            decoded = process.decode(data, kind, limits, spend)
        except _Ended:
            raise self._reason(self._zygote.end(process), kind, spend) from None
        except _Garbled:
            self._zygote.end(process)
            # Perhaps it is the rest of an answer to the image before.
            error = InvalidImage(f"the {kind} image is corrupt: its decoder answers nonsense")
            raise _Inconclusive(error) from None
        except (ImageTooCostly, Overloaded):
            self._zygote.end(process)  # what it still does or holds is not known
            raise
        except ClipError:
            self._idle.append(process)  # it has refused an image, and is sound
            raise
        self._idle.append(process)
        return decoded

    def _fork(self) -> "_Process":
        return self._zygote.fork(self._megabytes, self._seconds)

    def _take(self) -> "_Process":
        """A process that waits for an image: one that has decoded before, or a new one."""
        while True:
            try:
                process = self._idle.pop()
            except IndexError:
                return self._fork()
            if process.is_alive():
                return process
            self._zygote.end(process)

    def _reason(self, status: int | None, kind: str, spend: Spend) -> Exception:
        """Why a process has ended in the middle of an image, from how it ended."""
        by = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
        if status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == NOT_CONFINED:
            log.error("this kernel does not confine a decoder: no image can be decoded")
            return InternalError("images cannot be decoded now; the fault is logged")
        if status is None or by == signal.SIGKILL:
            text = "the image's decoder was killed, perhaps for want of memory: try again"
            return _Inconclusive(Overloaded(text))
        if by == signal.SIGPROF:
            spend(self._seconds)
            return ImageTooCostly(
                f"decoding the {kind} image takes more than {self._seconds:g} s: "
                "send it smaller, or as a baseline JPEG"
            )
        log.warning("a decoder of %s ended with status %s", kind, status)
        return InvalidImage(f"the {kind} image is corrupt: its decoder crashes")


def _close_all(idle: "list[_Process]") -> None:
    for process in idle:
        process.close()
    idle.clear()


class _Inconclusive(Exception):
    """The attempt says nothing of the image; `error` is the answer if it happens again."""

    def __init__(self, error: ClipError) -> None:
        self.error = error


class _Ended(Exception):
    """The process at the other end is gone."""


class _Garbled(Exception):
    """The process does not keep to the form of an answer."""


class _Process:
    """A decoder, seen from the service."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._connection = connection
        self._numbers = itertools.count(1)

    def decode(self, data: bytes | memoryview, kind: str, limits: Limits, spend: Spend) -> Decoded:
        number = next(self._numbers)
        patience = _Patience()
        request = REQUEST.pack(number, len(data), kind.encode(), *limits)
        try:
            self._send(request, patience)
            self._send(data, patience)
            header = ANSWER.unpack(self._receive(ANSWER.size, patience))
            answered, done, seconds, length, name, width, height = header
            longest = SIZE * SIZE * 3 if done else _LONGEST_TEXT
            plausible = answered == number and length <= longest and 0 <= seconds < math.inf
            if not plausible:
                raise _Garbled
            content = self._receive(length, patience)
        except OSError as error:  # the connection broke
            raise _Ended from error
        spend(seconds)
        if not done:
            raise _error(content)
        return _image(content, name, width, height)

    def is_alive(self) -> bool:
        """Whether it still waits for an image: its end of the connection is open, and silent."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the connection, which ends it if it waits for an image."""
        self._connection.close()

    def _send(self, data: bytes | memoryview, patience: "_Patience") -> None:
        rest = memoryview(data)
        while rest:
            sent = patience.wait(partial(self._connection.send, rest))
            rest = rest[sent:]

    def _receive(self, length: int, patience: "_Patience") -> bytes:
        buffer = bytearray(length)
        rest = memoryview(buffer)
        while rest:
            count = patience.wait(partial(self._connection.recv_into, rest))
            if count == 0:
                raise _Ended
            rest = rest[count:]
        return bytes(buffer)


def _error(content: bytes) -> ClipError:
    code, _, detail = content.decode("utf-8", "replace").partition(" ")
    if code not in _ERRORS:
        raise _Garbled
    return _ERRORS[code](detail)


def _image(content: bytes, name: bytes, width: int, height: int) -> Decoded:
    kind = name.rstrip(b"\0").decode("ascii", "replace")
    if len(content) != SIZE * SIZE * 3 or kind not in {*FORMATS, "MPO"}:
        raise _Garbled
    return Decoded(content, kind, (width, height))


class _Patience:
    """A limit on waiting that a pause of the whole machine does not use up.

    Lambda freezes an environment between requests, for hours. A wait is therefore made of slices of
    a second, and no slice counts for more than that, whatever the clock says.
    """

    def __init__(self) -> None:
        self._left = PATIENCE

    def wait(self, operation: Callable[[], T]) -> T:
        """What `operation`, on a socket with a timeout of a slice, returns in the end."""
        while self._left > 0:
            begin = time.monotonic()
            try:
                return operation()
            except TimeoutError:
                continue
            finally:
                self._left -= min(time.monotonic() - begin, _SLICE)
        log.warning("a decoder did not answer in %g seconds", PATIENCE)
        raise Overloaded("the image could not be decoded in time: try again")


class Zygote:
    """The process that forks decoders, seen from the service. It is started again if it ends."""

    def __init__(self, decoder: tuple[str, str] = _DECODER) -> None:
        """Start it. `decoder` names a module and in it the function that decoders run."""
        self._decoder = decoder
        self._one_at_a_time = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(PATIENCE)
        with theirs:
            self._pid = _spawn(theirs, self._decoder)
        self._finalizer = weakref.finalize(self, _stop, self._control, self._pid)

    def fork(self, megabytes: int, seconds: float) -> _Process:
        """A new decoder, whose images may each take `megabytes`, and `seconds` of CPU time.

        Raises:
            InternalError: there is none to be had; the log says why.
        """
        with self._one_at_a_time:
            reply = self._fork(megabytes, seconds)
            if reply is None:  # the zygote has ended: killed, or out of memory
                self._finalizer()
                self._start()
                reply = self._fork(megabytes, seconds)
        if reply is None:
            log.error("the process that forks decoders cannot be started")
            raise InternalError("images cannot be decoded now; the fault is logged")
        return reply

    def _fork(self, megabytes: int, seconds: float) -> _Process | None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):  # an answer fits whole, so that no end has to wait for the other
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * SIZE * SIZE * 3)
        with theirs:
            pid = self._order(ORDER.pack(FORK, megabytes, seconds), [theirs.fileno()])
        if pid is None:
            ours.close()
            return None
        ours.settimeout(_SLICE)
        return _Process(pid, ours)

    def end(self, process: _Process) -> int | None:
        """Kill `process` unless it has ended. How it ended, as `os.waitpid` says it.

        None: not known, because its zygote has ended too.
        """
        process.close()
        with self._one_at_a_time:
            return self._order(ORDER.pack(END, process.pid, 0), [])

    def _order(self, message: bytes, files: list[int]) -> int | None:
        try:
            socket.send_fds(self._control, [message], files)
            reply = self._control.recv(REPLY.size)
        except OSError:
            return None
        return int(REPLY.unpack(reply)[0]) if reply else None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pid

    def close(self) -> None:
        """End it, and its decoders with it."""
        with self._one_at_a_time:
            self._finalizer()


_BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from handler.images import zygote; zygote.main(*sys.argv[1:3])"
)


def _spawn(control: socket.socket, decoder: tuple[str, str]) -> int:
    """Start the zygote as a new interpreter: the id of its process.

    A fork of the service would be cheaper to start. But it would carry the service's memory, with
    AWS's credentials in it, and it is not safe once the service has threads.
    """
    # Of the environment, only where the interpreter's own libraries lie: Lambda's Python needs it.
    environment = {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
    options = ["-I", "-S", "-W", "ignore", *(["-B"] if sys.dont_write_bytecode else [])]
    search = [os.path.abspath(path) for path in sys.path]
    control.set_inheritable(True)  # dup2 leaves it closed on exec if it is that number already
    return os.posix_spawn(
        sys.executable,
        [sys.executable, *options, "-c", _BOOT, *decoder, *search],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, control.fileno(), CONTROL)],
        setsid=True,  # Ctrl-C is for the service, which finishes what it began
    )


def _stop(control: socket.socket, pid: int) -> None:
    """Let the zygote see that its service is gone; it ends, and its decoders with it."""
    control.close()
    with suppress(ChildProcessError):  # the program around us may have waited for it
        os.waitpid(pid, 0)
