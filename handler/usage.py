"""Ask the kernel how old this process is, and how much memory it has taken at most.

A strict sandbox may lack these files. What cannot be read is left out.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

PROC = Path("/proc")


class Memory:
    """The most memory that this process, and those that decode for it, have taken together."""

    def __init__(self, decoders: Callable[[], Iterable[int]], proc: Path = PROC) -> None:
        """`decoders` returns the ids of the processes that decode."""
        self._decoders = decoders
        self._proc = proc
        self._most_of_decoders = 0.0  # megabytes; kept, because decoders end

    def peak_mb(self) -> int | None:
        """Return megabytes; None where the kernel does not say.

        Each process has its own peak, and memory that they share counts once for each, so the sum
        is never less than what was taken at one time.
        """
        own = _peak_mb(self._proc / "self") or _peak_by_getrusage()
        if own is None:
            return None
        of_decoders = [_peak_mb(self._proc / str(pid)) or 0 for pid in self._decoders()]
        self._most_of_decoders = max(self._most_of_decoders, sum(of_decoders))
        return round(own + self._most_of_decoders)


def _peak_mb(process: Path) -> float | None:
    """Return the most resident memory of one process; `process` is its folder in /proc."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", (process / "status").read_text())
    except (OSError, UnicodeDecodeError):
        return None
    return int(found[1]) / 1024 if found else None


def _peak_by_getrusage() -> float | None:
    try:
        import resource  # here, because /proc answers everywhere but in odd sandboxes

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB, on Linux
    except (ImportError, OSError):
        return None


def age_ms(proc: Path = PROC) -> float | None:
    """Return for how many milliseconds this process exists; None where the kernel does not say."""
    try:
        # Fields 3 and on follow the name, which may hold anything; 22 is the start, after booting.
        fields = (proc / "self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[22 - 3]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, ValueError, IndexError, AttributeError):  # macOS has no such clock
        return None
    return round(1000 * age, 2) if age > 0 else None
