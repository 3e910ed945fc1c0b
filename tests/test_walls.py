"""Images are served, and hostile ones refused, whatever the kernel refuses: the walls of a decoder.

AWS Lambda refuses ``prctl`` and more (`tests/refusing.py`); what else is not public. So each system
call that the sandbox makes is refused in turn, and all at once.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.measure import children
from events.generate import HERE
from handler.encoder import Encoder
from handler.images import watch
from handler.images.walls import Walls
from handler.images.watch import Watch
from tests import refusing
from tests.answers import EVENTS, INVOKE, check_answer
from tests.conftest import ROOT, emulator, require
from tests.measure import all_end

LIMITS = "setrlimit,prlimit64"
EVERYTHING = f"{refusing.LAMBDA},setpgid,setsid,setitimer,setpriority,{LIMITS}"
REFUSED = {
    "prctl": "prctl",
    "seccomp": "seccomp",
    "no filter": "prctl,seccomp",
    "setpgid": "setpgid",
    "setsid": "setsid",
    "setitimer": "setitimer",
    "limits": LIMITS,
    "killed for looking": "!process_vm_readv",
    "Lambda": str(refusing.LAMBDA),
    "everything": EVERYTHING,
}


@pytest.fixture(autouse=True)
def libseccomp() -> None:
    require("libseccomp", refusing.is_available(), f"there is no {refusing.LIBRARY}")


def command(refused: str, *rest: str) -> list[str]:
    """A Python command line under what is `refused`."""
    python = [sys.executable, *rest]
    return [sys.executable, "-m", "tests.refusing", refused, *python] if refused else python


def run(refused: str, *scenario: str) -> tuple[Any, list[str]]:
    """What a scenario of `tests.walls` found, and its log."""
    done = subprocess.run(
        command(refused, "-m", "tests.walls", *scenario),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr.splitlines()


@pytest.mark.parametrize("refused", REFUSED)
def test_every_event_is_answered_whatever_is_refused(
    refused: str, model_dir: Path, encoder: Encoder, photo: bytes, tmp_path: Path
) -> None:
    vector = encoder.encode((HERE / "photo.jpg").read_bytes())
    log = tmp_path / "log"
    with emulator(model_dir, log, refused=REFUSED[refused]) as (client, pid):
        for name in EVENTS:
            event = (HERE / name).read_bytes()
            check_answer(name, client.post(INVOKE, content=event).json(), vector)
        family = _family(pid)
    assert len(family) >= 3  # the runtime, its zygote, a decoder
    assert all_end(family)


def _family(pid: int) -> list[int]:
    found = children(pid)
    return [*found, *(each for child in found for each in _family(child))]


@pytest.mark.parametrize("refused", ["", "no filter", "setitimer", "limits", "everything"])
def test_decoders_that_misbehave_harm_nobody_whatever_is_refused(refused: str) -> None:
    found, _ = run(REFUSED.get(refused, ""), "words")
    for word, (itself, after) in found["outcomes"].items():
        assert itself == EXPECTED.get(word, "invalid_image"), word
        assert after == "right", word
    assert found["decoders"] == 1


EXPECTED = {
    **dict.fromkeys(("spin", "spin_in_c", "spin_without_timer", "chatter"), "image_too_costly"),
    "allocate": "image_too_costly",
    "close": "overloaded",
}
"""What callers are told; all others crash their decoder."""


@pytest.mark.parametrize("refused", ["", "limits"])
def test_memory_is_limited_by_the_kernel_or_by_the_service(refused: str) -> None:
    found, _ = run(REFUSED.get(refused, ""), "allocate", "3600")
    assert found == "decoding the image takes too much memory"


def test_hostile_files_are_refused_or_served_where_everything_is_refused() -> None:
    files, _ = run(EVERYTHING, "files")
    refusals = {"image_too_costly", "invalid_image", "truncated_image", "too_many_pixels"}
    assert set(files.values()) <= refusals | {"extreme_shape", "unsupported_format", "wrong"}
    assert len(files) > 40  # "wrong": it was served, and is not the photograph


LOST = {
    "": set(),
    "prctl": set(),  # the other system call installs the filter
    "no filter": {"paths", "syscalls"},
    "setitimer": set(),
    "limits": set(),
    "killed for looking": set(),
    "Lambda": {"paths", "syscalls"},
    "everything": {"files", "paths", "network", "processes", "syscalls"},
}
"""What each refusal costs where the service runs as root, so that decoders are another user's."""


@pytest.mark.parametrize("refused", LOST)
def test_what_holds_is_told_truly(refused: str) -> None:
    found, log = run(REFUSED.get(refused, ""), "walls")
    lost = {name for name, holds in found["walls"].items() if not holds}
    if os.geteuid() == 0:
        assert lost == LOST[refused]
    else:
        assert lost - {"signals", "ptrace"} == LOST[refused]
    if "files" not in lost:
        assert found["reached"].startswith("done: [];")
    else:
        assert "'open a file', 'write a file', 'open a socket'" in found["reached"].replace(
            "'read the environment', 'read the memory', ", ""
        )
    about_walls = [line for line in log if "confined" in line]
    if lost:
        names = ", ".join(name for name in Walls._fields if name in lost)
        assert about_walls == [
            f"WARNING decoders are confined, but not in {names}: the kernel or the container does "
            "not allow it; SECURITY.md says what follows"
        ]
    else:
        assert about_walls == ["INFO decoders are confined"]


UNCONFINED = """
import json, os
from handler.images.confine import trials
print(json.dumps({name: trial() for name, trial in trials(os.getppid()).items()}))
"""


def test_a_process_that_gave_nothing_up_has_no_walls() -> None:
    """So each trial can fail. The timer is there, and root may do what is tried."""
    done = subprocess.run(
        [sys.executable, "-c", UNCONFINED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert list(found) == list(Walls._fields)
    if os.geteuid() != 0:
        found["ptrace"] = False  # of Yama, which lets parents be
    assert found == dict.fromkeys(Walls._fields, False) | {"cpu": True}


def test_where_nothing_limits_images_they_are_decoded_one_at_a_time_and_the_log_is_loud() -> None:
    found, log = run(EVERYTHING, "unlimited")
    assert found == {"first": "right", "at_once": 1}
    assert sum("NOTHING LIMITS WHAT AN IMAGE MAY COST HERE" in line for line in log) == 1


def test_elsewhere_images_are_decoded_side_by_side() -> None:
    found, _ = run("", "side_by_side")
    assert found == {"at_once": 2}


# --- the end of the service ----------------------------------------------------------------------


@contextmanager
def busy(refused: str, seconds: int) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """A service in the middle of an image that spins, with its zygote and decoder.

    `seconds` of CPU are its limit.
    """
    line = command(REFUSED.get(refused, ""), "-m", "tests.walls", "busy", str(seconds))
    service = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert service.stdout
    family = json.loads(service.stdout.readline())
    _until_busy(family[1])
    try:
        yield service, family
    finally:
        service.kill()
        service.wait()
        service.stdout.close()


def _until_busy(pid: int) -> None:
    before = watch.cpu_seconds(pid)
    assert before is not None
    while (watch.cpu_seconds(pid) or 0) < before + 0.05:
        pass


@pytest.mark.parametrize("refused", ["", "Lambda", "everything"])
def test_nothing_outlives_a_service_that_is_killed_in_the_middle_of_an_image(refused: str) -> None:
    with busy(refused, 3600) as (service, family):
        service.kill()
        assert all_end(family)


@pytest.mark.parametrize("refused", ["", "Lambda", "everything"])
def test_a_busy_decoder_whose_zygote_is_killed_ends_and_is_replaced(refused: str) -> None:
    with busy(refused, 1) as (service, family):
        os.kill(family[0], signal.SIGKILL)
        assert service.stdout
        assert json.loads(service.stdout.readline()) == "image_too_costly, right"
        assert all_end(family)


# --- what the settings require -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "line"),
    [
        ("", None),
        (
            "Lambda",
            "the service cannot start: CLIP_SANDBOX=required, but decoders are not confined in "
            "paths, syscalls: the kernel or the container does not allow it",
        ),
    ],
)
def test_a_service_that_requires_every_wall_does_not_start_without(
    refused: str, line: str | None, model_dir: Path
) -> None:
    done = subprocess.run(
        command(REFUSED.get(refused, ""), "-c", "import handler.main"),
        cwd=ROOT,
        env=os.environ | {"CLIP_MODEL_DIR": str(model_dir), "CLIP_SANDBOX": "required"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(each) for each in done.stdout.splitlines()]
    critical = [each["message"] for each in lines if each["level"] == "CRITICAL"]
    assert critical == ([line] if line else [])
    assert (done.returncode == 0) == (line is None)


def test_health_names_every_wall(client: httpx.Client) -> None:
    assert client.get("/health").json()["sandbox"] == dict.fromkeys(Walls._fields, True)


# --- the watch -----------------------------------------------------------------------------------


def test_a_wait_is_not_charged_for_a_pause_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps by an hour between two looks."""
    now = iter(range(0, 3_600_000, 3600))
    monkeypatch.setattr("handler.images.watch.time.monotonic", lambda: next(now))
    tries: list[int] = []

    def operation() -> str:
        tries.append(1)
        if len(tries) < 20:
            raise TimeoutError
        return "done"

    assert Watch(os.getpid(), patience=20 * watch.SLICE).wait(operation) == "done"


def test_a_kernel_without_clocks_of_processes_lets_elapsed_time_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "cpu_seconds", lambda pid: None)
    now = iter([10.0, 17.0, 18.0])
    monkeypatch.setattr("handler.images.watch.time.monotonic", lambda: next(now))
    seen = Watch(os.getpid(), 1)
    assert seen.seconds() == 7
    assert seen.seconds() == 8


def test_what_a_process_took_is_known_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Iterator[float | None] = iter([1.0, 1.5, None])
    monkeypatch.setattr(watch, "cpu_seconds", lambda pid: next(taken))
    seen = Watch(os.getpid(), 1)
    assert [seen.seconds(), seen.seconds()] == [0.5, 0.5]


def test_nothing_is_known_of_a_process_that_is_gone() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert watch.cpu_seconds(gone.pid) is None
    assert watch.memory_of(gone.pid) is None
