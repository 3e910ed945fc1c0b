"""The walls around a decoder: what code that took it over is kept from, where the kernel allows."""

import logging
from typing import NamedTuple

log = logging.getLogger("clip")


class Walls(NamedTuple):
    """Name what code that took over a decoder cannot do, found by trying; False where it can."""

    memory: bool
    """Take more memory than ``CLIP_DECODE_MB``."""
    cpu: bool
    """Take more CPU time than ``CLIP_DECODE_SECONDS``."""
    files: bool
    """Open a file, to read or to write."""
    paths: bool
    """Remove, rename or make files and folders, which needs no open file."""
    network: bool
    """Open a socket."""
    processes: bool
    """Start a process or a thread."""
    signals: bool
    """Send signals to the service."""
    syscalls: bool
    """Make a system call that decoding does not need."""
    ptrace: bool
    """Read or write the service's memory. Last, because some kernels kill whoever tries."""

    def missing(self) -> list[str]:
        """Return the names of those walls that do not hold."""
        return [name for name, holds in self._asdict().items() if not holds]


NONE = Walls(*[False] * len(Walls._fields))


class SandboxError(Exception):
    """Decoders are not confined as ``CLIP_SANDBOX`` requires; the text names what is missing."""


def require_all(walls: Walls) -> None:
    """Raise SandboxError unless every wall holds."""
    if missing := walls.missing():
        raise SandboxError(
            f"CLIP_SANDBOX=required, but decoders are not confined in {', '.join(missing)}: the "
            "kernel or the container does not allow it"
        )


def report(walls: Walls) -> None:
    """Log which walls hold: with a warning where one is missing."""
    if not walls.missing():
        log.info("decoders are confined")
        return
    log.warning(
        "decoders are confined, but not in %s: the kernel or the container does not allow it; "
        "SECURITY.md says what follows",
        ", ".join(walls.missing()),
    )
    if not (walls.memory and walls.cpu):
        log.warning(
            "NOTHING LIMITS WHAT AN IMAGE MAY COST HERE: images are decoded one at a time, and "
            "a hostile one can take all memory or time"
        )
