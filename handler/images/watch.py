"""A second pair of eyes on a decoder: what it takes is seen from the service, too.

The kernel ends a decoder that takes too much. But a kernel may refuse to (AWS Lambda's list of what
it refuses is not public), and code that took over a decoder can switch its timer off. So whoever
waits for a decoder looks at its clock meanwhile.
"""

import logging
import math
import os
import time
from collections.abc import Callable
from typing import TypeVar

from handler.errors import ImageTooCostly, Overloaded

SLICE = 0.1
"""Seconds between two looks."""
SHORT_SLICE = 0.02
"""The same where the kernel does not limit memory; a decoder can take some 80 MB in that time."""

T = TypeVar("T")

log = logging.getLogger("clip")


class Watch:
    """A wait for one decoder, while it works on one image.

    It ends when the decoder has taken too much, or was silent for too long. A pause of the whole
    machine is not held against it: Lambda freezes an environment between requests, for hours. So
    the wait is made of slices, and no slice counts for more than its length, whatever the clock
    says.
    """

    def __init__(self, pid: int, patience: float) -> None:
        """Begin: `pid` may be silent for `patience` seconds."""
        self._pid = pid
        self._patience = self._left = patience
        self._begin = cpu_seconds(pid)
        self._begin_of_waiting = time.monotonic()
        self._taken = 0.0
        self._most_seconds = self._most_bytes = math.inf
        self._kind = ""

    def limit(self, kind: str, seconds: float, most_bytes: float) -> "Watch":
        """Set limits for an image of format `kind`, and return this watch.

        `seconds` of CPU from now on; `most_bytes` of memory in all.
        """
        self._kind, self._most_seconds, self._most_bytes = kind, seconds, most_bytes
        return self

    def wait(self, operation: Callable[[], T]) -> T:
        """Return what `operation`, on a socket with a timeout of a slice, returns in the end.

        Raises:
            ImageTooCostly: the decoder has taken more than the limits.
            Overloaded: the decoder was silent for too long.
        """
        while self._left > 0:
            begin = time.monotonic()
            try:
                return operation()
            except TimeoutError:
                self._look()
            finally:
                self._left -= min(time.monotonic() - begin, SLICE)
        log.warning("a decoder did not answer in %g seconds", self._patience)
        raise Overloaded("the image could not be decoded in time: try again")

    def seconds(self) -> float:
        """Return the seconds of CPU that the decoder has taken since this watch began.

        Where the kernel does not tell, all the time since then counts.
        """
        now = cpu_seconds(self._pid)  # None, too, once the process is gone
        if self._begin is None:
            self._taken = time.monotonic() - self._begin_of_waiting
        elif now is not None:
            self._taken = now - self._begin
        return self._taken

    def _look(self) -> None:
        if self.seconds() > self._most_seconds and self._begin is not None:
            raise too_slow(self._kind, self._most_seconds)
        if self._most_bytes < math.inf and (memory_of(self._pid) or 0) > self._most_bytes:
            raise ImageTooCostly("decoding the image takes too much memory")


def too_slow(kind: str, seconds: float) -> ImageTooCostly:
    """Make the error for an image of format `kind` that takes more than `seconds` of CPU."""
    return ImageTooCostly(
        f"decoding the {kind} image takes more than {seconds:g} s: "
        "send it smaller, or as a baseline JPEG"
    )


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time that a process has taken; None where the kernel does not tell."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3), which Python lacks
    except OSError:
        return None


def memory_of(pid: int) -> int | None:
    """Return the bytes of a process that are in memory; None where the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
