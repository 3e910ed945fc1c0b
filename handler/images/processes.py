"""The processes that decode, seen from the service: what is said to them, and how they end.

``zygote.py`` is their other side, and ``wire.py`` the form of what is said. Nothing that comes from
a decoder is believed without a look: an image may have taken it over.
"""

import itertools
import logging
import math
import os
import select
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from handler.errors import (
    ClipError,
    ExtremeShape,
    ImageTooCostly,
    InternalError,
    InvalidImage,
    TooManyPixels,
    TruncatedImage,
)
from handler.images.formats import FORMATS
from handler.images.walls import Walls
from handler.images.watch import SHORT_SLICE, SLICE, Watch, cpu_seconds, memory_of
from handler.images.wire import (
    ANSWER,
    CONTROL,
    END,
    FORK,
    HELLO,
    ORDER,
    REPLY,
    REQUEST,
    Decoded,
    Limits,
    pixel_bytes,
)

PATIENCE = 30.0
"""Seconds to wait for a decoder that uses no CPU time, so that its timer does not end it."""

_DECODER = "handler.images.decode", "to_pixels"
_ERRORS = {
    error.code: error
    for error in (TooManyPixels, ExtremeShape, TruncatedImage, InvalidImage, ImageTooCostly)
}
"""What a decoder may answer instead of pixels."""
_LONGEST_TEXT = 1000

Spend = Callable[[float], object]
"""Is told the seconds of CPU that an image took."""

log = logging.getLogger("clip")


class Ended(Exception):
    """The process at the other end is gone."""


class Garbled(Exception):
    """The process does not keep to the form of an answer."""


class Process:
    """A decoder, seen from the service."""

    walls: Walls
    """Found by `greet`: what holds it."""

    def __init__(self, pid: int, connection: socket.socket, megabytes: int, seconds: float) -> None:
        """Take its end of the connection, and what each of its images may take."""
        self.pid = pid
        self._connection = connection
        self._connection.settimeout(SLICE)
        self._megabytes = megabytes
        self._seconds = seconds
        self._most_bytes = math.inf
        self._numbers = itertools.count(1)

    def greet(self) -> None:
        """Read which walls hold the new decoder, and stand in for those of memory and time.

        Raises:
            Ended, Overloaded: it says nothing; the process is of no more use.
        """
        try:
            said = self._receive(HELLO.size, Watch(self.pid, PATIENCE))
        except OSError as error:
            raise Ended from error
        self.walls = Walls(*HELLO.unpack(said))
        if cpu_seconds(self.pid) is not None:
            self.walls = self.walls._replace(cpu=True)
        idle = memory_of(self.pid)
        if not self.walls.memory and idle is not None:
            self._most_bytes = idle + self._megabytes * 2**20
            self._connection.settimeout(SHORT_SLICE)
            self.walls = self.walls._replace(memory=True)

    def decode(self, data: bytes | memoryview, kind: str, limits: Limits, spend: Spend) -> Decoded:
        """What the decoder makes of a file that `formats.sniff` calls `kind`.

        Raises:
            Ended, Garbled: no answer, or none that can be one; the process is of no more use.
            ImageTooCostly, Overloaded: an answer, or none in time; the same holds.
            TooManyPixels, ExtremeShape, TruncatedImage, InvalidImage: the decoder's refusal.
        """
        number = next(self._numbers)
        watch = Watch(self.pid, PATIENCE).limit(kind, self._seconds, self._most_bytes)
        request = REQUEST.pack(number, len(data), kind.encode(), *limits)
        try:
            self._send(request, watch)
            self._send(data, watch)
            header = ANSWER.unpack(self._receive(ANSWER.size, watch))
            answered, done, length, name, width, height = header
            longest = pixel_bytes(limits.side) if done else _LONGEST_TEXT
            if answered != number or length > longest:
                raise Garbled
            content = self._receive(length, watch)
        except OSError as error:  # the connection broke
            raise Ended from error
        finally:
            spend(watch.seconds())
        if not done:
            raise _error(content)
        if len(content) != pixel_bytes(limits.side):
            raise Garbled
        return _image(content, name, width, height)

    def is_alive(self) -> bool:
        """Whether it still waits for an image: its end of the connection is open, and silent."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the connection, which ends it if it waits for an image."""
        self._connection.close()

    def _send(self, data: bytes | memoryview, watch: Watch) -> None:
        rest = memoryview(data)
        while rest:
            sent = watch.wait(partial(self._connection.send, rest))
            rest = rest[sent:]

    def _receive(self, length: int, watch: Watch) -> bytes:
        buffer = bytearray(length)
        rest = memoryview(buffer)
        while rest:
            count = watch.wait(partial(self._connection.recv_into, rest))
            if count == 0:
                raise Ended
            rest = rest[count:]
        return bytes(buffer)


def _error(content: bytes) -> ClipError:
    code, _, detail = content.decode("utf-8", "replace").partition(" ")
    if code not in _ERRORS:
        raise Garbled
    return _ERRORS[code](detail)


def _image(content: bytes, name: bytes, width: int, height: int) -> Decoded:
    kind = name.rstrip(b"\0").decode("ascii", "replace")
    if kind not in {*FORMATS, "MPO"}:
        raise Garbled
    return Decoded(content, kind, (width, height))


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

    def fork(self, megabytes: int, seconds: float, side: int) -> Process:
        """A new decoder, whose images may each take `megabytes`, and `seconds` of CPU time.

        The pixels that it gives are `side` x `side`.

        Raises:
            InternalError: there is none to be had; the log says why.
        """
        with self._one_at_a_time:
            reply = self._fork(megabytes, seconds, side)
            if reply is None:  # the zygote has ended: killed, or out of memory
                self._finalizer()
                self._start()
                reply = self._fork(megabytes, seconds, side)
        if reply is None:
            log.error("the process that forks decoders cannot be started")
            raise InternalError("images cannot be decoded now; the fault is logged")
        return reply

    def _fork(self, megabytes: int, seconds: float, side: int) -> Process | None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):  # an answer fits whole, so that no end has to wait for the other
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * pixel_bytes(side))
        with theirs:
            pid = self._order(ORDER.pack(FORK, megabytes, seconds), [theirs.fileno()])
        if pid is None:
            ours.close()
            return None
        return Process(pid, ours, megabytes, seconds)

    def end(self, process: Process) -> int | None:
        """Kill `process` unless it has ended. How it ended, as `os.waitpid` says it.

        None: not known, because its zygote has ended too.
        """
        process.close()
        with self._one_at_a_time:
            status = self._order(ORDER.pack(END, process.pid, 0), [])
        if status is None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # it may be busy, and see nothing of it
        return status

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
    )


def _stop(control: socket.socket, pid: int) -> None:
    """Let the zygote see that its service is gone; it ends, and its decoders with it."""
    control.close()
    with suppress(ChildProcessError):  # the program around us may have waited for it
        os.waitpid(pid, 0)
