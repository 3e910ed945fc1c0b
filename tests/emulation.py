"""Other kinds of processor, emulated by QEMU: programs that are a Python on one of them.

What they need is fetched from where this machine's apt and pip fetch, and kept in ``.cache/cpus``.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

SUITE, PYTHON = "trixie", "3.13"
CACHE = ROOT / ".cache/cpus"


@dataclass(frozen=True)
class Processor:
    """One that is emulated."""

    name: str
    machine: str
    """As Python's ``platform.machine`` calls it."""
    cpu: str
    """As the emulator calls it."""


# With the emulator's own choice of core, float64 products are silently wrong.
ARM64 = Processor("arm64", "aarch64", "neoverse-n1")
# Its variant without transactional memory, which the emulator does not know.
HASWELL = Processor("haswell", "x86_64", "Haswell-noTSX")


class Missing(Exception):
    """Something that this needs cannot be had here."""


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
        print(f"cpus  {name} made in {time.monotonic() - start:.0f} s", flush=True)
    return done


def python(processor: Processor) -> tuple[Path, str]:
    """A program that is a Python on `processor`, and a ``PYTHONPATH`` for it.

    On x86 it is the one that runs this, on arm64 Debian's with the locked wheels. The program has
    no arguments of its own, because that is all that the sandbox can start, and needs nothing of
    the environment, because the sandbox has none.

    Raises:
        Missing: something that it needs cannot be had here.
    """
    if os.geteuid():
        raise Missing("unpacking another machine's Debian needs root")
    emulator = _once("emulator", _emulator) / f"usr/bin/qemu-{processor.machine}"
    command: list[str | Path] = [emulator, "-cpu", processor.cpu]
    path = str(ROOT)
    if processor.machine == platform.machine():
        command.append(sys.executable)
    else:
        locked = (ROOT / "requirements.txt").stat().st_mtime
        path += f":{_once('wheels', _wheels, newer_than=locked)}"
        root = _once("root", _root)
        command += ["-L", root, root / f"usr/bin/python{PYTHON}"]
    program = CACHE / f"{processor.name}.python"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')
    program.chmod(0o755)
    return program, path
