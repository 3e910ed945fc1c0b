"""``python -m tests.fuzz``: tens of thousands of damaged files, hostile texts and damaged events.

A case is made from the seed and its number alone, so ``--seed S --case N`` runs it again. What
fails is kept in ``tests/fixtures/crashes``, where ``tests/test_crashes.py`` tries it for ever
after.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import children
from tests.fuzz import corpus
from tests.fuzz.mutate import hostile_text, mutate_event, mutate_image
from tests.fuzz.worker import CODES, WAYS
from tests.measure import all_end

ROOT = Path(__file__).parent.parent.parent
CRASHES = ROOT / "tests" / "fixtures" / "crashes"
LONGEST = 5.0
"""Seconds that any one case may take."""
GROWTH = 1.05
"""Memory in the last tenth of the run over that in the second tenth, at most."""


KINDS = {"image": 55, "encode": 5, "text": 20, "event": 20}
"""Kinds of cases, and how many of a hundred are of each."""


class Case(NamedTuple):
    kind: str
    """``image`` (to pixels), ``encode`` (to a vector), ``text`` (to tokens and through the Lambda
    handler) or ``event`` (through the Lambda handler)."""
    name: str
    data: bytes


class Cases:
    """Case number -> case."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.images = corpus.images()
        self.events = corpus.events()
        self.formats: dict[str, list[str]] = collections.defaultdict(list)
        for name in self.images:
            self.formats[name.split()[0]].append(name)

    def __getitem__(self, number: int) -> Case:
        rng = random.Random(f"{self.seed}/{number}")
        kind = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
        if kind == "text":
            case = {"text": hostile_text(rng), "way": rng.randrange(WAYS)}
            return Case(kind, "hostile text", json.dumps(case).encode())
        if kind == "event":
            name, other = rng.choices(list(self.events), k=2)
            event = mutate_event(rng, self.events[name], self.events[other])
            return Case(kind, name, json.dumps(event).encode())
        siblings = self.formats[rng.choice(list(self.formats))]
        name, other = rng.choices(siblings, k=2)
        return Case(kind, name, mutate_image(rng, self.images[name], self.images[other]))


class Reply(NamedTuple):
    status: int
    code: str
    seconds: float
    megabytes: float
    problem: str | None


class Service:
    """The worker process; a new one after each death."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        assert process.stdout
        if process.stdout.readline() != b"ready\n":
            sys.exit(f"the service does not start:\n{self.tail()}")
        return process

    def tail(self) -> str:
        """The end of the worker's log."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").splitlines()
        return "\n".join([line for line in lines if '"level": "INFO"' not in line][-40:])

    def run(self, case: Case) -> Reply:
        pipe, answers = self.process.stdin, self.process.stdout
        assert pipe
        assert answers
        code = next(code for code, kind in CODES.items() if kind == case.kind)
        pipe.write(struct.pack(">cI", code, len(case.data)) + case.data)
        pipe.flush()
        line, deadline = b"", time.monotonic() + LONGEST
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([answers], [], [], left)[0]:
                return self._died(f"a hang of more than {LONGEST:.0f} s")
            if not (chunk := os.read(answers.fileno(), 65536)):
                return self._died(f"a crash with exit status {self.process.wait()}")
            line += chunk
        return Reply(*json.loads(line))

    def _died(self, problem: str) -> Reply:
        self.process.kill()
        self.process.wait()
        self.process = self._start()
        return Reply(0, "", LONGEST, 0, problem)

    def stop(self) -> str:
        """End the worker and its decoders; the most memory it ever had."""
        zygotes = children(self.process.pid)
        family = [*zygotes, *(decoder for zygote in zygotes for decoder in children(zygote))]
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
        if not all_end(family):
            sys.exit(f"of the decoding processes {family} some go on without the service")
        if len(family) > 1 + (os.cpu_count() or 1):
            sys.exit(f"there are more decoding processes than CPUs: {family}")
        return f"{int(peak) / 1024:.0f} MB"


@dataclass
class Report:
    seed: int
    answers: collections.Counter[tuple[int, str]] = field(default_factory=collections.Counter)
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest: dict[str, tuple[float, str]] = field(default_factory=dict)
    """By kind: seconds, and which case."""
    memory: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, number: int, case: Case, reply: Reply) -> None:
        self.kinds[case.kind] += 1
        took = (reply.seconds, f"{case.name}, case {number}")
        self.slowest[case.kind] = max(self.slowest.get(case.kind, took), took)
        if reply.problem:
            digest = hashlib.sha256(case.data).hexdigest()[:12]
            CRASHES.mkdir(parents=True, exist_ok=True)
            (CRASHES / f"{case.kind}-{digest}").write_bytes(case.data)
            self.failures.append(
                f"case {number} ({case.name}): {reply.problem}; kept as {case.kind}-{digest}"
            )
            print(f"FAILED {self.failures[-1]}", flush=True)
        else:
            self.answers[reply.status, reply.code] += 1
            self.memory.append(reply.megabytes)

    def growth(self) -> float:
        tenth = len(self.memory) // 10
        if tenth < 100:  # too few to tell
            return 1.0
        return statistics.median(self.memory[-tenth:]) / statistics.median(
            self.memory[tenth : 2 * tenth]
        )

    def text(self, seconds: float, peak: str) -> str:
        total = sum(self.kinds.values())
        kinds = ", ".join(f"{count:,} x {kind}" for kind, count in sorted(self.kinds.items()))
        lines = [
            f"seed {self.seed}: {total:,} cases in {seconds:.0f} s "
            f"({total / seconds:.0f}/s): {kinds}"
        ]
        lines += [
            f"  {status} {code:24} {count:7,}"
            for (status, code), count in sorted(self.answers.items())
        ]
        lines += [
            f"slowest {kind} {seconds:.2f} s ({name})"
            for kind, (seconds, name) in sorted(self.slowest.items())
        ]
        lines.append(f"memory {peak} at most; last tenth over second tenth {self.growth():.3f}")
        lines.append(f"{len(self.failures)} failures")
        return "\n".join(lines)


def run(seed: int, numbers: range, seconds: float) -> bool:
    """Run the cases, as many as `seconds` allow; whether every promise held."""
    cases, report, service = Cases(seed), Report(seed), Service()
    start = time.monotonic()
    for number in numbers:
        report.add(number, case := cases[number], service.run(case))
        if time.monotonic() - start > seconds:
            break
    if report.failures:
        print(service.tail())
    print(report.text(time.monotonic() - start, service.stop()))
    return not report.failures and report.growth() <= GROWTH


def main(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument(
        "--seconds", type=float, default=180, help="stop after this long (default: 180)"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--case", type=int, help="only this one")
    options = parser.parse_args(arguments)
    numbers = (
        range(options.cases) if options.case is None else range(options.case, options.case + 1)
    )
    print(f"seed {options.seed}", flush=True)
    return 0 if run(options.seed, numbers, options.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
