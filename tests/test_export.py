"""The export: where weights come from, what is written, and that the gate closes."""

import dataclasses
import hashlib
import io
import itertools
import json
import shutil
import stat
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image, ImageChops

pytest.importorskip("torch")

import torch

from export import checkpoint, graph, images, parity
from export.__main__ import main as export
from export.checkpoint import Reference
from export.download import sha256_of
from export.sources import MODELS
from handler.engines.torch_clip import import_clip
from handler.model import Architecture
from tests.conftest import SIDE

SMALL = Architecture(64, 64, 2, 64, 32, 8, 100, 64, 1, 1)
"""A CLIP so small that it is made in no time."""

FILES = {f"{tower}.{kind}" for tower in ("visual", "text") for kind in ("onnx", "onnx.data", "pt")}
FILES |= {"vocabulary.json"}
"""What an export writes beside ``model.json``."""


def test_it_never_overwrites_a_folder_that_holds_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert export(["--synthetic", "--out", str(tmp_path)]) == 1
    assert "holds no model" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.fixture(scope="module")
def custom(synthetic: Path) -> Reference:
    """The synthetic checkpoint, as a file of one's own."""
    return checkpoint.load_reference(synthetic)


@pytest.fixture
def loaded(custom: Reference, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its path, which the export does not load again."""
    known = {(custom.path, False, None, None): custom}
    monkeypatch.setattr(checkpoint, "load_reference", lambda *asked: known[asked])
    return str(custom.path)


def test_a_file_of_ones_own_is_recorded_as_custom_and_known_by_its_weights(
    custom: Reference, reference: Reference
) -> None:
    assert (custom.weights, custom.sha256) == ("custom", reference.sha256)


def test_the_official_file_is_known_by_its_own_hash(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the fingerprints of all exports of it, old and new, are equal."""
    known = dataclasses.replace(MODELS["ViT-B/32"], sha256=sha256_of(synthetic))
    monkeypatch.setitem(MODELS, "ViT-B/32", known)
    official = checkpoint.load_reference(synthetic)
    assert official.weights == "openai"
    assert official.sha256 == sha256_of(synthetic)


def test_the_hash_of_weights_is_of_what_its_description_says() -> None:
    weights = {"b": torch.tensor([[1.0, 2.0, 3.0]]), "a": torch.tensor(0.5), "B": torch.zeros(1)}
    text = b"B float32 1\n" + struct.pack("<f", 0)
    text += b"a float32 -\n" + struct.pack("<f", 0.5)
    text += b"b float32 1x3\n" + struct.pack("<3f", 1, 2, 3)
    digest = hashlib.sha256(text).hexdigest()
    assert checkpoint.sha256_of_weights(weights) == digest
    halves = {name: tensor.half() for name, tensor in reversed(weights.items())}
    assert checkpoint.sha256_of_weights(halves) == digest
    strided = weights | {"b": torch.tensor([[1.0], [2.0], [3.0]]).T}
    assert checkpoint.sha256_of_weights(strided) == digest
    changed = weights | {"b": torch.tensor([[1.0], [2.0], [3.0]])}
    assert checkpoint.sha256_of_weights(changed) != digest


def test_two_archives_of_the_same_weights_are_one_checkpoint(tmp_path: Path) -> None:
    def archive(name: str, seed: int = 0) -> tuple[str, str]:
        """The hashes of a new archive: of its file, and of its weights."""
        path = checkpoint.make_synthetic(tmp_path / name, seed, architecture=SMALL)
        model, _ = import_clip().load(str(path), device="cpu", jit=False)
        weights = checkpoint.sha256_of_weights(model.visual.state_dict())
        return sha256_of(path), weights

    one, other, another = archive("one.pt"), archive("two.pt"), archive("three.pt", seed=1)
    assert one[0] != other[0]  # else this test shows nothing
    assert one[1] == other[1] != another[1]


def test_the_gate_closes_on_a_wrong_graph(
    loaded: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The classic mistake of CLIP ports: GELU where the model has QuickGELU.
    monkeypatch.setitem(graph._ACTIVATIONS, "quick_gelu", graph._gelu)
    two = dict(list(images.parity_images(SIDE).items())[:2])
    monkeypatch.setattr(images, "parity_images", lambda side: two)
    out = tmp_path / "model"
    assert export(["--checkpoint", loaded, "--towers", "image", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "photograph astronaut" in error
    assert "FAILED" in error
    assert list(tmp_path.iterdir()) == []


def test_the_gate_refuses_nan() -> None:
    assert not parity.Row("image", "onnx", True, float("nan"), float("nan")).passed


def test_the_parity_set_has_every_awkward_kind() -> None:
    pictures = {
        name: Image.open(io.BytesIO(data)) for name, data in images.parity_images(SIDE).items()
    }
    assert len(pictures) >= 24
    modes = {picture.mode for picture in pictures.values()}
    assert {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK"} <= modes
    assert any(mode.startswith("I") for mode in modes)
    assert {"JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"} <= {
        p.format for p in pictures.values()
    }
    assert sum(p.width != p.height for p in pictures.values()) >= 24
    assert any(p.info.get("progressive") for p in pictures.values())
    assert any(p.getexif().get(0x0112) == 6 for p in pictures.values())
    assert any(isinstance(p.info.get("transparency"), bytes) for p in pictures.values())


def test_synthetic_weights_tell_images_apart(reference: Reference) -> None:
    """Plain random weights score noise at 0.93, and a parity check over them would prove little."""
    pictures = [images.photograph(name).convert("RGB") for name in images.PHOTOGRAPHS]
    vectors = [parity.reference_embedding(reference, p) for p in pictures]
    cosines = [float(a @ b) for a, b in itertools.combinations(vectors, 2)]
    assert np.mean(cosines) < 0.2
    assert max(cosines) < 0.9
    shifts = []
    for picture in pictures:
        crop = picture.resize((224, 224))
        before = parity.reference_embedding(reference, crop)
        after = parity.reference_embedding(reference, ImageChops.offset(crop, 1, 0))
        shifts.append(1 - float(before @ after))
    # By one pixel: hardly seen in a photograph of stars, plainly in one of bricks.
    assert min(shifts) > 5e-4
    assert np.median(shifts) > 0.01


def test_model_json_holds_what_a_reader_needs(model_dir: Path, reference: Reference) -> None:
    card = json.loads((model_dir / "model.json").read_text())
    assert card["model"] == "ViT-B/32"
    assert card["weights"] == "synthetic"
    assert card["architecture"]["embedding_size"] == 512
    assert card["checkpoint"]["sha256"] == reference.sha256
    assert card["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-3)  # as clip begins its training
    assert {"torch", "openai-clip", "onnxruntime", "ftfy", "regex"} <= card["versions"].keys()
    assert card["towers"].keys() == {"image", "text"}
    for name, samples in (("image", 24), ("text", 100)):
        tower = card["towers"][name]
        assert tower["parity"]["samples"] >= samples
        assert tower["parity"]["engines"] == ["onnx", "torch"]
        assert tower["parity"]["min_cosine"] >= 0.99999
        golden = np.array(tower["golden"]["embedding"], np.float32)
        assert np.linalg.norm(golden) == pytest.approx(1, abs=1e-6)
    assert card["towers"]["image"]["sha256"] == reference.sha256 != card["towers"]["text"]["sha256"]
    assert card["files"].keys() == FILES
    for name, file in card["files"].items():
        assert sha256_of(model_dir / name) == file["sha256"]


def test_the_graph_is_portable_and_small(model_dir: Path) -> None:
    model = onnx.load(model_dir / "visual.onnx", load_external_data=False)
    assert [o.domain for o in model.opset_import] == [""]  # standard operators only
    (pixels,), (embeddings,) = model.graph.input, model.graph.output
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert embeddings.type.tensor_type.shape.dim[1].dim_value == 512
    # 87.8 M and 63.4 M parameters, nearly all of them in two bytes.
    assert (model_dir / "visual.onnx.data").stat().st_size < 87.8e6 * 2 * 1.05
    assert (model_dir / "text.onnx.data").stat().st_size < 63.4e6 * 2 * 1.05


def test_anyone_may_read_the_files(model_dir: Path) -> None:
    """Lambda runs as a user who owns nothing."""
    for file in model_dir.iterdir():
        assert file.stat().st_mode & stat.S_IROTH, file.name


def test_a_new_export_replaces_the_old(
    model_dir: Path, tmp_path: Path, loaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    shutil.copytree(model_dir, out)
    (out / "notes.txt").write_text("precious")
    one = dict(list(images.parity_images(SIDE).items())[:1])
    monkeypatch.setattr(images, "parity_images", lambda side: one)
    assert export(["--checkpoint", loaded, "--towers", "image", "--out", str(out)]) == 0
    of_images = {name for name in FILES if name.startswith("visual.")}
    assert {f.name for f in out.iterdir()} == of_images | {"model.json", "notes.txt"}
    assert json.loads((out / "model.json").read_text())["weights"] == "custom"
