"""Every vector is clip's own: both engines, every awkward kind of image."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from export import images, parity
from export.checkpoint import Reference
from handler.config import Config
from handler.engines import Engine, load_engine
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.engines.torch_clip import TorchClipEngine
from handler.model import Model, ModelError
from tests.conftest import pixels_of


def test_both_engines_give_clips_own_vectors(
    engine: Engine, parity_samples: list[parity.Sample]
) -> None:
    rows = parity.compare([engine], parity_samples)
    assert all(row.passed for row in rows), parity.table(rows)
    # Far inside the gate's limits, so that a slow drift shows here first.
    assert min(row.cosine for row in rows) > 0.999999


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_both_engines_give_clips_own_vectors_of_texts(
    kind: str, model: Model, text_samples: list[parity.Sample]
) -> None:
    assert len(text_samples) >= 100
    assert {len(sample.input) for sample in text_samples} >= {2, 8, 12, 77}
    engine = load_engine(Config(engine=kind), model, "text")
    rows = parity.compare([engine], text_samples)
    assert all(row.passed for row in rows), parity.table(rows)
    assert min(row.cosine for row in rows) > 0.999999


def test_what_follows_the_end_of_a_text_has_no_influence(model: Model) -> None:
    """As where texts of several lengths are padded with zeros, or anything."""
    text = np.array([[49406, 320, 1125, 539, 320, 2368, 49407]], np.int32)
    padded = np.pad(text, ((0, 0), (0, 40)))
    garbage = np.concatenate([text, np.full((1, 30), 40000, np.int32)], axis=1)
    engine = OnnxCpuEngine(model, threads=1, tower="text")
    for longer in (padded, garbage):
        np.testing.assert_allclose(engine.encode(longer), engine.encode(text), atol=1e-6)
    other = text.copy()
    other[0, 1] = 321
    assert np.abs(engine.encode(other) - engine.encode(text)).max() > 1e-3


def test_the_engines_agree(model: Model) -> None:
    pixels = _noise(4)
    onnx = OnnxCpuEngine(model, threads=1).encode(pixels)
    torch = TorchClipEngine(model, "cpu").encode(pixels)
    assert (onnx * torch).sum(axis=1).min() >= 0.9999


@pytest.mark.parametrize("n", [1, 2, 5, 17])
def test_any_batch_size_gives_the_same_vectors(engine: Engine, n: int) -> None:
    pixels = _noise(n)
    together = engine.encode(pixels)
    assert together.shape == (n, 512)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    alone = np.concatenate([engine.encode(pixels[i : i + 1]) for i in range(n)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_onnx_is_bit_equal_whatever_the_batch_and_the_threads(model: Model) -> None:
    pixels = _noise(5)
    one, two = (OnnxCpuEngine(model, threads) for threads in (1, 2))
    np.testing.assert_array_equal(one.encode(pixels)[2], two.encode(pixels[2:3])[0])


@pytest.mark.parametrize("seed", range(40))
def test_pixels_are_clips_own_at_random_sizes(seed: int, reference: Reference) -> None:
    random = np.random.default_rng(seed)
    mode = str(random.choice(["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16"]))
    width, height = (int(x) for x in random.integers(1, 700, 2))
    image = _random_image(random, mode, width, height)
    data = images.encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    theirs = parity.reference_pixels(reference, Image.open(io.BytesIO(data)))
    ours = pixels_of(data, Config(max_aspect_ratio=1000))
    np.testing.assert_array_equal(ours, theirs)


def test_auto_is_onnx_without_cuda_and_torch_on_demand(model: Model) -> None:
    assert load_engine(Config(), model).name == "onnx"
    assert load_engine(Config(engine="torch"), model).name == "torch"


@pytest.mark.parametrize("engine_class", ["onnx", "torch"])
def test_missing_weights_are_named(engine_class: str, model: Model, tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(model, directory=tmp_path)
    with pytest.raises(ModelError, match=r"visual\.(onnx|pt) cannot be loaded"):
        load_engine(Config(engine=engine_class), elsewhere)


def _noise(n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(n).integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)


def _random_image(random: np.random.Generator, mode: str, width: int, height: int) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (height, width), dtype=np.uint16))
    smooth = random.integers(0, 256, (5, 4, 4), dtype=np.uint8)
    image = Image.fromarray(smooth, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
    if mode == "LA":
        return image.convert("LA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)
