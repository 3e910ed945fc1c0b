"""Images that lie in S3: named by a request, read side by side and ahead of the encoder.

How long one object, and all objects of a request, may take is told in `handler.aws`.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from handler import aws, telemetry
from handler.aws import Calls, Failure
from handler.budget import Budget
from handler.config import Config
from handler.errors import (
    ClipError,
    ImageTooLarge,
    InvalidField,
    OutOfTime,
    SourceChanged,
    SourceDenied,
    SourceNotAllowed,
    SourceNotFound,
    SourceUnavailable,
)
from handler.outcome import Outcome

log = logging.getLogger("clip")


@dataclass(unsafe_hash=True)
class Source:
    """One object, or one version of it."""

    bucket: str
    key: str
    version_id: str = ""
    etag: str = field(default="", compare=False)
    """What S3 said when the object was read; empty before, and where there is no such object."""
    read_at: float = field(default=0.0, compare=False)
    """When reading began, in seconds since 1970; 0 before."""

    def __post_init__(self) -> None:
        """Refuse what can name no object.

        Raises:
            InvalidField: an empty bucket or key, or half a character.
        """
        if not (self.bucket and self.key):
            raise InvalidField("an image in S3 needs a bucket and a key: s3://bucket/key")
        if re.search("[\ud800-\udfff]", str(self)):  # JSON can say it, UTF-8 cannot
            raise InvalidField("the name of an image in S3 is not valid Unicode")

    def __str__(self) -> str:
        """``s3://bucket/key``, or ``version@s3://bucket/key``: no two sources share one."""
        # A version has no "@", and comes first because a key may hold anything.
        return f"{self.version_id}{'@' if self.version_id else ''}s3://{self.bucket}/{self.key}"


File = bytes | memoryview
"""The bytes of an image file; a view where they are a piece of a request's body."""

Image = File | Source
"""An image as a request gives it: the bytes of its file, or its place."""


def parse_uri(uri: str) -> Source:
    """``s3://bucket/key`` -> source; the key is taken as it is, not percent-decoded.

    Raises:
        InvalidField: no bucket or no key.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return Source(bucket, key)


def fetch(
    images: Iterable[Outcome[Image]], config: Config, budget: Budget
) -> Iterator[Outcome[File]]:
    """Replace every source by its bytes, or its error, in order; what is no source passes through.

    While the caller works on one, up to `aws.AHEAD` more are read: so many objects, each of at most
    ``max_image_bytes``, may be in memory beside those that the caller keeps. A source fails alone,
    with SourceNotAllowed, SourceNotFound, SourceDenied, ImageTooLarge, SourceUnavailable or
    OutOfTime.
    """
    with Calls(budget.until.read) as calls:
        begun = (_begin(image, config, budget, calls) for image in images)
        yield from aws.in_order(begun)


def _begin(
    image: Outcome[Image], config: Config, budget: Budget, calls: Calls
) -> Callable[[], Outcome[File]]:
    """Begin to read `image`, if it is in S3: a function that waits for its bytes."""
    source = image.value
    if not isinstance(source, Source):
        sent: Outcome[File] = Outcome(source, image.error)
        return lambda: sent
    if source.bucket not in config.s3_buckets:
        refused = SourceNotAllowed(
            "images are not read from that bucket: CLIP_S3_BUCKETS does not list it"
        )
        return lambda: Outcome(error=refused)
    read = partial(_read, source, config.max_image_bytes, budget)
    late = partial(_late, source, budget.until.read)
    result = calls.begin(lambda: Outcome[File].of(read), lambda: Outcome(error=late()))
    return partial(_wait, result)


def _wait(result: Callable[[], Outcome[File]]) -> Outcome[File]:
    with telemetry.timed("s3_wait_ms"):
        return result()


def _read(source: Source, limit: int, budget: Budget) -> File:
    budget.check()  # here too, because what cannot be decoded need not be read
    source.read_at = time.time()
    try:
        return aws.ask(partial(_download, source, limit))
    except Failure as failure:
        raise _as_clip_error(source, failure) from None


def _download(source: Source, limit: int) -> bytes:
    version = {"VersionId": source.version_id} if source.version_id else {}
    answer = aws.client("s3").get_object(Bucket=source.bucket, Key=source.key, **version)
    with closing(answer["Body"]) as body:
        source.etag = answer["ETag"].strip('"')
        # The answer's head says how much would follow; nothing of it has been read yet.
        size = answer["ContentLength"]
        if size > limit:
            raise ImageTooLarge(f"the image has {size:,} bytes, the limit is {limit:,}")
        data: bytes = body.read()
        return data


def changed(sources: Sequence[Source], until: float) -> dict[Source, ClipError]:
    """Look at each source once more: the errors of those that are not what they were when read.

    `until` is a time of `time.monotonic` at which this is over.

    SourceChanged: replaced, removed or made since. SourceDenied, SourceUnavailable, OutOfTime: it
    is not known.
    """
    with telemetry.timed("s3_wait_ms"), Calls(until) as calls:
        begun = (calls.begin(partial(_look, one), partial(_late, one, until)) for one in sources)
        errors = dict(zip(sources, aws.in_order(begun), strict=True))
    return {source: error for source, error in errors.items() if error}


def _look(source: Source) -> ClipError | None:
    """What is wrong with the vector of `source` by now; None: nothing."""
    try:
        etag = aws.ask(partial(_etag, source))
    except Failure as failure:
        problem = _as_clip_error(source, failure)
        if not isinstance(problem, SourceNotFound):
            return problem
        etag = ""
    if etag == source.etag:
        return None
    return SourceChanged("the object changed meanwhile: try again")


def _etag(source: Source) -> str:
    head = aws.client("s3").head_object(Bucket=source.bucket, Key=source.key)
    return str(head["ETag"]).strip('"')


# --- what S3's refusals mean ----------------------------------------------------------------------

_NO_NAME = {"KeyTooLongError", "InvalidURI", "InvalidBucketName", "InvalidArgument"}
"""Codes for a name that no object, or no version, can have. What is not there for certain loses its
vector (see `batch`), so a refusal that is not understood must not be taken for absence."""


def _late(source: Source, until: float) -> ClipError:
    """The error of a source whose call did not end in time."""
    if time.monotonic() >= until:
        return OutOfTime("the function's time ended before S3's answer: send this image again")
    log.warning("%s cannot be read: S3 does not answer, or too slowly", source)
    return SourceUnavailable("S3 did not deliver the object in time: try again")


def _as_clip_error(source: Source, failure: Failure) -> ClipError:
    """What S3 answered -> what the caller should do: give up, or try again."""
    code, status = failure.code, failure.status
    if code == "InvalidObjectState":
        return SourceDenied("the object is archived: restore it first")
    if failure.may_pass:
        log.warning("%s cannot be read: %s", source, failure)
        return SourceUnavailable("S3 did not deliver the object: try again")
    is_delete_marker = status == 405
    if status == 404 or is_delete_marker or code in _NO_NAME:
        return SourceNotFound("there is no such object, or no such version of it")
    is_denied = status in (401, 403)
    is_encrypted = code.startswith("KMS.") or code == "InvalidRequest"  # with a key we may not use
    if not (is_denied or is_encrypted):  # then nobody knows what would help
        log.warning("%s cannot be read: %s", source, failure)
    return SourceDenied(
        "S3 denies the object to this service: its role lacks s3:GetObject, or its key"
    )
