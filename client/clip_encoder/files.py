"""Files of vectors: NumPy archives and Parquet, in one file or in numbered shards.

Both hold ``name`` (a path or an ``s3://`` address), ``stamp`` (what tells whether the image changed
since), ``embedding`` (float32 [n, 512]) and ``fingerprint`` (what made them). The archives that the
service's batch function writes are read too; they have no ``stamp``.
"""

import glob
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clip_encoder.errors import EncoderError
from clip_encoder.results import Vector

CHUNK = 1024
"""Rows that are held at once while a file is written."""


@dataclass(frozen=True)
class Row:
    """One image's vector."""

    name: str
    stamp: str
    vector: Vector


@dataclass(frozen=True)
class Table:
    """The rows of one file."""

    names: Sequence[str]
    stamps: Sequence[str]
    vectors: NDArray[np.float32]
    """[n, 512]."""
    fingerprint: str


class Rows(Protocol):
    """Rows that are too many to be held at once, so they are gone through several times instead."""

    def __len__(self) -> int:
        """How many there are."""

    def __iter__(self) -> Iterator[Row]:
        """Go through them from the first."""


class UnreadableVectors(EncoderError):
    """A file of vectors is missing, or is none."""

    def __init__(self, detail: str) -> None:
        super().__init__("unreadable_vectors", detail)


def shards(path: Path) -> list[Path]:
    """The files that hold the vectors called `path`: itself, or its numbered shards, in order."""
    return [path] if path.exists() else sorted(every(path))


def every(path: Path) -> set[Path]:
    """All files called `path`: the one of that name, and numbered shards."""
    pattern = f"{glob.escape(path.stem)}-{'[0-9]' * 5}{glob.escape(path.suffix)}"
    return {*path.parent.glob(pattern), *([path] if path.exists() else ())}


def shard(path: Path, number: int) -> Path:
    """The name of shard `number`, from 1, of the vectors called `path`."""
    return path.with_name(f"{path.stem}-{number:05}{path.suffix}")


def read(path: Path) -> Iterator[Table]:
    """The vectors called `path`, one file at a time.

    Raises:
        UnreadableVectors: there is no such file, or it is no file of vectors.
    """
    files = shards(path)
    if not files:
        raise UnreadableVectors(f"{path}: no such file")
    for file in files:
        yield _read_parquet(file) if file.suffix == ".parquet" else _read_npz(file)


def fingerprint(path: Path) -> str:
    """What made the vectors called `path`.

    Raises:
        UnreadableVectors: as `read`.
    """
    return next(read(path)).fingerprint


def check_name(path: Path) -> None:
    """See to it that a file of vectors may be called `path`, before anything is made.

    Raises:
        UnreadableVectors: its ending is none of the two, or it has no folder to be in.
        EncoderError: it is Parquet's and pyarrow is not installed.
    """
    if path.suffix not in (".npz", ".parquet"):
        raise UnreadableVectors(f"{path}: a file of vectors ends in .npz or .parquet")
    if not path.parent.is_dir():
        raise UnreadableVectors(f"{path}: there is no folder {path.parent}")
    if path.suffix == ".parquet":
        _parquet()


def write(path: Path, rows: Rows, fingerprint: str) -> None:
    """Write `rows` into one file, which is there in whole or not at all, even after a crash."""
    partial = path.with_name(f"{path.name}.partial")
    if path.suffix == ".parquet":
        _write_parquet(partial, rows, fingerprint)
    else:
        _write_npz(partial, rows, fingerprint)
    partial.replace(path)


# --- NumPy archives -------------------------------------------------------------------------------


def _read_npz(path: Path) -> Table:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive["name"].tolist()
            stamps = archive["stamp"].tolist() if "stamp" in archive else [""] * len(names)
            vectors = archive["embedding"].astype(np.float32, copy=False)
            return Table(names, stamps, vectors, str(archive["fingerprint"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UnreadableVectors(f"{path}: no file of vectors ({error})") from error


def _write_npz(path: Path, rows: Rows, fingerprint: str) -> None:
    """An archive as `numpy.savez` writes it, without holding the arrays.

    Texts take four bytes a character there, most of them zero, so they are compressed.
    """
    longest_name = max((len(row.name) for row in rows), default=1)
    longest_stamp = max((len(row.stamp) for row in rows), default=1)
    size = next((len(row.vector) for row in rows), 512)
    with zipfile.ZipFile(path, "w") as archive:

        def add(name: str, kind: str, shape: tuple[int, ...], of: Callable[[Row], Any]) -> None:
            entry = zipfile.ZipInfo(f"{name}.npy")
            is_text = kind.startswith("<U")
            entry.compress_type = zipfile.ZIP_DEFLATED if is_text else zipfile.ZIP_STORED
            header = {"descr": kind, "fortran_order": False, "shape": shape}
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for chunk in _chunks(rows):
                    file.write(np.array([of(row) for row in chunk], kind).tobytes())

        add("name", f"<U{max(longest_name, 1)}", (len(rows),), lambda row: row.name)
        add("stamp", f"<U{max(longest_stamp, 1)}", (len(rows),), lambda row: row.stamp)
        add("embedding", "<f4", (len(rows), size), lambda row: row.vector)
        with archive.open("fingerprint.npy", "w") as file:
            np.lib.format.write_array(file, np.array(fingerprint), allow_pickle=False)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while True:
        chunk = list(islice(left, CHUNK))
        if not chunk:
            return
        yield chunk


# --- Parquet --------------------------------------------------------------------------------------


def _parquet() -> Any:
    """The modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        EncoderError: they are not installed.
    """
    try:
        import pyarrow  # here: most files are archives
        import pyarrow.parquet
    except ImportError as error:
        detail = "Parquet needs pyarrow: pip install 'clip-encoder[parquet]'"
        raise EncoderError("missing_package", detail) from error
    return pyarrow


def _read_parquet(path: Path) -> Table:
    pyarrow = _parquet()
    try:
        table = pyarrow.parquet.read_table(path)
        flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        names = table["name"].to_pylist()
        found = (table.schema.metadata or {})[b"fingerprint"].decode()
        vectors = flat.astype(np.float32, copy=False).reshape(len(names), -1)
        return Table(names, table["stamp"].to_pylist(), vectors, found)
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise UnreadableVectors(f"{path}: no file of vectors ({error})") from error


def _write_parquet(path: Path, rows: Rows, fingerprint: str) -> None:
    pyarrow = _parquet()
    size = next((len(row.vector) for row in rows), 512)
    vectors = pyarrow.list_(pyarrow.float32(), size)
    columns = [("name", pyarrow.string()), ("stamp", pyarrow.string()), ("embedding", vectors)]
    schema = pyarrow.schema(columns, metadata={"fingerprint": fingerprint})
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for chunk in _chunks(rows):
            flat = np.concatenate([row.vector for row in chunk])
            arrays = [
                pyarrow.array([row.name for row in chunk]),
                pyarrow.array([row.stamp for row in chunk]),
                pyarrow.FixedSizeListArray.from_arrays(flat, size),
            ]
            writer.write_table(pyarrow.table(arrays, schema=schema))
