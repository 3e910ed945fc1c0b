"""Raw times -> the figures of the documents, and dollars.

``python -m benchmarks.report`` writes those of the latest results into the pages that show them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

from benchmarks.engines import ENGINES
from benchmarks.measure import OURS
from benchmarks.servers import CLIENTS, SERVERS

Results = dict[str, Any]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "latest.json"
BEGIN = "<!-- figures: `python -m benchmarks.report` writes them -->"
END = "<!-- end of the figures -->"
"""What stands before and behind the figures of a page."""

SUBJECTS = ("baseline", "fastembed", *OURS)
GB_SECOND = {"x86": 0.0000166667, "arm64": 0.0000133334}
REQUEST = 0.20 / 1e6
"""Dollars: AWS Lambda's list prices in us-east-1."""
UNMEASURED = "†"
"""A dagger behind a figure that is not measured, which the sentence below explains."""
ARM64 = (
    f"{UNMEASURED} Not measured: arm64's price with x86's time. In each cycle a core of Graviton2 "
    "does half the float32 operations of an x86 core with AVX2 (16 against 32), but it has dot "
    "products of 8-bit integers (64), so that on arm64 `exact` is likely slower and dearer than on "
    "x86, and `fast` likely the cheapest of all."
)


def p95(times: list[float]) -> float:
    """The 95th percentile."""
    return quantiles(times, n=20, method="inclusive")[-1] if len(times) > 1 else times[0]


def gflop(batch: int) -> float:
    """Multiplications and additions of the exported graph's matrix products, in units of 1e9.

    The last block computes the class token only, so this is 7 % less than the whole tower.
    """
    tokens, width = 50, 768
    attention = 2 * tokens * width  # scores, then the weighted sum, of one token
    block = tokens * (width * 3 * width + attention + width * width + 8 * width * width)
    keys_and_values, query, output = tokens * width * 2 * width, width * width, width * width
    last = keys_and_values + query + attention + output + 8 * width * width
    patches, projection = 49 * 3072 * width, width * 512
    return batch * 2 * (patches + 11 * block + last + projection) / 1e9


def dollars_per_million(seconds: float, memory: int, architecture: str) -> float:
    """What a million requests of `seconds` cost at `memory` MB; no free tier."""
    return 1e6 * (seconds * memory / 1024 * GB_SECOND[architecture] + REQUEST)


class Table:
    """Markdown rows of measured cells; the last columns are ratios to one of the subjects."""

    def __init__(self, title: str, subjects: list[str], base: str) -> None:
        """`base` is what the ratios are to. If it was not measured, there are none."""
        self.subjects = subjects
        self.base = base
        ratios = " | ".join(f"{name} to {base}" for name in OURS)
        self.lines = [
            f"| {title} | {' | '.join(subjects)} | {ratios} |",
            f"|---{'|---:' * (len(subjects) + len(OURS))}|",
        ]

    def cosines(self, title: str, values: dict[str, str]) -> None:
        """A row that has no ratios."""
        cells = [values.get(subject, "-") for subject in self.subjects] + ["-" for _ in OURS]
        self.lines.append(f"| {title} | {' | '.join(cells)} |")

    def _ratios(self, values: dict[str, float], *, less: bool) -> list[str]:
        if self.base not in values:
            return ["-" for _ in OURS]
        shares = [values[name] / values[self.base] for name in OURS]
        return [f"**{share:.2f}x**" if less else f"**{1 / share:.1f}x faster**" for share in shares]

    def row(
        self, title: str, values: dict[str, float], form: str, spread: dict[str, str], *, less: bool
    ) -> None:
        """One row. `less`: the ratio is a share of the base's; else it is "times faster"."""
        cells = []
        for subject in self.subjects:
            value = values.get(subject)
            cells.append("-" if value is None else f"{form.format(value)}{spread.get(subject, '')}")
        cells += self._ratios(values, less=less)
        self.lines.append(f"| {title} | {' | '.join(cells)} |")

    def rates(self, title: str, count: int, times: dict[str, list[float]]) -> None:
        """A row of what is done in a second, `count` in each of `times`."""
        medians = {name: median(values) for name, values in times.items()}
        cells = [
            f"{count / medians[name]:.1f}/s ({count / p95(times[name]):.1f})"
            for name in self.subjects
        ]
        cells += self._ratios(medians, less=False)
        self.lines.append(f"| {title} | {' | '.join(cells)} |")

    def times(
        self,
        title: str,
        times: dict[str, list[float]],
        *,
        scale: float = 1e3,
        unit: str = "ms",
        digits: str = "",
    ) -> None:
        """A row of medians, 95th percentiles beside them; `digits`: how a number is written."""
        digits = digits or ("{:.2f}" if unit == "s" else "{:.0f}")
        medians = {name: median(values) * scale for name, values in times.items()}
        spread = {
            name: f" ({digits.format(p95(values) * scale)})" for name, values in times.items()
        }
        self.row(title, medians, digits + f" {unit}", spread, less=False)


def table(results: Results) -> str:
    """All tables, in Markdown."""
    starts = results["cold start"]
    subjects = [name for name in SUBJECTS if name in starts["warm"]]
    rows = Table("what is measured", subjects, "baseline")
    threads = str(results["machine"]["threads"][-1])
    for kind in ("warm", "cold"):
        seconds = {name: [row["seconds"] for row in starts[kind][name]] for name in subjects}
        rows.times(f"cold start to first vector, {kind} page cache", seconds, scale=1, unit="s")
    read = {name: median(row["read_mb"] for row in starts["cold"][name]) for name in subjects}
    rows.row("read from disk at a cold start", read, "{:.0f} MB", {}, less=True)
    peak = {name: median(row["peak_mb"] for row in starts["warm"][name]) for name in subjects}
    rows.row("peak memory, one image", peak, "{:.0f} MB", {}, less=True)
    rows.row("installed: packages and weights", results["sizes"], "{:.0f} MB", {}, less=True)
    for count, by_image in results["warm"].items():
        for image, times in by_image.items():
            rows.times(f"{image}, {_threads(count)}", times)
    for batch, times in results["batch"].items():
        rows.rates(f"images in batches of {batch}, {threads} threads", int(batch), times)
    exactness = {name: _smallest(cosines) for name, cosines in results["exactness"].items()}
    count = len(results["exactness"]["baseline"])
    rows.cosines(f"smallest cosine to clip's vector, {count} pictures", exactness)
    parts = [
        heading(results),
        "\n".join(rows.lines),
        # Results that are older than the text tower have none of it.
        *([_texts(results, subjects)] if "texts" in results else []),
        _servers(results),
        _split(results),
        _sandbox(results),
        _peak(results),
        _engines(results),
        _s3(results),
        _cost(results, subjects),
    ]
    return "\n\n".join(parts) + "\n"


def heading(results: Results) -> str:
    """The machine, and how to read the table."""
    m = results["machine"]
    return (
        f"{m['cpu']}, {m['cpus']} CPUs, {m['architecture']}, Python {m['python']}. Medians, 95th "
        "percentile in brackets."
    )


def _smallest(cosines: list[float | None]) -> str:
    """The smallest, the mean, and of how many pictures there is no vector."""
    known = [cosine for cosine in cosines if cosine is not None]
    refused = len(cosines) - len(known)
    text = f"{min(known):.6f} (mean {fmean(known):.6f})"
    return f"{text}, {refused} refused" if refused else text


def _texts(results: Results, subjects: list[str]) -> str:
    """Texts on one thread, then what the text tower costs those who send images alone."""
    measured = results["texts"]
    first, seconds, alone = measured["first"], measured["seconds"], measured["alone"]
    rows = Table("texts, one thread", subjects, "baseline")
    for title, times in (
        ("words that are new", {name: first[name]["tokenizer"] for name in subjects}),
        ("words seen before", seconds["tokenizer"]),
    ):
        rows.times(f"tokens of a caption, {title}", times, digits="{:.3f}")
    for title in ("10 tokens", "77 tokens"):
        rows.times(f"one text of {title}", seconds[title], digits="{:.1f}")
    rows.times("64 captions in one request", seconds["64 captions"])
    rows.times(
        "first text, in a process that has served an image",
        {name: first[name]["seconds"] for name in subjects},
    )
    grown = {name: median(first[name]["mb"]) for name in subjects}
    rows.row("memory that it adds", grown, "{:.0f} MB", {}, less=True)
    starts = {name: [row["seconds"] for row in alone[name]] for name in subjects}
    rows.times("texts alone: cold start to first vector", starts, scale=1, unit="s")
    peaks = {name: median(row["peak_mb"] for row in alone[name]) for name in subjects}
    rows.row("texts alone: peak memory", peaks, "{:.0f} MB", {}, less=True)
    exactness = {name: _smallest(cosines) for name, cosines in measured["exactness"].items()}
    count = len(measured["exactness"]["baseline"])
    rows.cosines(f"smallest cosine to clip's vector, {count} texts", exactness)
    return "\n".join([*rows.lines, "", *_images_beside_texts(measured["image cold start"])])


def _images_beside_texts(starts: dict[str, dict[str, list[float]]]) -> list[str]:
    """Cold starts of an image with and without a text tower in the model folder."""
    lines = [
        "| cold start to an image's vector | no text tower in the folder | with it | difference |",
        "|---|---:|---:|---:|",
    ]
    for profile, seconds in starts.items():
        without, beside = median(seconds["without"]), median(seconds["with"])
        cells = f"{without:.3f} s | {beside:.3f} s | {beside / without - 1:+.1%}"
        lines.append(f"| {profile} | {cells} |")
    return lines


def _servers(results: Results) -> str:
    """Web servers, with ratios to the old one, if that is there."""
    measured, missing = results["servers"], results["servers"]["missing"]
    names = [name for name in SERVERS if name in measured]
    rows = Table("web server, 640x480 JPEG", names, "BentoML")
    columns = {
        field: {name: measured[name][field] for name in names}
        for field in ("start", "one", "all", "many", "peak_mb")
    }
    rows.times("start to first answer", columns["start"], scale=1, unit="s")
    rows.times("one client", columns["one"])
    requests = len(measured[names[0]]["many"]) // len(measured[names[0]]["all"])
    rows.rates(f"{CLIENTS} clients, images a second", requests, columns["all"])
    rows.times(f"{CLIENTS} clients, each request", columns["many"])
    rows.row("peak memory of all its processes", columns["peak_mb"], "{:.0f} MB", {}, less=True)
    if "BentoML" in measured:
        cosines = {name: _cosine(measured["BentoML"], measured[name]) for name in names}
        rows.cosines("cosine to BentoML's vector", {n: f"{c:.6f}" for n, c in cosines.items()})
    return "\n".join([*rows.lines, *_not_measured(missing)])


def _cosine(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of the vectors that two servers answered with, both of unit length."""
    cosine: float = sum(x * y for x, y in zip(one["vector"], other["vector"], strict=True))
    return cosine


def _not_measured(missing: dict[str, str]) -> list[str]:
    """A paragraph for each contender that did not run, with the reason."""
    return [f"\n{name} was not measured: {reason}." for name, reason in missing.items()]


def _split(results: Results) -> str:
    names = ("event, routing, multipart", "decode and preprocess", "engine", "response")
    title = "one warm REST request, 640x480 JPEG"
    lines = [
        f"| {title} | {' | '.join(names)} | outside decode and engine |",
        f"|---{'|---:' * 5}|",
    ]
    for count, by_profile in results["split"].items():
        for profile, rows in by_profile.items():
            cells = [f"{median(column) * 1e3:.2f} ms" for column in zip(*rows, strict=True)]
            outside = median(row[0] + row[3] for row in rows) * 1e3
            title = f"{profile}, {_threads(count)}"
            lines.append(f"| {title} | {' | '.join(cells)} | **{outside:.2f} ms** |")
    return "\n".join(lines)


def _threads(count: str) -> str:
    return f"{count} thread{'s' if count != '1' else ''}"


def _sandbox(results: Results) -> str:
    lines = [
        "| decoding and preprocessing | in the service itself | in the sandbox | difference |",
        "|---|---:|---:|---:|",
    ]
    for image, times in results["sandbox"].items():
        inside, outside = (median(column) * 1e3 for column in times)
        cells = f"{inside:.2f} ms | {outside:.2f} ms | {outside - inside:+.2f} ms"
        lines.append(f"| {image} | {cells}, {outside / inside - 1:+.0%} |")
    return "\n".join(lines)


def _peak(results: Results) -> str:
    lines = [
        "| our engine alone | SGEMM peak | exact, batch 1 | exact, batch 16 | fast, batch 1 "
        "| fast, batch 16 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for count, times in results["peak"].items():
        peak = 2 * 2048**3 / 1e9 / min(times["sgemm"])
        cells = []
        for batch in (1, 16):
            rate = gflop(batch) / median(times[f"exact {batch}"])
            cells.append(f"{rate:.0f} GFLOP/s, **{rate / peak:.0%}**")
        for batch in (1, 16):
            exact, fast = (median(times[f"{profile} {batch}"]) for profile in OURS)
            cells.append(f"{fast * 1e3:.1f} ms, **{exact / fast:.1f}x** exact's speed")
        lines.append(f"| {_threads(count)} | {peak:.0f} GFLOP/s | {' | '.join(cells)} |")
    return "\n".join(lines)


def _engines(results: Results) -> str:
    """Every engine's speed beside its exactness; those that did not run say why."""
    seconds, exactness = results["engines"]["seconds"], results["engines"]["exactness"]
    missing = results["engines"]["missing"]
    threads = [_threads(count) for count in seconds]
    pictures = len(next(iter(exactness.values())))
    lines = [
        f"| engine alone, one image; in bold, times torch's speed | {' | '.join(threads)} "
        f"| smallest cosine to clip's, {pictures} pictures | mean |",
        f"|---{'|---:' * (len(threads) + 2)}|",
    ]
    for name in ENGINES:
        cells = ["-"] * (len(threads) + 2)
        if name in exactness:
            cells = [_engine_cell(name, times) for times in seconds.values()]
            cells += [f"{min(exactness[name]):.6f}", f"{fmean(exactness[name]):.6f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_not_measured(missing)])


def _engine_cell(name: str, times: dict[str, list[float]]) -> str:
    """The median, and how much faster that is than the baseline's engine."""
    own = median(times[name])
    ratio = median(times[ENGINES[0]]) / own
    return f"{own * 1e3:.1f} ms ({p95(times[name]) * 1e3:.1f}), **{ratio:.1f}x**"


def _s3(results: Results) -> str:
    """Measured rates, then what they mean on paper for many images."""
    by_cpus = results.get("s3", {})
    if not by_cpus or "not measured" in by_cpus:
        return f"S3: {by_cpus.get('not measured', 'not measured')}"
    lines = [
        "| 640x480 JPEGs in S3, vectors to S3, one function | images a second | waiting for S3 |",
        "|---|---:|---:|",
    ]
    rates = {}
    for name, by_count in by_cpus.items():
        profile, cpus = name.split()
        for count, times in by_count.items():
            rate = int(count) / median(seconds for seconds, _ in times)
            rates[profile, cpus, count] = rate
            waiting = median(wait / seconds for seconds, wait in times)
            title = f"{profile}, {cpus} CPU{'s' if cpus != '1' else ''}, {count} in each event"
            lines.append(f"| {title} | {rate:.1f} | {waiting:.0%} |")
    return "\n".join([*lines, "", *_on_paper(rates)])


def _on_paper(rates: dict[tuple[str, str, str], float]) -> list[str]:
    """Hours and Lambda's dollars, by images, memory and the objects that an event holds."""
    lines = [
        "| on paper | profile, memory | SQS, Distributed Map: 100 / 1,000 functions "
        "| Lambda, x86 / arm64 | S3 Batch Operations: 100 / 1,000 functions "
        "| Lambda, x86 / arm64 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, images in (("1 M images", 10**6), ("100 M images", 10**8), ("1 B images", 10**9)):
        for profile, cpus in dict.fromkeys((profile, cpus) for profile, cpus, _ in rates):
            memory = 1769 * int(cpus)
            cells = []
            for count in ("64", "1"):  # S3 Batch Operations hands over one object at a time
                rate = rates[profile, cpus, count]
                cells.append(
                    " / ".join(_duration(images / rate / functions) for functions in (100, 1000))
                )
                invocations = images / int(count) * REQUEST
                prices = (
                    images / rate * memory / 1024 * price + invocations
                    for price in GB_SECOND.values()
                )
                x86, arm64 = (f"${dollars:,.{2 if dollars < 10 else 0}f}" for dollars in prices)
                cells.append(f"{x86} / {arm64}{UNMEASURED}")
            lines.append(f"| {name} | {profile}, {memory:,} MB | {' | '.join(cells)} |")
    return lines


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.0f} h"


def _cost(results: Results, subjects: list[str]) -> str:
    cost = results["cost"]
    if "not measured" in cost:
        return f"Cost: {cost['not measured']}"
    lines = [
        f"| dollars per million images | {' | '.join(f'{s}, x86 / arm64' for s in subjects)} |",
        f"|---{'|---:' * len(subjects)}|",
    ]
    for memory, times in cost.items():
        cells = []
        for subject in subjects:
            if subject not in times:
                cells.append("does not fit")
                continue
            seconds = median(times[subject])
            x86, arm64 = (dollars_per_million(seconds, int(memory), name) for name in GB_SECOND)
            milliseconds = f"{seconds * 1e3:.0f} ms"
            cells.append(f"{x86:.2f} / {arm64:.2f}{UNMEASURED} ({milliseconds})")
        lines.append(f"| {int(memory):,} MB ({int(memory) / 1769:.2f} CPU) | {' | '.join(cells)} |")
    return "\n".join([*lines, "", ARM64])


def profiles(results: Results) -> str:
    """What the two profiles take, beside the baseline, in the few rows that decide between them."""
    warm, starts = results["warm"]["1"], results["cold start"]["warm"]
    cold = {name: median(row["seconds"] for row in rows) for name, rows in starts.items()}
    peak = {name: median(row["peak_mb"] for row in rows) for name, rows in starts.items()}
    lines = ["| | baseline | `exact` | `fast` |", "|---|---:|---:|---:|"]
    for image in ("640x480 JPEG", "12 MP JPEG"):
        times = {name: median(warm[image][name]) for name in ("baseline", *OURS)}
        lines.append(_beside(f"{image}, one thread", times, 1e3, "{:.0f} ms"))
    lines.append(_beside("cold start to the first vector", cold, 1, "{:.2f} s"))
    lines.append(_beside("peak memory, one image", peak, 1, "{:,.0f} MB", ratio="{:.1f}x less"))
    cost = results["cost"].get("1769")
    if cost:
        title = "dollars for a million requests, 1,769 MB, x86"
        dollars = {
            name: dollars_per_million(median(cost[name]), 1769, "x86")
            for name in ("baseline", *OURS)
        }
        lines.append(_beside(title, dollars, 1, "{:.2f}", ratio="{:.1f}x less"))
    return "\n".join(lines)


def _beside(
    title: str, values: dict[str, float], scale: float, form: str, ratio: str = "{:.1f}x faster"
) -> str:
    """A row of `profiles`: the baseline's value, and ours with how much better they are."""
    base = values["baseline"]
    cells = [form.format(base * scale)]
    cells += [f"{form.format(values[n] * scale)}, {ratio.format(base / values[n])}" for n in OURS]
    return f"| {title} | {' | '.join(cells)} |"


def sentence(results: Results) -> str:
    """The one figure of the README."""
    times = results["warm"]["1"]["640x480 JPEG"]
    baseline, exact, fast = (f"{median(times[name]) * 1e3:.0f}" for name in ("baseline", *OURS))
    return (
        f"A photograph of 640x480 takes {exact} ms on one CPU, where the old recipe takes "
        f"{baseline}; {fast} ms in the profile `fast`."
    )


PAGES: dict[str, Callable[[Results], str]] = {
    "docs/performance.md": lambda results: f"\n\n{table(results)}\n",
    "docs/models.md": lambda results: f"\n\n{profiles(results)}\n\n",
    "README.md": sentence,
}
"""The pages with figures, and what makes them."""


def into_page(name: str, page: str, results: Results) -> str:
    """The text of a page, with the figures of `results` in the place of those that it has."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{PAGES[name](results)}{END}{after}"


def write_pages(results: Results) -> None:
    """Put the figures of `results` into the documents."""
    for name in PAGES:
        page = ROOT / name
        page.write_text(into_page(name, page.read_text(), results))


if __name__ == "__main__":
    write_pages(json.loads(RESULTS.read_text()))
