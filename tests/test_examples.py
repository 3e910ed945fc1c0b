"""The programs of examples/ do what they say, against the real server."""

import os
import subprocess
import sys
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
