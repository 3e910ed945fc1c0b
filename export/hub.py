"""Files of Hugging Face, by its own library: its cache, mirrors and tokens work as usual.

``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` are read by the library itself.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# Unless told not to before it is imported, the library reports its use to Hugging Face.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import httpx
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from export import ExportError
from export.download import TIMEOUT, DownloadError, verified

PREFIX = "hf:"
"""How a checkpoint is named that is on Hugging Face: ``hf:organisation/name[@revision]``."""


@dataclass(frozen=True)
class File:
    """One file of one commit."""

    repository: str
    revision: str
    """Hex digits of the commit."""
    name: str
    sha256: str

    @property
    def unique(self) -> str:
        """A name for it in a folder that it shares with files of other repositories."""
        return f"{self.repository.rsplit('/', 1)[-1]}-{self.name}"

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision[:7]} {self.name}"


class Snapshot(NamedTuple):
    """Some files of one commit, in a folder of the library's cache."""

    asked: str
    """What was asked for: ``hf:organisation/name[@revision]``."""
    folder: Path
    repository: str
    revision: str
    """Hex digits of the commit."""

    @property
    def name(self) -> str:
        """The repository and the commit's first digits."""
        return f"{self.repository}@{self.revision[:7]}"


def cached(file: File) -> Path | None:
    """Return the path of a file in the cache, verified; None: it is not there.

    Raises:
        ExportError: it has another sha256 than expected.
    """
    found = try_to_load_from_cache(file.repository, file.name, revision=file.revision)
    return verified(Path(found), [file.sha256]) if isinstance(found, str) else None


def fetch(file: File) -> Path:
    """Download a file into the cache and return its path, verified.

    Raises:
        ExportError: it was not reached, refused, or has another sha256 than expected.
    """
    path = _download(file.repository, file.name, file.revision)
    try:
        return verified(path, [file.sha256])
    except DownloadError:  # a damaged cache
        path = _download(file.repository, file.name, file.revision, again=True)
        return verified(path, [file.sha256])


def fetch_one(name: str, choices: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> Snapshot:
    """Download a checkpoint, ``hf:organisation/name[@revision]``, into the cache.

    Of `choices`, each a configuration, the weights that may stand beside it (of which the first
    that exists is taken) and further files that may be missing, the first that exists is taken.

    Raises:
        ExportError: not reached, refused, no such repository, or it has none of `choices`.
    """
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if not match:
        raise ExportError(f"{name}: write hf:organisation/name or hf:organisation/name@revision")
    repository, revision = match.groups()
    reasons: list[str] = []
    for configuration, weights, others in choices:
        path = _maybe(repository, configuration, revision, reasons)
        if path is None:
            continue
        # From here on by its commit, so that all files are of one, whatever is pushed meanwhile.
        commit = path.parent.name
        if any(_maybe(repository, file, commit, reasons) for file in weights):
            for file in others:
                _maybe(repository, file, commit, reasons)
            return Snapshot(name, path.parent, repository, commit)
    wanted = "; or ".join(f"{config} and {' or '.join(files)}" for config, files, _ in choices)
    raise ExportError(f"nothing was read of {name}: {reasons[0]}. It needs {wanted}")


def _maybe(repository: str, name: str, revision: str | None, reasons: list[str]) -> Path | None:
    try:
        return _download(repository, name, revision)
    except DownloadError as error:
        reasons.append(str(error))
        return None


def _download(repository: str, name: str, revision: str | None, again: bool = False) -> Path:
    """Download a file, or take it from the cache where the server cannot be asked.

    Raises:
        DownloadError: neither is possible; the text says why the server was of no use.
    """
    url = hf_hub_url(repository, name, revision=revision)
    try:
        # Asked first, because the download itself would try to reach a server for 20 s.
        get_hf_file_metadata(url, timeout=TIMEOUT)
    except RemoteEntryNotFoundError as error:
        raise DownloadError(f"{repository} has no {name}") from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{repository} has no revision {revision}") from error
    except RepositoryNotFoundError as error:  # which includes those that ask for consent
        raise DownloadError(
            f"there is no {repository}, or it is not open to all: HF_TOKEN names who asks"
        ) from error
    except (OSError, httpx.HTTPError, ValueError) as error:
        cached = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        raise DownloadError(_first_line(error)) from error
    try:
        return Path(hf_hub_download(repository, name, revision=revision, force_download=again))
    except (OSError, httpx.HTTPError, ValueError) as error:
        raise DownloadError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    return next((line for line in text.splitlines() if line.strip()), type(error).__name__)
