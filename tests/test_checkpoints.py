"""Checkpoints in every format: others' own code says what their vectors are."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

import safetensors.torch
import torch
from PIL import Image

from export import ExportError, checkpoint, formats, images, texts
from export.__main__ import main as export
from export.checkpoint import load_reference
from export.formats.config import MEAN, STD
from handler.config import Config
from handler.encoder import load_encoder
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.engines.torch_clip import TorchClipEngine, build_clip, import_clip
from handler.model import Model
from tests import checkpoints
from tests.checkpoints import SMALL, WIDE_HEADS

GELU = SMALL._replace(activation="gelu")
ARCHITECTURES = {"quick_gelu": SMALL, "gelu": GELU, "wide heads": WIDE_HEADS}
Vectors = NDArray[np.float32]


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images [4, 3, side, side] and clip's tokens of texts [4, 77]."""
    torch.manual_seed(7)
    texts = ["a cat", "a photograph of two dogs in the snow", "", "red " * 70]
    return torch.randn(4, 3, 64, 64), import_clip().tokenize(texts)


@torch.inference_mode()
def ours(model: Any) -> list[Vectors]:
    """The vectors of clip's model, of both towers."""
    pixels, tokens = inputs()
    return [_unit(model.encode_image(pixels)), _unit(model.encode_text(tokens))]


@torch.inference_mode()
def theirs_hugging_face(model: Any) -> list[Vectors]:
    pixels, tokens = inputs()
    image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    text = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
    return [_unit(image), _unit(text)]


def _unit(x: torch.Tensor) -> Vectors:
    x = x.double()  # in float32 the length itself would be off by 1e-7
    unit: Vectors = (x / x.norm(dim=-1, keepdim=True)).numpy()
    return unit


def assert_same(one: list[Vectors], other: list[Vectors]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a * b).sum(axis=1).min() >= 0.9999999


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_hugging_faces_model_is_computed_as_transformers_does(
    kind: str, safe: bool, tmp_path: Path
) -> None:
    theirs = checkpoints.hugging_face(ARCHITECTURES[kind])
    folder = checkpoints.write_hugging_face(theirs, tmp_path, safe=safe)
    reference = load_reference(folder)
    assert reference.architecture == ARCHITECTURES[kind]
    assert_same(ours(reference.model), theirs_hugging_face(theirs))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_openclips_model_is_computed_as_openclip_does(kind: str, tmp_path: Path) -> None:
    theirs = checkpoints.open_clip(ARCHITECTURES[kind])
    folder = checkpoints.write_open_clip(theirs, ARCHITECTURES[kind], tmp_path)
    reference = load_reference(folder)
    assert reference.architecture == ARCHITECTURES[kind]
    assert (reference.mean, reference.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    assert_same(ours(reference.model), ours(theirs))


def test_the_other_activation_would_be_seen() -> None:
    """Else the comparisons above would show nothing of it."""
    state = checkpoints.random_clip(SMALL).state_dict()
    for one, other in zip(
        *(ours(_with(state, architecture)) for architecture in (SMALL, GELU)), strict=True
    ):
        assert (one * other).sum(axis=1).max() < 0.99999


def _with(state: Any, architecture: Any) -> Any:
    model = build_clip(architecture)
    model.load_state_dict(state)
    return model


def _pt(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


def _safetensors(state: Any, path: Path) -> Path:
    safetensors.torch.save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


BARE: dict[str, Callable[[Any, Path], Path]] = {
    "a state dict": _pt,
    "safetensors": _safetensors,
    "under state_dict, beside an optimizer": lambda state, path: _pt(
        {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}}, path
    ),
    "safetensors under another name": lambda state, path: _safetensors(state, path).rename(path),
    "under model": lambda state, path: _pt({"model": state}, path),
    "as many GPUs leave it": lambda state, path: _pt(
        {"state_dict": {f"module.{name}": x for name, x in state.items()}}, path
    ),
    "in 16 bits": lambda state, path: _pt({name: x.half() for name, x in state.items()}, path),
    "in bfloat16": lambda state, path: _safetensors(
        {name: x.bfloat16() for name, x in state.items()}, path
    ),
}


@pytest.mark.parametrize("kind", BARE)
def test_a_state_dict_in_clips_names_is_read(kind: str, tmp_path: Path) -> None:
    model = checkpoints.random_clip(GELU).half().float()
    if "bfloat16" in kind:
        model = model.bfloat16().float()
    path = BARE[kind](model.state_dict(), tmp_path / "weights.pt")
    reference = load_reference(path, activation="gelu")
    assert reference.architecture == GELU
    assert reference.weights == "custom"
    for name, x in model.state_dict().items():
        torch.testing.assert_close(reference.model.state_dict()[name], x, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", [SMALL, GELU])
def test_a_torchscript_archive_is_read_as_clip_does_and_tells_its_activation(
    architecture: Any, tmp_path: Path
) -> None:
    path = checkpoint.make_synthetic(tmp_path / "archive.pt", architecture=architecture)
    theirs, preprocess = import_clip().load(str(path), device="cpu", jit=False)
    reference = load_reference(path)
    assert reference.architecture == architecture
    ours = reference.model.state_dict()
    assert ours.keys() == theirs.state_dict().keys()
    for name, x in theirs.state_dict().items():
        assert torch.equal(ours[name], x), name
    picture = images.photograph("coffee")
    assert torch.equal(reference.preprocess(picture), preprocess(picture))


@pytest.mark.parametrize("architecture", [SMALL, GELU])
def test_an_archive_tells_its_activation_whatever_its_process_traced_before(
    architecture: Any, tmp_path: Path
) -> None:
    """torch gives the classes of a second one other names."""
    for number in range(2):
        path = checkpoint.make_synthetic(tmp_path / f"{number}.pt", architecture=architecture)
        assert load_reference(path).architecture.activation == architecture.activation


def test_the_mean_and_deviation_are_clips_own() -> None:
    normalize = import_clip().clip._transform(64).transforms[-1]
    assert (tuple(normalize.mean), tuple(normalize.std)) == (MEAN, STD)


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate of few images and texts, which takes seconds."""
    pictures = dict(list(images.parity_images(64).items())[::9])
    captions = texts.captions()[::20]
    monkeypatch.setattr(images, "parity_images", lambda side: pictures)
    monkeypatch.setattr(texts, "captions", lambda: captions)
    monkeypatch.setattr(texts, "nasty", lambda: ())  # tokens do not depend on the model


# --- the same numbers in two files ----------------------------------------------------------------


def test_the_folder_is_the_same_from_either_file(few_samples: None, tmp_path: Path) -> None:
    """Whether weights are stored in 16 bits is decided by their values, not by the file's type."""
    official = checkpoints.write_official(tmp_path)
    assert official.sha256 != official.hub.sha256
    folders = []
    for source in (tmp_path / "ViT-B-32.pt", tmp_path / "hub"):
        folders.append(tmp_path / f"from-{source.name}")
        assert export(["--checkpoint", str(source), "--out", str(folders[-1])]) == 0
    one, other = folders
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in other.iterdir())
    for name in names:
        if name != "model.json":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    cards = [json.loads((folder / "model.json").read_text()) for folder in folders]
    files = [card["checkpoint"].pop("file") for card in cards]
    assert files == ["ViT-B-32.pt", "pytorch_model.bin"]
    assert cards[0] == cards[1]
    parameters = load_reference(tmp_path / "hub").model.visual.parameters()
    # Two bytes a number, of nearly all.
    assert (one / "visual.pt").stat().st_size < 2.2 * sum(x.numel() for x in parameters)


# --- exported and served --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gelu", "wide heads"])
def test_openclips_model_is_exported_and_served(
    kind: str, few_samples: None, tmp_path: Path
) -> None:
    architecture = ARCHITECTURES[kind]
    theirs = checkpoints.open_clip(architecture)
    folder = checkpoints.write_open_clip(theirs, architecture, tmp_path / "weights")
    out = tmp_path / "model"
    assert export(["--checkpoint", str(folder), "--out", str(out)]) == 0
    model = Model.load(out)
    assert model.architecture == architecture
    assert model.preprocessing.mean == (0.5, 0.4, 0.3)
    encoder = load_encoder(Config(model_dir=out))
    picture = images.encoded(images.photograph("coffee"), "PNG")
    vector = encoder.encode(picture)
    with torch.inference_mode():
        from open_clip.transform import PreprocessCfg, image_transform_v2

        cfg = json.loads((folder / "open_clip_config.json").read_text())["preprocess_cfg"]
        transform = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
        x = theirs.encode_image(transform(images.photograph("coffee"))[None])
    assert float(vector @ _unit(x)[0]) >= 0.999999
    assert encoder.fault is None
    assert encoder.images
    encoder.images.decoder.close()
    tokens = import_clip().tokenize("a cat")
    with torch.inference_mode():
        expected = _unit(theirs.encode_text(tokens))[0]
    ids = tokens[:, :4].int().numpy()
    for engine in (OnnxCpuEngine(model, 1, tower="text"), TorchClipEngine(model, "cpu", "text")):
        assert float(engine.encode(ids)[0] @ expected) >= 0.999999


# --- refused --------------------------------------------------------------------------------------


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


HUGGING_FACE: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "SigLIP": ("config.json", lambda c: c.update(model_type="siglip"), "model_type is 'siglip'"),
    "another activation": (
        "config.json",
        lambda c: c["vision_config"].update(hidden_act="gelu_new"),
        "hidden_act is 'gelu_new' for images",
    ),
    "two activations": (
        "config.json",
        lambda c: c["text_config"].update(hidden_act="gelu"),
        "hidden_act is 'quick_gelu' for images and 'gelu' for texts",
    ),
    "another epsilon": (
        "config.json",
        lambda c: c["vision_config"].update(layer_norm_eps=1e-6),
        "vision_config.layer_norm_eps is 1e-06, and clip computes with 1e-05",
    ),
    "another end of text": (
        "config.json",
        lambda c: c["text_config"].update(eos_token_id=5),
        "text_config.eos_token_id is 5",
    ),
    "another way to resize": (
        "preprocessor_config.json",
        lambda c: c.update(resample=2),
        "preprocessor_config.json.resample is 2",
    ),
    "no crop": (
        "preprocessor_config.json",
        lambda c: c.update(do_center_crop=False),
        "do_center_crop is False",
    ),
    "another size": (
        "preprocessor_config.json",
        lambda c: c.update(size={"height": 64, "width": 64}),
        "preprocessor_config.json.size is",
    ),
    "no configuration": ("config.json", lambda c: c.clear(), "model_type is None"),
    "hostile numbers": (
        "config.json",
        lambda c: c["vision_config"].update(num_attention_heads=0),
        "no CLIP",
    ),
    "hostile types": ("config.json", lambda c: c.update(vision_config=5), "no CLIP"),
}


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hugging_face")
    checkpoints.write_hugging_face(checkpoints.hugging_face(SMALL), folder)
    from transformers import CLIPImageProcessor

    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64).save_pretrained(folder)
    return folder


def test_hugging_faces_own_preprocessing_is_accepted(hugging_face: Path) -> None:
    assert (hugging_face / "preprocessor_config.json").is_file()
    reference = load_reference(hugging_face)
    assert (reference.mean, reference.std) == (MEAN, STD)


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_what_hugging_faces_configuration_says_otherwise_is_refused(
    kind: str, hugging_face: Path, tmp_path: Path
) -> None:
    file, change, message = HUGGING_FACE[kind]
    folder = shutil.copytree(hugging_face, tmp_path / "folder")
    _edit(folder / file, change)
    with pytest.raises(ExportError, match=r"is refused: ") as refused:
        load_reference(folder)
    assert message in str(refused.value)


def _tower(tower: str, **settings: Any) -> Callable[[Any], None]:
    return lambda c: c["model_cfg"][tower].update(settings)


OPEN_CLIP: dict[str, tuple[Callable[[Any], None], str]] = {
    "another tokenizer": (
        _tower("text_cfg", hf_tokenizer_name="xlm-roberta-base"),
        "text_cfg.hf_tokenizer_name is 'xlm-roberta-base', which clip's model has not (another",
    ),
    "wider MLPs": (_tower("vision_cfg", mlp_ratio=4.3637), "vision_cfg.mlp_ratio is 4.3637"),
    "another pooling": (_tower("vision_cfg", pool_type="avg"), "vision_cfg.pool_type is 'avg'"),
    "texts that see their end": (
        _tower("text_cfg", no_causal_mask=True),
        "text_cfg.no_causal_mask is True",
    ),
    "a SigLIP": (
        lambda c: c["model_cfg"].update(init_logit_bias=-10),
        "model_cfg.init_logit_bias is -10",
    ),
    "squashed pictures": (
        lambda c: c["preprocess_cfg"].update(resize_mode="squash"),
        "preprocess_cfg.resize_mode is 'squash'",
    ),
    "no deviation": (
        lambda c: c["preprocess_cfg"].update(std=[1, 0, 1]),
        "preprocess_cfg.std is [1, 0, 1] instead of three numbers",
    ),
    "odd heads": (
        _tower("text_cfg", heads=7),
        "or 7 heads a text tower 128 wide",
    ),
    "bilinear": (
        lambda c: c["preprocess_cfg"].update(interpolation="bilinear"),
        "preprocess_cfg.interpolation is 'bilinear', and clip computes with 'bicubic'",
    ),
    "another side": (
        lambda c: c["preprocess_cfg"].update(size=[224, 224]),
        "preprocess_cfg.size is [224, 224]",
    ),
}


@pytest.fixture(scope="module")
def openclip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openclip")
    return checkpoints.write_open_clip(checkpoints.open_clip(GELU), GELU, folder)


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_what_openclips_configuration_says_otherwise_is_refused(
    kind: str, openclip: Path, tmp_path: Path
) -> None:
    change, message = OPEN_CLIP[kind]
    folder = shutil.copytree(openclip, tmp_path / "folder")
    _edit(folder / "open_clip_config.json", change)
    with pytest.raises(ExportError, match=r"is refused: ") as refused:
        load_reference(folder)
    assert message in str(refused.value)


WEIGHTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a ResNet": (
        lambda s: s | {"visual.layer1.0.conv1.weight": torch.zeros(1)},
        "its image tower is a ResNet",
    ),
    "a tower of timm's": (
        lambda s: {name.replace("visual.", "visual.trunk."): x for name, x in s.items()},
        "one of timm's",
    ),
    "custom text": (
        lambda s: {f"text.{name}" if "visual" not in name else name: x for name, x in s.items()},
        "its text tower is not clip's own",
    ),
    "a SigLIP": (lambda s: s | {"logit_bias": torch.zeros(1)}, "it is a SigLIP"),
    "one weight more": (
        lambda s: s | {"visual.transformer.resblocks.0.ls_1.gamma": torch.zeros(128)},
        "clip's model has no visual.transformer.resblocks.0.ls_1.gamma",
    ),
    "one weight less": (
        lambda s: {name: x for name, x in s.items() if name != "ln_final.bias"},
        "it lacks ln_final.bias",
    ),
    "a weight of another shape": (
        lambda s: s | {"visual.ln_post.bias": torch.zeros(5)},
        "visual.ln_post.bias is (5,) instead of (128,)",
    ),
    "something else": (lambda _: {"a": torch.zeros(1)}, "it is no CLIP"),
    "shapes that are none": (lambda s: s | {"visual.conv1.weight": torch.zeros(())}, "no CLIP"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_of_another_model_are_refused(kind: str, tmp_path: Path) -> None:
    change, message = WEIGHTS[kind]
    path = _pt(change(checkpoints.random_clip(SMALL).state_dict()), tmp_path / "weights.pt")
    with pytest.raises(ExportError, match=r"is refused: ") as refused:
        load_reference(path, activation="gelu")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_activation_is_asked_for_and_never_guessed(tmp_path: Path, openclip: Path) -> None:
    path = _pt(checkpoints.random_clip(SMALL).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ExportError, match=r"--activation gelu .* or --activation quick_gelu"):
        load_reference(path)
    for activation in formats.ACTIVATIONS:
        assert load_reference(path, activation=activation).architecture.activation == activation
    with pytest.raises(ExportError, match="--activation is quick_gelu, but the checkpoint says"):
        load_reference(openclip, activation="quick_gelu")


def test_the_width_of_heads_is_not_guessed_either(tmp_path: Path) -> None:
    wide = SMALL._replace(image_width=1280, image_layers=1)
    path = _pt(checkpoints.random_clip(wide).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ExportError, match="1280 wide, where a head has more numbers than 64"):
        load_reference(path, activation="gelu")


def test_a_model_of_another_tokenizer_has_its_image_tower_exported_alone(
    few_samples: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = SMALL._replace(vocabulary=1000)
    path = _pt(checkpoints.random_clip(other).state_dict(), tmp_path / "weights.pt")
    options = ["--checkpoint", str(path), "--activation", "quick_gelu", "--out"]
    assert export([*options, str(tmp_path / "model")]) == 1
    assert "the model is another tokenizer's" in capsys.readouterr().err
    assert export([*options, str(tmp_path / "model"), "--towers", "image"]) == 0


# --- damaged and hostile --------------------------------------------------------------------------


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def _evil_archive(path: Path, marker: Path) -> Path:
    """A TorchScript archive whose pickle calls a function."""
    small = checkpoint.make_synthetic(path.with_name("good.pt"), architecture=SMALL)
    with zipfile.ZipFile(small) as good, zipfile.ZipFile(path, "w") as evil:
        for entry in good.infolist():
            data = good.read(entry)
            if entry.filename.endswith("/data.pkl"):
                data = pickle.dumps(_Evil(marker))
            evil.writestr(entry, data)
    return path


def _damaged(kind: str, folder: Path) -> Path:
    """A file that no checkpoint is, or none that may be trusted."""
    marker, path = folder / "executed", folder / "weights.pt"
    if kind == "a pickle that runs a command":
        path.write_bytes(pickle.dumps({"visual.proj": _Evil(marker)}))
    elif kind == "torch's pickle that runs a command":
        torch.save({"visual.proj": _Evil(marker)}, path)
    elif kind == "an archive that runs a command":
        return _evil_archive(path, marker)
    elif kind == "a truncated archive":
        checkpoint.make_synthetic(path, architecture=SMALL)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "truncated safetensors":
        path = _safetensors(checkpoints.random_clip(SMALL).state_dict(), path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "a truncated pickle":
        _pt(checkpoints.random_clip(SMALL).state_dict(), path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "a picture":
        Image.new("RGB", (5, 5)).save(path, "PNG")
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind == "a list":
        torch.save([torch.zeros(1)], path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *("a pickle that runs a command", "torch's pickle that runs a command"),
        *("an archive that runs a command", "a truncated archive", "truncated safetensors"),
        *("a truncated pickle", "a picture", "nothing", "a list", "a missing file"),
    ],
)
def test_a_damaged_or_hostile_file_gets_one_line_and_the_old_model_stays(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = _damaged(kind, tmp_path), tmp_path / "model"
    out.mkdir()
    (out / "model.json").write_text('{"format": 2, "model": "ViT-B/32", "files": {"a": {}}}')
    (out / "a").write_text("old")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert export(["--checkpoint", str(path), "--activation", "gelu", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert str(path) in said
    assert not (tmp_path / "executed").exists()
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_folder_without_a_checkpoint_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"holds no checkpoint\. It needs open_clip_config.json"):
        load_reference(tmp_path)


def test_torch_reads_a_verified_archive_that_the_reader_here_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's own files were not at hand when the reader was written."""
    path = checkpoint.make_synthetic(tmp_path / "archive.pt", architecture=SMALL)
    expected = formats.archive.read(path).state
    monkeypatch.setattr(formats.archive._Unpickler, "TYPES", {})
    with pytest.raises(ExportError, match="it asks for torch"):
        formats.archive.read(path)
    found = formats.archive.read(path, trusted=True).state
    assert found.keys() == expected.keys()
    assert all(torch.equal(x, found[name]) for name, x in expected.items())
