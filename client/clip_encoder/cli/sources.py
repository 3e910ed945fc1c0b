"""Which images a command means: files, folders, patterns, buckets, and lists of them."""

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from clip_encoder.errors import EncoderError

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif"),
    *(".bmp", ".tif", ".tiff", ".avif", ".mpo"),
)
"""How the names of images end. In folders and buckets all else is passed over."""
STDIN = "-"


@dataclass(frozen=True)
class Source:
    """One image that is meant."""

    name: str
    """Its path, or its ``s3://`` address."""
    stamp: str
    """What is other when the image has changed; empty where that cannot be told."""


class NoSuchPath(EncoderError):
    """A path that a command names is not there, and matches nothing."""

    def __init__(self, path: str) -> None:
        super().__init__("no_such_path", f"{path}: no such file or folder, and nothing matches it")


def find(paths: Iterable[str], stdin: TextIO) -> Iterator[Source]:
    """Every image that `paths` mean, one at a time.

    A path is a file, a folder (searched to the bottom, for names that end like an image's), a
    pattern such as ``'photos/**/*.jpg'``, an object ``s3://bucket/key``, a bucket or prefix
    ``s3://bucket/prefix/``, or ``-`` for a list of paths on `stdin`, one a line.

    Raises:
        NoSuchPath: a path is none of these. One in a list on stdin is a source all the same, and
            fails alone.
        EncoderError: a bucket cannot be listed.
    """
    for path in paths:
        if path == STDIN:
            yield from _listed(stdin)
        elif path.startswith("s3://"):
            yield from _in_s3(path)
        elif os.path.lexists(path):
            yield from _on_disk(path)
        else:
            yield from _matching(path)


def _listed(lines: TextIO) -> Iterator[Source]:
    for line in lines:
        path = line.rstrip("\r\n")
        if path.startswith("s3://"):
            yield from _in_s3(path)
        elif path:
            yield from _on_disk(path)


def _matching(pattern: str) -> Iterator[Source]:
    found = False
    for path in glob.iglob(pattern, recursive=True):
        found = True
        if not os.path.isdir(path):  # `**` matches folders and also what is in them
            yield _file(path)
    if not found:
        raise NoSuchPath(pattern)


def _on_disk(path: str) -> Iterator[Source]:
    if not os.path.isdir(path):
        yield _file(path)
        return
    for folder, inner, files in os.walk(path):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            if _is_image(name):
                yield _file(os.path.join(folder, name))


def _file(path: str) -> Source:
    path = os.path.normpath(path)
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return Source(path, "")
    if not stat.S_ISREG(found.st_mode):  # nobody wants to wait for what comes out of a pipe
        return Source(path, "")
    return Source(path, f"{found.st_size}-{found.st_mtime_ns}")


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def _in_s3(address: str) -> Iterator[Source]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if key and not key.endswith("/"):
        yield Source(address, "")
        return
    s3 = _s3()
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        for page in pages:
            for found in page.get("Contents", ()):
                if _is_image(found["Key"].rpartition("/")[2]):
                    yield Source(f"s3://{bucket}/{found['Key']}", found["ETag"].strip('"'))
    except (BotoCoreError, ClientError) as error:
        raise EncoderError("bucket_unlisted", f"{address} cannot be listed: {error}") from error


def _s3() -> Any:
    """A client of S3.

    Raises:
        EncoderError: boto3 is not installed, or the environment is not set up for it.
    """
    try:
        import boto3  # here: those whose images are files need none
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        detail = "listing a bucket needs boto3: pip install 'clip-encoder[aws]'"
        raise EncoderError("missing_package", detail) from error
    try:
        return boto3.client("s3")
    except BotoCoreError as error:
        raise EncoderError("bucket_unlisted", str(error)) from error
