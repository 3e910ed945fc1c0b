"""What the kernel says of a process: its age and its peak of memory, or nothing at all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handler import usage
from handler.usage import Memory

HUNDRED_MB = "import sys; held = b'x' * (100 << 20); del held; print(flush=True); sys.stdin.read()"
"""A process that had 100 MB, and has given it back."""


def test_the_peak_is_this_process_s_and_its_decoders_even_when_they_have_ended() -> None:
    running: list[int] = []
    memory = Memory(lambda: running)
    alone = memory.peak_mb()
    assert alone
    assert alone >= 20  # Python, and what pytest has imported
    with subprocess.Popen([sys.executable, "-c", HUNDRED_MB], stdin=-1, stdout=-1) as process:
        assert process.stdout
        process.stdout.readline()
        running.append(process.pid)
        both = memory.peak_mb()
        assert both
        assert both >= alone + 100
        process.communicate()
    running.clear()
    assert (memory.peak_mb() or 0) >= both


def test_a_process_that_cannot_be_seen_is_left_out(tmp_path: Path) -> None:
    """As in a sandbox that shows /proc's own folder and no other."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tpython3\nVmHWM:\t  204800 kB\nVmRSS:\t1 kB\n")
    assert Memory(lambda: [1, 2], tmp_path).peak_mb() == 200
    (tmp_path / "2").mkdir()
    (tmp_path / "2/status").write_text("Name:\tzombie\nState:\tZ (zombie)\n")
    assert Memory(lambda: [1, 2], tmp_path).peak_mb() == 200


def test_without_proc_getrusage_says_it(tmp_path: Path) -> None:
    found = Memory(list, tmp_path).peak_mb()
    assert found
    assert abs(found - (Memory(list).peak_mb() or 0)) < 50


def test_age_is_since_the_process_began() -> None:
    code = "from handler import usage; print(usage.age_ms())"
    begun = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    most = 1000 * (time.monotonic() - begun)
    tick = 1000 / os.sysconf("SC_CLK_TCK")
    assert 0 < float(run.stdout) <= most + tick


@pytest.mark.parametrize("stat", [None, "", "1 (python3) S 0", f"1 (a) b) {' x' * 30}"])
def test_an_age_that_cannot_be_read_is_none(tmp_path: Path, stat: str | None) -> None:
    if stat is not None:
        (tmp_path / "self").mkdir()
        (tmp_path / "self/stat").write_text(stat)
    assert usage.age_ms(tmp_path) is None


def test_a_process_of_the_future_has_no_age(tmp_path: Path) -> None:
    """As where the clocks of a sandbox disagree."""
    fields = ["0"] * 19 + [str(10**15), "0"]
    (tmp_path / "self").mkdir()
    (tmp_path / "self/stat").write_text(f"1 (python (3)) S {' '.join(fields[1:])}")
    assert usage.age_ms(tmp_path) is None
