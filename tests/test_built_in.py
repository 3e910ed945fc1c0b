"""The settings must be those that the model folder was made for, or nothing starts."""

import json
import shutil
from pathlib import Path

import pytest

from handler.config import Config
from handler.encoder import load_encoder
from handler.model import Model, ModelError
from handler.towers import check_files

IMAGE, TEXT = ("visual.onnx", "visual.onnx.data"), ("text.onnx", "text.onnx.data")
INT8 = ("visual.int8.onnx", "visual.int8.onnx.data", "text.int8.onnx", "text.int8.onnx.data")
TORCH = ("visual.pt", "text.pt")
VOCABULARY = ("vocabulary.json",)
EXACT = (*IMAGE, *TEXT, *VOCABULARY)
FAST = (*INT8, *VOCABULARY)
"""What a container image of each profile holds."""


@pytest.fixture
def folder(model_dir: Path, tmp_path: Path) -> Path:
    """A model folder that holds nothing but what the export says of it: all files of all kinds."""
    made = tmp_path / "model"
    made.mkdir()
    card = json.loads((model_dir / "model.json").read_text())
    names = (*EXACT, *FAST, *TORCH)
    (made / "model.json").write_text(
        json.dumps(card | {"files": {name: {"bytes": 0} for name in names}})
    )
    return made


@pytest.mark.parametrize(
    ("held", "env", "words"),
    [
        (
            EXACT,
            {"CLIP_PROFILE": "fast"},
            "CLIP_PROFILE=fast needs visual.int8.onnx and .* for the image tower, and .* lacks "
            "that: set CLIP_PROFILE=exact, for which it was made",
        ),
        (EXACT, {"CLIP_PRECISION": "int8"}, "CLIP_PRECISION=int8 needs .*: set CLIP_PROFILE=exact"),
        (FAST, {}, "CLIP_PROFILE=exact needs visual.onnx and .*: set CLIP_PROFILE=fast"),
        (FAST, {"CLIP_PROFILE": "exact"}, "CLIP_PROFILE=exact needs .*: set CLIP_PROFILE=fast"),
        (FAST, {"CLIP_TOWERS": "text"}, "CLIP_PROFILE=exact needs text.onnx and .* text tower"),
        ((*IMAGE, *VOCABULARY), {}, "needs text.onnx .* text tower.*: set CLIP_TOWERS=image, or"),
        ((*IMAGE, *VOCABULARY), {"CLIP_TOWERS": "text"}, "text tower.*: set CLIP_TOWERS=image, or"),
        ((*TEXT, *VOCABULARY), {"CLIP_TOWERS": "image"}, "image tower.*: set CLIP_TOWERS=text, or"),
        ((*IMAGE, *INT8[2:], *VOCABULARY), {}, "text.onnx .*: set CLIP_PROFILE=fast, for which"),
        ((*IMAGE, *TEXT), {}, "needs vocabulary.json for the text tower, .* an incomplete copy"),
        ((IMAGE[0], *TEXT, *VOCABULARY), {}, "needs visual.onnx.data for .* an incomplete copy"),
        ((*IMAGE, TEXT[0], *VOCABULARY), {}, "needs text.onnx.data for .* an incomplete copy"),
        (
            EXACT,
            {"CLIP_ENGINE": "torch"},
            "CLIP_ENGINE=torch needs visual.pt .*: set CLIP_ENGINE=onnx",
        ),
        (TORCH, {"CLIP_ENGINE": "onnx"}, "CLIP_PROFILE=exact needs .*: set CLIP_ENGINE=torch, for"),
    ],
)
def test_a_setting_that_the_model_folder_was_not_made_for_stops_the_start(
    folder: Path, held: tuple[str, ...], env: dict[str, str], words: str
) -> None:
    for name in held:
        (folder / name).touch()
    config = Config.from_env({"CLIP_MODEL_DIR": str(folder), **env})
    with pytest.raises(ModelError, match=words) as caught:
        load_encoder(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("held", "env"),
    [
        (EXACT, {}),
        (EXACT, {"CLIP_PROFILE": "exact", "CLIP_TOWERS": "image,text"}),
        (FAST, {"CLIP_PROFILE": "fast"}),
        (FAST, {"CLIP_PRECISION": "int8", "CLIP_TOWERS": "text"}),
        (TORCH + VOCABULARY, {"CLIP_ENGINE": "torch"}),
        (IMAGE, {"CLIP_TOWERS": "image"}),
        ((*TEXT, *VOCABULARY), {"CLIP_TOWERS": "text"}),
    ],
)
def test_what_it_was_made_for_passes(
    folder: Path, held: tuple[str, ...], env: dict[str, str]
) -> None:
    for name in held:
        (folder / name).touch()
    config = Config.from_env({"CLIP_MODEL_DIR": str(folder), **env})
    for tower in config.towers or ("image", "text"):
        check_files(config, Model.load(folder), tower)


def test_an_export_without_a_tower_is_not_asked_for_it(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text())
    del card["towers"]["text"]
    (folder / "model.json").write_text(json.dumps(card))
    config = Config(model_dir=folder, towers=("text",))
    with pytest.raises(ModelError, match=r"CLIP_TOWERS names text, .* exported without it"):
        load_encoder(config)


def test_a_function_starts_on_what_its_image_holds(model_dir: Path, tmp_path: Path) -> None:
    """By the names that the Dockerfile copies into the image of profile exact, one tower."""
    shutil.copy(model_dir / "model.json", tmp_path)
    for name in IMAGE:
        (tmp_path / name).symlink_to(model_dir / name)
    encoder = load_encoder(
        Config.from_env({"CLIP_MODEL_DIR": str(tmp_path), "CLIP_TOWERS": "image"})
    )
    assert encoder.health()["status"] == "synthetic"
    assert encoder.images
    encoder.images.decoder.close()
