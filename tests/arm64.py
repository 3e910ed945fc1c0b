"""``python -m tests.arm64``: the function's vectors on arm64 are those on x86, under emulation.

The unmodified handler runs on Debian trixie's Python 3.13 for arm64 with the locked arm64 wheels,
on an emulated Neoverse N1, which is Graviton2's core. Nothing is said about speed. Everything is
fetched from where this machine's apt and pip fetch, and kept in ``.cache/arm64``.
"""

import argparse
import base64
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from export import images
from tests.conftest import ROOT

CPU = "neoverse-n1"
MIN_COSINE = 0.99999
"""What the export demands of an engine beside clip (`export.parity`, which imports torch)."""
IMAGES = ("JPEG", "CMYK JPEG", "RGBA with real transparency", "16-bit grey", "WebP", "AVIF")
"""Of `export.images.parity_images`: each way of decoding once, none large: emulation is slow."""
SUITE, PYTHON = "trixie", "3.13"
CACHE = ROOT / ".cache/arm64"

ANSWER = """
import json, pathlib, platform, sys
sys.executable = sys.argv[2]  # what the sandbox starts its process with
from handler.main import handler
vectors = {name: handler(event, None)["embedding"] for name, event in json.load(sys.stdin).items()}
answer = {"machine": platform.machine(), "python": platform.python_version(), "vectors": vectors}
pathlib.Path(sys.argv[1]).write_text(json.dumps(answer))
"""
"""What both machines run: events on stdin, vectors into a file, because the log is on stdout."""

Vectors = dict[str, list[float]]


class Missing(Exception):
    """Something that this needs cannot be had here."""


def events() -> dict[str, dict[str, str]]:
    """Name of an image -> an event that carries it."""
    files = images.parity_images()
    return {name: {"image": base64.b64encode(files[name]).decode()} for name in IMAGES}


def compare(x86: Vectors, arm64: Vectors) -> tuple[list[str], bool]:
    """A line an image, and whether every vector is the same to within `MIN_COSINE`; NaN is not."""
    lines, passed = [], x86.keys() == arm64.keys() and bool(x86)
    for name, vector in x86.items():
        cosine = float(np.dot(vector, arm64.get(name, np.full(len(vector), np.nan))))
        same = cosine >= MIN_COSINE
        passed &= same
        lines.append(f"{name:30} {cosine:.8f}{'' if same else '  FAILED'}")
    return lines, passed


def _run(command: list[str | Path], what: str, **options: Any) -> str:
    """Run `command`; its standard output, or `Missing` with the end of what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    except FileNotFoundError as error:
        raise Missing(f"{what}: there is no {command[0]}") from error
    if done.returncode:
        raise Missing(f"{what}: {' '.join(done.stderr.splitlines()[-3:])}")
    return str(done.stdout)


def _mirror() -> str:
    """Where this machine's apt fetches Debian from."""
    wanted = ("Created-By: Packages", "Origin: Debian", "Label: Debian")
    uris = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted], "apt").split()
    if not uris:
        raise Missing("apt knows no mirror of Debian: `apt-get update` first")
    return uris[0]


def _extract(architecture: str, packages: str, to: Path) -> None:
    """`packages` of Debian with what they depend on, unpacked and not configured."""
    command: list[str | Path] = ["mmdebstrap", "--mode=root", "--variant=extract"]
    command += [f"--architectures={architecture}", f"--include={packages}", SUITE, to, _mirror()]
    _run(command, f"{packages} for {architecture}")


def _root(to: Path) -> None:
    _extract("arm64", "base-files,python3,libstdc++6", to)


def _emulator(to: Path) -> None:
    _extract("amd64", "qemu-user", to)


def _wheels(to: Path) -> None:
    command: list[str | Path] = [sys.executable, "-m", "pip", "--quiet", "install", "--target", to]
    command += ["--require-hashes", "--only-binary", ":all:", "--no-compile"]
    command += ["--platform=manylinux_2_28_aarch64", "--platform=manylinux2014_aarch64"]
    command += ["--python-version", PYTHON, "-r", ROOT / "requirements.txt"]
    _run(command, "wheels for arm64")


def _once(name: str, make: Callable[[Path], None], newer_than: float = 0) -> Path:
    """The folder `name` in the cache, made by `make` unless a whole one lies there."""
    done = CACHE / name
    if not (done.exists() and done.stat().st_mtime >= newer_than):
        start = time.monotonic()
        partial = CACHE / f"{name}.partial"
        for leftover in (done, partial):
            shutil.rmtree(leftover, ignore_errors=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        make(partial)
        partial.rename(done)
        os.utime(done)
        print(f"arm64  {name} made in {time.monotonic() - start:.0f} s", flush=True)
    return done


def _answer(
    command: list[str | Path], python: str | Path, machine: str, model: Path, **variables: str
) -> Vectors:
    """What the handler answers when `command`, a Python of `machine`, runs it.

    `python` is a program that does the same as `command`.
    """
    file = CACHE / f"{machine}.json"
    file.unlink(missing_ok=True)
    environment = os.environ | {"CLIP_MODEL_DIR": str(model.absolute()), **variables}
    start = time.monotonic()
    subprocess.run(
        [*command, "-c", ANSWER, file, python],
        cwd=ROOT,
        env=environment,
        input=json.dumps(events()),
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,  # the log
    )
    answer = json.loads(file.read_text())
    assert answer["machine"] == machine, answer["machine"]
    seconds = time.monotonic() - start
    print(
        f"arm64  {len(IMAGES)} images on {machine}, Python {answer['python']}: {seconds:.0f} s",
        flush=True,
    )
    return dict(answer["vectors"])


def _both(model: Path) -> tuple[Vectors, Vectors]:
    """The vectors on x86, by this Python, and on arm64."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        here = f"{platform.system()} {platform.machine()}"
        raise Missing(f"it compares with Linux on x86_64, and this is {here}")
    if os.geteuid():
        raise Missing("unpacking another architecture's Debian needs root")
    root, emulator = _once("root", _root), _once("emulator", _emulator)
    locked = (ROOT / "requirements.txt").stat().st_mtime
    wheels = _once("wheels", _wheels, newer_than=locked)
    x86 = _answer([sys.executable], sys.executable, "x86_64", model)
    python: list[str | Path] = [emulator / "usr/bin/qemu-aarch64", "-L", root]
    python.append(root / f"usr/bin/python{PYTHON}")
    threads = str(os.cpu_count() or 1)  # the emulator runs them side by side
    variables = {"QEMU_CPU": CPU, "OPENBLAS_NUM_THREADS": "1", "CLIP_THREADS": threads}
    variables |= {"CLIP_DECODE_SECONDS": "100", "CLIP_DECODE_MB": "4000"}  # emulation is slow
    variables["PYTHONPATH"] = f"{ROOT}:{wheels}"
    return x86, _answer(python, _program(python), "aarch64", model, **variables)


def _program(command: list[str | Path]) -> Path:
    """A program that runs `command`, for whoever can start a program only.

    The kernel does not start another machine's. And it has no environment, as the sandbox has none.
    """
    program = CACHE / "python"
    program.write_text(f'#!/bin/sh\nQEMU_CPU={CPU} exec {shlex.join(map(str, command))} "$@"\n')
    program.chmod(0o755)
    return program


def main(arguments: list[str] | None = None) -> int:
    """0: the same vectors, or skipped; 1: not the same, or skipped where ``REQUIRE`` names
    ``arm64``.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.arm64", description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=Path(os.environ.get("CLIP_MODEL_DIR", "model"))
    )
    options = parser.parse_args(arguments)
    try:
        x86, arm64 = _both(options.model)
    except Missing as reason:
        required = "arm64" in os.environ.get("REQUIRE", "").split(",")
        print(
            f"arm64  {'FAILED, and is required here' if required else 'skipped'}: {reason}",
            flush=True,
        )
        return int(required)
    lines, passed = compare(x86, arm64)
    print("\n".join(f"arm64  {line}" for line in lines))
    print(f"arm64  {'the same vectors' if passed else 'OTHER VECTORS'} on an emulated {CPU}")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
