"""``clip-encoder encode``: what it takes, what it writes, and that it goes on where it was."""

import base64
import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from clip_encoder import files
from clip_encoder.cli import main
from clip_encoder.cli.journal import Journal
from clip_encoder.cli.sources import Source
from export import images
from handler.encoder import Encoder
from tests.client_proof import prove
from tests.conftest import ROOT, serve, with_settings
from tests.peers import Peer, Reply, Request, peer


class Numbers:
    """A service whose "images" are numbers; it makes vectors of them and remembers them all."""

    def __init__(self) -> None:
        self.fingerprint = "numbers"
        self.seen: list[str] = []
        self.failing: dict[str, str] = {}
        """Number -> the code of its failure."""
        self.broken_after: int | None = None
        """Images after which the service refuses everybody."""

    def answer(self, request: Request) -> Reply:
        if request.method == "GET":
            return Reply(body={"status": "healthy", "fingerprint": self.fingerprint})
        numbers = [base64.b64decode(text).decode() for text in request.json()["images"]]
        if self.broken_after is not None and len(self.seen) >= self.broken_after:
            return Reply(403, {"message": "Forbidden"})
        self.seen += numbers
        failed = [place for place, number in enumerate(numbers) if number in self.failing]
        body = {
            "embeddings": [None if p in failed else vector(n) for p, n in enumerate(numbers)],
            "errors": [
                {"index": place, "code": self.failing[numbers[place]], "detail": "some detail"}
                for place in failed
            ],
        }
        return Reply(body=body, headers={"x-clip-fingerprint": self.fingerprint})


def vector(number: str) -> list[float]:
    return [float(number)] * 512


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture
def service(numbers: Numbers) -> Iterator[Peer]:
    with peer(numbers.answer) as service:
        yield service


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with images 0 to 9 in two folders."""
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        path = Path("photos", "even" if number % 2 == 0 else "odd", f"{number}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    return tmp_path


def encode(service: Peer, *arguments: str) -> int:
    return main(["encode", "--url", service.address, "-o", "v.npz", *arguments])


def found(path: str = "v.npz") -> dict[str, float]:
    """Name -> the number that its vector is made of."""
    rows: dict[str, float] = {}
    for table in files.read(Path(path)):
        assert table.vectors.dtype == np.float32
        assert rows.keys().isdisjoint(table.names)
        rows |= {n: float(v[0]) for n, v in zip(table.names, table.vectors, strict=True)}
    return rows


ALL = {f"photos/{'odd' if n % 2 else 'even'}/{n}.jpg": float(n) for n in range(10)}


# --- what it takes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["photos"], range(10)),
        (["photos/"], range(10)),
        (["photos/odd", "photos/even/4.jpg"], [1, 3, 4, 5, 7, 9]),
        (["photos/**/[1-4].jpg"], [1, 2, 3, 4]),
        (["photos", "photos/**", "./photos/odd/../odd"], range(10)),
    ],
)
def test_files_folders_and_patterns(
    folder: Path, service: Peer, numbers: Numbers, paths: list[str], expected: list[int]
) -> None:
    Path("photos/notes.txt").write_text("99")
    Path("photos/.hidden.jpg").write_text("99")
    Path("photos/.cache").mkdir()
    Path("photos/.cache/x.jpg").write_text("99")
    if "photos/**" in paths:
        Path("photos/notes.txt").unlink()  # a pattern takes whatever it matches
    assert encode(service, *paths) == 0
    assert sorted(found().values()) == list(expected)
    assert len(numbers.seen) == len(expected)  # each once, however often it is named


def test_a_list_on_stdin(
    folder: Path, service: Peer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "photos/odd/1.jpg\n\nphotos/even/2.jpg\r\nmissing.jpg\nphotos/odd/3.jpg"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert encode(service, "-") == 1
    assert sorted(found().values()) == [1, 2, 3]
    (failure,) = Path("v.failures.jsonl").read_text().splitlines()
    assert json.loads(failure) == {
        "name": "missing.jpg",
        "code": "unreadable_file",
        "detail": "missing.jpg: No such file or directory",
    }
    printed = capsys.readouterr()
    assert printed.err == "1 failed (1 unreadable_file): see v.failures.jsonl\n"
    assert printed.out == "3 vectors of numbers in v.npz\n"


def test_a_bucket(
    folder: Path,
    cloud: SimpleNamespace,
    encoder: Encoder,
    photo: bytes,
) -> None:
    """Listed here, read by the service."""
    from tests.aws import environment

    for key in ("client/a.jpg", "client/deep/b c.jpg", "client/notes.txt", "other.jpg"):
        cloud.s3.put_object(Bucket="photos", Key=key, Body=photo)
    permitted = with_settings(encoder, s3_buckets=("photos",))
    with environment(cloud.env), serve(permitted) as http:
        url = str(http.base_url)
        paths = ["s3://photos/client/", "s3://photos/other.jpg"]
        assert main(["encode", *paths, "-o", "v.npz", "--url", url]) == 0
        (table,) = files.read(Path("v.npz"))
        assert list(table.names) == [
            *("s3://photos/client/a.jpg", "s3://photos/client/deep/b c.jpg"),
            "s3://photos/other.jpg",
        ]
        np.testing.assert_allclose(table.vectors[1], encoder.encode(photo), atol=1e-6)
        changed = images.encoded(images.photograph("coffee"), "JPEG")
        cloud.s3.put_object(Bucket="photos", Key="client/a.jpg", Body=changed)
        assert main(["encode", *paths, "-o", "v.npz", "--url", url]) == 0
        (table,) = files.read(Path("v.npz"))
        np.testing.assert_allclose(table.vectors[0], encoder.encode(changed), atol=1e-6)
        assert main(["encode", "s3://nowhere/", "-o", "w.npz", "--url", url]) == 2


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_names_that_are_not_utf8(folder: Path, service: Peer) -> None:
    path = Path(os.fsdecode(b"photos/\xff.jpg"))
    path.write_text("77")
    assert encode(service, "photos") == 0
    assert found()[str(path)] == 77


# --- what it writes -------------------------------------------------------------------------------


def test_the_vectors_are_the_services(
    folder: Path, client: httpx.Client, encoder: Encoder, photo: bytes
) -> None:
    Path("one.jpg").write_bytes(photo)
    Path("two.png").write_bytes(images.encoded(images.photograph("coffee"), "PNG"))
    Path("bad.jpg").write_bytes(b"no image")
    assert main(["encode", "*.jpg", "*.png", "-o", "v.npz", "--url", str(client.base_url)]) == 1
    with np.load("v.npz") as archive:  # as anybody would read it
        assert archive["name"].tolist() == ["one.jpg", "two.png"]
        assert archive["fingerprint"] == encoder.fingerprint
        np.testing.assert_allclose(archive["embedding"][0], encoder.encode(photo), atol=1e-6)
    (line,) = Path("v.failures.jsonl").read_text().splitlines()
    assert json.loads(line)["code"] == "not_an_image"


def test_parquet(folder: Path, service: Peer) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert encode(service, "photos", "-o", "v.parquet", "--shard-size", "4") == 0
    assert found("v.parquet") == ALL
    table = parquet.read_table("v-00001.parquet")
    assert table["name"].to_pylist() == sorted(ALL)[:4]
    assert table.schema.metadata[b"fingerprint"] == b"numbers"


def test_numbered_shards(folder: Path, service: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode(service, "photos", "--shard-size", "4") == 0
    assert sorted(path.name for path in folder.glob("v*")) == [
        *("v-00001.npz", "v-00002.npz", "v-00003.npz"),
    ]
    assert [len(table.names) for table in files.read(Path("v.npz"))] == [4, 4, 2]
    assert found() == ALL
    assert capsys.readouterr().out.endswith("in v-00001.npz to v-00003.npz\n")
    # Another number of files than before leaves none of the old ones.
    assert encode(service, "photos", "--shard-size", "5") == 0
    assert [len(table.names) for table in files.read(Path("v.npz"))] == [5, 5]
    assert encode(service, "photos") == 0
    assert [path.name for path in folder.glob("v*")] == ["v.npz"]
    assert found() == ALL
    assert encode(service, "photos", "--shard-size", "5") == 0
    assert not Path("v.npz").exists()


@pytest.mark.parametrize("name", ["v.csv", "v", "nowhere/v.npz"])
def test_a_name_that_cannot_be(folder: Path, service: Peer, numbers: Numbers, name: str) -> None:
    assert encode(service, "photos", "-o", name) == 2
    assert numbers.seen == []


def test_paths_that_are_nowhere(
    folder: Path, service: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(service, "nowhere/*.jpg") == 2
    assert "nowhere/*.jpg: no such file or folder" in capsys.readouterr().err
    assert not Path("v.npz").exists()


def test_a_file_that_holds_no_vectors_is_left_alone(folder: Path, service: Peer) -> None:
    Path("v.npz").write_text("precious")
    assert encode(service, "photos") == 2
    assert Path("v.npz").read_text() == "precious"
    assert not list(folder.glob("*.journal"))


# --- again ----------------------------------------------------------------------------------------


def test_only_what_changed_is_encoded_again(folder: Path, service: Peer, numbers: Numbers) -> None:
    assert encode(service, "photos") == 0
    numbers.seen.clear()
    Path("photos/odd/3.jpg").write_text("33")
    Path("photos/new.jpg").write_text("100")
    assert encode(service, "photos") == 0
    assert sorted(numbers.seen) == ["100", "33"]
    assert found() == ALL | {"photos/odd/3.jpg": 33, "photos/new.jpg": 100}


def test_what_changed_and_fails_loses_its_old_vector(
    folder: Path, service: Peer, numbers: Numbers
) -> None:
    assert encode(service, "photos") == 0
    Path("photos/odd/3.jpg").write_text("33")
    numbers.failing["33"] = "invalid_image"
    assert encode(service, "photos") == 1
    assert found() == {name: n for name, n in ALL.items() if n != 3}
    numbers.failing.clear()
    assert encode(service, "photos") == 0  # a new run tries again
    assert found() == ALL | {"photos/odd/3.jpg": 33}
    assert not Path("v.failures.jsonl").exists()


def test_what_is_not_named_stays_unless_pruned(folder: Path, service: Peer) -> None:
    assert encode(service, "photos/even") == 0
    assert encode(service, "photos/odd") == 0
    assert found() == ALL
    assert encode(service, "photos/odd", "--prune") == 0
    assert found() == {name: number for name, number in ALL.items() if number % 2}


def test_another_fingerprint_is_refused(
    folder: Path, service: Peer, numbers: Numbers, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(service, "photos/even") == 0
    before = Path("v.npz").read_bytes()
    numbers.fingerprint = "others"
    numbers.seen.clear()
    assert encode(service, "photos") == 2
    assert "expected vectors of numbers, and the service makes those of others" in (
        capsys.readouterr().err
    )
    assert Path("v.npz").read_bytes() == before
    assert numbers.seen == []


def test_a_fingerprint_that_changes_during_a_run_breaks_it_off(
    folder: Path, numbers: Numbers
) -> None:
    def answer(request: Request) -> Reply:
        reply = numbers.answer(request)
        numbers.fingerprint = "others"
        return reply

    with peer(answer) as service:
        assert encode(service, "photos") == 2
    assert not Path("v.npz").exists()


def _many(count: int) -> None:
    for number in range(1000, 1000 + count):
        Path("photos", f"{number:05}.jpg").write_text(str(number))


def test_a_run_that_broke_off_goes_on(
    folder: Path, service: Peer, numbers: Numbers, capsys: pytest.CaptureFixture[str]
) -> None:
    _many(400)
    numbers.broken_after = 200
    numbers.failing = {"1007": "invalid_image", "1008": "source_unavailable"}
    assert encode(service, "photos", "--concurrency", "1") == 2
    said = capsys.readouterr().err
    assert "of 410 images are done: the same command goes on from here" in said
    assert "forbidden" in said
    assert not Path("v.npz").exists()
    first = set(numbers.seen)
    numbers.seen.clear()
    numbers.broken_after = None
    assert encode(service, "photos") == 1
    # What was done is not asked for again, nor what failed for good; what may succeed now is.
    assert first & set(numbers.seen) == {"1008"}
    assert len(found()) == 410 - 2
    assert not list(folder.glob("*.journal*"))


def test_a_run_that_is_interrupted_goes_on(folder: Path, numbers: Numbers) -> None:
    _many(400)

    def answer(request: Request) -> Reply:
        if len(numbers.seen) >= 200 and process is not None:
            process.send_signal(signal.SIGINT)
        return numbers.answer(request)

    process: subprocess.Popen[str] | None = None
    with peer(answer) as service:
        process = subprocess.Popen(
            _command(service, "--concurrency", "1"), stderr=subprocess.PIPE, text=True, env=_ENV
        )
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "the same command goes on from here" in said
        assert "Traceback" not in said
        process = None
        assert encode(service, "photos") == 0
    assert len(found()) == 410


_ENV = os.environ | {"PYTHONPATH": str(ROOT / "client")}


def _command(service: Peer, *arguments: str) -> list[str]:
    program = [sys.executable, "-m", "clip_encoder"]
    return [*program, "encode", "photos", "-o", "v.npz", "--url", service.address, *arguments]


def test_killed_and_resumed_each_file_has_its_vector_once(tmp_path: Path) -> None:
    """The proof with all 100,000 files is `python -m tests.client_proof`."""
    report = prove(tmp_path, count=3000, kills=3)
    assert report.wrong == 0
    assert report.failures == 3
    assert report.status == 1
    # A kill loses what was not saved yet, and the requests on their way.
    assert 0 < report.asked_again < 3 * (64 + 32 * 10)


def test_two_runs_at_once(
    folder: Path, service: Peer, numbers: Numbers, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(Path("v.npz")):
        assert encode(service, "photos") == 2
    assert "another run is writing v.npz now" in capsys.readouterr().err
    assert numbers.seen == []


def test_a_journal_in_a_folder_that_cannot_be_written(
    folder: Path, capsys: pytest.CaptureFixture[str], service: Peer
) -> None:
    Path("v.npz.journal").mkdir()
    assert encode(service, "photos") == 2
    assert "unwritable: v.npz.journal" in capsys.readouterr().err


def test_a_killed_take_over_is_begun_anew(folder: Path, service: Peer) -> None:
    """The vectors of the run before are in the journal all together, or not at all."""
    assert encode(service, "photos") == 0

    class Killed(BaseException):
        pass

    def cut(self: Journal, source: Source, vector: Any) -> None:
        if source.name.endswith("4.jpg"):
            raise Killed
        insert(self, source, vector)

    insert = Journal._insert_vector
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_insert_vector", cut)
        with pytest.raises(Killed):
            Journal(Path("v.npz"))
    with Journal(Path("v.npz")) as journal:
        assert journal.rows(prune=False) == 10


def test_the_progress_bar_shows_the_rate(folder: Path, service: Peer) -> None:
    """On a terminal; there is none where errors go to a file."""
    own, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(_command(service), stderr=terminal, env=_ENV)
    assert process.wait(timeout=60) == 0
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(own, 4096):
            shown += part
    except OSError:  # the terminal has ended
        pass
    os.close(own)
    assert b"10/10" in shown
    assert b"images/s" in shown
    done = subprocess.run(_command(service), capture_output=True, env=_ENV, check=True)
    assert done.stderr == b""
