"""The image tower alone, as each engine computes it: pixels in memory in, vectors out.

All engines hold the weights of one export. Those of torch run where this package runs; OpenVINO's
need the virtual environment of ``requirements-rivals.txt``. An engine that is not installed, or
does not run on this machine, raises when it is loaded, and the benchmark goes on without it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import OURS, RIVALS

Encode = Callable[[Any], Any]
"""uint8 RGB [n, side, side, 3] -> float32 [n, size], each row of unit length."""


class Unsuitable(RuntimeError):
    """The machine lacks what the engine is for; the text says what."""


def load(name: str, inputs: Path, threads: int) -> Encode:
    """One of `ENGINES`, over the model of `inputs`, with `threads` compute threads.

    Raises:
        ImportError: it is not installed.
        Unsuitable: this processor cannot do what the engine is named for.
    """
    return LOADERS[name](inputs / "model", threads)


def interpreter(name: str) -> Path | None:
    """The interpreter that `name` is installed for; None is the one that runs this."""
    return RIVALS / "python" if name.startswith("OpenVINO") else None


def _ours(model: Path, threads: int) -> Encode:
    """The service's own engine: ``CLIP_*`` say which precision, and which threads."""
    from handler import main

    assert main.encoder.images is not None
    return main.encoder.images.engine.encode


def _torch(model: Path, threads: int) -> Encode:
    """The modules of clip itself in float32, as the baseline runs them."""
    import torch

    from handler.engines.torch_clip import TorchClipEngine
    from handler.model import Model

    torch.set_num_threads(threads)
    return TorchClipEngine(Model.load(model), device="cpu").encode


def _torch_bf16(model: Path, threads: int) -> Encode:
    import torch

    encode = _torch(model, threads)
    # Entered once, for good: when it is left it forgets the weights that it has converted.
    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
    return encode


def _torch_compile(model: Path, threads: int) -> Encode:
    """Compiled at the first image, which takes half a minute and a C++ compiler."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(model.parent / "inductor")
    import torch

    from handler.engines.torch_clip import TorchClipEngine
    from handler.model import Model

    torch.set_num_threads(threads)
    engine = TorchClipEngine(Model.load(model), device="cpu")
    engine.module.compile()  # the tower alone: what is around it is not torch's
    return engine.encode


def _openvino(model: Path, threads: int) -> Encode:
    return _compiled(model / "visual.onnx", threads, "f32")


def _openvino_bf16(model: Path, threads: int) -> Encode:
    import openvino

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in able:
        raise Unsuitable("this processor has no bf16")
    return _compiled(model / "visual.onnx", threads, "bf16")


def _openvino_int8(model: Path, threads: int) -> Encode:
    """8-bit integers with one scale a tensor, by NNCF; made at first use, which takes a minute."""
    source, made = model / "visual.onnx", model.parent / "openvino" / "int8.xml"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        _quantize(source, made, model.parent / "judged")
    return _compiled(made, threads, "f32")


def _quantize(source: Path, made: Path, judged: Path) -> None:
    """NNCF's integers, calibrated on the pictures that exactness is judged by, mirrored.

    That is kind to it: it has seen something like every kind of picture that it is judged by.
    """
    os.environ["NNCF_CI"] = "1"  # else it reports its use to its makers
    import nncf
    import numpy as np
    import openvino

    mirrored = np.load(judged / "pixels.npy")[:, :, ::-1]
    model = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset([picture[None] for picture in mirrored]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(mirrored),
    )
    openvino.save_model(model, made)


def _compiled(path: Path, threads: int, precision: str) -> Encode:
    """A graph that OpenVINO reads, for float steps of `precision`, ``f32`` or ``bf16``."""
    import openvino

    compiled = openvino.Core().compile_model(
        path,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,  # unless told, it takes bf16 where it can
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    return lambda pixels: compiled([pixels])[0]


LOADERS: dict[str, Callable[[Path, int], Encode]] = {
    "torch": _torch,
    "torch, compiled": _torch_compile,
    "torch, bf16 autocast": _torch_bf16,
    "OpenVINO": _openvino,
    "OpenVINO, bf16": _openvino_bf16,
    "OpenVINO, NNCF's int8": _openvino_int8,
    **dict.fromkeys(OURS, _ours),
}
ENGINES = tuple(LOADERS)
"""In the order of the table, the baseline's engine first."""
