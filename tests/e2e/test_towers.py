"""An image for texts alone: no weights of the image tower in it, and images refused."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from tests.e2e.conftest import Function, built, docker, running

IMAGE = "clip-image-encoder:e2e-text"


@pytest.fixture(scope="module")
def texts_alone(image: str, build_arguments: dict[str, str]) -> str:
    """The image; after `image`, so that only the export and what follows it are made anew."""
    return built(build_arguments | {"TOWERS": "text"}, IMAGE, "texts alone, ")


@pytest.fixture(scope="module")
def function(texts_alone: str) -> Iterator[Function]:
    with running(texts_alone, 1024) as function:
        yield function


def test_it_holds_the_weights_of_its_own_tower_only(image: str, texts_alone: str) -> None:
    files = docker("run", "--rm", "--entrypoint", "ls", texts_alone, "model").stdout.split()
    assert files == ["model.json", "text.onnx", "text.onnx.data", "vocabulary.json"]
    sizes = [
        int(docker("image", "inspect", "--format", "{{.Size}}", tag).stdout)
        for tag in (image, texts_alone)
    ]
    assert sizes[0] - sizes[1] > 130e6
    (config,) = json.loads(docker("image", "inspect", texts_alone).stdout)
    assert config["Config"]["Labels"]["clip.towers"] == "text"


def test_it_encodes_texts(function: Function) -> None:
    answer = function.invoke("direct_text.json")
    assert np.linalg.norm(answer["embedding"]) == pytest.approx(1, abs=1e-6)
    health = function.invoke("direct_health.json")
    assert health["towers"] == ["text"]
    assert health["fingerprint"] is None
    assert ".text-" in health["text_fingerprint"]


def test_it_refuses_images_and_says_why(function: Function) -> None:
    answer = function.invoke("direct_image.json")
    assert answer["errorType"] == "NoSuchTower"
    assert "no image tower" in answer["errorMessage"]
