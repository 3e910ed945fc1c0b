"""``python -m tests.models [MODEL ...]``: OpenAI's other image towers in full size.

Each is exported with synthetic weights, int8 too, which its parity gate has to let through. Then it
is loaded in a process of its own for each precision, and measured: milliseconds of CPU time that
one image takes, and the most memory that the process had. By default all but ViT-B/32, which every
test has: about an hour on two cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.model import Model
from handler.precision import EXPORTED, PRECISIONS
from tests.measure import peak_megabytes

MADE = Path(".cache/models")
"""Where the model folders are kept."""
REPEAT = 5


def main() -> int:
    """Print a line for each precision of each model; 1 if a gate refused one."""
    parser = argparse.ArgumentParser(prog="python -m tests.models", description=__doc__)
    parser.add_argument("models", nargs="*", help="as clip names them")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "PRECISION"), help="one of them")
    options = parser.parse_args()
    if options.measure:
        folder, precision = options.measure
        print(json.dumps(measured(Path(folder), precision)))
        return 0
    # Here, because a process that measures must not hold torch.
    from export.sources import DEFAULT, MODELS

    others = [name for name in MODELS if name != DEFAULT]
    return max(judge(name) for name in options.models or others)


def judge(name: str) -> int:
    """Export one model and print what it is like: 0, or 1 if its gate refused it."""
    from export.__main__ import main as export

    out = MADE / name.replace("/", "-")
    options = ["--synthetic", "--towers", "image", "--precision", "int8", "--out", str(out)]
    if export([*options, "--model", name]) != 0:
        return 1
    for precision in EXPORTED:
        command = [sys.executable, "-m", "tests.models", "--measure", str(out), precision]
        figures = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        text = ", ".join(f"{value:,.0f} {unit}" for unit, value in figures.items())
        print(f"{name} {precision}: {text}")
    return 0


def measured(folder: Path, precision: str) -> dict[str, float]:
    """Unit -> figure, of this process, which has done nothing else."""
    model = Model.load(folder)
    side = model.architecture.resolution
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    engine = OnnxCpuEngine(model, threads=1, precision=precision)
    times = []
    for _ in range(REPEAT):
        begin = time.process_time()
        engine.encode(pixels)
        times.append(time.process_time() - begin)
    weights = folder / f"{PRECISIONS[precision].file('image')}.data"
    return {
        "ms of CPU an image": 1000 * statistics.median(times),
        "MB of memory at most": peak_megabytes(),
        "MB of weights": weights.stat().st_size / 1e6,
    }


if __name__ == "__main__":
    sys.exit(main())
