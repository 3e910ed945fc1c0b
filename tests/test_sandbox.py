"""The sandbox, with real processes: what a decoder may do, and what happens if it does more."""

import gc
import logging
import multiprocessing
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.measure import children
from export import images
from handler.config import Config, available_cpus
from handler.errors import (
    ClipError,
    ImageTooCostly,
    InternalError,
    InvalidImage,
    Overloaded,
    TooManyPixels,
)
from handler.images import processes, sandbox, seccomp, zygote
from handler.images.formats import FORMATS, sniff
from handler.images.processes import Zygote
from handler.images.sandbox import Sandbox, Unconfined
from handler.images.wire import ANSWER, REQUEST, Decoded, Limits
from tests import bombs
from tests.conftest import ROOT, SIDE
from tests.hostile import bad
from tests.measure import all_end, resident_megabytes

Said = Callable[[], list[str]]

CONFIG = Config(decode_seconds=0.3, decode_mb=200)
PHOTO = bombs.encoded(Image.radial_gradient("L").convert("RGB").resize((300, 200)), "JPEG")
EXPECTED = Unconfined(SIDE).decode(PHOTO, CONFIG, lambda _: None)


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """A sandbox whose decoders misbehave on request."""
    box = Sandbox(CONFIG, SIDE, Zygote(("tests.hostile", "to_pixels")))
    yield box
    box.close()


def decode(box: Sandbox, data: bytes, config: Config = CONFIG) -> Decoded:
    return box.decode(data, config, lambda _: None)


def family(box: Sandbox) -> set[int]:
    """The zygote and all of its decoders."""
    zygote_pid = box.processes()[0]
    return {zygote_pid, *children(zygote_pid)}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Said:
    """What the service's log has got since."""
    monkeypatch.setattr(logging.getLogger("clip"), "propagate", True)
    return lambda: [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


TOO_LONG = ImageTooCostly(
    f"decoding the JPEG image takes more than {CONFIG.decode_seconds:g} s: send it smaller, or as "
    "a baseline JPEG"
)
TOO_MUCH = ImageTooCostly("decoding the image takes too much memory")
CRASH = InvalidImage("the JPEG image is corrupt: its decoder crashes")
NONSENSE = InvalidImage("the JPEG image is corrupt: its decoder answers nonsense")
KILLED = Overloaded("the image's decoder was killed, perhaps for want of memory: try again")
LATE = Overloaded("the image could not be decoded in time: try again")
NO_MORE = InternalError("images cannot be decoded now; the fault is logged")


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("spin", TOO_LONG),
        ("spin_in_c", TOO_LONG),
        ("spin_without_timer", TOO_LONG),
        ("chatter", TOO_LONG),
        ("allocate", TOO_MUCH),
        ("segfault", CRASH),
        ("abort", CRASH),
        ("leave", CRASH),
        ("garbage", NONSENSE),
        ("endless_garbage", NONSENSE),
        ("close", KILLED),
    ],
)
def test_a_decoder_that_misbehaves_costs_its_image_only(
    box: Sandbox, word: str, error: ClipError, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClipError) as caught:
        decode(box, bad(word))
    assert type(caught.value) is type(error)
    assert caught.value.detail == error.detail
    assert decode(box, PHOTO) == EXPECTED
    assert capfd.readouterr().err == ""


def test_a_decoder_that_answers_late_is_ended(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 1.0)
    with pytest.raises(Overloaded) as caught:
        decode(box, bad("late", "30"))
    assert caught.value.detail == LATE.detail
    monkeypatch.undo()
    assert decode(box, PHOTO) == EXPECTED


def test_a_decoder_can_reach_nothing(box: Sandbox, tmp_path: Path) -> None:
    """No files, sockets, children or signals, and nothing of the environment."""
    victim = tmp_path / "file"
    victim.write_text("x")
    os.environ["AWS_SECRET_ACCESS_KEY"] = "not-for-decoders"
    try:
        fresh = Sandbox(CONFIG, SIDE, Zygote(("tests.hostile", "to_pixels")))
        with pytest.raises(InvalidImage) as caught:
            decode(fresh, bad("report", str(victim)))
        for process in fresh.processes():
            assert b"not-for-decoders" not in Path(f"/proc/{process}/environ").read_bytes()
    finally:
        del os.environ["AWS_SECRET_ACCESS_KEY"]
    assert caught.value.detail.startswith("done: [];")
    assert "AWS" not in caught.value.detail
    assert victim.exists()
    assert not Path("/tmp/clip-sandbox-escape").exists()
    fresh.close()


def test_what_the_kernel_was_told(box: Sandbox) -> None:
    decode(box, PHOTO)
    pid = box.processes()[-1]
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Threads"] == "1"
    assert status["Seccomp"] == "2"  # a filter
    limits = {line[:26].strip(): line[26:].split() for line in limits_of(pid)}
    assert limits["Max file size"][:2] == ["0", "0"]
    assert limits["Max core file size"][:2] == ["0", "0"]
    assert limits["Max open files"][:2] == ["0", "0"]
    assert limits["Max processes"][:2] == ["0", "0"]
    space = int(limits["Max address space"][1])
    assert 200 * 2**20 < space < 300 * 2**20
    files = sorted(os.listdir(f"/proc/{pid}/fd"))
    assert files == ["0", "1", "2", "3"]
    assert [os.readlink(f"/proc/{pid}/fd/{n}") for n in "012"] == ["/dev/null"] * 3
    assert os.readlink(f"/proc/{pid}/fd/3").startswith("socket:")


HEADERS = {
    "x86_64": (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), r"__NR_(\w+) (\d+)"),
    "aarch64": (Path("/usr/include/asm-generic/unistd.h"), r"__NR(?:3264)?_(\w+) (\d+)"),
}


@pytest.mark.parametrize("machine", seccomp._MACHINES)
def test_the_filter_allows_its_calls_and_no_other(machine: str) -> None:
    architecture, calls = seccomp._MACHINES[machine]
    program = seccomp._filter(architecture, calls)
    allowed = {number for number in range(1000) if _verdict(program, architecture, number)}
    assert allowed == set(calls.values())
    assert not any(_verdict(program, architecture ^ 1, number) for number in range(1000))
    header, pattern = HEADERS[machine]
    if header.exists():
        numbers = dict(re.findall(rf"#define {pattern}", header.read_text()))
        assert {name: int(numbers[name]) for name in calls} == calls


def _verdict(program: bytes, architecture: int, number: int) -> bool:
    """What the kernel makes of a filter: whether it allows the system call `number`."""
    instructions = list(struct.iter_unpack("<HBBI", program))
    loaded, at = 0, 0
    while True:
        code, if_equal, if_not, value = instructions[at]
        at += 1
        if code == 0x20:
            loaded = {0: number, 4: architecture}[value]
        elif code == 0x15:
            at += if_equal if loaded == value else if_not
        else:
            assert code == 0x06
            return bool(value == 0x7FFF0000)


def limits_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]


def test_a_thousand_of_them_leave_nothing_behind() -> None:
    """In a new process: one that ran other tests before gains and loses memory by itself."""
    with multiprocessing.get_context("spawn").Pool(1) as new:
        new.apply(_let_a_thousand_misbehave)


def _let_a_thousand_misbehave() -> None:
    words = ["segfault", "leave", "garbage", "abort", "close", "spin", "allocate"]
    config = Config(decode_seconds=0.02, decode_mb=50)
    box = Sandbox(config, SIDE, Zygote(("tests.hostile", "to_pixels")))
    plain = Config(decode_seconds=2)
    assert decode(box, PHOTO) == EXPECTED
    gc.collect()
    files = open_files()
    memory = []
    for number in range(1000):
        with pytest.raises(ClipError):
            decode(box, bad(words[number % len(words)]), plain)
        if number % 50 == 0:
            gc.collect()
            memory.append(resident_megabytes())
    assert decode(box, PHOTO) == EXPECTED
    left = family(box)
    assert len(left) == 2
    assert open_files() <= files
    assert memory[-1] - memory[2] < 3, memory
    box.close()
    assert all_end(left)


def test_the_time_that_an_image_took_is_told(box: Sandbox) -> None:
    spent: list[float] = []
    box.decode(PHOTO, CONFIG, spent.append)
    with pytest.raises(ImageTooCostly):
        box.decode(bad("spin"), CONFIG, spent.append)
    with pytest.raises(TooManyPixels):
        box.decode(PHOTO, Config(max_pixels=10), spent.append)
    assert 0 <= spent[0] < 0.2
    assert spent[1] > 0.9 * CONFIG.decode_seconds
    assert 0 <= spent[2] < 0.2


def test_a_refusal_costs_no_process(box: Sandbox) -> None:
    decode(box, PHOTO)
    before = family(box)
    for _ in range(3):
        with pytest.raises(ClipError):
            decode(box, PHOTO[:-100])
    assert family(box) == before


def test_images_are_decoded_side_by_side_and_no_more_than_there_are_cpus(box: Sandbox) -> None:
    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(decode, box, bad("late", "0.5")) for _ in range(8)]
        most = 0
        while not all(future.done() for future in running):
            most = max(most, len(children(box.processes()[0])))
            time.sleep(0.02)
        for future in running:
            assert isinstance(future.exception(), InvalidImage)  # it is no JPEG after all
    assert most == available_cpus()


def test_a_decoder_that_is_killed_from_outside_is_replaced(box: Sandbox) -> None:
    for by in (signal.SIGKILL, signal.SIGTERM):  # the second looks like a crash, of no image
        decode(box, PHOTO)
        decoder = box.processes()[-1]
        os.kill(decoder, by)
        assert all_end([decoder])
        assert decode(box, PHOTO) == EXPECTED
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(decode, box, bad("late", "1"))
        for _ in range(2):
            time.sleep(0.3)
            for decoder in children(box.processes()[0]):
                os.kill(decoder, signal.SIGKILL)
        assert str(running.exception()) == str(KILLED)
    assert decode(box, PHOTO) == EXPECTED


def test_a_killed_zygote_is_replaced(box: Sandbox) -> None:
    decode(box, PHOTO)
    killed = box.processes()[0]
    os.kill(killed, signal.SIGKILL)
    while box.processes()[0] == killed:  # its decoders live a moment longer, and still answer
        assert decode(box, PHOTO) == EXPECTED
    # And one that dies while its decoder works.
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(decode, box, bad("late", "0.5"))
        time.sleep(0.2)
        os.kill(box.processes()[0], signal.SIGKILL)
        assert isinstance(running.exception(), InvalidImage)
    assert decode(box, PHOTO) == EXPECTED


STOPPED = """
import sys, threading, time
from handler.config import Config
from handler.images import processes, sandbox
from handler.images.processes import Zygote
from tests.hostile import bad
from tests.test_sandbox import EXPECTED, PHOTO

processes.PATIENCE = 2.0
box = sandbox.Sandbox(Config(), 224, Zygote(("tests.hostile", "to_pixels")))
box.decode(PHOTO, Config(), print)
print("ready", flush=True)
try:
    box.decode(bad("late", "1"), Config(), lambda _: None)
except sandbox.InvalidImage as error:
    print(error.code, flush=True)
print(box.decode(PHOTO, Config(), lambda _: None) == EXPECTED, flush=True)
"""


def test_a_service_that_was_frozen_in_the_middle_of_an_image_goes_on() -> None:
    """As Lambda freezes an environment: all of its processes, for longer than the sandbox waits."""
    run = subprocess.Popen(
        [sys.executable, "-c", STOPPED], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout
    lines = iter(run.stdout.readline, "")
    assert any(line == "ready\n" for line in lines)
    time.sleep(0.2)
    everyone = [run.pid, *children(run.pid)]
    everyone += [pid for parent in everyone[1:] for pid in children(parent)]
    assert len(everyone) == 3
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    assert run.communicate(timeout=30)[0].splitlines() == ["invalid_image", "True"]


def test_no_process_outlives_the_service() -> None:
    script = (
        "import os, time; from handler.config import Config; from handler.images.sandbox import"
        " Sandbox; from tests.test_sandbox import PHOTO; box = Sandbox(Config(), 224);"
        " box.decode(PHOTO, Config(), print); print('ready', flush=True); time.sleep(60)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout
    assert any(line == "ready\n" for line in iter(run.stdout.readline, ""))
    (zygote_pid,) = children(run.pid)
    (decoder,) = children(zygote_pid)
    run.kill()
    run.wait()
    run.stdout.close()
    assert all_end((zygote_pid, decoder))


def test_a_dead_sandbox_says_so(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    box = Sandbox(CONFIG, SIDE)
    with pytest.raises(InternalError) as caught:
        decode(box, PHOTO)
    assert caught.value.detail == NO_MORE.detail
    assert said() == ["ERROR the process that forks decoders cannot be started"]
    box.close()


def test_the_log_says_what_became_of_decoders(box: Sandbox, said: Said) -> None:
    for word in ("segfault", "garbage", "spin"):
        with pytest.raises(ClipError):
            decode(box, bad(word))
    assert said()[-2:] == [
        f"WARNING a decoder of JPEG ended with status {signal.SIGSEGV}",
        f"WARNING an image is decoded once more: {NONSENSE}",
    ]


def test_the_zygote_is_a_bare_interpreter_in_a_session_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that Ctrl-C does not reach it, nor a setting of Python's in the environment."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/var/lang/lib")
    monkeypatch.setenv("PYTHONINSPECT", "1")
    for writes, flags in ((False, ["-B"]), (True, [])):
        monkeypatch.setattr(sys, "dont_write_bytecode", not writes)
        made = Zygote()
        sandbox_of_it = sandbox.start(CONFIG, SIDE, made)
        assert isinstance(sandbox_of_it, Sandbox)
        assert decode(sandbox_of_it, PHOTO) == EXPECTED
        assert sandbox_of_it.processes()[0] == made.pid
        about = Path(f"/proc/{made.pid}")
        assert (about / "environ").read_bytes() == b"LD_LIBRARY_PATH=/var/lang/lib\0"
        command = (about / "cmdline").read_bytes().decode().split("\0")
        assert command[1 : command.index("-c")] == ["-I", "-S", "-W", "ignore", *flags]
        assert os.getsid(made.pid) == made.pid
        sandbox_of_it.close()


def test_a_zygote_that_someone_else_waited_for_is_closed_all_the_same() -> None:
    made = Zygote()
    os.kill(made.pid, signal.SIGKILL)
    os.waitpid(made.pid, 0)
    made.close()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"invalid_image so it is", InvalidImage("so it is")),
        (b"invalid_image \xff", InvalidImage("\N{REPLACEMENT CHARACTER}")),
        (b"internal_error mine", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_of_a_decoders_words_only_those_of_an_error_are_believed(
    content: bytes, expected: ClipError | None
) -> None:
    if expected is None:
        with pytest.raises(processes.Garbled):
            processes._error(content)
    else:
        assert str(processes._error(content)) == str(expected)


def test_where_nothing_confines_the_service_decodes_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(logging.getLogger("clip"), "propagate", True)
    decoder = sandbox.start(CONFIG, SIDE)
    lines = {
        (record.levelname, record.message[:37])
        for record in caplog.records
        if record.name == "clip"
    }
    assert lines == {("WARNING", "this platform cannot confine decoders")}
    spent: list[float] = []
    assert decoder.decode(PHOTO, CONFIG, spent.append) == EXPECTED
    with pytest.raises(ClipError):
        decoder.decode(PHOTO[:-100], CONFIG, spent.append)
    assert len(spent) == 2
    decoder.close()
    monkeypatch.undo()
    confined = sandbox.start(CONFIG, SIDE)
    assert isinstance(confined, Sandbox)
    confined.close()


# --- every format --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Iterator[Sandbox]:
    box = Sandbox(Config(), SIDE)
    yield box
    box.close()


@pytest.mark.parametrize("profile", ["openai", "corrected"])
def test_every_kind_of_image_has_the_same_pixels_inside_as_outside(
    real: Sandbox, profile: str
) -> None:
    """A decoder inside can import nothing, start no thread and open no file: none needs to."""
    config = Config(preprocess=profile)
    outside = Unconfined(SIDE)
    for name, data in images.parity_images(SIDE).items():
        expected = outside.decode(data, config, lambda _: None)
        assert decode(real, data, config) == expected, name


def test_every_format_has_a_parity_image_and_a_hostile_one() -> None:
    """Who adds a format adds these; the sandbox bounds it in any case."""
    pictures = {sniff(data) for data in images.parity_images(SIDE).values()}
    assert pictures == set(FORMATS), "export/images.py has no picture of a format"
    hostile = {name.partition(" ")[0].strip(",").upper() for name in bombs.HOSTILE}
    assert set(FORMATS) <= hostile, "tests/bombs.py has no hostile file of a format"


# --- the decoder's own loop, in this process -----------------------------------------------------


def answers(data: bytes, to_pixels: Any, kind: bytes = b"JPEG") -> tuple[Any, ...]:
    """What `zygote.serve` answers to one image: the header's fields, and what follows."""
    ours, theirs = socket.socketpair()
    request = REQUEST.pack(7, len(data), kind, *Limits(10**6, 100, 0, False, SIDE))
    ours.sendall(request + data)
    ours.shutdown(socket.SHUT_WR)
    zygote.serve(theirs, to_pixels, 100)
    theirs.close()
    with ours, ours.makefile("rb") as stream:
        header = ANSWER.unpack(stream.read(ANSWER.size))
        return (*header, stream.read())


def raising(error: Exception) -> Any:
    def to_pixels(*_: object) -> Decoded:
        raise error

    return to_pixels


def test_an_image_whose_memory_others_held_is_decoded_all_the_same() -> None:
    tries: list[str] = []

    def to_pixels(data: bytes, kind: str, limits: Limits) -> Decoded:
        tries.append(kind)
        if len(tries) == 1:
            raise MemoryError
        return EXPECTED

    assert answers(PHOTO, to_pixels)[-1] == EXPECTED.pixels
    assert tries == ["JPEG", "JPEG"]


def test_a_decoder_answers_with_pixels_or_a_code_and_a_text() -> None:
    number, done, length, name, width, height, pixels = answers(
        PHOTO, zygote.to_pixels_of("handler.images.decode", "to_pixels")
    )
    assert (number, done, length, width, height) == (7, True, 150_528, 300, 200)
    assert (name.rstrip(b"\0"), pixels) == (b"JPEG", EXPECTED.pixels)
    for error, text in (
        (TooManyPixels("so many"), b"too_many_pixels so many"),
        (MemoryError(), b"image_too_costly decoding the image takes too much memory"),
        (ZeroDivisionError("secret"), b"invalid_image the JPEG image cannot be decoded"),
    ):
        assert answers(PHOTO, raising(error))[1] is False
        assert answers(PHOTO, raising(error))[-1] == text
