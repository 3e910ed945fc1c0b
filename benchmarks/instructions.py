"""``python -m benchmarks.instructions``: how many instructions an image takes with AVX2 alone.

Valgrind's processor has AVX2, but neither AVX-512 nor VNNI, as Lambda's x86 is said to be. It runs
one inference of each precision, on one thread, and counts what is executed. That says nothing of
waiting for memory, and instructions differ in what they cost; but it is the same at every run, and
needs no such processor. It takes ten minutes, nearly all of them for fp32.

ONNX Runtime's functions have no names in its wheels. Those of matrix products are found by what
they do: they are the one that executes most in fp32, and the one that executes most in int8.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.model import Model

PRECISIONS = ("fp32", "int8")

Counts = Mapping[str, int]
"""Name or address of a function -> instructions that it executed, without what it called."""


def infer(model: Path, precision: str) -> None:
    """Under valgrind: load the engine without counting, and count one inference."""
    loaded = Model.load(model)
    side = loaded.architecture.resolution
    engine = OnnxCpuEngine(loaded, threads=1, precision=precision)
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    control = ["callgrind_control", "-i"]
    subprocess.run([*control, "on", str(os.getpid())], check=True, capture_output=True)
    engine.encode(pixels)
    subprocess.run([*control, "off", str(os.getpid())], check=True, capture_output=True)


def count(model: Path, precision: str) -> Counts:
    """Run `infer` under valgrind; what each of ONNX Runtime's functions executed."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        valgrind = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no"]
        valgrind.append(f"--callgrind-out-file={profile}")
        command = [*valgrind, sys.executable, "-m", "benchmarks.instructions"]
        command += ["--model", str(model), "--infer", precision]
        subprocess.run(command, check=True)
        annotate = ["callgrind_annotate", "--threshold=100", str(profile)]
        return parse(subprocess.run(annotate, check=True, capture_output=True, text=True).stdout)


def parse(report: str) -> Counts:
    """``callgrind_annotate``'s lines ``INSTRUCTIONS (SHARE) FILE:FUNCTION [LIBRARY]``."""
    lines = re.findall(
        r"^ *([\d,]+) \(.*?\) +\S+?:(\S+) \[.*onnxruntime.*\]$", report, re.MULTILINE
    )
    return {function: int(number.replace(",", "")) for number, function in lines}


def main() -> None:
    """Print, for each precision, the instructions of all and those of the products."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(".cache/benchmark/model"))
    parser.add_argument("--infer", choices=PRECISIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.infer:
        infer(options.model, options.infer)
        return
    counts = {precision: count(options.model, precision) for precision in PRECISIONS}
    products = {max(functions, key=functions.__getitem__) for functions in counts.values()}
    print("| millions of instructions, one image | products | all of ONNX Runtime |")
    print("|---|---:|---:|")
    for precision, functions in counts.items():
        multiplied = sum(functions.get(function, 0) for function in products)
        print(f"| {precision} | {multiplied / 1e6:.0f} | {sum(functions.values()) / 1e6:.0f} |")


if __name__ == "__main__":
    main()
