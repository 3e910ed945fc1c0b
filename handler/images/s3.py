"""Images that lie in S3: named by a request, read side by side and ahead of the encoder."""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from handler import telemetry
from handler.budget import Budget
from handler.config import Config
from handler.errors import (
    ClipError,
    ImageTooLarge,
    InvalidField,
    SourceChanged,
    SourceDenied,
    SourceNotAllowed,
    SourceNotFound,
    SourceUnavailable,
)
from handler.outcome import Outcome

AHEAD = 8
"""Most objects in memory, or on their way, that the encoder has not come to."""

CONNECT_TIMEOUT, READ_TIMEOUT, ATTEMPTS = 2, 5, 3
"""Seconds, and how often: with the pauses between, less than the 29 s of a synchronous request."""

log = logging.getLogger("clip")
_one_at_a_time = threading.Lock()  # boto3 makes its clients in one thread only; they serve many


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


Image = bytes | Source
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
) -> Iterator[Outcome[bytes]]:
    """Replace every source by its bytes, or its error, in order; what is no source passes through.

    While the caller works on one, up to `AHEAD` more are read. A source fails alone, with
    SourceNotAllowed, SourceNotFound, SourceDenied, ImageTooLarge, SourceUnavailable or OutOfTime.
    """
    ahead: deque[Outcome[bytes] | Future[Outcome[bytes]]] = deque()
    for image in images:
        ahead.append(_start(image, config))
        if len(ahead) > AHEAD:
            yield _finish(ahead.popleft())
    while ahead:
        yield _finish(ahead.popleft())


def changed(sources: Sequence[Source]) -> dict[Source, ClipError]:
    """Look at each source once more: the errors of those that are not what they were when they
    were read.

    SourceChanged: replaced, removed or made since. SourceDenied, SourceUnavailable: S3 does not
    say.
    """
    with telemetry.timed("s3_wait_ms"):
        now = zip(sources, threads().map(_look, sources), strict=True)
        errors = {source: _difference(source, found) for source, found in now}
    return {source: error for source, error in errors.items() if error}


def _look(source: Source) -> str | ClipError:
    """The ETag of the object as it is now; empty where there is none."""
    try:
        head = client("s3").head_object(Bucket=source.bucket, Key=source.key)
    except Exception as error:  # noqa: BLE001  # as in `_read`
        problem = _as_clip_error(source, error)
        return "" if isinstance(problem, SourceNotFound) else problem
    return str(head["ETag"]).strip('"')


def _difference(source: Source, found: str | ClipError) -> ClipError | None:
    if isinstance(found, ClipError):
        return found
    return (
        None if found == source.etag else SourceChanged("the object changed meanwhile: try again")
    )


def client(service: str) -> Any:
    """A boto3 client, made at first use: importing boto3 takes 0.2 s, which only S3 events pay."""
    with _one_at_a_time:
        return _make_client(service)


@cache
def _make_client(service: str) -> Any:
    import boto3
    from botocore.config import Config as Settings

    settings = Settings(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=2 * AHEAD,
    )
    return boto3.client(service, config=settings)


@cache
def threads() -> ThreadPoolExecutor:
    """Those that wait for AWS."""
    return ThreadPoolExecutor(AHEAD)


def _start(image: Outcome[Image], config: Config) -> Outcome[bytes] | Future[Outcome[bytes]]:
    source = image.value
    if not isinstance(source, Source):
        return Outcome(source, image.error)
    if source.bucket not in config.s3_buckets:
        return Outcome(
            error=SourceNotAllowed(
                "images are not read from that bucket: CLIP_S3_BUCKETS does not list it"
            )
        )
    return threads().submit(Outcome.of, partial(_read, source, config.max_image_bytes))


def _finish(image: Outcome[bytes] | Future[Outcome[bytes]]) -> Outcome[bytes]:
    if not isinstance(image, Future):
        return image
    with telemetry.timed("s3_wait_ms"):
        return image.result()


def _read(source: Source, limit: int) -> bytes:
    version = {"VersionId": source.version_id} if source.version_id else {}
    source.read_at = time.time()
    try:
        response = client("s3").get_object(Bucket=source.bucket, Key=source.key, **version)
        with response["Body"] as body:
            source.etag = response["ETag"].strip('"')
            # The answer's head says how much would follow; nothing of it has been read yet.
            size = response["ContentLength"]
            if size > limit:
                raise ImageTooLarge(f"the image has {size:,} bytes, the limit is {limit:,}")
            data: bytes = body.read()
            return data
    except ClipError:
        raise
    except Exception as error:  # noqa: BLE001  # botocore's, and urllib3's which it lets through
        raise _as_clip_error(source, error) from None


_CREDENTIALS = {"ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_PASSING = {"RequestTimeout", "SlowDown", "RequestTimeTooSkewed", "OperationAborted", *_CREDENTIALS}
"""Codes that come with a 4xx and are no fault of the object's."""
_NO_NAME = {"KeyTooLongError", "InvalidURI", "InvalidBucketName", "InvalidArgument"}
"""Codes for a name that no object, or no version, can have. What is not there for certain loses its
vector (see `batch`), so a refusal that is not understood must not be taken for absence."""


def _as_clip_error(source: Source, error: Exception) -> ClipError:
    """What S3 answered -> what the caller should do: give up, or try again."""
    code, status = answered(error)
    if code == "InvalidObjectState":
        return SourceDenied("the object is archived: restore it first")
    if may_pass(error):
        log.warning("%s cannot be read: %s: %s", source, type(error).__name__, error)
        return SourceUnavailable("S3 did not deliver the object: try again")
    if status in (404, 405) or code in _NO_NAME:  # 405: the version is a delete marker
        return SourceNotFound("there is no such object, or no such version of it")
    encrypted = code.startswith("KMS.") or code == "InvalidRequest"  # under a key we have no use of
    if status not in (401, 403) and not encrypted:  # then it is not known what would help
        log.warning("%s cannot be read: %s: %s", source, type(error).__name__, error)
    return SourceDenied(
        "S3 denies the object to this service: its role lacks s3:GetObject, or its key"
    )


def may_pass(error: Exception) -> bool:
    """Whether AWS may answer otherwise when the same is asked again: no answer, its own fault, a
    throttle.
    """
    code, status = answered(error)
    return code in _PASSING or "Throttl" in code or status == 429 or not 400 <= status < 500


def answered(error: Exception) -> tuple[str, int]:
    """AWS's error code and HTTP status; ``""`` and 500 where it did not answer."""
    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
