"""Vectors out: where ``CLIP_OUTPUT`` says, under names made of what went in, so that a retry overwrites."""

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from handler import s3, schemas
from handler.encoder import Embedding, Encoder
from handler.errors import OutputUnavailable

PER_PUT = 500
"""Vectors that S3 Vectors takes in one request."""

log = logging.getLogger("clip")


class Row(NamedTuple):
    """One vector and where its image lies."""

    source: s3.Source
    embedding: Embedding


class Group(NamedTuple):
    """What one S3 object will hold: `rows`, those of the `sources` asked for that could be encoded."""

    sources: Sequence[s3.Source]
    rows: Sequence[Row]


def write(groups: Sequence[Group], encoder: Encoder) -> None:
    """Write every row to ``CLIP_OUTPUT``; when this returns, they are there.

    Raises:
        OutputUnavailable: some or all could not be written; writing all of them again does no harm.
    """
    groups = [group for group in groups if group.rows]
    try:
        if encoder.config.output.startswith("s3://"):
            list(s3.threads().map(lambda group: _put_object(group, encoder), groups))
        else:
            _put_vectors([row for group in groups for row in group.rows], encoder)
    except Exception as error:  # boto3's errors have no common base
        log.warning("%s cannot be written: %s: %s", encoder.config.output, type(error).__name__, error)
        raise OutputUnavailable("the vectors could not be written: the log says why") from error


def location(sources: Sequence[s3.Source], encoder: Encoder) -> str:
    """Where the vectors of `sources`, asked for together, are written.

    An object ``<prefix>/<fingerprint>/<hash of the sources>.npz``, or the index.
    """
    if not encoder.config.output.startswith("s3://"):
        return encoder.config.output
    names = json.dumps([str(source) for source in sources])  # a key may hold any character
    name = hashlib.sha256(names.encode()).hexdigest()[:32]
    return f"{encoder.config.output.rstrip('/')}/{encoder.fingerprint}/{name}.npz"


def vector_key(source: s3.Source) -> str:
    """The key of an object's vector in an index: its name, or a hash of one that is too long."""
    name = str(source)
    return name if len(name) <= 1024 else f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def to_npz(rows: Sequence[Row], fingerprint: str) -> bytes:
    """Rows -> a NumPy archive of ``bucket``, ``key``, ``version_id``, ``etag`` [n], ``embedding`` [n, 512].

    ``fingerprint`` is one for all. ``numpy.load`` reads it without pickle.
    """
    file = io.BytesIO()
    sources = [row.source for row in rows]
    np.savez(
        file,
        bucket=np.array([source.bucket for source in sources]),
        key=np.array([source.key for source in sources]),
        version_id=np.array([source.version_id for source in sources]),
        etag=np.array([source.etag for source in sources]),
        embedding=np.stack([row.embedding for row in rows]),
        fingerprint=np.array(fingerprint),
    )
    return file.getvalue()


def _put_object(group: Group, encoder: Encoder) -> None:
    bucket, _, key = location(group.sources, encoder).removeprefix("s3://").partition("/")
    body = to_npz(group.rows, encoder.fingerprint)
    s3.client("s3").put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/octet-stream")


def _put_vectors(rows: Sequence[Row], encoder: Encoder) -> None:
    bucket, _, index = encoder.config.output.removeprefix("s3vectors://").partition("/")
    for start in range(0, len(rows), PER_PUT):
        vectors = [_vector(row, encoder.fingerprint) for row in rows[start : start + PER_PUT]]
        s3.client("s3vectors").put_vectors(vectorBucketName=bucket, indexName=index, vectors=vectors)


def _vector(row: Row, fingerprint: str) -> dict[str, object]:
    source = row.source
    metadata = {"bucket": source.bucket, "key": source.key, "etag": source.etag, "fingerprint": fingerprint}
    if source.version_id:
        metadata["version_id"] = source.version_id
    return {
        "key": vector_key(source),
        "data": {"float32": schemas.to_floats(row.embedding)},
        "metadata": metadata,
    }
