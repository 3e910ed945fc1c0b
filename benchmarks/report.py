"""Raw times -> the README's table, the chart, and dollars."""

from statistics import median, quantiles
from typing import Any

from benchmarks.measure import OURS

Results = dict[str, Any]

SUBJECTS = ("baseline", "fastembed", *OURS)
GB_SECOND = {"x86": 0.0000166667, "arm64": 0.0000133334}
REQUEST = 0.20 / 1e6
"""Dollars: AWS Lambda's list prices in us-east-1."""


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
    """Markdown rows of measured cells; the last columns are ratios to the baseline."""

    def __init__(self, subjects: list[str]) -> None:
        self.subjects = subjects
        self.lines = [
            f"| | {' | '.join(subjects)} | {' | '.join(f'{name} to baseline' for name in OURS)} |",
            f"|---{'|---:' * (len(subjects) + len(OURS))}|",
        ]

    def row(
        self, title: str, values: dict[str, float], form: str, spread: dict[str, str], *, less: bool
    ) -> None:
        """One row. `less`: the ratio is a share of the baseline's; else it is "times faster"."""
        cells = []
        for subject in self.subjects:
            value = values.get(subject)
            cells.append("-" if value is None else f"{form.format(value)}{spread.get(subject, '')}")
        for name in OURS:
            share = values[name] / values["baseline"]
            cells.append(f"**{share:.2f}x**" if less else f"**{1 / share:.1f}x faster**")
        self.lines.append(f"| {title} | {' | '.join(cells)} |")

    def rates(self, title: str, count: int, times: dict[str, list[float]]) -> None:
        """A row of what is done in a second, `count` in each of `times`."""
        medians = {name: median(values) for name, values in times.items()}
        cells = [
            f"{count / medians[name]:.1f}/s ({count / p95(times[name]):.1f})"
            for name in self.subjects
        ]
        cells += [f"**{medians['baseline'] / medians[name]:.1f}x faster**" for name in OURS]
        self.lines.append(f"| {title} | {' | '.join(cells)} |")

    def times(
        self, title: str, times: dict[str, list[float]], *, scale: float = 1e3, unit: str = "ms"
    ) -> None:
        """A row of medians, 95th percentiles beside them."""
        digits = "{:.2f}" if unit == "s" else "{:.0f}"
        medians = {name: median(values) * scale for name, values in times.items()}
        spread = {
            name: f" ({digits.format(p95(values) * scale)})" for name, values in times.items()
        }
        self.row(title, medians, digits + f" {unit}", spread, less=False)


def table(results: Results) -> str:
    """The README's tables, in Markdown."""
    starts = results["cold start"]
    subjects = [name for name in SUBJECTS if name in starts["warm"]]
    rows = Table(subjects)
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
    parts = [
        heading(results),
        "\n".join(rows.lines),
        _split(results),
        _sandbox(results),
        _engine(results),
        _s3(results),
        _cost(results, subjects),
    ]
    return "\n\n".join(parts) + "\n"


def heading(results: Results) -> str:
    """The machine, and how to read the table."""
    m = results["machine"]
    cosines = results["cosine to baseline"]
    agree = ", ".join(f"{name} {cosines[name]:.6f}" for name in SUBJECTS[1:] if name in cosines)
    return (
        f"{m['cpu']}, {m['cpus']} CPUs, {m['architecture']}, Python {m['python']}. Medians, 95th "
        f"percentile in brackets. Cosine to the baseline's vector of the 12 MP JPEG: {agree}."
    )


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


def _engine(results: Results) -> str:
    lines = [
        "| engine alone | SGEMM peak | exact, batch 1 | exact, batch 16 | fast, batch 1 "
        "| fast, batch 16 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for count, times in results["engine"].items():
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
                cells.append(
                    " / ".join(f"${dollars:,.{2 if dollars < 10 else 0}f}" for dollars in prices)
                )
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
            price = (dollars_per_million(seconds, int(memory), name) for name in ("x86", "arm64"))
            cells.append(f"{' / '.join(f'{p:.2f}' for p in price)} ({seconds * 1e3:.0f} ms)")
        lines.append(f"| {int(memory):,} MB ({int(memory) / 1769:.2f} CPU) | {' | '.join(cells)} |")
    return "\n".join(lines)


def chart(results: Results) -> str:
    """The table's main rows as horizontal bars; each row has a scale of its own."""
    threads = str(results["machine"]["threads"][-1])
    starts, warm = results["cold start"], results["warm"][threads]
    rows: list[tuple[str, str, dict[str, float]]] = [
        (
            "cold start to first vector",
            "s",
            {n: median(r["seconds"] for r in v) for n, v in starts["warm"].items()},
        ),
        (
            "peak memory",
            "MB",
            {n: median(r["peak_mb"] for r in v) for n, v in starts["warm"].items()},
        ),
        (
            "read from disk at start",
            "MB",
            {n: median(r["read_mb"] for r in v) for n, v in starts["cold"].items()},
        ),
        ("installed size", "MB", results["sizes"]),
    ]
    for image in ("640x480 JPEG", "12 MP JPEG"):
        rows.append((f"one {image}", "ms", {n: median(v) * 1e3 for n, v in warm[image].items()}))
    colours = {"baseline": "#9aa0a6", "fastembed": "#c5a572", "exact": "#1a73e8", "fast": "#188038"}
    shapes, y = [], 10
    for title, unit, values in rows:
        shapes.append(f'<text x="10" y="{y + 14}" font-weight="bold">{title}</text>')
        for name in (n for n in SUBJECTS if n in values):
            y += 20
            width = 430 * values[name] / max(values.values())
            label = f"{values[name]:.2f} {unit}" if unit == "s" else f"{values[name]:.0f} {unit}"
            shapes.append(f'<text x="90" y="{y + 12}" text-anchor="end">{name}</text>')
            shapes.append(
                f'<rect x="100" y="{y}" width="{width:.0f}" height="15" fill="{colours[name]}"/>'
            )
            shapes.append(f'<text x="{106 + width:.0f}" y="{y + 12}">{label}</text>')
        y += 32
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{y}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="640" height="{y}" fill="#fff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )
