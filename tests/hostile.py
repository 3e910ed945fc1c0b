"""A decoder for ``test_sandbox.py``: hostile on request, else the real one.

A file that begins like a JPEG and goes on with one of the words below makes the process misbehave
in that way, as code would that has taken over a decoder.
"""

import ctypes
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from handler.errors import InvalidImage
from handler.images import decode
from handler.images.wire import CONTROL, Decoded, Limits

SIGNATURE = b"\xff\xd8\xff"


def to_pixels(data: bytes, kind: str, limits: Limits) -> Decoded:
    """As `handler.images.decode.to_pixels`, unless `data` asks for something else."""
    word, _, argument = data[len(SIGNATURE) :].partition(b" ")
    action = ACTIONS.get(word.decode("latin-1"))
    if action:
        action(argument.decode())
    return decode.to_pixels(data, kind, limits)


def bad(word: str, argument: str = "") -> bytes:
    """A file that makes the decoder do `word`."""
    return SIGNATURE + f"{word} {argument}".encode()


def _spin(_: str) -> None:
    while True:
        pass


def _spin_without_timer(_: str) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_IGN)
    with suppress(OSError):  # there may be none
        signal.setitimer(signal.ITIMER_PROF, 0)
    _spin("")


def _spin_in_c(_: str) -> None:
    pow(7, 10**8)


def _allocate(_: str) -> None:
    held: list[bytearray] = []
    while len(held) < 3000:  # megabytes: no more, if nothing stops it
        held.append(bytearray(2**20))


def _segfault(_: str) -> None:
    ctypes.string_at(0)


def _abort(_: str) -> None:
    os.abort()


def _leave(argument: str) -> None:
    os._exit(int(argument or 0))


def _chatter(_: str) -> None:
    while True:
        os.write(2, b"warning: " * 1000)


def _garbage(_: str) -> None:
    os.write(CONTROL, os.urandom(1000))


def _endless_garbage(_: str) -> None:
    while True:
        os.write(CONTROL, bytes(1000))


def _late(argument: str) -> None:
    time.sleep(float(argument))


def _close(_: str) -> None:
    os.close(CONTROL)
    time.sleep(60)


def _try_all(attempts: Mapping[str, Callable[[], object]]) -> NoReturn:
    """Answer with the names of those attempts that succeed."""
    done = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, RuntimeError, ValueError):
            continue
        done.append(name)
    raise InvalidImage(f"done: {done}; environment: {dict(os.environ)}")


def _report(argument: str) -> None:
    """Try what must not work, and say what came of it."""
    attempts: dict[str, Callable[[], object]] = {
        "open a file": lambda: open("/etc/hostname").read(),  # noqa: SIM115
        "write a file": lambda: Path("/tmp/clip-sandbox-escape").write_text("x"),
        "remove a file": lambda: os.unlink(argument),
        "make a folder": lambda: os.mkdir("/tmp/clip-sandbox-escape.d"),
        "open a socket": socket.socket,
        "open a pipe": os.pipe,
        "fork": lambda: os.fork() or os._exit(0),
        "start a program": lambda: subprocess.run(["/bin/true"], check=True),
        "replace the program": lambda: os.execv("/bin/true", ["true"]),
        "replace a file": lambda: os.rename(argument, argument + "2"),
        "start a thread": lambda: threading.Thread(target=print).start(),
        "kill itself": lambda: signal.raise_signal(signal.SIGKILL),
        "kill the parent": lambda: os.kill(os.getppid(), signal.SIGKILL),
        "raise a limit": lambda: __import__("resource").setrlimit(7, (100, 100)),
    }
    _try_all(attempts)


def _reach(service: str) -> None:
    """Try what must not work on any kernel, and say what came of it."""
    os.close(0)  # a limit on how many files are open would leave room for one more
    attempts: dict[str, Callable[[], object]] = {
        "open a file": lambda: os.open("/etc/hostname", os.O_RDONLY),
        "read the environment": lambda: os.open(f"/proc/{service}/environ", os.O_RDONLY),
        "read the memory": lambda: os.open(f"/proc/{service}/mem", os.O_RDONLY),
        "write a file": lambda: os.open("/tmp", os.O_WRONLY | os.O_TMPFILE),
        "open a socket": socket.socket,
        "open a pipe": os.pipe,
        "fork": lambda: os.fork() or os._exit(0),
        "start a program": lambda: subprocess.run(["/bin/true"], check=True),
        "start a thread": lambda: threading.Thread(target=print).start(),
        "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
        "allow memory": lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
    }
    _try_all(attempts)


ACTIONS: dict[str, Callable[[str], None]] = {
    "spin": _spin,
    "spin_in_c": _spin_in_c,
    "spin_without_timer": _spin_without_timer,
    "allocate": _allocate,
    "segfault": _segfault,
    "abort": _abort,
    "leave": _leave,
    "chatter": _chatter,
    "garbage": _garbage,
    "endless_garbage": _endless_garbage,
    "late": _late,
    "close": _close,
    "report": _report,
    "reach": _reach,
}
