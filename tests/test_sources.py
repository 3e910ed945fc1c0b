"""Where weights come from: each source, in its order, over real connections to this machine."""

import dataclasses
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import huggingface_hub.constants

from export import ExportError, download, hub, sources
from export.download import DownloadError, fetch
from export.hub import File
from export.sources import MODELS, NoSourceError, obtain
from handler.engines.torch_clip import import_clip
from tests.hub import COMMIT, Hub, serving

CONTENT = bytes(range(256)) * 20000  # 5 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
THEIRS = b"the same numbers, in another file"
REPOSITORY = "openai/clip-vit-base-patch32"


@dataclass
class Server:
    """A web server that behaves as the name of a file says, and what it was asked."""

    url: str = ""
    ranges: list[str] = field(default_factory=list)
    """The range of each request; empty: the whole file."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: "_Server"

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.seen.ranges.append(wanted)
        name = self.path.rsplit("/", 1)[-1]
        if "gone" in name:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if "no-ranges" in name:
            start = 0
        elif start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT)
        if "breaks-off" in name:  # after 2 MB each time
            end = start + 2_000_000
        elif "hangs-up" in name:
            end = start
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen = Server(f"http://127.0.0.1:{self.server_address[1]}")


@contextmanager
def web() -> Iterator[Server]:
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.seen
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with web() as server:
        yield server


# --- one download ---------------------------------------------------------------------------------


def test_a_download_is_verified_and_named_by_what_it_is(server: Server, tmp_path: Path) -> None:
    path = fetch(f"{server.url}/some.pt", {"0" * 64: "other.pt", SHA256: "ViT.pt"}, tmp_path)
    assert path == tmp_path / "ViT.pt"
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


def test_a_download_goes_on_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    path = fetch(f"{server.url}/breaks-off.pt", {SHA256: "ViT.pt"}, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=2000000-", "bytes=4000000-"]


def test_it_goes_on_in_another_process_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: object) -> None:
        raise KeyboardInterrupt

    url, names = f"{server.url}/breaks-off.pt", {SHA256: "ViT.pt"}
    monkeypatch.setattr(download, "_reason", killed)
    with monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 0)
        with pytest.raises(KeyboardInterrupt):
            fetch(url, names, tmp_path)
    server.ranges.clear()
    assert fetch(url, names, tmp_path).read_bytes() == CONTENT
    assert server.ranges[0] == "bytes=2000000-"


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    url, names = f"{server.url}/no-ranges.pt", {SHA256: "ViT.pt"}
    left = download.partial_of(url, tmp_path)
    left.write_bytes(CONTENT[:1000])
    assert fetch(url, names, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_a_complete_rest_of_a_download_is_used(server: Server, tmp_path: Path) -> None:
    """Killed after the last byte, before the file had its name."""
    url, names = f"{server.url}/some.pt", {SHA256: "ViT.pt"}
    download.partial_of(url, tmp_path).write_bytes(CONTENT)
    assert fetch(url, names, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.pt", "^HTTP 404 Not Found$"),
        ("other.pt", "^other bytes than expected: sha256 .*, not 0000"),
        ("hangs-up.pt", "^broke off after 0 of 5,120,000 bytes$"),
    ],
)
def test_a_bad_download_says_why_and_leaves_nothing_to_go_on_with(
    server: Server, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(DownloadError, match=message):
        fetch(f"{server.url}/{name}", {"0" * 64: "ViT.pt"}, tmp_path)
    assert [file for file in tmp_path.iterdir() if file.stat().st_size] == []


def test_a_server_that_is_not_there_is_not_asked_twice(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"^Connection refused$"):
        fetch("http://127.0.0.1:9/ViT.pt", {SHA256: "ViT.pt"}, tmp_path)


def test_a_path_is_verified_and_used_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(CONTENT)
    for address in (str(tmp_path / "mine.pt"), f"file://{tmp_path}/mine.pt"):
        assert fetch(address, {SHA256: "ViT.pt"}, tmp_path / "c") == tmp_path / "mine.pt"
    with pytest.raises(DownloadError, match="No such file"):
        fetch(str(tmp_path / "none.pt"), {SHA256: "ViT.pt"}, tmp_path)


def test_an_object_in_s3_is_downloaded(
    cloud: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.s3.put_object(Bucket="photos", Key="weights/ViT.pt", Body=CONTENT)
    for name, value in cloud.env.items():
        monkeypatch.setenv(name, value)
    path = fetch("s3://photos/weights/ViT.pt", {SHA256: "ViT.pt"}, tmp_path)
    assert path.read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="404"):
        fetch("s3://photos/none.pt", {SHA256: "ViT.pt"}, tmp_path)


# --- Hugging Face ---------------------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Hugging Face's server, with one repository and an empty cache here."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(THEIRS)
    (folder / "config.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text("{}")
    with serving({REPOSITORY: folder}) as hub_:
        _use(hub_.url, tmp_path, monkeypatch)
        yield hub_


def _use(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT and HF_HOME do, which the library reads once when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))


FILE = File(REPOSITORY, COMMIT, "pytorch_model.bin", hashlib.sha256(THEIRS).hexdigest())


def test_a_file_of_hugging_face_is_downloaded_once(stand_in: Hub) -> None:
    assert hub.cached(FILE) is None
    path = hub.fetch(FILE)
    assert path.read_bytes() == THEIRS
    assert hub.cached(FILE) == path
    stand_in.requests.clear()
    assert hub.fetch(FILE) == path
    assert {method for method, _, _ in stand_in.requests} <= {"HEAD"}


def test_a_damaged_cache_is_downloaded_again(stand_in: Hub) -> None:
    hub.fetch(FILE).write_bytes(b"damaged")
    with pytest.raises(DownloadError, match="other bytes"):
        hub.cached(FILE)
    assert hub.fetch(FILE).read_bytes() == THEIRS


def test_other_bytes_than_pinned_are_refused(stand_in: Hub) -> None:
    with pytest.raises(DownloadError, match="other bytes than expected"):
        hub.fetch(dataclasses.replace(FILE, sha256="0" * 64))


def test_a_download_from_hugging_face_goes_on_where_it_broke_off(
    stand_in: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process. The library keeps nothing of a download that was killed."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 5)
    stand_in.break_off_at = 10
    assert hub.fetch(FILE).read_bytes() == THEIRS
    assert [wanted for method, _, wanted in stand_in.requests if method == "GET"][-1] == "bytes=10-"


def test_a_token_is_sent(stand_in: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.token = "secret"
    with pytest.raises(
        DownloadError, match=r"there is no openai/.*, or it is not open to all: HF_TOKEN"
    ):
        hub.fetch(FILE)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert hub.fetch(FILE).read_bytes() == THEIRS


CHOICES = (
    ("open_clip_config.json", ("open_clip_model.safetensors",), ()),
    ("config.json", ("model.safetensors", "pytorch_model.bin"), ("preprocessor_config.json",)),
)


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_checkpoint_is_taken_whole_of_one_commit(revision: str, stand_in: Hub) -> None:
    found = hub.fetch_one(f"hf:{REPOSITORY}{revision}", CHOICES)
    assert (found.repository, found.revision) == (REPOSITORY, COMMIT)
    assert found.name == f"{REPOSITORY}@3d74acf"
    assert {file.name for file in found.folder.iterdir()} == {
        *("config.json", "pytorch_model.bin", "preprocessor_config.json")
    }
    weights = [path for method, path, _ in stand_in.requests if method == "GET"]
    assert all(f"/resolve/{COMMIT}/" in path for path in weights if "config.json" not in path[-12:])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:openai", "write hf:organisation/name"),
        ("hf:openai/none", "nothing was read of hf:openai/none: there is no openai/none, or"),
        (
            f"hf:{REPOSITORY}@v9",
            "nothing was read of .*: openai/clip-vit-base-patch32 has no revision v9",
        ),
    ],
)
def test_a_checkpoint_that_is_not_there_says_so(name: str, message: str, stand_in: Hub) -> None:
    with pytest.raises(ExportError, match=message):
        hub.fetch_one(name, CHOICES)


def test_without_a_server_the_cache_is_used(
    stand_in: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = hub.fetch_one(f"hf:{REPOSITORY}", CHOICES)
    _use("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert hub.fetch_one(f"hf:{REPOSITORY}", CHOICES) == expected
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch_one(f"hf:{REPOSITORY}", CHOICES) == expected


# --- their order ----------------------------------------------------------------------------------


@dataclass
class World:
    """All sources of ViT-B/32; those that do not exist yet have nothing."""

    cache: Path
    here: Path
    web: Server
    """Both of OpenAI's addresses, ``/gone`` and ``/blob``."""
    hub: Hub


@pytest.fixture
def world(server: Server, stand_in: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("WEIGHTS_URL", raising=False)
    monkeypatch.setattr(sources, "CACHE", tmp_path / "clip")
    monkeypatch.setattr(sources, "SERVERS", ("http://127.0.0.1:9/x", f"{server.url}/blob"))
    known = dataclasses.replace(MODELS["ViT-B/32"], sha256=SHA256, hub=FILE)
    monkeypatch.setitem(MODELS, "ViT-B/32", known)
    return World(tmp_path / "clip", here, server, stand_in)


def no_web(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SERVERS", ("http://127.0.0.1:9/x", "http://127.0.0.1:9/y"))


def no_hub(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _use("http://127.0.0.1:9", world.here, monkeypatch)


def test_openais_addresses_come_before_hugging_face(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert obtain("ViT-B/32", Path.read_bytes) == CONTENT
    assert (world.cache / "ViT-B-32.pt").read_bytes() == CONTENT
    failed, had = [line for line in capsys.readouterr().out.splitlines() if "weights" in line]
    assert failed.startswith("no weights  http://127.0.0.1:9/x/")
    assert failed.endswith(": Connection refused")
    assert had == f"weights     {world.web.url}/blob/{SHA256}/ViT-B-32.pt"
    assert world.hub.requests == []


def test_with_hugging_face_alone_its_file_is_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_web(monkeypatch)
    assert obtain("ViT-B/32", Path.read_bytes) == THEIRS


@pytest.mark.parametrize("place", ["clip's cache", "here", "here, theirs", "Hugging Face's cache"])
def test_what_is_on_the_machine_is_used_without_a_network(
    place: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.cache.mkdir()
    if place == "clip's cache":
        (world.cache / "ViT-B-32.pt").write_bytes(CONTENT)
    elif place == "here":
        (world.here / "ViT-B-32.pt").write_bytes(CONTENT)
    elif place == "here, theirs":
        (world.here / "pytorch_model.bin").write_bytes(THEIRS)
    else:
        hub.fetch(FILE)
        world.hub.requests.clear()
    expected = CONTENT if place in ("clip's cache", "here") else THEIRS
    assert obtain("ViT-B/32", Path.read_bytes) == expected
    assert (world.web.ranges, world.hub.requests) == ([], [])


def test_a_file_of_another_model_is_passed_over(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    (world.here / "pytorch_model.bin").write_bytes(b"another model's")
    assert obtain("ViT-B/32", Path.read_bytes) == CONTENT
    said = capsys.readouterr().out
    assert "no weights  pytorch_model.bin: not a file of ViT-B/32: its sha256 is another" in said


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_mirror_of_ones_own_comes_before_the_public_ones(
    is_folder: bool, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "ViT-B-32.pt").write_bytes(CONTENT)
    (mirror / "any-name").write_bytes(THEIRS)
    monkeypatch.setenv("WEIGHTS_URL", f"{mirror}/" if is_folder else f"{mirror}/any-name")
    assert obtain("ViT-B/32", Path.read_bytes) == (CONTENT if is_folder else THEIRS)
    assert (world.web.ranges, world.hub.requests) == ([], [])


def test_a_mirror_is_held_to_the_same_hashes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.pt").write_bytes(b"other")
    monkeypatch.setenv("WEIGHTS_URL", str(tmp_path / "other.pt"))
    no_web(monkeypatch)
    no_hub(world, monkeypatch)
    with pytest.raises(NoSourceError, match=r"WEIGHTS_URL, .*other.pt: other bytes than expected"):
        obtain("ViT-B/32", Path.read_bytes)


def test_a_whole_file_that_cannot_be_read_here_is_no_end(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """TorchScript is deprecated: a torch may come that does not read OpenAI's archive."""

    def read(path: Path) -> bytes:
        data = path.read_bytes()
        if data == CONTENT:
            raise ExportError("no TorchScript in this torch")
        return data

    assert obtain("ViT-B/32", read) == THEIRS
    said = "the file is whole, but cannot be read here: no TorchScript in this torch"
    assert said in capsys.readouterr().out


def test_if_all_fail_each_is_listed_with_its_reason_and_what_mends_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_hub(world, monkeypatch)
    monkeypatch.setattr(
        sources, "SERVERS", ("http://127.0.0.1:9/x", f"{world.web.url}/gone-{SHA256}")
    )
    official = dataclasses.replace(MODELS["ViT-B/32"], file="gone.pt")
    monkeypatch.setitem(MODELS, "ViT-B/32", official)
    with pytest.raises(NoSourceError) as error:
        obtain("ViT-B/32", Path.read_bytes)
    lines = str(error.value).splitlines()
    assert lines[0] == "No source had the weights of ViT-B/32:"
    assert [re.sub(".*: ", "", line) for line in lines[1:4]] == [
        *("Connection refused", "HTTP 404 Not Found", "Connection refused")
    ]
    assert lines[-1].endswith("and run: make model")


def test_the_official_files_are_those_that_clip_itself_downloads() -> None:
    theirs = import_clip().clip._MODELS
    ours = {name: official.urls[0] for name, official in MODELS.items()}
    assert ours == {name: url for name, url in theirs.items() if name.startswith("ViT")}


def test_every_file_has_hashes_of_its_own() -> None:
    hashes: list[Any] = [digest for official in MODELS.values() for digest in official.names]
    assert len(set(hashes)) == 8
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes)
    names = [name for official in MODELS.values() for name in official.names.values()]
    assert len(set(names)) == 8  # they share a folder
    assert all(re.fullmatch("[0-9a-f]{40}", model.hub.revision) for model in MODELS.values())
