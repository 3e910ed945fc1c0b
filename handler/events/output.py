"""Vectors out: where ``CLIP_OUTPUT`` says, under names made of what went in, so that a repeat
overwrites.

In an index of S3 Vectors each object has one vector, under `vector_key`. In a bucket each object
has a file of its own, ``<prefix>/<fingerprint>/objects/<hash of its name>.npz``, or shares one
with its batch of a Distributed Map, ``<prefix>/<fingerprint>/runs/<run>/<hash of its names>.npz``.
An object that has no vector any more is deleted from an index; a file names it in ``removed``.
"""

import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from handler import answers, aws
from handler.aws import Calls, Failure
from handler.encoder import Encoder
from handler.engines import Embedding
from handler.errors import ClipError, InvalidEvent, OutputRefused, OutputUnavailable
from handler.images import s3

PER_REQUEST = 500
"""Vectors that S3 Vectors puts or deletes in one request."""

log = logging.getLogger("clip")


class Entry(NamedTuple):
    """What an output should hold for one object."""

    source: s3.Source
    embedding: Embedding | None
    """None: nothing, the object has no vector any more."""


Errors = dict[s3.Source, ClipError]
"""The error of each source whose entry could not be written."""
Send = Callable[[Sequence[Entry], Encoder], object]
"""One request that writes all of the entries, or raises Failure."""


def write(
    entries: Sequence[Entry], encoder: Encoder, file: str = "", until: float = math.inf
) -> Errors:
    """Write every entry to ``CLIP_OUTPUT``: the errors of those that could not be written.

    `file`, from `run_file`, takes all of them; without one each object has a place of its own.
    `until` is a time of `time.monotonic` at which this is over. An entry fails alone:
    OutputUnavailable may pass, OutputRefused will not. To write twice does no harm.
    """
    sound = [
        entry for entry in entries if entry.embedding is None or np.isfinite(entry.embedding).all()
    ]
    refused = {entry.source for entry in entries} - {entry.source for entry in sound}
    errors: Errors = {
        source: OutputRefused("the vector holds a number that is not finite") for source in refused
    }
    if not sound:
        return errors
    with Calls(until) as calls:
        return errors | _send(sound, encoder, file, calls)


def _send(entries: Sequence[Entry], encoder: Encoder, file: str, calls: Calls) -> Errors:
    if file:
        return _attempt(partial(_put_file, place=file), entries, encoder, calls)()
    if is_index(encoder):
        vectors = [entry for entry in entries if entry.embedding is not None]
        removed = [entry for entry in entries if entry.embedding is None]
        return _in_requests(_put_vectors, vectors, encoder, calls) | _in_requests(
            _delete_vectors, removed, encoder, calls
        )
    errors: Errors = {}
    begun = (_attempt(_put_own_file, [entry], encoder, calls) for entry in entries)
    for failed in aws.in_order(begun):
        errors |= failed
    return errors


def is_index(encoder: Encoder) -> bool:
    """Whether ``CLIP_OUTPUT`` is an index of S3 Vectors."""
    return encoder.config.output.startswith("s3vectors://")


def location(source: s3.Source, encoder: Encoder) -> str:
    """Where the vector of `source` is written: the file of its own, or the index."""
    if is_index(encoder):
        return encoder.config.output
    return f"{_folder(encoder)}/objects/{_hash(str(source))}.npz"


def run_file(run: str, sources: Sequence[s3.Source], encoder: Encoder) -> str:
    """The file of a run's batch, which asks for `sources`; empty where the output is an index.

    Raises:
        InvalidEvent: `run` cannot be the name of a folder.
    """
    if not re.fullmatch(r"[^/\s\ud800-\udfff]{1,200}", run):
        raise InvalidEvent(
            "BatchInput.run must have 1 to 200 characters, none of them a slash or a space"
        )
    if is_index(encoder):
        return ""
    names = json.dumps([str(source) for source in sources])  # a key may hold any character
    return f"{_folder(encoder)}/runs/{run}/{_hash(names)}.npz"


def vector_key(source: s3.Source) -> str:
    """The key of an object's vector in an index: its name, or a hash of one that is too long."""
    name = str(source)
    return name if len(name) <= 1024 else f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def to_npz(entries: Sequence[Entry], encoder: Encoder) -> bytes:
    """Entries -> a NumPy archive, which ``numpy.load`` reads without pickle.

    ``name``, ``bucket``, ``key``, ``version_id``, ``etag``, ``read_at`` [n], ``embedding`` [n,
    size]; ``removed``, ``removed_at`` [m]: the names of objects found to have no vector any more;
    ``fingerprint``. Times are in seconds since 1970, taken before the object was read.
    """
    file = io.BytesIO()
    rows = [entry for entry in entries if entry.embedding is not None]
    sources = [entry.source for entry in rows]
    size = encoder.model.embedding_size
    removed = [entry.source for entry in entries if entry.embedding is None]
    np.savez(
        file,
        name=np.array([str(source) for source in sources], np.str_),
        bucket=np.array([source.bucket for source in sources], np.str_),
        key=np.array([source.key for source in sources], np.str_),
        version_id=np.array([source.version_id for source in sources], np.str_),
        etag=np.array([source.etag for source in sources], np.str_),
        read_at=np.array([source.read_at for source in sources], np.float64),
        embedding=np.array([entry.embedding for entry in rows], np.float32).reshape(
            len(rows), size
        ),
        removed=np.array([str(source) for source in removed], np.str_),
        removed_at=np.array([source.read_at for source in removed], np.float64),
        fingerprint=np.array(encoder.fingerprint),
    )
    return file.getvalue()


def _folder(encoder: Encoder) -> str:
    return f"{encoder.config.output.rstrip('/')}/{encoder.fingerprint}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# --- one request, and what is made of its failure -------------------------------------------------


def _attempt(
    send: Send, entries: Sequence[Entry], encoder: Encoder, calls: Calls
) -> Callable[[], Errors]:
    """Begin to send `entries`: a function that waits, and gives the error of each if that fails."""

    def late() -> Errors:
        log.warning("%s cannot be written: no answer, or too slow", encoder.config.output)
        return _all(entries, _unavailable())

    return calls.begin(partial(_ask, send, entries, encoder), late)


def _ask(send: Send, entries: Sequence[Entry], encoder: Encoder) -> Errors:
    try:
        send(entries, encoder)
    except Failure as failure:
        log.warning("%s cannot be written: %s", encoder.config.output, failure)
        return _all(entries, _as_clip_error(failure))
    return {}


def _all(entries: Sequence[Entry], error: ClipError) -> Errors:
    return {entry.source: error for entry in entries}


def _in_requests(send: Send, entries: Sequence[Entry], encoder: Encoder, calls: Calls) -> Errors:
    """Send `entries` in as few requests as may be.

    A request that is refused is sent again in halves, until what is at fault stands alone.
    """
    if not entries:
        return {}
    if len(entries) <= PER_REQUEST:
        errors = _attempt(send, entries, encoder, calls)()
        is_refused = any(isinstance(error, OutputRefused) for error in errors.values())
        if not is_refused or len(entries) == 1:
            return errors
    half = len(entries) // 2
    first, second = entries[:half], entries[half:]
    return _in_requests(send, first, encoder, calls) | _in_requests(send, second, encoder, calls)


_MISSING = {"NoSuchBucket", "NotFoundException"}
"""Codes for an output that does not exist, or not yet: the fault of no vector."""


def _as_clip_error(failure: Failure) -> ClipError:
    if failure.may_pass or failure.code in _MISSING:
        return _unavailable()
    return OutputRefused("the output refuses the vector: the log says why")


def _unavailable() -> ClipError:
    return OutputUnavailable("the vector could not be written: the log says why")


# --- what is sent ---------------------------------------------------------------------------------


def _put_file(entries: Sequence[Entry], encoder: Encoder, place: str) -> None:
    bucket, _, key = place.removeprefix("s3://").partition("/")
    body = to_npz(entries, encoder)
    kind = "application/octet-stream"
    aws.ask(
        lambda: aws.client("s3").put_object(Bucket=bucket, Key=key, Body=body, ContentType=kind)
    )


def _put_own_file(entries: Sequence[Entry], encoder: Encoder) -> None:
    (entry,) = entries
    _put_file(entries, encoder, location(entry.source, encoder))


def _put_vectors(entries: Sequence[Entry], encoder: Encoder) -> None:
    vectors = [_vector(entry, encoder.fingerprint) for entry in entries]
    index = _index(encoder)
    aws.ask(lambda: aws.client("s3vectors").put_vectors(**index, vectors=vectors))


def _delete_vectors(entries: Sequence[Entry], encoder: Encoder) -> None:
    keys = [vector_key(entry.source) for entry in entries]
    index = _index(encoder)
    aws.ask(lambda: aws.client("s3vectors").delete_vectors(**index, keys=keys))


def _index(encoder: Encoder) -> dict[str, str]:
    bucket, _, index = encoder.config.output.removeprefix("s3vectors://").partition("/")
    return {"vectorBucketName": bucket, "indexName": index}


def _vector(entry: Entry, fingerprint: str) -> dict[str, Any]:
    source, embedding = entry
    assert embedding is not None
    metadata = {
        "bucket": source.bucket,
        "key": source.key,
        "etag": source.etag,
        "fingerprint": fingerprint,
    }
    if source.version_id:
        metadata["version_id"] = source.version_id
    return {
        "key": vector_key(source),
        "data": {"float32": answers.to_floats(embedding)},
        "metadata": metadata,
    }
