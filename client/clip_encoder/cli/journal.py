"""What an `encode` run has done so far, on disk, so that a run that is killed goes on from there.

The journal is an SQLite file beside the vectors, which is there only while a run is not finished.
It holds the images that are meant, the vectors that were made and the failures. A run begins by
putting the vectors of the finished run before into it, and ends by writing all of them out anew.
Hence a finished file of vectors is never changed in place, however a run ends.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from clip_encoder import files
from clip_encoder.cli.sources import Source
from clip_encoder.errors import EncoderError, FingerprintChanged
from clip_encoder.results import Vector

COMMIT_EVERY = 64
"""Images between two moments at which all that is done is safely on disk."""
PAGE = 1000
"""Rows that are read at once. Reading does not go on while others are written."""

# Names are kept as the bytes that the file system has: not all of them are UTF-8.
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (name BLOB PRIMARY KEY, stamp TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS done (name BLOB PRIMARY KEY, stamp TEXT, vector BLOB);
CREATE TABLE IF NOT EXISTS failures
    (name BLOB PRIMARY KEY, stamp TEXT, code TEXT, detail TEXT, retryable INTEGER) WITHOUT ROWID;
"""
TO_DO = """
FROM sources
LEFT JOIN done ON done.name = sources.name AND done.stamp = sources.stamp
LEFT JOIN failures ON failures.name = sources.name AND failures.stamp = sources.stamp
    AND NOT failures.retryable
WHERE done.name IS NULL AND failures.name IS NULL
"""
"""Images that are meant, and have neither a vector of what they are now nor a lasting failure."""
MEANT = "FROM done WHERE done.name IN (SELECT name FROM sources)"
ALL = "FROM done WHERE TRUE"


@dataclass(frozen=True)
class Failure:
    """An image that has no vector."""

    name: str
    code: str
    detail: str


class AnotherRun(EncoderError):
    """Another process is writing the same vectors at this moment."""

    def __init__(self, path: Path) -> None:
        super().__init__("another_run", f"another run is writing {path} now")


class Journal:
    """The journal of the run that writes the vectors called `path`. A context manager."""

    def __init__(self, path: Path) -> None:
        """Open the journal, or begin one with the vectors that are in `path` already.

        Raises:
            AnotherRun: another process has it.
            UnreadableVectors: `path` is something else than a file of vectors.
        """
        self.path = path
        self.file = path.with_name(f"{path.name}.journal")
        self._unsaved = 0
        self._is_needless = not self.file.exists()
        """Whether it holds nothing that `path` does not hold too."""
        try:
            # Transactions begin and end where `_commit` says, and nowhere else.
            self._db = sqlite3.connect(self.file, timeout=0.2, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise EncoderError("unwritable", f"{self.file}: {error}") from error
        try:
            self._lock()
            self._take_over()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """Keep the file to this process, and begin the first transaction."""
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise AnotherRun(self.path) from error
            raise EncoderError("unwritable", f"{self.file}: {error}") from error

    def _take_over(self) -> None:
        """Make the tables and copy the finished vectors in, once, or not at all."""
        for statement in SCHEMA.split(";"):
            self._db.execute(statement)
        if self._fact("complete") is None:
            if files.shards(self.path):
                for table in files.read(self.path):
                    self._set_fact("fingerprint", table.fingerprint)
                    for name, stamp, vector in zip(
                        table.names, table.stamps, table.vectors, strict=True
                    ):
                        self._insert_vector(Source(name, stamp), vector)
            self._set_fact("complete", "")
        self._commit()

    def expect(self, fingerprint: str) -> None:
        """Take vectors of `fingerprint`, and of no other.

        Raises:
            FingerprintChanged: there are vectors of another already.
        """
        found = self._fact("fingerprint")
        if found is not None and found != fingerprint:
            raise FingerprintChanged(found, fingerprint)
        self._set_fact("fingerprint", fingerprint)
        self._commit()

    def mean(self, sources: Iterable[Source]) -> int:
        """Note which images are meant, each once; gives how many those are."""
        self._db.execute("DELETE FROM sources")
        for source in sources:
            row = (os.fsencode(source.name), source.stamp)
            self._db.execute("INSERT OR REPLACE INTO sources VALUES (?, ?)", row)
        self._commit()
        return self._count("FROM sources")

    def to_do(self) -> int:
        """How many images still have to be encoded."""
        return self._count(TO_DO)

    def pending(self) -> Iterator[Source]:
        """The images that still have to be encoded, in the order of their names."""
        last = b""
        while True:
            query = f"SELECT sources.name, sources.stamp {TO_DO} AND sources.name > ?"
            query += " ORDER BY sources.name LIMIT ?"
            rows = self._db.execute(query, (last, PAGE)).fetchall()
            for name, stamp in rows:
                yield Source(os.fsdecode(name), stamp)
            if not rows:
                return
            last = rows[-1][0]

    def add_vector(self, source: Source, vector: Vector) -> None:
        """Note an image's vector."""
        self._insert_vector(source, vector)
        self._db.execute("DELETE FROM failures WHERE name = ?", (os.fsencode(source.name),))
        self._added()

    def add_failure(self, source: Source, error: EncoderError) -> None:
        """Note that an image has no vector; one of what it was before is given up."""
        name = os.fsencode(source.name)
        row = (name, source.stamp, error.code, error.detail, error.retryable)
        self._db.execute("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?)", row)
        self._db.execute("DELETE FROM done WHERE name = ?", (name,))
        self._added()

    def failures(self) -> Iterator[Failure]:
        """The images that are meant and have no vector, in the order of their names."""
        query = "SELECT name, code, detail FROM failures WHERE name IN (SELECT name FROM sources)"
        for name, code, detail in self._db.execute(f"{query} ORDER BY name"):
            yield Failure(os.fsdecode(name), code, detail)

    def rows(self, prune: bool) -> int:
        """How many vectors there are; with `prune`, of images that are meant."""
        return self._count(MEANT if prune else ALL)

    def write(self, shard_size: int, prune: bool) -> list[Path]:
        """Write all vectors out, in the order of their names, and end the journal.

        Gives the files: `path`, or where there are more than `shard_size` vectors, its shards.
        """
        count, fingerprint = self.rows(prune), self._fact("fingerprint") or ""
        which = MEANT if prune else ALL
        old = files.every(self.path)
        if count <= shard_size:
            new = [self.path]
        else:
            new = [files.shard(self.path, n + 1) for n in range(-(-count // shard_size))]
        after = b""
        for number, file in enumerate(new):
            rows = Slice(self._db, which, after, min(shard_size, count - number * shard_size))
            files.write(file, rows, fingerprint)
            after = rows.last() if count else after
        for stale in old.difference(new):
            stale.unlink()
        self._is_needless = True
        self.close()
        return new

    def save(self) -> None:
        """See to it that all that is done stays done, whatever happens."""
        if self._db.in_transaction:
            self._commit()

    def close(self) -> None:
        """Close the file; what was not saved is lost."""
        self._db.close()
        if self._is_needless:
            self.file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _insert_vector(self, source: Source, vector: Vector) -> None:
        row = (os.fsencode(source.name), source.stamp, vector.astype("<f4").tobytes())
        self._db.execute("INSERT OR REPLACE INTO done VALUES (?, ?, ?)", row)

    def _added(self) -> None:
        self._is_needless = False
        self._unsaved += 1
        if self._unsaved >= COMMIT_EVERY:
            self._commit()

    def _commit(self) -> None:
        self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")
        self._unsaved = 0

    def _count(self, which: str) -> int:
        return int(self._db.execute(f"SELECT count(*) {which}").fetchone()[0])

    def _fact(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def _set_fact(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


class Slice:
    """The rows of one shard: `count` of them, whose names come after `after`."""

    def __init__(self, db: sqlite3.Connection, which: str, after: bytes, count: int) -> None:
        self._db = db
        self._count = count
        self._query = f"{which} AND done.name > ? ORDER BY done.name LIMIT ?"
        self._values = (after, count)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[files.Row]:
        query = f"SELECT name, stamp, vector {self._query}"  # no part is a caller's
        with closing(self._db.execute(query, self._values)) as cursor:
            for name, stamp, vector in cursor:
                yield files.Row(os.fsdecode(name), stamp, np.frombuffer(vector, "<f4"))

    def last(self) -> bytes:
        """The name of the last row."""
        query = f"SELECT max(name) FROM (SELECT name {self._query})"  # noqa: S608
        return bytes(self._db.execute(query, self._values).fetchone()[0])
