"""``python -m tests.cpus``: the function's vectors on other kinds of processor are those here.

The unmodified handler runs on two that are emulated: a Neoverse N1, which is Graviton2's core, and
a Haswell, which has AVX2 but neither AVX-512 nor VNNI, as Lambda's x86 is said to be. Nothing is
said about speed.

Float arithmetic differs in the last bit from one kind of processor to the next. fp32's vectors
hardly show it. In int8 it now and then rounds a number to another integer, and from layer to layer
more of them. The vectors then differ by as much as a small fault would make them differ. So the
integer products are tried by themselves too: those of the model's own weights, with bytes that add
up to the largest sums. They have to be right to the last bit.
"""

import argparse
import base64
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export import images
from export.graph import ONNX_RUNTIME
from export.int8 import MIDDLE
from handler.precision import PRECISIONS
from tests import emulation
from tests.conftest import ROOT, SIDE
from tests.emulation import CACHE, Missing, Processor

FIRST = ("JPEG", "CMYK JPEG", "RGBA with real transparency", "16-bit grey", "WebP", "AVIF")
"""The parity images that come first: each way of decoding once, none large."""
UNSAFE = "weights that are not safe"
"""Name of a product that no processor gets right that adds up pairs of products in 16 bits."""
EVENTS, PRODUCTS, ANSWER = (CACHE / name for name in ("events.json", "products", "answer.json"))


@dataclass(frozen=True)
class Limit:
    """How far vectors on another processor may be from those here."""

    cosine: float
    """The smallest, of any image."""
    mean: float
    """The smallest, of all images on average."""


LIMITS = {
    # What the export demands of an engine beside clip (`export.parity`, which imports torch).
    "exact": Limit(0.99999, 0.99999),
    # They differ by 0.0002 at most and by 0.00003 on average, no more than they do on one processor
    # when the last bits of the biases are changed: see benchmarks/NOTES.md.
    "fast": Limit(0.9995, 0.9999),
}
"""By the value of ``CLIP_PROFILE``."""


@dataclass(frozen=True)
class Case:
    """What runs on one processor."""

    processor: Processor
    profiles: tuple[str, ...]
    saturates: bool
    """Whether it gets `UNSAFE` wrong. If it is otherwise, it is not the processor it should be."""


CASES = (
    Case(emulation.ARM64, ("exact", "fast"), saturates=False),
    Case(emulation.HASWELL, ("fast",), saturates=True),
)

CODE = """
import json, pathlib, platform, sys
sys.executable = sys.argv[1]  # what the sandbox starts its process with
from handler.main import handler
import numpy, onnxruntime

events, products, answer = map(pathlib.Path, sys.argv[2:])
images = json.loads(events.read_text())
vectors = {name: handler(event, None)["embedding"] for name, event in images.items()}

session = onnxruntime.InferenceSession(products.with_suffix(".onnx"))
arrays = numpy.load(products.with_suffix(".npz"))
names = [output.name for output in session.get_outputs()]
results = session.run(names, {input.name: arrays[input.name] for input in session.get_inputs()})
wrong = [name for name, result in zip(names, results) if (result != arrays[name]).any()]

machine = platform.machine()
answer.write_text(json.dumps({"machine": machine, "vectors": vectors, "wrong": wrong}))
"""
"""What every processor runs. Its answer goes into a file, because the log is on stdout."""

Vectors = Mapping[str, list[float]]


@dataclass(frozen=True)
class Answer:
    """What came of it on one processor."""

    vectors: Vectors
    """Name of an image -> its vector."""
    wrong: Collection[str]
    """The products that are not right to the last bit."""


# --- what is tried --------------------------------------------------------------------------------
def write_events(count: int | None) -> None:
    """Name of an image -> an event that carries it; of the first `count` images, or of all."""
    files = images.parity_images(SIDE)
    names = [*FIRST, *(name for name in files if name not in FIRST)][:count]
    events = {name: {"image": base64.b64encode(files[name]).decode()} for name in names}
    EVENTS.write_text(json.dumps(events))


def write_products(model: Path, products: Path = PRODUCTS) -> None:
    """All integer products of the model's graph in one graph, side by side, and `UNSAFE`'s.

    The graph is ``PRODUCTS.onnx``. ``PRODUCTS.npz`` has an array for each of its inputs, and for
    each of its outputs what that must be.
    """
    graph = onnx.load(model / PRECISIONS["int8"].file("image")).graph
    weights = {
        value.name: numpy_helper.to_array(value)
        for value in graph.initializer
        if value.data_type == TensorProto.INT8
    }
    assert weights, "the model multiplies no integers"
    weights[UNSAFE] = np.full((768, 16), 127, np.int8)
    inputs = {width: extremes(width) for width in {len(matrix) for matrix in weights.values()}}
    onnx.save(_graph(weights, inputs), products.with_suffix(".onnx"))
    arrays: dict[str, Any] = {str(width): rows for width, rows in inputs.items()}
    arrays |= {name: exact(inputs[len(matrix)], matrix) for name, matrix in weights.items()}
    np.savez(products.with_suffix(".npz"), **arrays)


def extremes(width: int) -> NDArray[np.uint8]:
    """Rows of bytes: all the largest, all the smallest, and six that mix both. [8, width]."""
    mixed = np.random.default_rng(0).choice([0, 255], (6, width))
    return np.vstack([np.full(width, 255), np.zeros(width), mixed]).astype(np.uint8)


def exact(rows: NDArray[np.uint8], matrix: NDArray[np.int8]) -> NDArray[np.float32]:
    """The product as the model means it: a sum of integers, which float64 holds exactly."""
    product = (rows - float(MIDDLE)) @ matrix.astype(np.float64)
    return product.astype(np.float32)


def _graph(
    weights: Mapping[str, NDArray[np.int8]], inputs: Mapping[int, NDArray[np.uint8]]
) -> ModelProto:
    """The operator that the model has, once for each of `weights`, named as they are."""
    constants: dict[str, NDArray[Any]] = {
        "one": np.array(1, np.float32),
        "middle": np.array(MIDDLE, np.uint8),
    }
    nodes, outputs = [], []
    for name, matrix in weights.items():
        constants[f"{name} values"] = matrix
        operands = [str(len(matrix)), f"{name} values", "one", "one", "middle"]
        nodes.append(
            helper.make_node("MatMulIntegerToFloat", operands, [name], domain=ONNX_RUNTIME)
        )
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    graph = helper.make_graph(
        nodes,
        "products",
        [
            helper.make_tensor_value_info(str(width), TensorProto.UINT8, rows.shape)
            for width, rows in inputs.items()
        ],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(ONNX_RUNTIME, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


# --- how it is judged -----------------------------------------------------------------------------
def compare(here: Vectors, there: Vectors, limit: Limit) -> tuple[list[str], bool]:
    """A line an image, and whether all vectors are the same within `limit`; NaN never is."""
    lines, cosines = [], []
    passed = here.keys() == there.keys() and bool(here)
    for name, vector in here.items():
        cosine = float(np.dot(vector, there.get(name, np.full(len(vector), np.nan))))
        cosines.append(cosine)
        same = cosine >= limit.cosine
        passed &= same
        lines.append(f"{name:32} {cosine:.8f}{'' if same else '  FAILED'}")
    mean = sum(cosines) / max(len(cosines), 1)
    near = mean >= limit.mean
    lines.append(f"{'on average':32} {mean:.8f}{'' if near else '  FAILED'}")
    return lines, passed and near


def judge(wrong: Collection[str], saturates: bool) -> tuple[list[str], bool]:
    """What to say of products of which these are wrong, and whether it is as it should be.

    The model's are right everywhere. `UNSAFE` is wrong where sums of 16 bits saturate, and so shows
    that the processor is the one that was meant.
    """
    ours = [name for name in wrong if name != UNSAFE]
    lines = [f"{name:32} a wrong product  FAILED" for name in ours]
    lines.append(f"{len(ours)} products of the model's weights are wrong")
    saturated = UNSAFE in wrong
    meant = saturated == saturates
    words = "saturate" if saturated else "do not saturate"
    lines.append(f"{UNSAFE} {words}{'' if meant else ': another processor than meant  FAILED'}")
    return lines, not ours and meant


# --- where it runs --------------------------------------------------------------------------------
def _answer(python: Path, machine: str, profile: str, **variables: str) -> Answer:
    """What comes of it where `python`, a program of `machine`, runs it."""
    ANSWER.unlink(missing_ok=True)
    subprocess.run(
        [python, "-c", CODE, python, EVENTS, PRODUCTS, ANSWER],
        cwd=ROOT,
        env=os.environ | {"CLIP_PROFILE": profile, **variables},
        check=True,
        stdout=subprocess.DEVNULL,  # the log
    )
    answer = json.loads(ANSWER.read_text())
    assert answer["machine"] == machine, answer["machine"]
    return Answer(answer["vectors"], answer["wrong"])


def _passes(case: Case, profile: str, here: Vectors, model: Path) -> bool:
    """Whether the processor of `case` gives the vectors that this one gave; it says so."""
    python, path = emulation.python(case.processor)
    start = time.monotonic()
    there = _answer(
        python,
        case.processor.machine,
        profile,
        CLIP_MODEL_DIR=str(model),
        CLIP_THREADS=str(os.cpu_count() or 1),  # the emulator runs them side by side
        OPENBLAS_NUM_THREADS="1",
        CLIP_DECODE_SECONDS="100",  # emulation is slow
        CLIP_DECODE_MB="4000",
        PYTHONPATH=path,
    )
    seconds = time.monotonic() - start
    vectors, same = compare(here, there.vectors, LIMITS[profile])
    products, right = judge(there.wrong, case.saturates)
    verdict = "passed" if same and right else "FAILED"
    summary = f"{verdict} on an emulated {case.processor.cpu}, in {seconds:.0f} s"
    for line in (*vectors, *products, summary):
        print(f"cpus  {case.processor.name} {profile}  {line}", flush=True)
    return same and right


def _all_pass(model: Path, count: int | None) -> bool:
    """Whether every processor gives, with each of its profiles, what this one gives."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        here = f"{platform.system()} {platform.machine()}"
        raise Missing(f"it compares with Linux on x86_64, and this is {here}")
    for case in CASES:
        emulation.python(case.processor)  # before anything else, what may be missing
    write_events(count)
    write_products(model)
    results = []
    for profile in LIMITS:
        native = _answer(Path(sys.executable), "x86_64", profile, CLIP_MODEL_DIR=str(model))
        results += [
            _passes(case, profile, native.vectors, model)
            for case in CASES
            if profile in case.profiles
        ]
    return all(results)


def main(arguments: list[str] | None = None) -> int:
    """0: the same vectors, or skipped; 1: others, or skipped where ``REQUIRE`` names ``cpus``."""
    parser = argparse.ArgumentParser(prog="python -m tests.cpus", description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=Path(os.environ.get("CLIP_MODEL_DIR", "model"))
    )
    parser.add_argument("--images", type=int, help="how many of the parity images; by default all")
    options = parser.parse_args(arguments)
    try:
        return int(not _all_pass(options.model.absolute(), options.images))
    except Missing as reason:
        required = "cpus" in os.environ.get("REQUIRE", "").split(",")
        outcome = "FAILED, and is required here" if required else "skipped"
        print(f"cpus  {outcome}: {reason}", flush=True)
        return int(required)


if __name__ == "__main__":
    sys.exit(main())
