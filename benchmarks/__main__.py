"""``python -m benchmarks``: measure everything; write JSON, chart and the tables of the documents.

Subjects take turns (A B C A B C ...), and each cold start is a process of its own. Raw times are
kept; ``report`` takes medians and spread of them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import chart, report, sizes
from benchmarks.engines import ENGINES, interpreter
from benchmarks.measure import OURS, CpuShare, Process, cold_start, processes
from benchmarks.s3 import stand_in
from benchmarks.servers import SERVERS, Running

HERE = Path(__file__).parent
IMAGES = ("640x480 JPEG", "1600x1200 JPEG", "12 MP JPEG", "12 MP PNG", "2 MP WebP")
TEXTS = ("10 tokens", "77 tokens", "64 captions")
"""Names of what is in one request; see `inputs.write_texts`."""
BESIDE = 3
"""Times as many cold starts as elsewhere, where a difference of a hundredth would count."""
MEMORY_SIZES = (512, 1024, 1769, 3008)
NEEDS = {"baseline": 1769, "fastembed": 1024, "exact": 1024, "fast": 512}
"""MB, of `MEMORY_SIZES`: below that a subject's peak memory does not fit."""
NEEDED = {ENGINES[0], *OURS}
"""The engines and servers without which a run is worth nothing; the others may be missing."""


@dataclass(frozen=True)
class Plan:
    """How often everything is repeated."""

    cold: int
    cold_cache: int
    rounds: int
    per_round: int
    server_starts: int
    judged: int | None
    """Pictures that exactness is judged by; None: all that there are."""


FULL = Plan(cold=9, cold_cache=3, rounds=5, per_round=6, server_starts=3, judged=None)
QUICK = Plan(cold=1, cold_cache=1, rounds=1, per_round=2, server_starts=1, judged=8)


class Run:
    """One run of the benchmark; ``results`` is what the JSON holds."""

    def __init__(self, plan: Plan, subjects: list[str], inputs: Path) -> None:
        self.plan, self.subjects, self.inputs = plan, subjects, inputs
        self.threads = sorted({1, min(2, os.cpu_count() or 1)})
        self.results: dict[str, Any] = defaultdict(dict)
        warm = len(self.threads) * (len(IMAGES) + 1) + 3 + len(MEMORY_SIZES)
        s3 = len(self.threads) * len(OURS)
        cold = len(subjects) * (plan.cold + 1 + plan.cold_cache)
        towers = (len(self.threads) * (plan.rounds + 1) + 1) * len(ENGINES)
        web = (plan.server_starts + plan.rounds) * len(SERVERS)
        texts = 2 * plan.cold_cache * len(subjects) + plan.rounds * (len(TEXTS) + 1)
        beside = BESIDE * plan.cold * len(OURS)
        steps = cold + plan.rounds * (warm + s3) + towers + web + texts + beside
        self.bar = tqdm(total=steps, unit="step", smoothing=0.05)

    def all(self) -> dict[str, Any]:
        """Every measurement, in the order of the table."""
        self.results["machine"] = machine(self.threads)
        self.results["plan"] = asdict(self.plan)
        self.results["sizes"] = sizes.installed(self.inputs / "model")
        self.cold_starts()
        for threads in self.threads:
            self.warm(threads)
        self.texts()
        self.engines()
        self.servers()
        self.cost()
        self.s3()
        self.bar.close()
        return dict(self.results)

    def cold_starts(self) -> None:
        """Process start to first vector, page cache warm and cold; also memory and bytes read."""
        threads = self.threads[-1]
        for kind, repeat in (("warm", self.plan.cold + 1), ("cold", self.plan.cold_cache)):
            rows: dict[str, list[dict[str, float]]] = {subject: [] for subject in self.subjects}
            for _ in range(repeat):
                for subject in self.subjects:
                    self.bar.set_description(f"cold start, {kind} page cache: {subject}")
                    seconds, usage = cold_start(
                        subject, self.inputs, threads, warm_cache=kind == "warm"
                    )
                    rows[subject].append({"seconds": seconds, **asdict(usage)})
                    self.bar.update()
            drop = 1 if kind == "warm" else 0  # the first fills the page cache
            self.results["cold start"][kind] = {name: row[drop:] for name, row in rows.items()}

    def warm(self, threads: int) -> None:
        """Everything that needs loaded processes, which stay alive and take turns."""
        plan, results = self.plan, self.results
        times: dict[str, Any] = defaultdict(lambda: defaultdict(list))
        with processes(self.subjects, self.inputs, threads) as running:
            for _ in range(plan.rounds):
                for image in IMAGES:
                    self._turn(
                        running, times[image], f"{image}, {threads} thread(s)", "image", image=image
                    )
                self._turn(running, times["REST request"], f"REST, {threads} thread(s)", "request")
            results["warm"][str(threads)] = times
            results["split"][str(threads)] = {
                name: running[name].ask("split", repeat=plan.rounds * 10) for name in OURS
            }
            results["peak"][str(threads)] = self._peak(running)
            results["sandbox"] = {
                image: running["exact"].ask("sandbox", image=image, repeat=plan.rounds * 10)
                for image in IMAGES
            }
            if threads == self.threads[-1]:
                results["batch"] = self._batches(running)
                results["exactness"] = {
                    name: process.ask("exactness", pictures=plan.judged)
                    for name, process in running.items()
                }

    def _turn(
        self,
        running: dict[str, Any],
        times: dict[str, list[float]],
        title: str,
        do: str,
        **arguments: Any,
    ) -> None:
        self.bar.set_description(title)
        if do in ("image", "tower_times"):
            arguments.setdefault("batch", 1)
        for name, process in running.items():
            process.ask(do, repeat=1, **arguments)  # after a pause the first one is slower
            times[name] += process.ask(do, repeat=self.plan.per_round, **arguments)
        self.bar.update()

    def _batches(self, running: dict[str, Any]) -> dict[str, Any]:
        times: dict[str, Any] = defaultdict(lambda: defaultdict(list))
        for _ in range(self.plan.rounds):
            for batch in (1, 8, 32):
                self.bar.set_description(f"batches of {batch}")
                for name, process in running.items():
                    times[str(batch)][name] += process.ask(
                        "image", image=IMAGES[0], batch=batch, repeat=1
                    )
                self.bar.update()
        return times

    def _peak(self, running: dict[str, Any]) -> dict[str, Any]:
        """Our engine alone and the machine's limit, in turns, so that both meet the same noise."""
        times: dict[str, Any] = defaultdict(list)
        for _ in range(self.plan.rounds):
            for name in ("exact", "baseline"):
                times["sgemm"] += running[name].ask("sgemm", repeat=4)
            for batch, repeat in ((1, 10), (16, 2)):
                for name in OURS:
                    times[f"{name} {batch}"] += running[name].ask(
                        "tower_times", batch=batch, repeat=repeat
                    )
        return times

    def texts(self) -> None:
        """Texts on one thread, and what the text tower costs those who send images alone."""
        self.results["texts"] = {
            "first": self._first_texts(),
            "alone": self._texts_alone(),
            **self._warm_texts(),
            "image cold start": self._images_beside_texts(),
        }

    def _first_texts(self) -> dict[str, Any]:
        """What only a process's first texts show: the processes have served one image before."""
        rows: dict[str, Any] = {name: defaultdict(list) for name in self.subjects}
        for _ in range(self.plan.cold_cache):
            with processes(self.subjects, self.inputs, threads=1) as running:
                for name, process in running.items():
                    self.bar.set_description(f"first text: {name}")
                    seconds, megabytes = process.ask("first_text")
                    rows[name]["seconds"].append(seconds)
                    rows[name]["mb"].append(megabytes)
                    # Nearly all words of the captions are new to it now, and never again.
                    rows[name]["tokenizer"].append(process.ask("tokens", texts="64 captions"))
                    self.bar.update()
        return rows

    def _texts_alone(self) -> dict[str, list[dict[str, float]]]:
        """Process start to the first text's vector where no images are served; also memory."""
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in self.subjects}
        for _ in range(self.plan.cold_cache):
            for name in self.subjects:
                self.bar.set_description(f"cold start, texts alone: {name}")
                process = Process(name, self.inputs, threads=1, towers="text")
                process.ask("texts", texts="10 tokens", repeat=1)
                seconds = time.monotonic() - process.started
                rows[name].append({"seconds": seconds, **asdict(process.end())})
                self.bar.update()
        return rows

    def _warm_texts(self) -> dict[str, Any]:
        """Seconds of a request by its texts, and of the tokens of one caption; also exactness."""
        times: dict[str, Any] = defaultdict(lambda: defaultdict(list))
        with processes(self.subjects, self.inputs, threads=1) as running:
            for _ in range(self.plan.rounds):
                for texts in TEXTS:
                    self._turn(running, times[texts], f"text: {texts}", "texts", texts=texts)
                for name, process in running.items():
                    times["tokenizer"][name].append(process.ask("tokens", texts="64 captions"))
                self.bar.update()
            exactness = {
                name: process.ask("texts_exactness", texts=self.plan.judged)
                for name, process in running.items()
            }
        return {"seconds": times, "exactness": exactness}

    def _images_beside_texts(self) -> dict[str, Any]:
        """Cold starts of images, by whether the model folder holds the text tower too."""
        folders = {"with": self.inputs, "without": self.inputs / "images-only"}
        rows: dict[str, Any] = {profile: defaultdict(list) for profile in OURS}
        for _ in range(BESIDE * self.plan.cold):
            for profile in OURS:
                self.bar.set_description(f"cold start, with and without the text tower: {profile}")
                for text_tower, folder in folders.items():
                    seconds, _ = cold_start(profile, folder, self.threads[-1], warm_cache=True)
                    rows[profile][text_tower].append(seconds)
                self.bar.update()
        return rows

    def engines(self) -> None:
        """Pixels in memory to vectors, by every engine that runs here, and how exact each is."""
        results: dict[str, Any] = {"seconds": {}, "exactness": {}, "missing": {}}
        for threads in self.threads:
            times: dict[str, list[float]] = defaultdict(list)
            with self._engines_that_run(threads, results["missing"]) as running:
                for _ in range(self.plan.rounds):
                    self._turn(running, times, f"engines, {threads} thread(s)", "tower_times")
                    self.bar.update(len(ENGINES) - 1)
                if threads == self.threads[-1]:
                    results["exactness"] = {
                        name: process.ask("tower_exactness", pictures=self.plan.judged)
                        for name, process in running.items()
                    }
                    self.bar.update(len(ENGINES))
            results["seconds"][str(threads)] = times
        self.results["engines"] = results

    @contextmanager
    def _engines_that_run(
        self, threads: int, missing: dict[str, str]
    ) -> Iterator[dict[str, Process]]:
        """A process for each engine; why the others do not run is written into `missing`."""
        running: dict[str, Process] = {}
        with ExitStack() as stack:
            for name in ENGINES:
                self.bar.set_description(f"engines: {name}")
                self.bar.update()
                try:
                    process = Process(name, self.inputs, threads, interpreter(name))
                except FileNotFoundError:
                    missing[name] = "not installed"
                    continue
                stack.callback(process.end)
                trouble = _trouble(process)
                if trouble:
                    missing[name] = trouble
                else:
                    running[name] = process
            assert missing.keys().isdisjoint(NEEDED), missing
            yield running

    def servers(self) -> None:
        """Web servers: how soon they answer, then requests by one client and by many, in turns."""
        results: dict[str, Any] = {name: defaultdict(list) for name in SERVERS}
        missing: dict[str, str] = {}
        with ExitStack() as stack:
            running = {}
            for name in SERVERS:
                try:
                    running[name] = self._started(name, results[name], stack)
                except FileNotFoundError:
                    missing[name] = "not installed"
                except RuntimeError as error:
                    missing[name] = str(error)
            assert missing.keys().isdisjoint(NEEDED), missing
            for _ in range(self.plan.rounds):
                for name, server in running.items():
                    self.bar.set_description(f"server: {name}")
                    self._requests(server, results[name])
                    self.bar.update()
        self.results["servers"] = {name: results[name] for name in running} | {"missing": missing}

    def _started(self, name: str, row: dict[str, Any], stack: ExitStack) -> Running:
        """Start it as often as planned, by itself, and the last time until `stack` is left."""
        for start in reversed(range(self.plan.server_starts)):
            self.bar.set_description(f"start of a server: {name}")
            server = Running(name, self.inputs)
            row["start"].append(server.seconds_to_start)
            self.bar.update()
            if start:
                server.end()
        stack.callback(server.end)
        row["vector"] = server.vector
        return server

    def _requests(self, server: Running, row: dict[str, Any]) -> None:
        """One round of requests."""
        row["one"] += server.one_client(2 * self.plan.per_round)
        seconds, times = server.many_clients(self.plan.per_round)
        row["many"] += times
        row["all"].append(seconds)
        row["peak_mb"] = server.peak_mb()

    def cost(self) -> None:
        """REST requests under the CPU share that Lambda gives a memory size."""
        for memory in MEMORY_SIZES:
            cpus = memory / 1769
            try:
                share = CpuShare(cpus)
            except OSError as error:
                self.results["cost"] = {"not measured": f"no control group could be made: {error}"}
                return
            subjects = [subject for subject in self.subjects if memory >= NEEDS[subject]]
            times: dict[str, list[float]] = defaultdict(list)
            threads = min(max(1, round(cpus)), self.threads[-1])
            with processes(subjects, self.inputs, threads) as running:
                for process in running.values():
                    share.hold(process)
                for _ in range(self.plan.rounds):
                    self._turn(running, times, f"REST request at {memory:,} MB", "request")
            share.remove()
            self.results["cost"][str(memory)] = times

    def s3(self) -> None:
        """Images a second of one function that a batch engine feeds, S3 and all, by CPUs."""
        for cpus in self.threads:
            try:
                share = CpuShare(cpus)
            except OSError as error:
                self.results["s3"] = {"not measured": f"no control group could be made: {error}"}
                return
            for profile in OURS:
                self.bar.set_description(f"S3 objects, {profile}, {cpus} CPU(s)")
                self.results["s3"][f"{profile} {cpus}"] = self._s3_rows(profile, cpus, share)
            share.remove()

    def _s3_rows(self, profile: str, cpus: int, share: CpuShare) -> dict[str, Any]:
        """Objects in each event -> seconds of a batch, and of waiting, time after time."""
        photograph = (self.inputs / f"{IMAGES[0]}.image").read_bytes()
        rows: dict[str, Any] = defaultdict(list)
        with stand_in(photograph), processes([profile], self.inputs, cpus) as running:
            process = running[profile]
            share.hold(process)
            process.ask("s3_batch", count=8)
            for _ in range(self.plan.rounds):
                for count, repeat in ((1, 8), (64, 1)):
                    rows[str(count)] += [
                        process.ask("s3_batch", count=count) for _ in range(repeat)
                    ]
                self.bar.update()
        return rows


def _trouble(engine: Process) -> str:
    """Why an engine cannot run here; empty where it can."""
    try:
        trouble: str = engine.ask("trouble")
    except RuntimeError as error:  # such as an instruction that this processor lacks
        return str(error)
    return trouble


def machine(threads: list[int]) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": threads,
        "load before": os.getloadavg()[0],
    }


def prepare(inputs: Path) -> None:
    """Make the inputs unless they are there and newer than the code that makes them."""
    made = inputs / "complete"
    ours = (HERE / name for name in ("accuracy.py", "fastembed_files.py", "inputs.py"))
    sources = [*(HERE.parent / "export").glob("*.py"), *ours]
    if not made.exists() or any(
        source.stat().st_mtime > made.stat().st_mtime for source in sources
    ):
        subprocess.run([sys.executable, "-m", "benchmarks.inputs", str(inputs)], check=True)


def main() -> None:
    """Measure, write ``results/``, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="three minutes: shows that all works, no more"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/benchmark"), help="inputs are kept here"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for JSON and chart; without it those of the documents"
    )
    options = parser.parse_args()
    inputs = options.cache.resolve()
    prepare(inputs)
    subjects = ["baseline", *OURS, *(["fastembed"] if find_spec("fastembed") else [])]
    results = Run(QUICK if options.quick else FULL, subjects, inputs).all()
    out = options.out or HERE / "results"
    out.mkdir(parents=True, exist_ok=True)
    (out / "latest.json").write_text(json.dumps(results, indent=1))
    (out / "latest.svg").write_text(chart.chart(results))
    if options.out is None:
        report.write_pages(results)
    print(report.table(results))


if __name__ == "__main__":
    main()
