"""``clip-encoder rank``: which of some texts fits an image best."""

import argparse
import json
from pathlib import Path

import numpy as np

from clip_encoder.cli import options
from clip_encoder.results import Ranking

SUMMARY = "say which of some texts fits each image best"
DESCRIPTION = """\
Say which of some texts fits each image best: with their probabilities, which add up to 1, and their
cosines. The exit status is 1 if an image or a text failed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, or s3://bucket/key")
    parser.add_argument(
        "--text",
        action="append",
        required=True,
        metavar="TEXT",
        help="a text to choose from; give two or more",
    )
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEMPLATE",
        help="what each text is put into, such as 'a photo of a {}.'; several are averaged",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    options.add_service(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; gives the exit status.

    Raises:
        EncoderError: a file cannot be read, or the service failed as a whole.
    """
    queries = [name if name.startswith("s3://") else Path(name) for name in arguments.images]
    with options.connect(arguments, arguments.url) as client:
        ranking = client.rank(queries, arguments.text, arguments.template)
    print(_json(arguments, ranking) if arguments.json else _text(arguments, ranking))
    return 1 if ranking.errors else 0


def _text(arguments: argparse.Namespace, ranking: Ranking) -> str:
    names = {"queries": arguments.images, "candidates": arguments.text}
    failed = {error.index: error for error in ranking.errors if error.list == "queries"}
    lines = []
    for row, image in enumerate(arguments.images):
        lines.append(image)
        if row in failed:
            lines.append(f"  {failed[row].code}: {failed[row].detail}")
            continue
        chances, cosines = ranking.probabilities[row], ranking.cosine_similarities[row]
        for column in np.argsort(-chances, kind="stable"):  # what failed, NaN, comes last
            if np.isfinite(chances[column]):
                text = arguments.text[column]
                lines.append(f"  {chances[column]:7.2%}  {cosines[column]:7.4f}  {text}")
    lines += [
        f"{names[error.list][error.index]}: {error.code}: {error.detail}"
        for error in ranking.errors
        if error.list == "candidates"
    ]
    return "\n".join(lines)


def _json(arguments: argparse.Namespace, ranking: Ranking) -> str:
    def rows(matrix: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[list[float | None]]:
        return [[float(x) if np.isfinite(x) else None for x in row] for row in matrix]

    body = {
        "images": arguments.images,
        "texts": arguments.text,
        "probabilities": rows(ranking.probabilities),
        "cosine_similarities": rows(ranking.cosine_similarities),
        "errors": [vars(error) for error in ranking.errors],
    }
    return json.dumps(body, indent=2)
