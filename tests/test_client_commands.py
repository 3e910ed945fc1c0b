"""``clip-encoder``'s smaller commands: similar, rank, health; and what its documentation says."""

import argparse
import base64
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from clip_encoder.cli import COMMANDS, main, parser
from clip_encoder.cli.contact_sheet import SIDE, page
from export import images
from handler.encoder import Encoder
from tests.conftest import ROOT
from tests.peers import Reply, peer

PHOTO_FILE = ROOT / "events" / "photo.jpg"
PHOTOGRAPHS = ("chelsea", "coffee", "rocket", "astronaut")


@pytest.fixture(scope="module")
def url(client: httpx.Client) -> str:
    return str(client.base_url)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, url: str) -> Path:
    """Four photographs, a smaller copy of one, and their vectors in two shards."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in PHOTOGRAPHS:
        images.photograph(name).save(folder / f"{name}.png")
    small = images.photograph("coffee").resize((450, 300), Image.Resampling.BICUBIC)
    small.save(folder / "coffee, smaller.png")
    output = ["-o", str(folder / "v.npz"), "--shard-size", "3"]
    assert main(["encode", str(folder), *output, "--url", url]) == 0
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(arguments)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


# --- similar --------------------------------------------------------------------------------------


def test_similar_images_in_order(
    folder: Path, url: str, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    query = folder / "coffee.png"
    arguments = [str(folder / "v.npz"), "--image", str(query), "-k", "3", "--url", url]
    status, out, _ = run(capsys, "similar", *arguments)
    assert status == 0
    lines = [line.split("  ") for line in out.splitlines()]
    assert [name for _, name in lines[:2]] == [str(query), str(folder / "coffee, smaller.png")]
    assert lines[0][0] == "1.0000"
    assert len(lines) == 3
    _, out, _ = run(capsys, "similar", *arguments, "--json", "-k", "50")
    hits = json.loads(out)
    vectors = {path: encoder.encode(path.read_bytes()) for path in folder.glob("*.png")}
    expected = sorted((-float(v @ vectors[query]), str(path)) for path, v in vectors.items())
    assert [hit["name"] for hit in hits] == [name for _, name in expected]
    assert [hit["cosine"] for hit in hits] == pytest.approx([-c for c, _ in expected], abs=1e-5)


def test_the_page_shows_the_pictures(
    folder: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.html"
    arguments = ["--image", str(folder / "rocket.png"), "--html", str(sheet), "--url", url]
    assert run(capsys, "similar", str(folder / "v.npz"), *arguments)[0] == 0
    page = Page(sheet.read_text())
    assert len(page.pictures) == 5
    for picture in page.pictures:
        assert max(picture.size) == SIDE
    # The first is the photograph itself.
    first = np.asarray(page.pictures[0].resize((8, 8)), float)
    rocket = np.asarray(images.photograph("rocket").resize((8, 8)), float)
    assert np.abs(first - rocket).mean() < 15


class Page(HTMLParser):
    """A page's pictures, and the addresses that it would fetch something from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[Image.Image] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href") and value is not None:
                assert value.startswith("data:image/jpeg;base64,")
                data = base64.b64decode(value.partition(",")[2])
                self.pictures.append(Image.open(io.BytesIO(data)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_names_on_a_page_are_text_and_nothing_else(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    names = ["<script>alert(1)</script>", os.fsdecode(b"\xff.jpg"), "s3://b/k", str(broken)]
    text = page("<b>&", [(name, 0.5) for name in names])
    assert "<script>" not in text
    text.encode("utf-8")
    found = Page(text)
    assert found.pictures == []
    assert "<script>alert(1)</script>" in found.texts
    assert "<b>&" in found.texts


def test_a_turned_photograph_is_upright_on_the_page(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    images.photograph("coffee").save(path, exif=exif)
    (picture,) = Page(page("", [(str(path), 1.0)])).pictures
    assert picture.height == SIDE > picture.width


def test_vectors_of_another_fingerprint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    health = Reply(body={"status": "healthy", "fingerprint": "another"})
    with peer(lambda _: health) as service:
        arguments = [str(folder / "v.npz"), "--text", "a cat", "--url", service.address]
        status, _, err = run(capsys, "similar", *arguments)
    assert status == 2
    assert "fingerprint_changed" in err
    assert len(service.requests) == 1  # no vector was asked for


@pytest.mark.parametrize(
    "arguments",
    [
        ["--image", "x", "-k", "0"],
        ["--image", "missing.jpg"],
        ["--image", str(PHOTO_FILE), "--html", "/nowhere/sheet.html"],
    ],
)
def test_what_cannot_be_looked_for(
    folder: Path, url: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "similar", str(folder / "v.npz"), "--url", url, *arguments)[0] == 2


def test_no_file_of_vectors(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "similar", "nowhere.npz", "--text", "x", "--url", url)
    assert (status, err) == (2, "clip-encoder: unreadable_vectors: nowhere.npz: no such file\n")


# --- rank -----------------------------------------------------------------------------------------


RANKED = {
    "probabilities": [[0.25, None, 0.75], None],
    "cosine_similarities": [[0.1, None, 0.2], None],
    "errors": [
        {"list": "queries", "index": 1, "code": "not_an_image", "detail": "no image"},
        {"list": "candidates", "index": 1, "code": "text_too_long", "detail": "too long"},
    ],
}


def test_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    arguments = [str(path), "s3://b/k", "--text", "a dog", "--text", "long", "--text", "a cat"]
    arguments += ["--template", "a photo of {}."]
    with peer(lambda _: Reply(body=RANKED)) as service:
        status, out, _ = run(capsys, "rank", *arguments, "--url", service.address)
        assert status == 1
        assert out.splitlines() == [
            str(path),
            "   75.00%   0.2000  a cat",
            "   25.00%   0.1000  a dog",
            "s3://b/k",
            "  not_an_image: no image",
            "long: text_too_long: too long",
        ]
        _, out, _ = run(capsys, "rank", *arguments, "--json", "--url", service.address)
        assert json.loads(out)["probabilities"] == [[0.25, None, 0.75], [None] * 3]
    assert service.requests[0].path == "/rank"
    assert service.requests[0].json() == {
        "queries": [{"image": "eA=="}, {"image": "s3://b/k"}],
        "candidates": [{"text": "a dog"}, {"text": "long"}, {"text": "a cat"}],
        "templates": ["a photo of {}."],
    }


# --- health ---------------------------------------------------------------------------------------


def test_health(url: str, encoder: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "health", "--url", url)
    assert status == 0
    assert re.search(rf"^fingerprint +{re.escape(encoder.fingerprint)}$", out, re.MULTILINE)
    status, out, _ = run(capsys, "health", "--json", "--url", url)
    assert json.loads(out)["status"] == "synthetic"


@pytest.mark.parametrize(("state", "expected"), [("healthy", 0), ("unhealthy", 1)])
def test_the_status_of_health(
    state: str, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = Reply(200 if expected == 0 else 503, {"status": state})
    with peer(lambda _: reply) as service:
        assert run(capsys, "health", "--url", service.address)[0] == expected


def test_no_service(capsys: pytest.CaptureFixture[str]) -> None:
    with peer(lambda _: Reply(0)) as service:
        pass
    status, _, err = run(capsys, "health", "--url", service.address)
    assert status == 2
    assert err.startswith(f"clip-encoder: unreachable: {service.address}: ")


# --- the command itself ---------------------------------------------------------------------------


def test_the_key_and_address_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_dir: Path
) -> None:
    monkeypatch.setenv("ENCODER_API_KEY", "secret")
    with peer(lambda _: Reply(body={"status": "healthy"})) as service:
        monkeypatch.setenv("ENCODER_URL", service.address)
        assert run(capsys, "health")[0] == 0
    assert service.requests[0].headers["x-api-key"] == "secret"
    assert run(capsys, "health", "--url", f"local:{model_dir}")[0] == 0  # which takes no key


def test_a_reader_that_has_seen_enough() -> None:
    """As in ``clip-encoder ... | head``."""
    with peer(lambda _: Reply(body={"status": "healthy"})) as service:
        command = [sys.executable, "-m", "clip_encoder", "health", "--url", service.address]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "client")}
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            command, env=environment, stdout=writer, stderr=subprocess.PIPE, check=False
        )
        os.close(writer)
    assert (done.returncode, done.stderr) == (2, b"")


def test_the_client_needs_no_handler_and_no_extra() -> None:
    """What `import clip_encoder` costs, and that the command's parser costs no more."""
    code = "import sys, clip_encoder.cli as c; c.parser(); print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint(
        {"handler", "boto3", "botocore", "PIL", "tqdm", "pyarrow", "onnx", "onnxruntime", "torch"}
    )
    assert {"httpx", "numpy"} <= loaded


# --- its documentation ----------------------------------------------------------------------------

DOCUMENT = ROOT / "docs" / "client.md"


def _help(command: str) -> str:
    commands = next(
        action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    chosen: argparse.ArgumentParser = commands.choices[command]
    return chosen.format_help()


def test_the_help_texts_are_the_documentations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = dict(
        re.findall(r"^\$ clip-encoder (\w+) --help\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    )
    assert shown.keys() == set(COMMANDS)
    for command in COMMANDS:
        assert shown[command] == _help(command)


def test_the_python_examples_of_the_documentation(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        Path(name).write_bytes(photo)
    Path("photos/bad.jpg").write_bytes(b"no image")
    assert main(["encode", "photos", "-o", "vectors.npz", "--url", url]) == 1
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        said = io.StringIO()
        names: dict[str, Any] = {"print": lambda *values: print(*values, file=said)}  # noqa: B023
        exec(compile(block.replace("http://localhost:3000", url), "client.md", "exec"), names)
        expected = re.findall(r"print\(.*\)  # (.*)", block)
        assert said.getvalue().splitlines()[: len(expected)] == expected
