"""What one image costs the process that decodes it, and what processes hold."""

import io
import os
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from handler.config import Config
from handler.errors import ClipError
from handler.images.sandbox import Sandbox


class Cost(NamedTuple):
    status: int
    code: str
    seconds: float
    """Of CPU, all threads together: how busy the machine is does not matter."""
    megabytes: float


def measure(box: Sandbox, data: bytes, config: Config) -> Cost:
    """What decoding `data` in `box` costs."""
    decoder = _fresh(box, config)
    idle, spent = peak_megabytes(decoder), 0.0

    def spend(seconds: float) -> None:
        nonlocal spent
        spent += seconds

    status, code = 200, ""
    try:
        box.decode(data, config, spend)
    except ClipError as error:
        status, code = error.status, error.code
    try:
        megabytes = peak_megabytes(decoder) - idle
    except FileNotFoundError:  # the kernel ended it: then it did not get more than this
        megabytes = config.decode_mb
    return Cost(status, code, spent, megabytes)


def _fresh(box: Sandbox, config: Config) -> int:
    """The id of the decoder that takes the next image, its peak of memory forgotten."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    box.decode(file.getvalue(), config, lambda _: None)
    decoder = box.processes()[-1]
    Path(f"/proc/{decoder}/clear_refs").write_text("5")
    return decoder


def peak_megabytes(pid: int | str = "self") -> float:
    """The most resident memory that the process ever had, or since it was told to forget."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) / 1024


def resident_megabytes(pid: int | str = "self") -> float:
    """The process's memory that is in RAM now."""
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    )


def is_running(pid: int) -> bool:
    """Whether the process is there, and not only its entry, which its parent has yet to read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_end(pids: Iterable[int], seconds: float = 60) -> bool:
    """Wait until none of the processes is running; whether that came about in time."""
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def growth(values: Sequence[float]) -> float:
    """The median of the last tenth over that of the second tenth: the first tenth fills caches."""
    tenth = max(len(values) // 10, 1)
    return statistics.median(values[-tenth:]) / statistics.median(values[tenth : 2 * tenth])
