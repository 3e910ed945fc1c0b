"""Many small files through ``clip-encoder encode``, killed in the middle again and again.

``python -m tests.client_proof`` makes 100,000 files, and starts the command as often as it is
killed, until it ends by itself. Then each file must have its own vector, once, and the memory of
the longest run must not have grown. The service is a small server that makes a vector of each
file's number, so that the run takes a minute or two; ``--files N`` is for fewer.
"""

import argparse
import base64
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_encoder import files
from tests.conftest import ROOT
from tests.peers import Reply, Request, peer

HEALTH = {"status": "healthy", "fingerprint": "proof"}
BAD_EVERY = 1000
"""One file in so many is no image."""


class Service:
    """Makes vectors of numbers, and counts how often it was asked for each."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Reply:
        if request.method == "GET":
            return Reply(body=HEALTH)
        numbers = [int(base64.b64decode(image)) for image in request.json()["images"]]
        with self._lock:
            self.asked.update(numbers)
        bad = [place for place, number in enumerate(numbers) if number % BAD_EVERY == 0]
        vectors = [None if place in bad else made_of(n) for place, n in enumerate(numbers)]
        errors = [{"index": place, "code": "not_an_image", "detail": ""} for place in bad]
        body = {"embeddings": vectors, "errors": errors}
        return Reply(body=body, headers={"x-clip-fingerprint": "proof"})


def made_of(number: int) -> list[float]:
    """The vector of a file: 512 numbers, few of them other than 0, so that JSON is short."""
    vector = [0.0] * 512
    vector[number % 512], vector[number // 512 % 512] = 1.0, 0.5
    vector[511] = float(number)
    return vector


@dataclass
class Report:
    """What the proof found."""

    files: int
    kills: int
    asked_again: int
    """Files that the service was asked for more than once."""
    wrong: int
    """Vectors that are missing, doubled or another file's."""
    failures: int
    status: int
    early_mb: float
    """Memory of the last run when it had done a fifth of its work."""
    peak_mb: float
    seconds: float


def prove(folder: Path, count: int, kills: int) -> Report:
    """Encode `count` files in `folder`, killed `kills` times."""
    images = folder / "images"
    _make(images, count)
    output, service = folder / "vectors.npz", Service()
    began = time.monotonic()
    with peer(service.answer) as server:
        for kill in range(kills):
            # Kills early and close together, so that the last run is the longest.
            _run(server.address, images, output, service, count, count * (kill + 1) // 20)
        status, early_mb, peak_mb = _run(server.address, images, output, service, count, None)
    return Report(
        files=count,
        kills=kills,
        asked_again=sum(times > 1 for times in service.asked.values()),
        wrong=_wrong(output, images, count),
        failures=len((folder / "vectors.failures.jsonl").read_text().splitlines()),
        status=status,
        early_mb=early_mb,
        peak_mb=peak_mb,
        seconds=time.monotonic() - began,
    )


def _make(images: Path, count: int) -> None:
    for start in range(0, count, 1000):
        part = images / f"{start:07}"
        part.mkdir(parents=True)
        for number in range(start, min(start + 1000, count)):
            (part / f"{number:07}.jpg").write_text(str(number))


def _run(
    address: str, images: Path, output: Path, service: Service, count: int, stop_at: int | None
) -> tuple[int, float, float]:
    """One run of the command, killed when `stop_at` files were asked for.

    Gives its exit status, and its memory after a fifth of its work and at its peak, in MB.
    """
    command = [sys.executable, "-m", "clip_encoder", "encode", str(images), "-o", str(output)]
    command += ["--url", address, "--shard-size", "30000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client")}
    process = subprocess.Popen(command, env=environment)
    at_start, early_mb, peak_mb = len(service.asked), 0.0, 0.0
    while process.poll() is None:
        time.sleep(0.005)
        asked = len(service.asked)
        if stop_at is not None and asked >= stop_at:
            process.kill()
            process.wait()
            return -9, early_mb, peak_mb
        peak_mb = max(peak_mb, _memory_mb(process.pid))
        if asked - at_start < (count - at_start) / 5:
            early_mb = peak_mb
    return process.wait(), early_mb, peak_mb


def _memory_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return 0
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines.get("VmRSS", "0 kB").split()[0]) / 1024


def _wrong(output: Path, images: Path, count: int) -> int:
    """How many files do not have exactly their own vector."""
    found: Counter[int] = Counter()
    for table in files.read(output):
        for name, vector in zip(table.names, table.vectors, strict=True):
            number = int(Path(name).stem)
            if np.array_equal(vector, np.array(made_of(number), np.float32)):
                found[number] += 1
    expected = {number: 1 for number in range(count) if number % BAD_EVERY}
    return len(expected.items() ^ found.items())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = prove(Path(folder), given.files, given.kills)
    print(f"{report.files:,} files, {report.kills} kills, {report.seconds:.0f} s")
    print(f"{report.wrong} wrong, {report.failures} failures named, exit status {report.status}")
    print(f"{report.asked_again:,} files asked for twice")
    print(f"memory after a fifth {report.early_mb:.0f} MB, at its peak {report.peak_mb:.0f} MB")
    is_flat = report.peak_mb < 1.25 * report.early_mb
    return 0 if report.wrong == 0 and report.status == 1 and is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
