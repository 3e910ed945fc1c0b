"""Fetch one file over HTTP or from S3, or find it on disk, and verify it by its sha256."""

import fcntl
import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from export import ExportError

TIMEOUT = 15
"""Seconds that a server may take to accept a connection, and between two blocks of its answer."""
ATTEMPTS = 5
"""Times in a row that a download may break off without a byte having come."""
BLOCK = 1 << 20


class DownloadError(ExportError):
    """The file could not be fetched, or is another one."""


def fetch(address: str, names: Mapping[str, str], directory: Path) -> Path:
    """Return the path of the file at `address`, whose sha256 is one of `names`.

    `address`: ``http://``, ``https://``, ``s3://bucket/key``, or a path. What is downloaded stays
    in `directory`, under the name that belongs to its sha256. A download that broke off goes on
    there, even in another process.

    Raises:
        DownloadError: it was not reached, broke off too often, or has another digest.
    """
    scheme = urllib.parse.urlsplit(address).scheme
    transports = {"http": _over_http, "https": _over_http, "s3": _from_s3}
    if scheme not in transports:
        return verified(Path(address.removeprefix("file://")).expanduser(), names)
    partial = partial_of(address, directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        transports[scheme](address, partial)
        try:
            verified(partial, names)
        except DownloadError:
            partial.unlink(missing_ok=True)  # or the next one would go on with wrong bytes
            raise
        return partial.replace(directory / names[sha256_of(partial)])


def partial_of(address: str, directory: Path) -> Path:
    """Where a download of `address` goes on; named by it, so that it goes on with the same file."""
    name = urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1]
    return directory / f"{name}.{hashlib.sha256(address.encode()).hexdigest()[:12]}.part"


def sha256_of(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verified(path: Path, sha256: Collection[str]) -> Path:
    """Return `path`, the file of which has one of the digests `sha256`.

    Raises:
        DownloadError: it has another, or cannot be read.
    """
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise DownloadError(error.strerror or str(error)) from error
    if digest not in sha256:
        expected = " or ".join(short[:12] for short in sha256)
        raise DownloadError(
            f"other bytes than expected: sha256 {digest[:12]}..., not {expected}..."
        )
    return path


def _over_http(url: str, partial: Path) -> None:
    """Download into `partial`, from where it ends, as often as the server breaks off."""
    failed = 0
    while True:
        before = _size(partial)
        try:
            _append(url, partial)
        except urllib.error.HTTPError as error:
            if error.code != 416:  # it has no byte more
                raise DownloadError(f"HTTP {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            failed = failed + 1 if _size(partial) <= before else 0
            # A server that cannot be reached at all is not asked again.
            if failed == ATTEMPTS or not _size(partial):
                raise DownloadError(_reason(error)) from error
            continue
        return


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None) or error
    return getattr(inner, "strerror", None) or str(inner)


def _append(url: str, partial: Path) -> None:
    """Ask for the rest of the file once, and append what comes.

    Raises:
        OSError, http.client.HTTPException: not reached, or broke off; what came is in `partial`.
    """
    start = _size(partial)
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # http or https
    with urllib.request.urlopen(request, timeout=TIMEOUT) as source:  # noqa: S310
        if source.status != 206:  # the whole file, from a server that knows no ranges
            start = 0
        length = source.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            partial.open("ab") as output,
            tqdm(
                total=total, initial=start, desc=_title(partial), unit="B", unit_scale=True
            ) as bar,
        ):
            output.truncate(start)
            while block := source.read(BLOCK):
                output.write(block)
                bar.update(len(block))
    if total is not None and _size(partial) < total:
        raise OSError(f"broke off after {_size(partial):,} of {total:,} bytes")


def _from_s3(address: str, partial: Path) -> None:
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    url = urllib.parse.urlsplit(address)
    key = url.path.lstrip("/")
    try:
        s3 = boto3.client("s3")
        size = s3.head_object(Bucket=url.netloc, Key=key)["ContentLength"]
        with tqdm(total=size, desc=_title(partial), unit="B", unit_scale=True) as bar:
            s3.download_file(url.netloc, key, str(partial), Callback=bar.update)
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise DownloadError(str(error)) from error


def _title(partial: Path) -> str:
    return partial.name.split(".")[0]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Wait until no other process downloads into `partial`."""
    lock = partial.with_suffix(".lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    lock.unlink(missing_ok=True)
