"""int8: its gate lets a sound export through, its engine says what it is, its gate closes."""

import copy
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from export import checkpoint, images
from export.__main__ import main as export
from export.checkpoint import Reference
from handler.config import Config, ConfigError
from handler.encoder import load_encoder
from handler.model import ModelError

PHOTOGRAPHS = {
    name: images.encoded(images.photograph(name), "PNG")
    for name in ("astronaut", "coffee", "rocket", "camera", "brick")
}


@pytest.fixture(scope="module")
def int8_dir(tmp_path_factory: pytest.TempPathFactory, cache: Path, synthetic: Path) -> Path:
    """A model folder with both precisions, through the command line and both gates.

    Over the photographs only: the awkward files differ in how they are decoded, which happens
    before any precision, and `model_dir`'s export has compared them all.
    """
    out = tmp_path_factory.mktemp("int8") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "CACHE", cache)
        patch.setattr(checkpoint, "make_synthetic", lambda path: synthetic)
        patch.setattr(images, "parity_images", lambda: PHOTOGRAPHS)
        assert export(["--synthetic", "--precision", "int8", "--out", str(out)]) == 0
    return out


def test_model_json_holds_the_figures_of_both_gates(int8_dir: Path) -> None:
    card = json.loads((int8_dir / "model.json").read_text())
    assert 0.99 <= card["parity_int8"]["min_cosine"] < card["parity"]["min_cosine"]
    assert card["parity_int8"]["images"] == card["parity"]["images"] == len(PHOTOGRAPHS)
    assert card["parity_int8"]["limits"] == {"min_cosine": 0.99, "max_difference": 1.0}
    assert card["parity"]["limits"] == {"min_cosine": 0.99999, "max_difference": 1e-4}
    assert card["parity_int8"]["engines"] == ["onnx"]
    assert (
        card["files"]["visual.int8.onnx"]["bytes"]
        < card["files"]["visual.onnx.data"]["bytes"] / 1.9
    )


def test_the_service_runs_it_when_asked_and_says_so(int8_dir: Path) -> None:
    fp32 = load_encoder(Config(model_dir=int8_dir))
    int8 = load_encoder(Config(model_dir=int8_dir, precision="int8"))
    assert int8.fault is None
    assert ".fp32" in fp32.fingerprint
    assert ".int8" in int8.fingerprint
    photo = images.encoded(images.photograph("astronaut"), "JPEG")
    assert 0.99 <= float(int8.encode(photo) @ fp32.encode(photo)) < 0.99999


def test_an_export_without_it_says_so(model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"visual\.int8\.onnx"):
        load_encoder(Config(model_dir=model_dir, precision="int8"))


def test_torch_has_none() -> None:
    with pytest.raises(ConfigError, match="CLIP_PRECISION"):
        Config(engine="torch", precision="int8")


def test_the_gate_refuses_outliers_that_one_scale_cannot_hold(
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trained transformers have them: one activation hundreds of times as large as the others."""
    spoiled = copy.deepcopy(reference)
    with torch.no_grad():
        for block in spoiled.model.visual.transformer.resblocks:
            block.ln_2.bias[7] = 1000
            block.mlp.c_fc.weight[:, 7] /= 300
    monkeypatch.setattr("export.__main__._reference", lambda options: spoiled)
    monkeypatch.setattr(images, "parity_images", lambda: dict(list(PHOTOGRAPHS.items())[:2]))
    out = tmp_path / "model"
    assert export(["--synthetic", "--precision", "int8", "--out", str(out)]) == 1
    assert not out.exists()
    errors = capsys.readouterr().err
    assert "no model written" in errors
    failed = [line for line in errors.splitlines() if line.endswith("FAILED")]
    assert failed
    assert all(" int8 " in line for line in failed)
