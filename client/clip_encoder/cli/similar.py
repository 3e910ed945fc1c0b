"""``clip-encoder similar``: the images of a file of vectors that are most like an image or text."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_encoder import files
from clip_encoder.cli import contact_sheet, options
from clip_encoder.cli.encode import fingerprint_of
from clip_encoder.errors import FingerprintChanged
from clip_encoder.results import Vector

MOST = 10
"""Images that are found, by default."""

SUMMARY = "find the images that are most like another one, or like a text"
DESCRIPTION = """\
Find the images of a file of vectors that are most like an image or a text: a table of cosines, and
with --html a page with the pictures.

The service is asked for one vector, of the image or the text. It must be the one that made the
file, or have the same fingerprint."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "vectors", type=Path, metavar="FILE", help="vectors that `encode` wrote: .npz or .parquet"
    )
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--image", metavar="IMAGE", help="a file, or s3://bucket/key")
    query.add_argument("--text", metavar="TEXT", help="a text, such as 'a red bicycle'")
    parser.add_argument(
        "-k", type=int, default=MOST, metavar="N", help="images to find (default: %(default)s)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the pictures")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options.add_service(parser)


@dataclass(frozen=True)
class Hit:
    """An image that was found."""

    name: str
    cosine: float


def run(arguments: argparse.Namespace) -> int:
    """Run the command; gives the exit status.

    Raises:
        EncoderError: the file cannot be read, or there is no vector of the image or text.
    """
    if arguments.k < 1:
        raise ValueError("-k must be at least 1")
    made_by = files.fingerprint(arguments.vectors)
    with options.connect(arguments, arguments.url) as client:
        found = fingerprint_of(client)
        if found != made_by:
            raise FingerprintChanged(made_by, found)
        if arguments.image is not None:
            query, title = client.encode_image(arguments.image), arguments.image
        else:
            query, title = client.encode_text(arguments.text), arguments.text
    hits = nearest(arguments.vectors, query, arguments.k)
    if arguments.html:
        rows = [(hit.name, hit.cosine) for hit in hits]
        arguments.html.write_text(contact_sheet.page(title, rows), encoding="utf-8")
    if arguments.json:
        print(json.dumps([vars(hit) for hit in hits], indent=2))
    else:
        print("\n".join(f"{hit.cosine:.4f}  {hit.name}" for hit in hits))
    return 0


def nearest(path: Path, query: Vector, k: int) -> list[Hit]:
    """The `k` images of a file of vectors whose cosine to `query` is largest, in that order.

    Raises:
        UnreadableVectors: it is no file of vectors.
    """
    hits: list[Hit] = []
    for table in files.read(path):
        if not table.names:
            continue
        cosines = table.vectors @ query
        best = np.argsort(-cosines, kind="stable")[:k]
        hits += [Hit(table.names[place], float(cosines[place])) for place in best]
        hits = sorted(hits, key=lambda hit: -hit.cosine)[:k]
    return hits
