"""``clip-encoder check``, with an old service that has each of the mistakes it must find."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from clip_encoder.checking.comparison import compare
from clip_encoder.checking.distribution import picture
from clip_encoder.cli import main
from export import images
from tests.peers import Reply, peer, vector

if TYPE_CHECKING:
    from export.checkpoint import Reference

KINDS = (
    *("odd 451 x 299", "very wide 2000 x 40", "RGBA with real transparency", "CMYK JPEG"),
    *("palette, alpha per colour", "EXIF-rotated JPEG", "WebP", "photograph chelsea"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight files of the kinds that a preprocessing can get wrong."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, kind in enumerate(KINDS):
        (folder / f"{number}.jpg").write_bytes(images.parity_images(224)[kind])
    return folder


Checked = tuple[int, dict[str, Any]]


@pytest.fixture
def check(folder: Path, client: httpx.Client, capsys: pytest.CaptureFixture[str]) -> "Check":
    return Check(folder, str(client.base_url), capsys)


class Check:
    """Runs the command over the folder, with the real server as the new side."""

    def __init__(self, folder: Path, new: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.new, self.capsys = folder, new, capsys

    def __call__(
        self, old: str, *arguments: str, new: str = "", folder: bool = True, more: str = ""
    ) -> Checked:
        paths = [*([str(self.folder)] if folder else []), *([more] if more else [])]
        sides = ["--old", old, "--new", new or self.new]
        status = main(["check", *paths, *sides, "--json", *arguments])
        printed = self.capsys.readouterr()
        report: dict[str, Any] = json.loads(printed.out) if printed.out else {"error": printed.err}
        return status, report


def causes(report: dict[str, Any]) -> dict[str, bool]:
    """Code -> whether it was tried."""
    return {cause["code"]: cause["tried"] for cause in report["causes"]}


# --- what it finds --------------------------------------------------------------------------------


def old_service(reference: "Reference", *faults: str) -> Any:
    from tests.old_service import serving  # needs torch

    return serving(reference, *faults)


def test_the_same(check: Check, reference: "Reference") -> None:
    with old_service(reference) as address:
        status, report = check(address)
    assert (status, report["verdict"], report["causes"]) == (0, "the same", [])
    assert report["images"] == len(KINDS)
    assert report["cosine"]["least"] > 0.99999
    assert report["neighbours"]["overlap"] == 1


@pytest.mark.parametrize(
    "faults",
    [
        ("exif",),
        ("squash",),
        ("squash_bilinear",),
        ("rgb_first",),
        ("squash", "rgb_first", "exif"),
    ],
)
def test_a_preprocessing_that_differs(
    check: Check, reference: "Reference", faults: tuple[str, ...]
) -> None:
    with old_service(reference, *faults) as address:
        status, report = check(address)
    assert (status, report["verdict"]) == (1, "different")
    assert causes(report) == dict.fromkeys(faults, True)
    assert all(cause["least_cosine"] > 0.99999 for cause in report["causes"])
    assert report["cosine"]["least"] < 0.999


def test_vectors_that_were_not_normalised(check: Check, reference: "Reference") -> None:
    with old_service(reference, "not_normalised") as address:
        status, report = check(address)
    assert (status, report["verdict"]) == (3, "the same after normalising")
    assert causes(report) == {"not_normalised": True}
    assert report["lengths"]["old"]["median"] > 2
    assert report["lengths"]["new"]["median"] == pytest.approx(1, abs=1e-5)


def test_not_normalised_and_squashed(check: Check, reference: "Reference") -> None:
    """As BentoCLIP does."""
    with old_service(reference, "not_normalised", "squash") as address:
        status, report = check(address)
    assert status == 1
    assert causes(report) == {"not_normalised": True, "squash": True}


def test_gelu_by_its_pattern_and_tried_with_the_model(
    check: Check, reference: "Reference", model_dir: Path
) -> None:
    with old_service(reference, "gelu") as address:
        status, report = check(address)
        assert status == 1
        assert causes(report) == {"gelu": False}
        _, report = check(address, "--model", str(model_dir))
        assert causes(report) == {"gelu": True}
        assert report["causes"][0]["least_cosine"] > 0.99999


def test_int8(check: Check, reference: "Reference", model_dir: Path) -> None:
    with old_service(reference, "int8") as address:
        status, report = check(address, "--model", str(model_dir))
    assert status == 1
    assert causes(report) == {"int8": True}


def test_int8_and_squashed(check: Check, reference: "Reference") -> None:
    with old_service(reference, "int8", "squash") as address:
        _, report = check(address)
    assert causes(report) == {"squash": True, "int8": True}


def test_other_weights(check: Check) -> None:
    """A service that makes a vector of its own of each file."""

    def answer(request: Any) -> Reply:
        random = np.random.default_rng(len(request.body))
        return Reply(body=[random.standard_normal(512).tolist()])

    with peer(answer) as old:
        _, report = check(old.address)
    assert causes(report) == {"not_normalised": True, "weights": True}


# --- stored vectors -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(folder: Path, client: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "vectors.npz"
    assert main(["encode", str(folder), "-o", str(path), "--url", str(client.base_url)]) == 0
    return path


def changed(stored: Path, path: Path, change: Any) -> str:
    """A copy of a file of vectors, with other vectors."""
    with np.load(stored) as archive:
        arrays = dict(archive)
    arrays["embedding"] = change(arrays["embedding"]).astype(np.float32)
    np.savez(path, **arrays)
    return str(path)


def test_stored_vectors_on_either_side(check: Check, stored: Path, tmp_path: Path) -> None:
    status, report = check(str(stored), folder=False)
    assert (status, report["verdict"], report["images"]) == (0, "the same", len(KINDS))
    longer = changed(stored, tmp_path / "longer.npz", lambda vectors: 22 * vectors)
    status, report = check(longer, new=str(stored), folder=False)
    assert (status, causes(report)) == (3, {"not_normalised": True})
    assert report["lengths"]["old"]["most"] == pytest.approx(22, abs=1e-3)


def test_stored_vectors_of_squashed_pictures(
    check: Check, reference: "Reference", folder: Path, tmp_path: Path
) -> None:
    """The old service is gone, and is found out all the same."""
    from tests.old_service import OldService

    old = OldService(reference, {"squash"})
    names = [str(path) for path in sorted(folder.iterdir())]
    vectors = np.array([old.encode(Path(name).read_bytes()) for name in names], np.float32)
    path = tmp_path / "old.npz"
    np.savez(path, name=names, embedding=vectors, fingerprint="old")
    status, report = check(str(path), folder=False)
    assert (status, causes(report)) == (1, {"squash": True})


@pytest.mark.parametrize(
    ("noise", "code"),
    [("each its own", "int8"), ("the same for all", "gelu"), ("only noise", "weights")],
)
def test_the_patterns_of_stored_vectors(
    check: Check, stored: Path, tmp_path: Path, noise: str, code: str
) -> None:
    random = np.random.default_rng(0)

    def change(vectors: Any) -> Any:
        own, common = random.standard_normal(vectors.shape), random.standard_normal(512)
        added = {
            "each its own": vectors + 0.001 * own,
            "the same for all": vectors + 0.001 * common,
            "only noise": own,
        }
        mixed = added[noise]
        return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)

    old = changed(stored, tmp_path / "old.npz", change)
    status, report = check(old, new=str(stored), folder=False)
    assert (status, causes(report)) == (1, {code: False})


# --- how it says so -------------------------------------------------------------------------------


def test_the_report_for_people(
    check: Check, folder: Path, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(vectors: Any) -> Any:
        vectors[3] = -vectors[3]
        return vectors

    old, drawn = changed(stored, tmp_path / "old.npz", change), tmp_path / "drawn.svg"
    sides = ["--old", old, "--new", str(stored), "--svg", str(drawn)]
    assert main(["check", str(folder), str(folder / "none.jpg"), *sides]) == 2  # no such path
    capsys.readouterr()
    assert main(["check", *sides]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "compared 8 images"
    assert lines[1] == "length of the old vectors: 1 to 1, median 1"
    assert lines[3].startswith("cosine: least -1.0000000, 1 % -0.8600000, median 1.0000000")
    assert lines[4].startswith("nearest 10 neighbours: 100.0 % are the same")  # all of seven
    assert lines[6] == f"  -1.0000000  {folder}/3.jpg"
    assert "verdict: different" in lines
    assert lines[-1].startswith("no cause was found")
    ET.fromstring(drawn.read_text())
    assert ">7<" in drawn.read_text()


def test_failures_are_counted_by_side(
    check: Check, folder: Path, stored: Path, tmp_path: Path, client: httpx.Client
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / "bad.jpg").write_bytes(b"no image")
    Image.new("RGB", (50, 50)).save(more / "unknown.jpg")
    status, report = check(str(stored), more=str(more))
    assert status == 0
    assert [failure["code"] for failure in report["failed"]["old"]] == ["not_stored"] * 2
    assert [failure["code"] for failure in report["failed"]["new"]] == ["not_an_image"]


@pytest.mark.parametrize("status", [404, 500])
def test_an_old_service_that_does_not_answer(check: Check, status: int) -> None:
    with peer(lambda _: Reply(status, b"oh")) as old:
        found, report = check(old.address)
    assert found == 2
    assert f"http_{status}" in report["error"]


def test_a_cause_that_cannot_be_looked_for_costs_no_figures(
    check: Check, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An old service that answers for the first eight images, and for no more."""
    left = [Reply(body=vector(number)) for number in range(len(KINDS))]
    with peer(lambda _: left.pop() if left else Reply(422, b"no more")) as old:
        sides = ["--old", old.address, "--new", check.new]
        assert main(["check", str(folder), *sides]) == 1
    printed = capsys.readouterr()
    assert "verdict: different" in printed.out
    assert printed.err == "the cause could not be found: http_422: no more\n"


@pytest.mark.parametrize("body", [{"embedding": [0.6, 0.8]}, [[0.6, 0.8]], [0.6, 0.8]])
def test_vectors_of_another_size(check: Check, body: Any) -> None:
    with peer(lambda _: Reply(body=body)) as old:
        found, report = check(old.address)
    assert found == 2
    assert "the old vectors have 2 numbers and the new ones 512" in report["error"]


def test_nothing_to_compare_over(check: Check) -> None:
    assert check("http://127.0.0.1:9", folder=False)[0] == 2


def test_the_figures() -> None:
    """Against the definition, where the nearest neighbours of half of the images change."""
    random = np.random.default_rng(1)
    old = random.standard_normal((30, 8)).astype(np.float32)
    new = old.copy()
    new[15:] = random.standard_normal((15, 8))
    found = compare([str(n) for n in range(30)], old, new)
    likeness = [vectors @ vectors.T for vectors in (_unit(old), _unit(new))]
    common = 0
    for row in range(30):
        near = [[n for n in np.argsort(-side[row]) if n != row][:10] for side in likeness]
        common += len(set(near[0]) & set(near[1]))
    assert found.overlap == pytest.approx(common / 300)
    assert found.cosines[:15] == pytest.approx(1)
    assert sorted(found.worst) == sorted(np.argsort(found.cosines)[:10].tolist())
    assert found.old.most == pytest.approx(np.linalg.norm(old, axis=1).max())


def _unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_picture_counts_every_image() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    other = vectors.copy()
    other[4] = [0.6, 0.8, 0, 0]
    drawn = picture(compare(list("abcde"), vectors, other))
    shapes = ET.fromstring(drawn)
    texts = [element.text for element in shapes if element.tag.endswith("text")]
    assert texts[0] == "cosine of old and new, 5 images: different"
    assert {"4", "1"} <= set(texts)
