"""Starting, limiting and asking the worker processes. Standard library only: see ``inputs``."""

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Seconds = list[float]

OURS = ("exact", "fast")
"""The subjects that are this service, by its profiles."""
RIVALS = Path(__file__).parent.parent / ".cache" / "rivals" / "bin"
"""The programs of the virtual environment that ``make bench`` makes of requirements-rivals.txt."""


class Process:
    """One worker. ``ask`` is a call of one of `worker.Worker`'s methods."""

    def __init__(
        self, subject: str, inputs: Path, threads: int, python: Path | None = None, towers: str = ""
    ) -> None:
        """Start it, by another interpreter than this one if `python` is given.

        `towers` is ``CLIP_TOWERS``: which of the towers ours serves; "" is all.

        Raises:
            FileNotFoundError: there is no such interpreter.
        """
        limit = str(threads)
        env = os.environ | {
            "CLIP_MODEL_DIR": str(inputs / "model"),
            "CLIP_THREADS": limit,
            "CLIP_PROFILE": subject if subject in OURS else "",
            "CLIP_LOG_LEVEL": "ERROR",
            "CLIP_TOWERS": towers,
            **{"OMP_NUM_THREADS": limit, "MKL_NUM_THREADS": limit, "OPENBLAS_NUM_THREADS": limit},
        }
        self.subject = subject
        self.started = time.monotonic()
        self.popen = subprocess.Popen(
            [python or sys.executable, "-m", "benchmarks.worker", subject, str(inputs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send one request and wait for its answer.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self.popen.stdin
        assert self.popen.stdout
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.popen.stdin.flush()
            line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the {self.subject} worker died answering {do!r}: run it by hand to see why"
            )
        return json.loads(line)

    def end(self) -> "Usage":
        """Close stdin, wait, and return what the process used in all."""
        assert self.popen.stdin
        assert self.popen.stdout
        decoders = sum(map(_proportional_megabytes, descendants(self.popen.pid)))
        # Not `ru_maxrss`, which begins with that of the process that started this one.
        peak = _kilobytes(self.popen.pid, "status", "VmHWM:") / 1024
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self.popen.stdin.close()
        _, _, usage = os.wait4(self.popen.pid, 0)
        self.popen.returncode = 0  # reaped here, not by Popen
        self.popen.stdout.close()
        # ru_inblock counts what came from the disk and not from the page cache, read() or mapped.
        return Usage(peak_mb=peak + decoders, read_mb=usage.ru_inblock * 512 / 1e6)


@dataclass(frozen=True)
class Usage:
    """What a process used."""

    peak_mb: float
    """Largest resident set, MiB, mapped files included, and the memory of what it started.

    Of theirs, pages that several share are counted once.
    """
    read_mb: float
    """Fetched from the disk, MB."""


def descendants(pid: int) -> list[int]:
    """The processes that `pid` started, that those started, and so on."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def children(pid: int) -> list[int]:
    """The processes that `pid` started, from whichever of its threads, and that still are."""
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in _started_by(task)]


def _started_by(task: Path) -> list[int]:
    try:
        return [int(child) for child in (task / "children").read_text().split()]
    except FileNotFoundError:  # the thread has ended meanwhile
        return []


def peak_megabytes(pid: int) -> float:
    """MiB of a process and of all that it started: the largest of them at its peak, and the others.

    Of the others, it is what they hold now, pages that several share counted once.
    """
    processes = (pid, *descendants(pid))
    peaks = {one: _kilobytes(one, "status", "VmHWM:") / 1024 for one in processes}
    largest = max(processes, key=peaks.__getitem__)
    others = sum(_proportional_megabytes(one) for one in processes if one != largest)
    return peaks[largest] + others


def _proportional_megabytes(pid: int) -> float:
    return _kilobytes(pid, "smaps_rollup", "Pss:") / 1024


def _kilobytes(pid: int, file: str, field: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    # A process that has ended, but was not waited for yet, has no memory and no such line.
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


@contextlib.contextmanager
def processes(subjects: list[str], inputs: Path, threads: int) -> Iterator[dict[str, Process]]:
    """Start and load one worker for each subject; they can be asked in turn."""
    running = {subject: Process(subject, inputs, threads) for subject in subjects}
    try:
        for process in running.values():
            process.ask("first")
        yield running
    finally:
        for process in running.values():
            process.end()


def cold_start(
    subject: str, inputs: Path, threads: int, *, warm_cache: bool
) -> tuple[float, Usage]:
    """Seconds from process start to the first vector, and what the process used."""
    if not warm_cache:
        python = [Path(sys.prefix), Path(sysconfig.get_path("stdlib"))]
        evict([*python, Path("handler"), inputs, CHECKPOINTS])
    process = Process(subject, inputs, threads)
    seconds = process.ask("first") - process.started
    return seconds, process.end()


CHECKPOINTS = Path("~/.cache/clip").expanduser()


def evict(roots: list[Path]) -> None:
    """Drop the files under `roots` from the page cache, except those that are mapped somewhere."""
    os.sync()  # pages not yet written out cannot be dropped
    for root in roots:
        for directory, _, names in os.walk(root):
            for name in names:
                with contextlib.suppress(OSError):
                    descriptor = os.open(Path(directory, name), os.O_RDONLY)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(descriptor)


class CpuShare:
    """A control group of so many CPUs, as Lambda grants them by memory size (1,769 MB is one).

    Raises OSError where this user may not make one: cost rows then cannot be measured.
    """

    PERIOD = 20_000  # microseconds
    V1, V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")

    def __init__(self, cpus: float) -> None:
        first = self.V1.is_dir()
        self.group = (self.V1 if first else self.V2) / f"benchmark-{os.getpid()}"
        quota = int(cpus * self.PERIOD)
        self.group.mkdir()
        if first:
            (self.group / "cpu.cfs_period_us").write_text(str(self.PERIOD))
            (self.group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (self.group / "cpu.max").write_text(f"{quota} {self.PERIOD}")

    def hold(self, process: Process) -> None:
        """Put a process, its threads and what it started under the limit."""
        for pid in (process.popen.pid, *descendants(process.popen.pid)):
            (self.group / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Give the group back; every process in it must have ended."""
        self.group.rmdir()
