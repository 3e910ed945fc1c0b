"""int8: exact enough with weights of every kind, the same in every batch, safe on every CPU.

Two kinds of weights are exported: those that torch draws, and those that are hardest on integers,
with heavy tails and with channels that stand out. Both exports go through the command line, over
the photographs and the kind of image that 8 bits hold worst; the other kinds differ in how they are
decoded, which happens before any precision.
"""

import contextlib
import copy
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

pytest.importorskip("torch")

import torch

from export import (
    ExportError,
    calibration,
    checkpoint,
    graph,
    images,
    int8,
    mending,
    parity,
    rounding,
    texts,
)
from export.__main__ import main as export
from export.calibration import Channels
from export.checkpoint import Reference
from export.formats.config import MEAN, STD
from export.graph import Graph, Matrix
from export.int8 import Integer, Tower
from export.mending import Vectors
from export.rounding import Rounded
from export.sources import VIT_B_32
from handler.config import Config, ConfigError
from handler.encoder import load_encoder
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.engines.torch_clip import import_clip
from handler.model import Architecture, Model, ModelError
from handler.outcome import Outcome
from tests.conftest import SIDE, pixels_of

NAMES = (*(f"photograph {name}" for name in images.PHOTOGRAPHS), "1-bit")


@dataclass(frozen=True)
class Export:
    """What one export was given and what became of it."""

    directory: Path
    reference: Reference
    tower: Tower
    """In integers altogether, before it was mended."""
    output: str
    name: str = "image"
    """Which tower it is of."""

    @property
    def card(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.directory / "model.json").read_text())
        return loaded

    @property
    def mended(self) -> Tower:
        names = self.card["towers"][self.name]["parity_int8"]["layers_in_float"]
        return dataclasses.replace(self.tower, in_float=tuple(names))


@contextlib.contextmanager
def quickly() -> Iterator[pytest.MonkeyPatch]:
    """Export over few images and texts, and calibrate with a quarter of the pictures."""
    few = images.calibration_pixels(SIDE)[::4]
    chosen = {name: images.parity_images(SIDE)[name] for name in NAMES}
    captions = texts.captions()[::9]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "captions", lambda: captions)
        patch.setattr(texts, "nasty", lambda: ())
        patch.setattr(images, "calibration_pixels", lambda side: few)
        patch.setattr(images, "parity_images", lambda side: chosen)
        patch.setattr(mending, "SHOWN", 1)
        yield patch


def exported(
    reference: Reference,
    folder: Path,
    change: Callable[[Tower], Tower] = lambda tower: tower,
    name: str = "image",
) -> Export:
    """Run the export of a tower, which must succeed; `change` may spoil its integers."""
    towers = []
    quantize = int8.quantize

    def noting(*arguments: Any) -> Tower:
        towers.append(change(quantize(*arguments)))
        return towers[-1]

    with quickly() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.setattr("export.__main__._reference", lambda options: (reference, ""))
        patch.setattr(int8, "quantize", noting)
        out = folder / "model"
        arguments = ["--synthetic", "--precision", "int8", "--towers", name]
        assert export([*arguments, "--out", str(out)]) == 0
    return Export(out, reference, towers[0], output.getvalue(), name)


@pytest.fixture(scope="module")
def plain(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Of the weights that torch draws: uniform, no outliers."""
    return exported(reference, tmp_path_factory.mktemp("plain"))


SPOILED = "transformer.resblocks.5.mlp.c_fc"


@pytest.fixture(scope="module")
def hard(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Of weights with heavy tails, with channels that stand out, and with one layer spoiled."""
    changed = copy.deepcopy(reference)
    _draw_norms(changed.model.visual)
    checkpoint.redraw(changed.model.visual, "student")
    checkpoint.add_outliers(changed.model.visual)
    changed.model.half().float()  # as a checkpoint has them

    def spoil(tower: Tower) -> Tower:
        zeros = np.zeros_like(tower.rounded[SPOILED].values)
        spoiled = dataclasses.replace(tower.rounded[SPOILED], values=zeros)
        return dataclasses.replace(tower, rounded={**tower.rounded, SPOILED: spoiled})

    return exported(changed, tmp_path_factory.mktemp("hard"), spoil)


@pytest.fixture(scope="module")
def text(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The text tower, of weights with heavy tails and with channels that stand out."""
    changed = copy.deepcopy(reference)
    _draw_norms(changed.model)
    checkpoint.redraw(changed.model.transformer, "student")
    checkpoint.add_outliers(changed.model)
    changed.model.half().float()
    return exported(changed, tmp_path_factory.mktemp("text"), name="text")


@pytest.fixture(scope="module", params=[("image", "gelu"), ("text", "quick_gelu")], ids="-".join)
def massive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Each tower of real width and three blocks, with massive activations, under an activation."""
    tower, activation = request.param
    path = tmp_path_factory.mktemp("massive") / "massive.pt"
    few_blocks = VIT_B_32._replace(image_layers=3, text_layers=3, activation=activation)
    checkpoint.make_synthetic(path, architecture=few_blocks, massive=True)
    reference = checkpoint.load_reference(path, True)
    return exported(reference, tmp_path_factory.mktemp(tower), name=tower)


@torch.no_grad()
def _draw_norms(tower: Any) -> None:
    """Give the LayerNorms gains and biases, where torch begins with ones and zeros."""
    torch.manual_seed(0)
    for block in tower.transformer.resblocks:
        for norm in (block.ln_1, block.ln_2):
            norm.weight.uniform_(0.8, 1.2)
            norm.bias.normal_(std=0.1)


@pytest.fixture(scope="module", params=["plain", "hard"])
def each(request: pytest.FixtureRequest) -> Export:
    made: Export = request.getfixturevalue(request.param)
    return made


@pytest.fixture(scope="module")
def samples(hard: Export) -> list[parity.Sample]:
    """The images, with the vectors that clip gives them over the hard weights."""
    with quickly():
        return parity.samples(hard.reference, images.parity_images(SIDE))


def encoded(model: onnx.ModelProto, samples: list[parity.Sample]) -> Matrix:
    return Vectors(model)([sample.input for sample in samples])


def off(ours: Matrix, samples: list[parity.Sample]) -> float:
    """How far vectors are turned from clip's: 1 - cosine, the mean."""
    theirs = np.stack([sample.embedding for sample in samples])
    return float(1 - (ours * theirs).sum(axis=1).mean())


def close_enough(ours: Matrix, samples: list[parity.Sample]) -> bool:
    return parity.close_enough(samples, ours, "onnx", "int8")


# --- what is written


def test_model_json_holds_the_figures_of_both_gates(each: Export) -> None:
    card = each.card
    tower = card["towers"]["image"]
    int8_, fp32 = tower["parity_int8"], tower["parity"]
    assert 0.997 <= int8_["min_cosine"] < fp32["min_cosine"]
    assert 0.999 <= int8_["min_cosine_photographs"] < 1
    assert 0.9995 <= int8_["mean_cosine"] < 1
    assert int8_["samples"] == fp32["samples"] == len(NAMES)
    assert int8_["limits"] == {
        "min_cosine": 0.997,
        "max_difference": 1.0,
        "min_cosine_photographs": 0.999,
        "min_mean_cosine": 0.9995,
        "batches": [2, 8, 32],
    }
    assert fp32["limits"] == {"min_cosine": 0.99999, "max_difference": 1e-4}
    assert int8_["engines"] == ["onnx"]
    assert int8_["scheme"] == "int8mix"
    assert card["format"] == 2
    sizes = {name: file["bytes"] for name, file in card["files"].items()}
    assert sizes["visual.int8.onnx.data"] < sizes["visual.onnx.data"] / 1.4  # with what is mended


def test_the_service_runs_it_when_asked_and_says_so(plain: Export) -> None:
    fp32 = load_encoder(Config(model_dir=plain.directory))
    integers = load_encoder(Config(model_dir=plain.directory, precision="int8"))
    assert integers.fault is None
    assert ".fp32" in fp32.fingerprint
    assert ".int8mix" in integers.fingerprint
    files = plain.card["files"]
    assert files["visual.int8.onnx.data"]["bytes"] < files["visual.onnx.data"]["bytes"] / 2
    photo = images.encoded(images.photograph("astronaut"), "JPEG")
    assert 0.999 <= float(integers.encode(photo) @ fp32.encode(photo)) < 0.99999


def test_an_export_without_it_says_so(model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"visual\.int8\.onnx"):
        load_encoder(Config(model_dir=model_dir, precision="int8"))


def test_a_graph_of_the_scheme_before_is_refused(plain: Export, tmp_path: Path) -> None:
    """Its vectors are others, and the fingerprint must not name them by this one's."""
    onnx.save(plain.tower.model(), tmp_path / "visual.int8.onnx")  # names none, as that one
    model = dataclasses.replace(Model.load(plain.directory), directory=tmp_path)
    with pytest.raises(ModelError, match="of the scheme int8, this package reads int8mix"):
        OnnxCpuEngine(model, threads=1, precision="int8")


def test_torch_has_none() -> None:
    with pytest.raises(ConfigError, match="CLIP_PRECISION"):
        Config(engine="torch", precision="int8")


def test_no_pair_of_weights_can_saturate_16_bits(each: Export) -> None:
    """As processors without VNNI add them; all that is in the file is looked at."""
    model = onnx.load(each.directory / "visual.int8.onnx")
    matrices = [
        onnx.numpy_helper.to_array(tensor).astype(int)  # [in, out]
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    ]
    assert len(matrices) == 50 - len(each.mended.in_float)
    for matrix in matrices:
        pairs = np.abs(matrix[0::2]) + np.abs(matrix[1::2])
        assert 120 <= pairs.max() <= 128  # all of the room is used
        assert matrix.min() >= -127


@pytest.mark.parametrize("size", [2, 8, 32])
def test_vectors_are_the_same_to_the_bit_in_every_batch(each: Export, size: int) -> None:
    pixels = np.random.default_rng(size).integers(0, 256, (size, 224, 224, 3), dtype=np.uint8)
    pixels[::2] //= 8  # pictures that differ in their contrast have other scales
    engine = OnnxCpuEngine(Model.load(each.directory), threads=2, precision="int8")
    together = engine.encode(pixels)
    some = range(0, size, max(1, size // 4))
    alone = np.concatenate([engine.encode(pixels[i : i + 1]) for i in some])
    np.testing.assert_array_equal(together[list(some)], alone)


def test_texts_are_as_exact_as_images(text: Export) -> None:
    tower = text.card["towers"]["text"]
    assert text.card["files"].keys() >= {"text.int8.onnx", "text.int8.onnx.data", "vocabulary.json"}
    assert tower["parity"]["min_cosine"] > 0.99999
    assert 0.997 <= tower["parity_int8"]["min_cosine"] < 0.99999
    assert tower["parity_int8"]["mean_cosine"] >= 0.9995
    assert tower["parity_int8"]["engines"] == ["onnx"]
    assert len(text.mended.in_float) < 10  # of 49: most of it is in integers


def test_the_vector_of_a_text_does_not_depend_on_the_texts_beside_it(text: Export) -> None:
    encoder = load_encoder(Config(model_dir=text.directory, precision="int8"))
    assert encoder.fault is None
    captions = texts.captions()
    tokens = [Outcome(encoder.tokenize(caption)) for caption in captions]
    together = [outcome.get() for outcome in encoder.encode_texts(tokens)]
    for place in range(0, len(captions), 10):
        (alone,) = encoder.encode_texts(tokens[place : place + 1])
        np.testing.assert_array_equal(together[place], alone.get(), captions[place])


# --- faults that must be seen


class OneScale(Integer):
    """What int8 once was: one scale for a whole tensor."""

    def scale(self, g: Graph, x: str) -> str:
        largest = g.op("ReduceMax", g.op("Abs", x), keepdims=1)
        return g.op("Mul", largest, g.scalar(1 / 127))


def nearest(weight: Matrix, outliers: Channels = ()) -> Rounded:
    """Plain rounding."""
    weight = weight.copy()
    weight[:, list(outliers)] = 0
    scale = rounding.pair_safe_scale(weight)
    return Rounded(np.rint(weight / scale[:, None]).astype(np.int8), scale, outliers)


def test_one_scale_for_a_tensor_does_not_pass(
    plain: Export, parity_samples: list[parity.Sample], tmp_path: Path
) -> None:
    """The vectors that it gives alone are exact enough; in a batch they are others."""
    model_file = tmp_path / "visual.int8.onnx"
    int8.save(plain.tower.build(OneScale(plain.tower.rounded)), model_file)
    model = dataclasses.replace(Model.load(plain.directory), directory=tmp_path)
    engine = OnnxCpuEngine(model, threads=1, precision="int8")
    rows = parity.compare([engine], [sample for sample in parity_samples if sample.name in NAMES])
    assert not any(row.same_in_batches for row in rows)
    assert not parity.passed(rows)
    assert parity.table(rows).count("other bits in a batch  FAILED") == len(rows)


def test_plain_rounding_does_not_pass(hard: Export, samples: list[parity.Sample]) -> None:
    gptq = hard.mended
    plain = {name: nearest(weight) for name, weight in gptq.weights.items()}
    well = encoded(gptq.model(), samples)
    plainly = encoded(dataclasses.replace(gptq, rounded=plain).model(), samples)
    assert close_enough(well, samples)
    assert not close_enough(plainly, samples)
    assert off(plainly, samples) > 1.4 * off(well, samples)


def test_channels_that_stand_out_do_not_pass_unless_they_are_smoothed(
    hard: Export, samples: list[parity.Sample]
) -> None:
    def rounded_plainly(build: calibration.Build) -> Matrix:
        tapped = calibration.Tapped()
        build(tapped)
        rounded = {name: nearest(weight) for name, weight in tapped.weights.items()}
        return encoded(build(Integer(rounded, hard.mended.in_float)), samples)

    smoothed = rounded_plainly(hard.tower.build)
    unsmoothed = rounded_plainly(partial(built, state(hard.reference)))
    assert not close_enough(unsmoothed, samples)
    assert off(unsmoothed, samples) > 1.4 * off(smoothed, samples)


@pytest.fixture(scope="module")
def layer() -> tuple[Matrix, Matrix]:
    """A matrix with heavy tails, [out, in], and rows that it reads, whose channels depend."""
    random = np.random.default_rng(0)
    weight = random.standard_t(4, (64, 256)).astype(np.float32)
    mixed = random.standard_normal((1000, 40)) @ random.standard_normal((40, 256))
    rows = mixed + 0.3 * random.standard_normal((1000, 256))
    return weight, rows.astype(np.float32)


def alone(
    weight: Matrix, bias: Matrix, rows: Matrix, outliers: Channels = ()
) -> tuple[Matrix, Matrix]:
    """What one linear layer in integers makes of `rows`, and the scales that it gives them."""
    linear = Integer({"layer": nearest(weight, outliers=outliers)})
    g = Graph("layer", halve=False, linear=linear)
    x = g.input("x", onnx.TensorProto.FLOAT, "n", weight.shape[1])
    g.output(linear(g, x, "layer", weight, bias), "n", weight.shape[0])
    g.output(linear.scale(g, x), "n", 1)
    session = ort.InferenceSession(model_of(g).SerializeToString())
    product, scales = session.run(None, {"x": rows})
    return product, scales


def model_of(g: Graph) -> onnx.ModelProto:
    """What was written into `g`, as a model."""
    parts = (g.nodes, g.name, g.inputs, g.outputs, g.initializers)
    opsets = [onnx.helper.make_opsetid("", graph.OPSET)]
    opsets.append(onnx.helper.make_opsetid(graph.ONNX_RUNTIME, 1))
    return onnx.helper.make_model(
        onnx.helper.make_graph(*parts), opset_imports=opsets, ir_version=graph.IR_VERSION
    )


def test_rows_of_any_size_keep_their_own_scale(layer: tuple[Matrix, Matrix]) -> None:
    weight, rows = layer[0], layer[1][:4].copy()
    rows *= np.array([[1e-20], [1e-3], [1], [1e20]], np.float32)
    exact = rows @ weight.T
    bias = np.zeros(len(weight), np.float32)
    errors = np.abs(alone(weight, bias, rows)[0] - exact).max(axis=1) / np.abs(exact).max(axis=1)
    assert errors.max() < 0.05


def test_the_largest_number_of_a_row_is_not_cut_off(layer: tuple[Matrix, Matrix]) -> None:
    """It becomes 127, so that a row of nothing else has no rounding at all."""
    weight, _ = layer
    rows = np.diag(np.linspace(-3, 5, 256)).astype(np.float32)
    product, _ = alone(weight, np.zeros(64, np.float32), rows)
    rounded = nearest(weight)
    exact = rows @ (rounded.values * rounded.scale[:, None]).T
    np.testing.assert_allclose(product, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("outliers", [(), (5, 40)])
def test_a_row_of_zeros_gives_the_bias(layer: tuple[Matrix, Matrix], outliers: Channels) -> None:
    weight, bias = layer[0], np.arange(64, dtype=np.float32)
    product, scales = alone(weight, bias, np.zeros((1, 256), np.float32), outliers)
    np.testing.assert_array_equal(product[0], bias)
    assert scales.min() > 0  # nothing is divided by zero on the way


@pytest.mark.parametrize("outliers", [(), (5,), (6,)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_stays_so(
    layer: tuple[Matrix, Matrix], bad: float, outliers: Channels
) -> None:
    """One in a row is overlooked by the largest magnitude, and by rounding."""
    weight, rows = layer[0], layer[1][:3].copy()
    rows[1, 5] = bad
    product, _ = alone(weight, np.zeros(64, np.float32), rows, outliers)
    assert np.isnan(product[1]).all()
    assert np.isfinite(product[[0, 2]]).all()


def state(reference: Reference) -> graph.Weights:
    items = reference.model.visual.state_dict().items()
    return {name: value.float().numpy() for name, value in items}


def built(weights: graph.Weights, linear: graph.Linear) -> onnx.ModelProto:
    mean, std = np.array(MEAN), np.array(STD)
    return graph.build_image(weights, VIT_B_32, mean, std, linear=linear)


# --- massive activations


def test_massive_activations_sit_at_the_first_token(massive: Export) -> None:
    model = massive.reference.model
    tower = model.visual if massive.name == "image" else model
    residual: list[torch.Tensor] = []
    hidden: list[torch.Tensor] = []
    hooks = []
    for block in tower.transformer.resblocks:
        hooks.append(block.register_forward_hook(lambda _, x, y: residual.append(y)))
        hooks.append(block.mlp.c_proj.register_forward_hook(lambda _, x, y: hidden.append(x[0])))
    with torch.inference_mode():
        if massive.name == "image":
            pictures = [images.photograph(name) for name in images.PHOTOGRAPHS]
            inputs = torch.stack([massive.reference.preprocess(picture) for picture in pictures])
            embeddings = model.encode_image(inputs)
        else:
            embeddings = model.encode_text(import_clip().tokenize(texts.captions()[:9]))
    for hook in hooks:
        hook.remove()
    for x in (*residual[:-1], *hidden):  # [tokens, sequences, channels]
        largest = x.abs().amax(dim=2)
        assert largest[0].min() > 100 * x.abs().median()
        assert largest[1:].max() < 50 * x.abs().median()
    unit = embeddings / embeddings.norm(dim=-1, keepdim=True)
    assert (unit @ unit.T).mean() < 0.7  # what is unlike looks unlike


def test_massive_channels_are_found(massive: Export) -> None:
    model = massive.reference.model
    first = {"image": model.visual.class_embedding, "text": model.token_embedding.weight[-2]}
    channels = tuple(np.flatnonzero(first[massive.name].detach() ** 2 == 16).tolist())
    assert len(channels) == 4
    found = {name.split(".", 2)[-1]: of.outliers for name, of in massive.tower.rounded.items()}
    assert [found[name] for name in ("1.attn.qkv", "1.mlp.c_fc", "2.attn.kv")] == [channels] * 3
    # The last block's MLP sees the token that is read: an image's first one, a text's last.
    at_the_end = 4 if massive.name == "image" else 0
    for name in ("mlp.c_fc", "mlp.c_proj"):
        assert len(found[f"1.{name}"]) == 4
        assert len(found[f"2.{name}"]) == at_the_end
    assert not any(found[f"{block}.attn.out_proj"] for block in range(3))


def test_where_nothing_is_massive_nothing_is_multiplied_in_float(each: Export) -> None:
    assert not any(rounded.outliers for rounded in each.tower.rounded.values())


def test_massive_activations_pass_in_integers(massive: Export) -> None:
    figures = massive.card["towers"][massive.name]["parity_int8"]
    assert figures["layers_in_float"] == []
    assert figures["min_cosine"] > 0.999
    assert figures["mean_cosine"] > 0.9995


@pytest.mark.parametrize("massive", [("image", "gelu")], ids="-".join, indirect=True)
def test_the_class_token_does_not_pass_without_its_outliers_in_float(massive: Export) -> None:
    """A text's first token is the same in all texts, and matters far less."""
    tower = massive.tower
    whole = {name: nearest(weight) for name, weight in tower.weights.items() if "c_proj" in name}
    with quickly():
        samples = parity.samples(massive.reference, images.parity_images(SIDE))
    apart = encoded(tower.model(), samples)
    together = dataclasses.replace(tower, rounded={**tower.rounded, **whole}).model()
    assert not close_enough(encoded(together, samples), samples)
    assert off(encoded(together, samples), samples) > 5 * off(apart, samples)


def test_outliers_do_not_widen_the_steps_of_their_rows(layer: tuple[Matrix, Matrix]) -> None:
    weight, rows = layer[0], layer[1].copy()
    rows[::3, [5, 40]] *= 1000  # in whichever rows
    bias = np.linspace(-1, 1, 64, dtype=np.float32)
    exact = rows.astype(np.float64) @ weight.T + bias

    def error(outliers: Channels) -> float:
        return float(np.abs(alone(weight, bias, rows, outliers)[0] - exact)[::3].mean())

    usual = np.abs(alone(weight, bias, layer[1])[0] - layer[1] @ weight.T - bias).mean()
    assert error((5, 40)) < 1.2 * usual
    assert error(()) > 50 * usual


def test_outliers_are_found_in_activations_and_not_in_pixels() -> None:
    """A grey picture with one white pixel is no reason to multiply in float."""
    weight, bias = np.eye(128, dtype=np.float32), np.zeros(128, np.float32)
    pictures = np.full((3, 1, 128), 131, np.uint8)
    pictures[1, 0, 7] = 255

    def build(linear: graph.Linear) -> onnx.ModelProto:
        g = Graph("layers", halve=False, linear=linear)
        x = g.input("pixels", onnx.TensorProto.UINT8, "n", 1, 128)
        x = linear.of_pixels(g, x, "first", weight, bias)
        x = g.op("Sub", x, g.scalar(128))
        g.output(linear(g, x, "second", weight, bias), "n", 1, 128)
        return model_of(g)

    found = calibration.Calibration(build, list(pictures)).outliers()
    assert found == {"first": (), "second": (7,)}


def test_gptq_leaves_outliers_out(layer: tuple[Matrix, Matrix]) -> None:
    weight, rows = layer[0].copy(), layer[1]
    weight[:, 9] *= 100  # would decide the scale
    moments = rows.T.astype(np.float64) @ rows / len(rows)
    rounded = rounding.gptq(weight, moments, (9,))
    assert rounded.outliers == (9,)
    assert not rounded.values[:, 9].any()
    kept = np.delete(np.arange(256), 9)
    kept_rows = rows[:, kept]
    errors = kept_rows @ (rounded.values * rounded.scale[:, None] - weight)[:, kept].T
    plain = (
        kept_rows
        @ (nearest(weight, (9,)).values * nearest(weight, (9,)).scale[:, None] - weight)[:, kept].T
    )
    assert np.square(errors).mean() < np.square(plain).mean() / 4


# --- its parts


def test_smoothing_changes_the_weights_but_not_the_function(hard: Export) -> None:
    weights = state(hard.reference)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    before = Vectors(built(weights, graph.FLOAT))(list(pixels))
    after = Vectors(hard.tower.build(graph.FLOAT))(list(pixels))
    np.testing.assert_array_equal(before, after)  # factors are powers of two, so to the bit
    for layer in range(12):
        name = f"transformer.resblocks.{layer}.mlp.c_fc"
        last = weights[f"{name}.weight"]
        changed = np.flatnonzero((hard.tower.weights[name] != last).any(axis=0))
        assert 4 <= len(changed) <= 8  # six stand out, by 3 to 23 times


def test_weights_without_outliers_are_not_smoothed(plain: Export) -> None:
    name = "transformer.resblocks.0.mlp.c_fc"
    np.testing.assert_array_equal(
        plain.tower.weights[name], state(plain.reference)[f"{name}.weight"]
    )


def test_gptq_beats_plain_rounding_on_heavy_tails(layer: tuple[Matrix, Matrix]) -> None:
    weight, rows = layer

    def error(rounded: Rounded) -> float:
        product = rows @ (rounded.values * rounded.scale[:, None]).T
        return float(np.square(product - rows @ weight.T).mean())

    moments = rows.T.astype(np.float64) @ rows / len(rows)
    assert error(rounding.gptq(weight, moments)) < error(nearest(weight)) / 4


def test_gptq_where_channels_do_not_depend_is_plain_rounding(layer: tuple[Matrix, Matrix]) -> None:
    weight, _ = layer
    rounded, expected = rounding.gptq(weight, np.eye(256)), nearest(weight)
    np.testing.assert_array_equal(rounded.scale, expected.scale)
    differ = rounded.values != expected.values
    assert differ.mean() < 0.01  # where a pair would have had a sum of 129
    pairs = np.abs(expected.values.astype(int)).reshape(64, -1, 2).sum(axis=2)
    assert pairs.max() <= 129


def test_gptq_is_the_same_each_time_and_takes_any_weights(layer: tuple[Matrix, Matrix]) -> None:
    weight, rows = layer[0].copy(), layer[1].copy()
    weight[3] = 0
    rows[:, 7] = 0  # a channel that was silent
    moments = rows.T.astype(np.float64) @ rows / len(rows)
    one, two = rounding.gptq(weight, moments), rounding.gptq(weight, moments)
    np.testing.assert_array_equal(one.values, two.values)
    assert not one.values[3].any()
    assert np.isfinite(one.scale).all()
    pairs = np.abs(one.values.astype(int)).reshape(64, -1, 2).sum(axis=2)
    assert pairs.max() <= 128


def test_gptq_takes_silence_but_not_what_is_no_number(layer: tuple[Matrix, Matrix]) -> None:
    weight = layer[0]
    silent = rounding.gptq(weight, np.zeros((256, 256)))
    np.testing.assert_array_equal(silent.values, rounding.gptq(weight, np.eye(256)).values)
    with pytest.raises(ExportError, match="no numbers"):
        rounding.gptq(weight, np.full((256, 256), np.nan))


def test_it_is_calibrated_with_pictures_that_it_is_not_judged_by() -> None:
    pictures = images.calibration_pixels(SIDE)
    assert pictures.shape == (64, 224, 224, 3)
    assert pictures.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 64
    for name, data in images.parity_images(SIDE).items():
        if name in NAMES:
            pixels = pixels_of(data)
            apart = np.abs(pictures.astype(int) - pixels).mean(axis=(1, 2, 3))
            assert apart.min() > 10, name


# --- mending


def test_sound_weights_are_not_mended(plain: Export) -> None:
    assert plain.mended.in_float == ()
    assert "in float" not in plain.output


def test_weights_that_do_not_pass_are_mended_until_they_do(
    hard: Export, samples: list[parity.Sample]
) -> None:
    names = list(hard.mended.in_float)
    assert 2 <= len(names) <= 12
    assert names[0] == SPOILED  # what hurts most comes first
    fewer = dataclasses.replace(hard.tower, in_float=tuple(names[:-1]))
    for not_mended in (hard.tower, fewer):
        assert not close_enough(encoded(not_mended.model(), samples), samples)
    printed = [line.split()[1] for line in hard.output.splitlines() if " in float; " in line]
    assert printed == names
    assert f"{len(names)} of 50 layers are in float: +" in hard.output
    assert "WARNING" not in hard.output


def test_where_nothing_is_gained_it_says_so_loudly(plain: Export) -> None:
    all_of_it = dataclasses.replace(plain.tower, in_float=tuple(plain.tower.weights))
    text = mending.cost(all_of_it, 91.5, before=29, now=71, fp32=100)
    assert "50 of 50 layers are in float: +91.5 MB" in text
    assert "one inference takes 71 ms instead of 29 (fp32: 100)" in text
    assert "WARNING" in text
    assert "Use fp32" in text
    assert "WARNING" not in mending.cost(all_of_it, 91.5, before=29, now=70, fp32=100)


# --- the gate


def row(name: str, cosine: float, precision: str = "int8", **others: Any) -> parity.Row:
    return parity.Row(name, "onnx", True, cosine, 0.01, precision, **others)


def test_more_is_asked_of_photographs_than_of_other_images() -> None:
    assert row("photograph coffee", 0.999).passed
    assert not row("photograph coffee", 0.9989).passed
    assert row("1-bit", 0.997).passed
    assert not row("1-bit", 0.9969).passed
    assert not row("1-bit", float("nan")).passed
    assert not row("photograph coffee", 1.0, same_in_batches=False).passed


def test_the_mean_has_a_limit_of_its_own() -> None:
    rows = [row(str(i), 0.9975) for i in range(5)]
    assert all(one.passed for one in rows)
    assert not parity.passed(rows)
    assert parity.table(rows).splitlines()[-1].endswith("0.99750000  FAILED")
    assert parity.passed([*rows[:1], *(row(str(i), 0.9999) for i in range(9))])
    assert not parity.mean_passed([row("a", float("nan"))], "int8")


# --- synthetic weights that are hard on integers


def test_synthetic_weights_can_have_tails_at_the_same_spread(reference: Reference) -> None:
    def spread_and_largest(distribution: checkpoint.Distribution) -> tuple[float, float]:
        block = copy.deepcopy(reference.model.visual.transformer.resblocks[3])
        checkpoint.redraw(block, distribution)
        matrix = block.mlp.c_fc.weight.detach()
        return float(matrix.std()), float(matrix.abs().max() / matrix.std())

    uniform = spread_and_largest("uniform")
    gaussian, student = spread_and_largest("gaussian"), spread_and_largest("student")
    assert gaussian[0] == pytest.approx(uniform[0], rel=0.01)
    assert student[0] == pytest.approx(uniform[0], rel=0.05)
    assert uniform[1] < 2 < 4 < gaussian[1] < 7 < 15 < student[1]


def test_synthetic_outliers_leave_the_function_as_it_was(reference: Reference) -> None:
    before_outliers = copy.deepcopy(reference.model.visual)
    _draw_norms(before_outliers)
    tower = copy.deepcopy(before_outliers)
    checkpoint.add_outliers(tower)
    gains = tower.transformer.resblocks[7].ln_2.weight
    assert (gains > 2.3).sum() == 6
    picture = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        before, after = before_outliers(picture), tower(picture)
    assert torch.nn.functional.cosine_similarity(before, after) > 1 - 1e-5


def test_a_synthetic_checkpoint_is_made_with_them(tmp_path: Path) -> None:
    small = Architecture(64, 64, 2, 64, 32, 8, 100, 64, 1, 1)
    make = partial(checkpoint.make_synthetic, architecture=small)
    plain = torch.jit.load(make(tmp_path / "plain.pt")).state_dict()
    hard = torch.jit.load(
        make(tmp_path / "hard.pt", distribution="student", outliers=True)
    ).state_dict()
    name = "visual.transformer.resblocks.0"
    assert (hard[f"{name}.ln_1.weight"] > 2.9).sum() == 6
    assert (plain[f"{name}.ln_1.weight"] == 1).all()
    tails = [
        float(state[f"{name}.mlp.c_proj.weight"].float().abs().max()) for state in (plain, hard)
    ]
    assert tails[1] > 3 * tails[0]
