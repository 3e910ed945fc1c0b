"""``clip-encoder encode``: vectors of many images, into a file."""

import argparse
import json
import sys
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from clip_encoder import files
from clip_encoder.cli import options, progress, sources
from clip_encoder.cli.journal import Journal
from clip_encoder.cli.sources import Source
from clip_encoder.client import Client
from clip_encoder.errors import EncoderError, ServiceUnusable

SHARD_SIZE = 50_000
"""Vectors in one file, by default: 100 MB. A file is read as a whole, and written row by row."""

SUMMARY = "encode images into a file of vectors"
DESCRIPTION = """\
Encode images into a file of vectors, which `similar` and `check` read.

A run that was stopped goes on where it was when the same command is given again. A later run
encodes only what is new or has changed since, and keeps all other vectors. Vectors of another
fingerprint are never mixed in. The exit status is 0 if every image has its vector, 1 if some
failed, and 2 if the run could not begin or was broken off."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a file, a folder, a quoted pattern like 'photos/**/*.jpg', s3://bucket/key, "
        "s3://bucket/prefix/, or - for a list on stdin, one a line",
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        required=True,
        metavar="FILE",
        help="where the vectors go: a name that ends in .npz or .parquet",
    )
    parser.add_argument(
        "--failures",
        type=Path,
        metavar="FILE",
        help="where failures go, as lines of JSON (default: like the output, .failures.jsonl)",
    )
    parser.add_argument(
        "--shard-size",
        type=int,
        default=SHARD_SIZE,
        metavar="N",
        help="more vectors than this go into numbered files: vectors-00001.npz, ... "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="leave out vectors of an earlier run whose images are not named now",
    )
    parser.add_argument(
        "--shrink",
        action="store_true",
        help="send large JPEGs and PNGs smaller: less to upload, slightly other vectors",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options.add_load(parser)
    options.add_service(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; gives the exit status.

    Raises:
        EncoderError: the run could not begin, or was broken off.
    """
    output: Path = arguments.output
    files.check_name(output)
    if arguments.shard_size < 1:
        raise ValueError("--shard-size must be at least 1")
    shrink, concurrency = arguments.shrink, arguments.concurrency
    with options.connect(
        arguments, arguments.url, shrink=shrink, concurrency=concurrency
    ) as client:
        fingerprint = fingerprint_of(client)
        with Journal(output) as journal:
            journal.expect(fingerprint)
            client.expect(fingerprint)
            meant = journal.mean(sources.find(arguments.paths, sys.stdin))
            _encode_all(client, journal, meant, arguments.quiet)
            failed = _write_failures(journal, arguments.failures or failures_of(output))
            kept = journal.rows(arguments.prune)
            written = journal.write(arguments.shard_size, arguments.prune)
    where = str(written[0]) if len(written) == 1 else f"{written[0]} to {written[-1].name}"
    print(f"{kept:,} vectors of {fingerprint} in {where}")
    return 1 if failed else 0


def fingerprint_of(client: Client) -> str:
    """The fingerprint of the image vectors that the service makes.

    Raises:
        EncoderError: it cannot be asked, or makes none.
    """
    found = client.health().get("fingerprint")
    if not found:
        raise EncoderError("foreign_answer", "the service names no fingerprint of image vectors")
    return str(found)


def failures_of(output: Path) -> Path:
    """Where the failures go of a run whose vectors go into `output`."""
    return output.with_suffix(".failures.jsonl")


def _encode_all(client: Client, journal: Journal, meant: int, is_quiet: bool) -> None:
    """Encode what is pending.

    Raises:
        ServiceUnusable: the service cannot be used any more; what was done is saved.
    """
    taken: deque[Source] = deque()

    def images() -> Iterator[str]:
        for source in journal.pending():
            taken.append(source)
            yield source.name

    done = meant - journal.to_do()
    try:
        with progress.bar(meant, done, is_quiet=is_quiet) as bar:
            for result in client.encode_images(images()):
                source = taken.popleft()  # results come in the order of the images
                if result.error is None:
                    journal.add_vector(source, result.get())
                else:
                    journal.add_failure(source, result.error)
                bar.update()
    except (KeyboardInterrupt, ServiceUnusable):
        left = journal.to_do()
        print(
            f"{meant - left:,} of {meant:,} images are done: the same command goes on from here",
            file=sys.stderr,
        )
        raise
    finally:
        journal.save()


def _write_failures(journal: Journal, path: Path) -> int:
    """Write a line of JSON for each failure, and count them on stderr; gives their number."""
    counts: Counter[str] = Counter()
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for failure in journal.failures():
            counts[failure.code] += 1
            print(json.dumps(vars(failure)), file=file)
    if not counts:
        partial.unlink()
        path.unlink(missing_ok=True)  # of an earlier run
        return 0
    partial.replace(path)
    by_code = ", ".join(f"{count:,} {code}" for code, count in counts.most_common())
    print(f"{counts.total():,} failed ({by_code}): see {path}", file=sys.stderr)
    return counts.total()
