"""OpenAI's other models: everything that depends on which one it is comes from the model folder.

Each has the real model's patches, widths and sides, but two layers and few words, and is judged by
ten images, so that the export with its parity gate takes seconds. ``make models`` does the same in
full size and with all images.
"""

import dataclasses
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from export import folder, images, texts
from export.images import calibration_pixels, parity_images
from handler.config import Config
from handler.encoder import Encoder, load_encoder
from handler.engines import Pixels
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.images.sandbox import Sandbox
from handler.model import Architecture, Model
from tests import templates
from tests.conftest import ROOT, pixels_of, serve

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")
from export import ExportError, checkpoint, sources  # noqa: E402  # which need torch
from export.__main__ import main as export  # noqa: E402
from export.sources import DEFAULT, MODELS  # noqa: E402

OTHERS = {
    "ViT-B/16": (224, 16, 512),
    "ViT-L/14": (224, 14, 768),
    "ViT-L/14@336px": (336, 14, 768),
}
"""clip's name -> side of the picture, side of a patch, numbers of a vector."""
LARGEST = "ViT-L/14@336px"
INT8 = "ViT-L/14"
"""The one that is exported in integers too: 588 inputs of a patch are no multiple of 16."""
WITH_TEXTS = "ViT-L/14@336px"
"""The one whose text tower is exported too; it is wider than ViT-B's."""
JUDGED = (
    *("photograph astronaut", "photograph coffee", "photograph camera", "tiny 3 x 2"),
    *("very wide 2000 x 40", "very tall 31 x 1500", "large 4000 x 2667 JPEG", "CMYK JPEG"),
)
"""Of the parity images, with the two that are of the model's side and just beside it."""


def small(name: str, architecture: Architecture) -> Architecture:
    vocabulary = architecture.vocabulary if name == WITH_TEXTS else 100
    return architecture._replace(image_layers=2, text_layers=2, vocabulary=vocabulary)


def few_images(side: int) -> dict[str, bytes]:
    beside = (f"already {side} x {side}", f"odd {side + 1} x {side * 3 // 2 + 1}")
    return {name: parity_images(side)[name] for name in (*JUDGED, *beside)}


def few_pictures(side: int) -> Pixels:
    return calibration_pixels(side)[::4]


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """The export's table of models, each small."""
    with pytest.MonkeyPatch.context() as patch:
        for name, official in MODELS.items():
            architecture = small(name, official.architecture)
            patch.setitem(MODELS, name, dataclasses.replace(official, architecture=architecture))
        yield


@pytest.fixture(scope="module")
def folders(shallow: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of each, made by the command line and let through by its parity gate."""
    made = tmp_path_factory.mktemp("models")
    captions = texts.captions()[::9]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CACHE", made)
        patch.setattr(images, "parity_images", few_images)
        patch.setattr(images, "calibration_pixels", few_pictures)
        patch.setattr(texts, "captions", lambda: captions)
        patch.setattr(texts, "nasty", lambda: ())  # tokens do not depend on the model
        for name in OTHERS:
            out = made / name.replace("/", "-")
            towers = "image,text" if name == WITH_TEXTS else "image"
            options = ["--synthetic", "--towers", towers, "--model", name, "--out", str(out)]
            int8 = ["--precision", "int8"] if name == INT8 else []
            assert export([*options, *int8]) == 0
    return {name: made / name.replace("/", "-") for name in OTHERS}


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> Iterator[dict[str, Encoder]]:
    made = {name: load_encoder(Config(model_dir=path)) for name, path in folders.items()}
    yield made
    for encoder in made.values():
        assert encoder.images
        encoder.images.decoder.close()


@pytest.mark.parametrize("name", OTHERS)
def test_the_folder_says_what_the_model_is(name: str, folders: dict[str, Path]) -> None:
    side, patch, size = OTHERS[name]
    model = Model.load(folders[name])
    assert (model.name, model.embedding_size) == (name, size)
    assert model.architecture == MODELS[name].architecture
    assert (model.architecture.resolution, model.architecture.patch) == (side, patch)
    assert folder.files(folders[name])[0] == "model.json"  # so that an export may replace it


@pytest.mark.parametrize("name", OTHERS)
def test_a_vector_has_the_models_size_and_names_the_model(
    name: str, encoders: dict[str, Encoder], photo: bytes
) -> None:
    encoder, (_, _, size) = encoders[name], OTHERS[name]
    vector = encoder.encode(photo)
    assert vector.shape == (size,)
    assert abs(float(vector @ vector) - 1) < 1e-5
    assert encoder.fault is None
    body = encoder.health()
    assert (body["model"], body["embedding_size"]) == (name, size)
    # It is a folder's name in S3, so it has no sign that would have to be written otherwise there.
    assert re.fullmatch(r"ViT-[BL]-1[46](-336px)?\.synthetic\.\w{12}\.fp32", encoder.fingerprint)
    assert len({one.fingerprint for one in encoders.values()}) == len(OTHERS)


def test_texts_of_a_wider_tower_have_vectors_of_the_models_size(
    encoders: dict[str, Encoder],
) -> None:
    encoder = encoders[WITH_TEXTS]
    vectors = [encoder.encode(encoder.tokenize(text)) for text in ("red shoes", "a cat")]
    assert [vector.shape for vector in vectors] == [(768,), (768,)]
    assert float(vectors[0] @ vectors[1]) < 0.99
    assert encoder.fault is None
    report = encoder.health()
    assert report["towers"] == ["image", "text"]
    assert str(report["text_fingerprint"]).startswith(f"{encoder.fingerprint}.text-")


@pytest.mark.parametrize("name", OTHERS)
def test_weights_that_the_gate_judges_by_tell_images_apart(
    name: str, encoders: dict[str, Encoder]
) -> None:
    """A parity check over vectors that are all alike would let mistakes through."""
    files = [images.encoded(images.photograph(photo), "PNG") for photo in images.PHOTOGRAPHS]
    vectors = np.stack([encoders[name].encode(data) for data in files])
    between = (vectors @ vectors.T)[np.triu_indices(len(vectors), k=1)]
    assert between.mean() < 0.9


def test_int8_fits_every_processor(folders: dict[str, Path]) -> None:
    """Of no matrix may two neighbours add up to what saturates on processors without VNNI."""
    graph = onnx.load(folders[INT8] / "visual.int8.onnx")
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor).astype(np.int32)  # [in, out]
        for tensor in graph.graph.initializer
        if tensor.name.endswith(".int8.weight")
    }
    assert weights["conv1.int8.weight"].shape[0] == 588
    for values in weights.values():
        assert np.abs(values[::2]).max() > 60  # they use their range
        assert (np.abs(values[::2]) + np.abs(values[1::2])).max() <= 128


def test_int8_of_the_smallest_patches_is_served(folders: dict[str, Path], photo: bytes) -> None:
    pixels = pixels_of(photo)[None]
    model = Model.load(folders[INT8])
    exact, fast = (OnnxCpuEngine(model, 1, precision) for precision in ("fp32", "int8"))
    assert 0.999 <= float(exact.encode(pixels)[0] @ fast.encode(pixels)[0]) < 1


def test_over_http_the_answer_and_its_description_have_the_models_size(
    encoders: dict[str, Encoder], photo: bytes
) -> None:
    encoder, jpeg = encoders[LARGEST], {"Content-Type": "image/jpeg"}
    with serve(encoder) as client:
        assert client.post("/encode_image", content=photo, headers=jpeg).json() == pytest.approx(
            encoder.encode(photo).tolist()
        )
        octets = client.post(
            "/encode_image", content=photo, headers=jpeg | {"Accept": "application/octet-stream"}
        )
        assert len(octets.content) == 4 * 768
        assert octets.headers["X-Clip-Fingerprint"] == encoder.fingerprint
        _describes(client, LARGEST, 768)


def _describes(client: httpx.Client, name: str, size: int) -> None:
    document = client.get("/openapi.json").json()
    assert name in document["info"]["description"]
    assert f"{size} numbers" in document["info"]["description"]
    answer = document["paths"]["/encode_image"]["post"]["responses"]["200"]
    assert answer["description"].startswith(f"{size} numbers")
    schema = answer["content"]["application/json"]["schema"]
    assert (schema["minItems"], schema["maxItems"]) == (size, size)


def test_another_model_than_asked_for_is_refused(shallow: None, tmp_path: Path) -> None:
    path = checkpoint.make_synthetic(
        tmp_path / "b16.pt", architecture=MODELS["ViT-B/16"].architecture
    )
    with pytest.raises(ExportError, match="is a ViT-B/16, not a ViT-L/14: pass --model ViT-B/16"):
        checkpoint.load_reference(path, synthetic=True, name="ViT-L/14")


# --- pixels of another side ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_pixels_of_336_are_clips_own_at_random_sizes(seed: int) -> None:
    from handler.engines.torch_clip import import_clip

    random = np.random.default_rng(seed)
    mode = str(random.choice(["RGB", "L", "RGBA", "P", "1", "CMYK"]))
    width, height = (int(x) for x in random.integers(1, 900, 2))
    noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = images.encoded(Image.fromarray(noise).convert(mode), "TIFF")
    picture = Image.open(io.BytesIO(data))
    for transform in import_clip().clip._transform(336).transforms[:-2]:
        picture = transform(picture)
    ours = pixels_of(data, Config(max_aspect_ratio=1000), side=336)
    np.testing.assert_array_equal(ours, np.asarray(picture))


@pytest.mark.parametrize("side", [224, 336])
def test_the_sandbox_gives_pixels_of_the_models_side(side: int, photo: bytes) -> None:
    box = Sandbox(Config(), side)
    decoded = box.decode(photo, Config(), lambda _: None)
    assert decoded.pixels == pixels_of(photo, side=side).tobytes()
    box.close()


@pytest.mark.parametrize(("side", "kept"), [(224, 720), (336, 1080)])
def test_the_fast_profile_keeps_as_much_of_a_jpeg_as_the_model_needs(side: int, kept: int) -> None:
    fast = Config.from_env({"CLIP_PROFILE": "fast"})
    assert fast.jpeg_draft_for(side) == kept
    asked = Config.from_env({"CLIP_PROFILE": "fast", "CLIP_JPEG_DRAFT": "900"})
    assert asked.jpeg_draft_for(side) == 900
    assert Config().jpeg_draft_for(side) == 0
    for short, is_reduced in ((2 * kept - 1, False), (2 * kept, True)):
        picture = images.photograph("coffee").resize((short * 3 // 2, short))
        data = images.encoded(picture, "JPEG", quality=90)
        same = np.array_equal(pixels_of(data, fast, side), pixels_of(data, side=side))
        assert same != is_reduced


# --- build files: one model an image -------------------------------------------------------------


def test_the_dockerfile_finds_the_checkpoint_of_every_model() -> None:
    """It makes the file's name of the model's, and .dockerignore lets all of them through."""
    (rule,) = re.findall(r'checkpoint="\$\((.*)\)\.pt"', (ROOT / "Dockerfile").read_text())
    for name, official in MODELS.items():
        run = subprocess.run(
            ["sh", "-c", rule], env={"MODEL": name}, capture_output=True, text=True, check=True
        )
        assert run.stdout == official.file.removesuffix(".pt") + "\n"
        assert Path(official.file).match("ViT-*.p[t]")
    assert "!ViT-*.pt" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_templates_offer_every_model() -> None:
    parameter = templates.read("batch.yaml")["Parameters"]["Model"]
    names = {name: official.file.removesuffix(".pt") for name, official in MODELS.items()}
    assert parameter["AllowedValues"] == list(names.values())
    assert parameter["Default"] == names[DEFAULT]
    comment = re.findall(r"MODEL: (\S+) # or (.*)", (ROOT / "template.yaml").read_text())
    assert [[default, *others.split(", ")] for default, others in comment] == [list(MODELS)]


@pytest.mark.parametrize(
    ("asked", "is_exported"), [("", False), ("MODEL=ViT-L/14", False), ("MODEL=ViT-B/16", True)]
)
def test_make_run_exports_again_only_for_another_model(
    asked: str, is_exported: bool, tmp_path: Path
) -> None:
    (tmp_path / "model.json").write_text('{\n  "format": 2,\n  "model": "ViT-L/14"\n}')
    command = ["make", "--dry-run", "run", f"MODEL_DIR={tmp_path}", *asked.split()]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ("-m export" in said) == is_exported
    assert ("--model ViT-B/16" in said) == is_exported


@pytest.mark.parametrize(
    ("asked", "is_exported"),
    [
        ("", False),
        ("MODEL=hf:laion/CLIP", False),
        ("MODEL=hf:laion/CLIP@main", True),
        ("MODEL=ViT-B/32", True),
    ],
)
def test_make_run_keeps_the_model_of_hugging_face_that_is_asked_for(
    asked: str, is_exported: bool, tmp_path: Path
) -> None:
    card = {"format": 2, "model": "laion/CLIP@3d74acf", "checkpoint": {"asked": "hf:laion/CLIP"}}
    (tmp_path / "model.json").write_text(json.dumps(card, indent=2))
    said = _would_run("run", f"MODEL_DIR={tmp_path}", *asked.split())
    assert ("-m export" in said) == is_exported


def test_make_model_never_falls_back_and_make_run_does() -> None:
    assert "--or-synthetic" in _would_run("run", "MODEL_DIR=none")
    assert "--or-synthetic" not in _would_run("model")
    own = _would_run("model", "CHECKPOINT=hf:laion/CLIP", "ACTIVATION=gelu")
    assert "--checkpoint hf:laion/CLIP" in own
    assert "--activation gelu" in own


def test_make_image_passes_a_token_as_a_secret_and_a_mirror_as_an_argument() -> None:
    """A build argument can be read from the layers that a build leaves behind."""
    plain = _would_run("image", "WEIGHTS_URL=https://mirror.example/ViT-B-32.pt")
    assert "--build-arg WEIGHTS_URL=https://mirror.example/ViT-B-32.pt" in plain
    assert "--secret" not in plain
    secret = _would_run("image", "HF_TOKEN=hf_abc", "MODEL=hf:laion/CLIP")
    assert "--secret id=hf_token,env=HF_TOKEN" in secret
    assert "hf_abc" not in secret
    assert "--build-arg WEIGHTS=custom" in secret
    (change,) = re.findall(r"sed '(.*?)' Dockerfile", secret)
    sed = ["sed", change, str(ROOT / "Dockerfile")]
    changed = subprocess.run(sed, capture_output=True, text=True, check=True).stdout
    assert changed.count("RUN --mount=type=secret,id=hf_token checkpoint=") == 1


def _would_run(*arguments: str) -> str:
    """What make would run, where no variable of these is in the environment."""
    own = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "MODEL")}
    command = ["make", "--dry-run", *arguments]
    run = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    return run.stdout
