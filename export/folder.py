"""The folder that an export writes, and how a new model takes an old one's place in it.

``with replacing(out) as new`` gives a folder to write the new model into. The old model stays as it
is until ``new.publish()``, and for good if that is never reached. There are two ways to publish:

- Whole: the new folder is renamed to `out`, or exchanged with it, in one step of the kernel.
- File by file, where that cannot be done: `out` is the current folder or a mount point, it holds
  files that are not ours, or the system has no such step. ``model.json``, which no reader does
  without, leaves first and arrives last. If this breaks off, it is undone: at once, or by the next
  export if the process was killed.
"""

import ctypes
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export import ExportError

CARD = "model.json"
PARTIAL = ".export-partial"
"""In the folder itself: the new model, until its files take their places one by one."""
REPLACED = ".export-replaced"
"""In the folder itself: the old model, until all of the new one's files are in their places."""


class Replacement:
    """A new model that is being written for the folder `target`."""

    def __init__(self, directory: Path, target: Path) -> None:
        self.directory = directory
        """Where to write the new model's files; empty at first."""
        self.target = target
        """The folder to replace: a real path without links and ``..``. It need not exist."""

    def publish(self) -> None:
        """Put the new model in the place of the old one.

        Raises:
            ExportError: a new file would overwrite one that is not ours.
            OSError: a file cannot be moved.
            After either, the old model is where it was.
        """
        if _only_file_by_file(self.target) or not self._publish_whole():
            self._publish_file_by_file()

    def _publish_whole(self) -> bool:
        """Rename or exchange the folder. Where that cannot be done: change nothing, give False."""
        try:
            if self.target.exists():
                shutil.copymode(self.target, self.directory)
            if _is_empty(self.target):
                self.directory.rename(self.target)
            else:
                _exchange(self.directory, self.target)
        except OSError:
            return False
        return True

    def _publish_file_by_file(self) -> None:
        old = [name for name in files(self.target) if (self.target / name).is_file()]
        new = files(self.directory)
        for name in new:
            if name not in old and os.path.lexists(self.target / name):
                raise ExportError(f"{self.target / name} is in the way and not ours: move it")
        partial, replaced = self.target / PARTIAL, self.target / REPLACED
        if self.directory != partial:
            # This may copy, from another file system. What follows are renames within one.
            shutil.move(self.directory, partial)
        try:
            replaced.mkdir()
            for name in old:
                (self.target / name).rename(replaced / name)
            for name in reversed(new):
                (partial / name).rename(self.target / name)
        except BaseException:
            _undo(self.target)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def replacing(out: Path) -> Iterator[Replacement]:
    """Give an empty folder for a new model that is to be published as `out`.

    `out` may be a link, which stays; what it points at is replaced.

    Raises:
        ExportError: `out` holds something else than a model, or another export is writing there.
        OSError: nothing can be written there.
    """
    target = _resolved(out)
    if target.exists() and not target.is_dir():
        raise ExportError(f"{out} is a file, not a folder: choose another --out")
    if not _is_empty(target) and not _holds_a_model(target):
        raise ExportError(f"{out} is not empty and holds no model: choose another --out")
    directory = target.with_name(f".{target.name}.partial")
    if _only_file_by_file(target):
        directory = target / PARTIAL
    with _locked(directory):
        _undo(target)
        for leftover in directory.iterdir():
            leftover.unlink()
        try:
            yield Replacement(directory, target)
        finally:
            # What is left there is an unfinished model, or after an exchange the old one.
            for folder in (directory, target / PARTIAL):
                shutil.rmtree(folder, ignore_errors=True)


def _resolved(out: Path) -> Path:
    """The real path of `out`, which need not exist."""
    try:
        target = out.resolve()
    except RuntimeError:  # a link that leads to itself, up to Python 3.12
        target = out
    if target.is_symlink():  # the same, from 3.13 on
        raise ExportError(f"{out} is a link that leads to itself: choose another --out")
    return target


def _is_empty(target: Path) -> bool:
    """Whether `target` is missing, or holds nothing but what a killed export left."""
    left = {PARTIAL, REPLACED, *files(target / PARTIAL)}
    return not target.exists() or set(os.listdir(target)) <= left


def _holds_a_model(target: Path) -> bool:
    """Whether `target` holds a model of ours, of any version; `_undo` may have to bring it back."""
    return bool(files(target) or files(target / REPLACED))


def files(folder: Path) -> list[str]:
    """Names of the model's files in `folder`, ``model.json`` first; none where no model is."""
    try:
        card = json.loads((folder / CARD).read_bytes())
        # Ours are ViT-B/32 and its like, or a repository and a commit on Hugging Face.
        if not isinstance(card["format"], int) or not re.match("ViT-|.+/.+@", card["model"]):
            return []
        return [CARD, *(name for name in card["files"] if name == os.path.basename(name))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _only_file_by_file(target: Path) -> bool:
    """Whether the folder `target` itself has to stay."""
    if not target.exists():
        return False
    others = set(os.listdir(target)) - set(files(target))
    in_use = target == Path.cwd() or os.path.ismount(target)
    return bool(others) or in_use or not os.access(target.parent, os.W_OK)


def _undo(target: Path) -> None:
    """Bring the old model back if an export was broken off while it moved files one by one.

    It may be broken off too, at any point, and called again.
    """
    partial, replaced = target / PARTIAL, target / REPLACED
    if not replaced.exists():
        return
    if not (target / CARD).exists():
        moved = [name for name in files(partial) if not (partial / name).exists()]
        for name in moved:
            (target / name).rename(partial / name)
        for name in sorted(os.listdir(replaced), key=lambda name: name == CARD):
            (replaced / name).rename(target / name)
    shutil.rmtree(replaced)


def _exchange(one: Path, other: Path) -> None:
    """Let two paths swap what they name, in one step; an OSError where that cannot be done."""
    at_fdcwd, rename_exchange = -100, 2  # from Linux's headers; both paths are absolute
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError("this system cannot exchange two folders in one step")
    paths = (at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other))
    if renameat2(*paths, rename_exchange) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Make `directory`, or take one that a killed export left, unless an export works in it now."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not _lock(descriptor, directory):
            raise ExportError(f"another export is writing to {directory}: wait for its end")
        yield
    finally:
        os.close(descriptor)  # which frees the lock, as the end of the process would


def _lock(descriptor: int, directory: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return True
    # The folder may have been published, or removed, after it was opened here.
    return directory.exists() and os.path.samestat(os.fstat(descriptor), directory.stat())
