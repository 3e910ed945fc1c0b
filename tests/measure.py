"""``python -m tests.measure``: what one image costs the service, in a process of its own.

An image on stdin, decoded and preprocessed with the default limits; on stdout, as JSON: the
answer's status and code, the seconds of CPU and the megabytes it took above those of the idle
process.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from handler.config import Config
from handler.errors import ClipError
from handler.images.decode import decode, preprocess

ROOT = Path(__file__).parent.parent


class Cost(NamedTuple):
    status: int
    code: str
    seconds: float
    """Of CPU, all threads together: how busy the machine is does not matter."""
    megabytes: float


def measure(data: bytes, profile: str = "openai") -> Cost:
    """Run this module over `data`; what takes longer than 10 s or crashes is an error."""
    command = [sys.executable, "-m", "tests.measure", profile]
    run = subprocess.run(command, cwd=ROOT, input=data, capture_output=True, timeout=10, check=True)
    return Cost(*json.loads(run.stdout))


def peak_megabytes(pid: int | str = "self") -> float:
    """The most resident memory the process ever had, or since `reset_peak`."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) / 1024


def resident_megabytes(pid: int | str = "self") -> float:
    """The process's memory that is in RAM now."""
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    )


def children(parent: int) -> list[int]:
    """The processes that `parent` started, from whichever of its threads, and that still are."""
    tasks = Path(f"/proc/{parent}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def growth(values: Sequence[float]) -> float:
    """The median of the last tenth over that of the second tenth: the first tenth fills caches."""
    tenth = max(len(values) // 10, 1)
    return statistics.median(values[-tenth:]) / statistics.median(values[tenth : 2 * tenth])


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main(profile: str) -> Cost:
    data = sys.stdin.buffer.read()
    warnings.simplefilter("ignore")
    Image.init()  # the first image of a process imports the plugins
    reset_peak()
    idle, start = peak_megabytes(), time.process_time()
    try:
        preprocess(decode(data, Config()), profile)
        status, code = 200, ""
    except ClipError as error:
        status, code = error.status, error.code
    return Cost(status, code, time.process_time() - start, peak_megabytes() - idle)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
