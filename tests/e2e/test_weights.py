"""The image's weights: from the only source that can be reached, and weights of one's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import build, docker

pytest.importorskip("torch")

from tests import checkpoints
from tests.hub import COMMIT, serving

TAG = "clip-weights:e2e"


def _card(arguments: dict[str, str], **options: Any) -> dict[str, Any]:
    """``model.json`` of the export stage of a build."""
    build(arguments, "--target", "export", "--network=host", "--tag", TAG, **options)
    text = docker("run", "--rm", "--entrypoint", "cat", TAG, "/model/model.json").stdout
    card: dict[str, Any] = json.loads(text)
    return card


def test_with_hugging_face_alone_the_images_weights_are_openais(
    image: str, build_arguments: dict[str, str], tmp_path: Path
) -> None:
    """`image` first: then every layer but the export itself is made already."""
    official = checkpoints.write_official(tmp_path)
    changed = {"export/__main__.py": checkpoints.exporter(official)}
    with serving({official.hub.repository: tmp_path / "hub"}, token="secret") as hub:
        arguments = build_arguments | {
            "WEIGHTS": "openai",
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "secret",
        }
        card = _card(arguments, changed=changed)
    assert (card["weights"], card["model"]) == ("openai", "ViT-B/32")
    assert card["checkpoint"]["sha256"] == official.sha256


def test_a_model_of_hugging_face_is_baked_in(
    image: str, build_arguments: dict[str, str], tmp_path: Path
) -> None:
    architecture = checkpoints.SMALL._replace(activation="gelu")
    theirs = checkpoints.open_clip(architecture)
    folder = checkpoints.write_open_clip(theirs, architecture, tmp_path)
    with serving({"laion/CLIP": folder}) as hub:
        asked = {"WEIGHTS": "custom", "MODEL": "hf:laion/CLIP", "HF_ENDPOINT": hub.url}
        card = _card(build_arguments | asked)
    assert (card["weights"], card["model"]) == ("custom", "laion/CLIP@3d74acf")
    assert card["checkpoint"]["revision"] == COMMIT
    refused = build(build_arguments | asked | {"WEIGHTS": "openai"}, "--target=export", check=False)
    assert "WEIGHTS=custom belongs to MODEL=hf:laion/CLIP" in refused.stderr + refused.stdout
