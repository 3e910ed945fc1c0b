"""The image of the profile ``fast``: int8 weights and no others, in less memory."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from events.generate import PHOTO
from handler.config import PROFILES, Config
from handler.encoder import load_encoder
from handler.engines import Embedding
from tests.answers import ERRORS, EVENTS, check_answer
from tests.e2e.conftest import FIGURES, Function, build, built, docker, model_of, running

IMAGE = "clip-image-encoder:e2e-fast"


@pytest.fixture(scope="module")
def fast(image: str, build_arguments: dict[str, str]) -> str:
    """The image; after `image`, so that only the export and what follows it are made anew."""
    return built(build_arguments | {"PROFILE": "fast"}, IMAGE, "fast, ")


@pytest.fixture(scope="module")
def fast_vector(fast: str, tmp_path_factory: pytest.TempPathFactory) -> Embedding:
    """The photograph's, by the image's own weights outside any container."""
    directory = model_of(fast, tmp_path_factory.mktemp("fast"))
    settings = PROFILES["fast"]
    config = Config(model_dir=directory, profile="fast", **settings)  # type: ignore[arg-type]
    return load_encoder(config).encode(PHOTO)


@pytest.fixture(scope="module", params=[1769, 512])
def function(request: pytest.FixtureRequest, fast: str) -> Iterator[Function]:
    """512 MB are less than the other profile's weights take."""
    with running(fast, request.param) as function:
        function.measure("fast, ")
        yield function
        FIGURES[f"fast, {request.param:,} MB: peak memory"] = f"{function.peak_memory():.0f} MB"


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_file(function: Function, name: str, fast_vector: Embedding) -> None:
    check_answer(name, function.invoke(name), fast_vector)


def test_a_bad_event_costs_the_next_one_nothing(function: Function) -> None:
    before = function.invoke("direct_image.json")
    for name in ERRORS:
        function.invoke(name)
    assert function.invoke("direct_image.json") == before


def test_the_vector_is_near_the_exact_one_and_says_that_it_is_another(
    function: Function, vector: Embedding
) -> None:
    answer = function.invoke("direct_image.json")["embedding"]
    assert 0.999 <= float(np.array(answer, np.float32) @ vector) < 0.9999999
    fingerprint = function.invoke("direct_health.json")["fingerprint"]
    assert ".int8" in fingerprint
    assert fingerprint.endswith(".jpeg720")


def test_it_holds_the_weights_of_its_own_profile_only(fast: str) -> None:
    files = docker("run", "--rm", "--entrypoint", "ls", fast, "model").stdout.split()
    weights = [f"{tower}.int8.onnx{end}" for tower in ("text", "visual") for end in ("", ".data")]
    assert files == ["model.json", *weights, "vocabulary.json"]
    (config,) = json.loads(docker("image", "inspect", fast).stdout)
    assert config["Config"]["Labels"]["clip.profile"] == "fast"


def test_asked_for_the_other_profile_it_says_what_is_missing(fast: str) -> None:
    python = ("run", "--rm", "--env", "CLIP_PROFILE=exact", "--entrypoint", "python", fast, "-c")
    done = docker(*python, "import handler.main", check=False)
    assert done.returncode != 0
    said = done.stderr + done.stdout
    assert "CLIP_PROFILE=exact needs visual.onnx" in said
    assert "set CLIP_PROFILE=fast, for which it was made" in said


def test_an_unknown_profile_is_refused(image: str, build_arguments: dict[str, str]) -> None:
    done = build(build_arguments | {"PROFILE": "best"}, "--target", "export", check=False)
    assert done.returncode != 0
    assert "PROFILE is exact or fast, not 'best'" in done.stderr + done.stdout
