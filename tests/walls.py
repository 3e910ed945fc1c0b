"""``python -m tests.walls SCENARIO [SECONDS]``: a sandbox wherever it runs; prints JSON.

``test_walls.py`` runs it under `tests.refusing`.
"""

import dataclasses
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.measure import children
from handler.config import Config
from handler.errors import ClipError
from handler.images import processes
from handler.images.processes import Process, Zygote
from handler.images.sandbox import Sandbox
from tests import bombs
from tests.conftest import SIDE
from tests.hostile import ACTIONS, bad
from tests.test_sandbox import EXPECTED, PHOTO

CONFIG = Config(decode_seconds=0.3, decode_mb=200)
MISBEHAVE = sorted(ACTIONS.keys() - {"late", "report", "reach"})


def outcome(box: Sandbox, data: bytes) -> str:
    """The code of the error that an image gets; ``right`` or ``wrong`` for its pixels."""
    try:
        decoded = box.decode(data, CONFIG, lambda _: None)
    except ClipError as error:
        return error.code
    return "right" if decoded == EXPECTED else "wrong"


def words(box: Sandbox) -> dict[str, Any]:
    """Every way to misbehave, and a sound image after each."""
    outcomes = {word: [outcome(box, bad(word)), outcome(box, PHOTO)] for word in MISBEHAVE}
    return {"outcomes": outcomes, "decoders": len(children(box.processes()[0]))}


def allocate(box: Sandbox) -> str:
    """The error of an image that takes all the memory it can get."""
    try:
        box.decode(bad("allocate"), CONFIG, lambda _: None)
    except ClipError as error:
        return error.detail
    raise AssertionError


def files(box: Sandbox) -> dict[str, str]:
    """Every hostile file."""
    return {name: outcome(box, make()) for name, make in bombs.HOSTILE.items()}


def walls(box: Sandbox) -> dict[str, Any]:
    """What holds, as the sandbox says it and as code in a decoder finds it."""
    outcome(box, PHOTO)
    assert box.walls
    try:
        box.decode(bad("reach", str(os.getpid())), CONFIG, lambda _: None)
    except ClipError as error:
        return {"walls": box.walls._asdict(), "reached": error.detail}
    raise AssertionError


def at_once(box: Sandbox) -> int:
    """How many of four slow images were being decoded at the same time, at most."""
    now, most, lock = 0, 0, threading.Lock()
    decode = Process.decode

    def counted(self: Process, *arguments: Any) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            return decode(self, *arguments)
        finally:
            with lock:
                now -= 1

    Process.decode = counted  # type: ignore[method-assign, assignment]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: outcome(box, bad("late", "0.2")), range(4)))
    return most


def unlimited(box: Sandbox) -> dict[str, Any]:
    """As where neither the kernel nor the service can limit what an image costs."""
    for name in ("cpu_seconds", "memory_of"):
        setattr(processes, name, lambda _: None)
    return {"first": outcome(box, PHOTO), "at_once": at_once(box)}


def side_by_side(box: Sandbox) -> dict[str, Any]:
    """As `unlimited`, where there are limits."""
    return {"at_once": at_once(box)}


def busy(box: Sandbox) -> str:
    """Say who is there, and decode an image that spins, then a sound one."""
    outcome(box, PHOTO)
    zygote = box.processes()[0]
    print(json.dumps([zygote, *children(zygote)]), flush=True)
    return f"{outcome(box, bad('spin'))}, {outcome(box, PHOTO)}"


SCENARIOS: dict[str, Callable[[Sandbox], object]] = {
    "words": words,
    "allocate": allocate,
    "files": files,
    "walls": walls,
    "unlimited": unlimited,
    "side_by_side": side_by_side,
    "busy": busy,
}


def main() -> None:
    """Run one scenario."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s", level="INFO")
    name = sys.argv[1]
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else CONFIG.decode_seconds
    config = dataclasses.replace(CONFIG, decode_seconds=seconds)
    box = Sandbox(config, SIDE, Zygote(("tests.hostile", "to_pixels")))
    print(json.dumps(SCENARIOS[name](box)))
    box.close()


if __name__ == "__main__":
    main()
