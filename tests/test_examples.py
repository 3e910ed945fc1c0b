"""The programs of examples/ do what they say, against the real server."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from export import images
from handler.encoder import Encoder
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture twice, another one, and a file that is damaged."""
    folder = tmp_path_factory.mktemp("photos")
    chelsea = images.photograph("chelsea")
    (folder / "a.jpg").write_bytes(images.encoded(chelsea, "JPEG", quality=95))
    (folder / "b.png").write_bytes(images.encoded(chelsea, "PNG"))
    (folder / "c.jpg").write_bytes(images.encoded(images.photograph("coffee"), "JPEG"))
    (folder / "damaged.jpg").write_bytes(b"no picture")
    return folder


def run(
    program: str, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "examples" / program, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_similar_pictures_come_first(client: httpx.Client, photos: Path) -> None:
    done = run("similar.py", photos, photos / "a.jpg", CLIP_URL=str(client.base_url))
    assert "damaged.jpg: the data is not an image" in done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [Path(path).name for _, path in lines] == ["a.jpg", "b.png", "c.jpg"]
    assert lines[0][0] == "1.0000"


def test_pictures_are_found_by_a_text(client: httpx.Client, photos: Path, encoder: Encoder) -> None:
    done = run("similar.py", photos, "a red cup", CLIP_URL=str(client.base_url))
    text = encoder.encode(encoder.tokenize("a red cup"))
    for line in done.stdout.splitlines():
        cosine, path = line.split()
        picture = encoder.encode(Path(path).read_bytes())
        assert float(cosine) == pytest.approx(float(picture @ text), abs=1e-3)
    assert len(done.stdout.splitlines()) == 3


def test_pictures_are_sorted_by_the_label_that_fits_best(
    client: httpx.Client, photos: Path, encoder: Encoder, tmp_path: Path
) -> None:
    done = run("sort.py", photos, tmp_path, "cat", "cup", CLIP_URL=str(client.base_url))
    assert "damaged.jpg: the data is not an image" in done.stderr
    sorted_to = {path.name: path.parent.name for path in tmp_path.rglob("*.*")}
    assert sorted(sorted_to) == ["a.jpg", "b.png", "c.jpg"]
    asked = {
        "queries": [{"embedding": encoder.encode((photos / "c.jpg").read_bytes()).tolist()}],
        "candidates": [{"text": "cat"}, {"text": "cup"}],
        "templates": ["a photo of a {}.", "a cropped photo of a {}.", "a close-up photo of a {}."],
    }
    (row,) = client.post("/rank", json=asked).json()["probabilities"]
    assert sorted_to["c.jpg"] == ("cat" if row[0] > row[1] else "cup")
    assert f"{max(row):.0%}" in done.stdout


@pytest.fixture
def troubled(client: httpx.Client) -> Iterator[tuple[str, list[str]]]:
    """The real server behind one that turns the first request away and hangs up on the second."""
    seen: list[str] = []

    class Front(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the standard library's name
            seen.append(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if len(seen) == 1:
                self.send_response(503)
                self.send_header("Retry-After", "0")
                self.end_headers()
            elif len(seen) > 2:
                kind = {"Content-Type": self.headers["Content-Type"]}
                answer = client.post(self.path, content=body, headers=kind)
                self.send_response(answer.status_code)
                self.send_header("X-Clip-Fingerprint", answer.headers["X-Clip-Fingerprint"])
                self.end_headers()
                self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    front = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    thread = threading.Thread(target=front.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{front.server_port}", seen
    front.shutdown()
    thread.join()
    front.server_close()


def backend(url: str, picture: Path, use: str = "true") -> subprocess.CompletedProcess[str]:
    return run("backend.py", picture, USE_LOCAL_CLIP=use, LOCAL_CLIP_URL=url)


def test_a_backend_tries_again(
    troubled: tuple[str, list[str]], photos: Path, encoder: Encoder
) -> None:
    url, seen = troubled
    assert backend(url, photos / "a.jpg").stdout.split() == ["512", encoder.fingerprint]
    assert len(seen) == 3


def test_a_backend_does_not_try_again_what_is_refused(
    troubled: tuple[str, list[str]], photos: Path
) -> None:
    url, seen = troubled
    seen += ["/encode_image"] * 2  # the troubles are over
    assert "PictureRefused: the data is not an image" in backend(url, photos / "damaged.jpg").stderr
    assert len(seen) == 3


def test_a_backend_gives_up_on_a_service_that_is_not_there(photos: Path) -> None:
    assert "ConnectError" in backend("http://127.0.0.1:9", photos / "a.jpg").stderr


def test_a_backend_asks_only_if_it_is_told_to(client: httpx.Client, photos: Path) -> None:
    assert "USE_LOCAL_CLIP is not true" in backend(str(client.base_url), photos, use="").stderr
