"""What judges ``make cpus``: it lets the same vectors and right products through, and no others."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from export import rounding
from tests import cpus, emulation
from tests.cpus import UNSAFE, Limit

SAME = {"JPEG": [0.6, 0.8], "AVIF": [1.0, 0.0]}
LIMIT = Limit(cosine=0.9999, mean=0.99999)


def test_the_same_vectors_pass() -> None:
    lines, passed = cpus.compare(SAME, {"JPEG": [0.6000001, 0.7999999], "AVIF": [1.0, 0.0]}, LIMIT)
    assert passed
    assert not any("FAILED" in line for line in lines)


@pytest.mark.parametrize("vector", [[0.59, 0.8074], [0.8, 0.6], [math.nan, 0.8]])
def test_another_vector_fails_by_name(vector: list[float]) -> None:
    lines, passed = cpus.compare(SAME, SAME | {"JPEG": vector}, Limit(0.99999, -1))
    assert not passed
    failed = [line.split()[0] for line in lines if line.endswith("FAILED")]
    assert failed[0] == "JPEG"
    assert "AVIF" not in failed


def test_many_small_differences_fail_on_average() -> None:
    near = {"JPEG": [0.606, 0.7955], "AVIF": [0.99997, 0.0077]}
    lines, passed = cpus.compare(SAME, near, LIMIT)
    assert not passed
    assert [line.endswith("FAILED") for line in lines] == [False, False, True]


@pytest.mark.parametrize(
    ("here", "there"), [(SAME, {"JPEG": [0.6, 0.8]}), ({"JPEG": [0.6, 0.8]}, SAME), ({}, {})]
)
def test_a_missing_vector_fails(here: cpus.Vectors, there: cpus.Vectors) -> None:
    assert not cpus.compare(here, there, Limit(-1, -1))[1]


@pytest.mark.parametrize(
    ("wrong", "saturates", "passes"),
    [
        ([UNSAFE], True, True),
        ([], False, True),
        ([], True, False),  # the emulator has more than it should
        ([UNSAFE], False, False),
        (["mlp.weight", UNSAFE], True, False),
        (["mlp.weight"], False, False),
    ],
)
def test_only_what_is_made_to_saturate_may(wrong: list[str], saturates: bool, passes: bool) -> None:
    lines, passed = cpus.judge(wrong, saturates)
    assert passed == passes
    assert any("FAILED" in line for line in lines) != passes


@pytest.fixture
def products(tmp_path: Path) -> Path:
    """Those of a model with two layers; one is pair-safe, and every pair is at the limit."""
    random = np.random.default_rng(0)
    safe = np.empty((64, 8), np.int8)
    safe[0::2] = random.integers(1, rounding.LARGEST + 1, (32, 8))
    safe[1::2] = rounding.PAIR - safe[0::2].astype(int)
    layers = {"safe": safe, "unsafe": np.full((32, 8), -127, np.int8)}
    graph = helper.make_graph(
        [],
        "model",
        [],
        [],
        [numpy_helper.from_array(value, name) for name, value in layers.items()],
    )
    graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "bias"))
    onnx.save(helper.make_model(graph), tmp_path / "visual.int8.onnx")
    cpus.write_products(tmp_path, tmp_path / "products")
    return tmp_path / "products"


def test_the_products_are_all_of_the_models_and_one_more(products: Path) -> None:
    """What they must be is what this processor gives, unless it saturates; that it may not where
    the weights are safe.
    """
    session = ort.InferenceSession(products.with_suffix(".onnx"))
    arrays = np.load(products.with_suffix(".npz"))
    names = [output.name for output in session.get_outputs()]
    assert set(names) == {"safe", "unsafe", UNSAFE}
    inputs = {value.name: arrays[value.name] for value in session.get_inputs()}
    results = dict(zip(names, session.run(names, inputs), strict=True))
    np.testing.assert_array_equal(results["safe"], arrays["safe"])
    # Sums of the largest bytes: 127 of the model's units each, of 64 and of 768 rows.
    assert arrays["safe"][0].tolist() == [127 * 32 * rounding.PAIR] * 8
    assert arrays[UNSAFE][0].tolist() == [127 * 127 * 768] * 16


@pytest.mark.parametrize(("require", "status"), [("", 0), ("emulator,cpus", 1)])
def test_where_a_part_is_missing_it_says_which(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    require: str,
    status: int,
) -> None:
    monkeypatch.setenv("REQUIRE", require)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(emulation, "CACHE", tmp_path)
    assert cpus.main([]) == status
    assert ("skipped" in (said := capsys.readouterr().out)) == (not status)
    assert any(part in said for part in ("apt-get", "root", "x86_64"))
