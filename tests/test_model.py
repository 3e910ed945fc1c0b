"""A model folder that is not what it should be is refused in one clear line."""

import json
import shutil
from pathlib import Path

import pytest

from handler.config import Config
from handler.encoder import load_encoder
from handler.model import Model, ModelError


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    """A model folder to spoil; only model.json is a copy of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_dir.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "model.json").unlink()
    shutil.copy(model_dir / "model.json", folder)
    return folder


def _edit(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | changes))


def test_it_loads(copy: Path) -> None:
    model = Model.load(copy)
    assert model.name == "ViT-B/32"
    assert model.embedding_size == 512
    goldens = {name: tower.golden for name, tower in model.towers.items()}
    assert goldens["image"].embedding.shape == goldens["text"].embedding.shape == (512,)
    assert goldens["image"].input.startswith(b"\xff\xd8")
    assert goldens["text"].input.decode()


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="python -m export"):
        Model.load(tmp_path / "nowhere")


def test_of_another_version(copy: Path) -> None:
    _edit(copy, format=99)
    with pytest.raises(ModelError, match="is of format 99"):
        Model.load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}'])
def test_not_a_model_json(copy: Path, text: str) -> None:
    (copy / "model.json").write_text(text)
    with pytest.raises(ModelError, match="export the model again"):
        Model.load(copy)


def test_truncated_weights(copy: Path) -> None:
    weights = copy / "visual.onnx.data"
    content = weights.read_bytes()[:-1]
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="truncated or changed"):
        Model.load(copy)


def test_a_deployment_may_leave_out_the_other_engines_weights(copy: Path) -> None:
    (copy / "visual.pt").unlink()
    assert Model.load(copy).weights == "synthetic"


def test_the_fingerprint_names_what_decides_a_vector(copy: Path) -> None:
    model = Model.load(copy)
    sha = model.checkpoint_sha256[:12]
    assert model.fingerprint("fp32", "openai", 0) == f"ViT-B-32.synthetic.{sha}.fp32"
    assert model.fingerprint("fp16", "openai", 0).endswith(".fp16")
    assert model.fingerprint("int8", "openai", 0).endswith(".int8row")  # not what int8 once was
    assert model.fingerprint("fp32", "corrected", 720).endswith(".fp32.corrected")
    assert model.fingerprint("fp32", "openai", 720).endswith(".fp32.jpeg720")


@pytest.mark.parametrize("name", ["", "ViT-B-32"])
def test_the_model_that_the_settings_name_is_loaded(copy: Path, name: str) -> None:
    assert load_encoder(Config(model_dir=copy, model=name)).images


@pytest.mark.parametrize("name", ["ViT-L-14", "ViT-B/32"])
def test_another_model_than_the_settings_name_is_refused(copy: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"CLIP_MODEL names {name}, but .* holds ViT-B-32"):
        load_encoder(Config(model_dir=copy, model=name))
