"""``clip-encoder check``: whether another service makes the same vectors."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_encoder.checking.comparison import NEIGHBOURS, SAME, Comparison, Vectors, compare
from clip_encoder.checking.distribution import picture
from clip_encoder.checking.sides import NewService, OldService, Side, Stored
from clip_encoder.cli import options, progress, sources
from clip_encoder.errors import EncoderError
from clip_encoder.results import Result

if TYPE_CHECKING:
    from clip_encoder.checking.causes import Cause

EXIT = {"the same": 0, "different": 1, "the same after normalising": 3}
"""The exit status of each verdict. 2 is for a comparison that could not be made."""
SHOWN = 10
"""Images that are named in a list, at most."""

SUMMARY = "compare the vectors of two services, before you switch from one to the other"
DESCRIPTION = f"""\
Compare the vectors of two services over the same images, and find out why they differ.

Either side is an address, or a file of stored vectors (.npz or .parquet). An http:// address as
--old is asked as the old BentoML service was: an image as the multipart field `image` to
/encode_image, which this service understands too.

The verdict is one of: the same (every cosine is at least {SAME}); the same after normalising (the
old vectors are not of length 1); different. If it is not the first, causes are tried one by one.
The exit status is 0 for the same, 3 for the same after normalising, 1 for different, and 2 if the
comparison could not be made."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="files, folders, patterns, or - for a list on stdin; by default the images that the "
        "stored vectors are of",
    )
    parser.add_argument("--old", required=True, metavar="ADDRESS|FILE", help="what you have now")
    parser.add_argument(
        "--new", required=True, metavar="ADDRESS|FILE", help="what you would switch to"
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="an exported model, to try with it whether the old service computes GELU",
    )
    parser.add_argument(
        "--same",
        type=float,
        default=SAME,
        metavar="COSINE",
        help="the least cosine of vectors that are the same (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="draw how the cosines are distributed"
    )
    options.add_access(parser)


@dataclass(frozen=True)
class Report:
    """All that the command found."""

    comparison: Comparison
    causes: list["Cause"]
    failed: dict[str, list[tuple[str, str]]]
    """Side -> (image, code) of each failure there."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command; gives the exit status.

    Raises:
        EncoderError: the comparison could not be made.
    """
    old, new = _old(arguments), _new(arguments)
    try:
        report = _report(arguments, old, new)
    finally:
        old.close()
        new.close()
    if arguments.svg:
        arguments.svg.write_text(picture(report.comparison), encoding="utf-8")
    print(_json(report) if arguments.json else _text(report))
    return EXIT[report.comparison.verdict]


def _old(arguments: argparse.Namespace) -> Side:
    if _is_file(arguments.old):
        return Stored(Path(arguments.old))
    if arguments.old.startswith("http"):
        return OldService(arguments.old, arguments.timeout)
    return NewService(options.connect(arguments, arguments.old))


def _new(arguments: argparse.Namespace) -> Side:
    if _is_file(arguments.new):
        return Stored(Path(arguments.new))
    return NewService(options.connect(arguments, arguments.new))


def _is_file(side: str) -> bool:
    return side.endswith((".npz", ".parquet")) and "://" not in side


def _report(arguments: argparse.Namespace, old: Side, new: Side) -> Report:
    names = _names(arguments.paths, old, new)
    with progress.bar(2 * len(names)) as bar:
        old_results, new_results = (_results(side, names, bar) for side in (old, new))
    failed = {"old": _failures(old_results), "new": _failures(new_results)}
    places = [
        place
        for place in range(len(names))
        if old_results[place].error is None and new_results[place].error is None
    ]
    if not places:
        raise EncoderError("nothing_to_compare", _why_nothing(failed))
    old_vectors = _stack([old_results[place] for place in places])
    new_vectors = _stack([new_results[place] for place in places])
    if old_vectors.shape != new_vectors.shape:
        raise EncoderError(
            "other_size",
            f"the old vectors have {old_vectors.shape[1]} numbers and the new ones "
            f"{new_vectors.shape[1]}: they are of two different models",
        )
    comparison = compare(
        [names[place] for place in places], old_vectors, new_vectors, arguments.same
    )
    causes = []
    try:
        from clip_encoder.checking.causes import Both, find  # here, because it needs Pillow

        causes = find(comparison, Both(old, new, old_vectors, new_vectors), arguments.model)
    except ImportError:
        print("causes are not tried: that needs clip-encoder[images]", file=sys.stderr)
    except EncoderError as error:  # the figures are worth having without a cause
        print(f"the cause could not be found: {error}", file=sys.stderr)
    return Report(comparison, causes, failed)


def _names(paths: Sequence[str], old: Side, new: Side) -> list[str]:
    """The images to compare over, each once."""
    if paths:
        return sorted({source.name for source in sources.find(paths, sys.stdin)})
    stored = [set(side.names) for side in (old, new) if isinstance(side, Stored)]
    if not stored:
        raise EncoderError("no_such_path", "name the images to compare over: files or folders")
    return sorted(set.intersection(*stored))


def _results(side: Side, names: list[str], bar: Any) -> list[Result]:
    results = []
    for result in side.vectors(names):
        results.append(result)
        bar.update()
    return results


def _failures(results: list[Result]) -> list[tuple[str, str]]:
    return [(str(result.source), result.code) for result in results if result.code is not None]


def _stack(results: list[Result]) -> Vectors:
    sizes = Counter(len(result.get()) for result in results)
    if len(sizes) > 1:
        raise EncoderError("other_size", f"vectors of {len(sizes)} sizes come from one side")
    return np.stack([result.get() for result in results])


def _why_nothing(failed: dict[str, list[tuple[str, str]]]) -> str:
    said = [f"{side}: {name}: {code}" for side, rows in failed.items() for name, code in rows[:1]]
    return "no image has a vector on both sides. " + "; ".join(said)


def _text(report: Report) -> str:
    """The report for people."""
    found = report.comparison
    lines = [f"compared {len(found.names):,} images"]
    for side, rows in report.failed.items():
        if rows:
            shown = ", ".join(f"{name} ({code})" for name, code in rows[:SHOWN])
            lines.append(f"failed on the {side} side: {len(rows):,}: {shown}")
    for side, lengths in (("old", found.old), ("new", found.new)):
        lines.append(
            f"length of the {side} vectors: {lengths.least:.6g} to {lengths.most:.6g}, "
            f"median {lengths.median:.6g}"
        )
    least, low, median = np.quantile(found.cosines, [0, 0.01, 0.5])
    lines.append(f"cosine: least {least:.7f}, 1 % {low:.7f}, median {median:.7f}")
    if found.overlap is not None:
        lines.append(f"nearest {NEIGHBOURS} neighbours: {100 * found.overlap:.1f} % are the same")
    if found.verdict == "different":
        lines.append("the worst:")
        lines += [f"  {found.cosines[place]:.7f}  {found.names[place]}" for place in found.worst]
    lines.append(f"verdict: {found.verdict}")
    lines += [_sentence(cause) for cause in report.causes]
    if found.verdict == "different" and not report.causes:
        lines.append("no cause was found: none of those that were tried explains it")
    return "\n".join(lines)


def _sentence(cause: "Cause") -> str:
    how = "tried" if cause.tried else "not tried"
    if cause.tried and cause.least_cosine is not None:
        how += f": with that made up for, the least cosine is {cause.least_cosine:.7f}"
    return f"likely cause, {cause.code}: {cause.text} ({how})"


def _json(report: Report) -> str:
    """The report for programs."""
    found = report.comparison
    least, low, median = (float(cosine) for cosine in np.quantile(found.cosines, [0, 0.01, 0.5]))
    body: dict[str, Any] = {
        "verdict": found.verdict,
        "images": len(found.names),
        "failed": {
            side: [{"name": name, "code": code} for name, code in rows]
            for side, rows in report.failed.items()
        },
        "lengths": {"old": vars(found.old), "new": vars(found.new)},
        "cosine": {"least": least, "one_percent": low, "median": median},
        "neighbours": {"looked_at": NEIGHBOURS, "overlap": found.overlap},
        "worst": [
            {"name": found.names[place], "cosine": float(found.cosines[place])}
            for place in found.worst
        ],
        "causes": [vars(cause) for cause in report.causes],
    }
    return json.dumps(body, indent=2)
