"""Raw times -> the picture of the main rows of the tables."""

from statistics import median

from benchmarks.report import Results
from benchmarks.servers import CLIENTS, SERVERS

COLOURS = {
    "baseline": "#9aa0a6",
    "BentoML": "#9aa0a6",
    "fastembed": "#c5a572",
    "exact": "#1a73e8",
    "fast": "#188038",
}
"""Of the chart's bars, in their order."""


def chart(results: Results) -> str:
    """The tables' main rows as horizontal bars; each row has a scale of its own."""
    shapes, y = [], 10
    for title, unit, values in _bars(results):
        shapes.append(f'<text x="10" y="{y + 14}" font-weight="bold">{title}</text>')
        for name in (n for n in COLOURS if n in values):
            y += 20
            width = 430 * values[name] / max(values.values())
            label = f"{values[name]:.2f} {unit}" if unit == "s" else f"{values[name]:.0f} {unit}"
            shapes.append(f'<text x="90" y="{y + 12}" text-anchor="end">{name}</text>')
            shapes.append(
                f'<rect x="100" y="{y}" width="{width:.0f}" height="15" fill="{COLOURS[name]}"/>'
            )
            shapes.append(f'<text x="{106 + width:.0f}" y="{y + 12}">{label}</text>')
        y += 32
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{y}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="640" height="{y}" fill="#fff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def _bars(results: Results) -> list[tuple[str, str, dict[str, float]]]:
    """(title, unit, contender -> value) of each group of bars; less is better in all of them."""
    threads = str(results["machine"]["threads"][-1])
    starts, warm = results["cold start"], results["warm"][threads]
    web = {name: results["servers"][name] for name in SERVERS if name in results["servers"]}
    images = ("640x480 JPEG", "12 MP JPEG")
    return [
        ("cold start to first vector", "s", _medians(starts["warm"], "seconds")),
        ("peak memory", "MB", _medians(starts["warm"], "peak_mb")),
        ("read from disk at start", "MB", _medians(starts["cold"], "read_mb")),
        ("installed size", "MB", results["sizes"]),
        *(
            (f"one {image}", "ms", {n: median(v) * 1e3 for n, v in warm[image].items()})
            for image in images
        ),
        ("web server, one client", "ms", {n: median(v["one"]) * 1e3 for n, v in web.items()}),
        (
            f"web server, {CLIENTS} clients",
            "ms",
            {n: median(v["many"]) * 1e3 for n, v in web.items()},
        ),
    ]


def _medians(rows: dict[str, list[dict[str, float]]], field: str) -> dict[str, float]:
    return {name: median(row[field] for row in row_list) for name, row_list in rows.items()}
