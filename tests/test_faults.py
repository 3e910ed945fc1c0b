"""Broken surroundings around a real process: it goes on soundly, or says in one line why not."""

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handler.encoder import Encoder
from handler.errors import ClipError
from handler.outcome import Outcome
from tests import bombs
from tests.conftest import ROOT, require
from tests.test_server import picture, server

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.fixture
def spoiled(model_dir: Path, tmp_path: Path) -> Path:
    """A model folder to spoil: links, so that `_own` says which is."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_dir.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def _own(path: Path) -> Path:
    """`path`, no longer a link."""
    content = path.resolve()
    path.unlink()
    shutil.copy(content, path)
    return path


def _start(code: str = "", **env: str | None) -> subprocess.CompletedProcess[str]:
    """Load the service as Lambda does, in a new process; then run `code`."""
    environment = {k: v for k, v in (os.environ | env).items() if v is not None}
    command = [sys.executable, "-c", f"import handler.main as main\n{code}"]
    return subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


def _log(run: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.stdout.splitlines()]


def _without_json(folder: Path) -> None:
    (folder / "model.json").unlink()


def _other_version(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text())
    _own(folder / "model.json").write_text(json.dumps(card | {"format": 99}))


def _broken_json(folder: Path) -> None:
    _own(folder / "model.json").write_text('{"format": 1')


def _without_weights(folder: Path) -> None:
    (folder / "visual.onnx.data").unlink()


def _without_graph(folder: Path) -> None:
    (folder / "visual.onnx").unlink()


def _without_text_graph(folder: Path) -> None:
    (folder / "text.onnx").unlink()


def _without_text_weights(folder: Path) -> None:
    (folder / "text.onnx.data").unlink()


def _without_vocabulary(folder: Path) -> None:
    (folder / "vocabulary.json").unlink()


def _truncated_weights(folder: Path) -> None:
    path = _own(folder / "visual.onnx.data")
    os.truncate(path, path.stat().st_size // 2)


def _truncated_text_weights(folder: Path) -> None:
    path = _own(folder / "text.onnx.data")
    os.truncate(path, path.stat().st_size // 2)


def _broken_graph(folder: Path) -> None:
    path = _own(folder / "visual.onnx")
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without_json, ["no model at", "model.json", "python -m export"]),
        (_other_version, ["model.json is of format 99", "export the model again"]),
        (_broken_json, ["model.json cannot be read", "export the model again"]),
        (_without_weights, ["needs visual.onnx.data for the image tower", "an incomplete copy"]),
        (_without_graph, ["needs visual.onnx for the image tower", "export the model again"]),
        # The text tower's files are opened by the first text, but looked for at the start.
        (_without_text_graph, ["needs text.onnx for the text tower"]),
        (_without_text_weights, ["needs text.onnx.data for the text tower"]),
        (_without_vocabulary, ["needs vocabulary.json for the text tower"]),
        (_truncated_weights, ["visual.onnx.data has", "truncated or changed"]),
        # What was cut short on its way here is a failed deployment, whichever tower it is of.
        (_truncated_text_weights, ["text.onnx.data has", "truncated or changed"]),
        (_broken_graph, ["visual.onnx cannot be loaded"]),
    ],
)
def test_an_unusable_model_stops_the_start_with_one_line(
    spoiled: Path, spoil: Callable[[Path], None], words: list[str]
) -> None:
    spoil(spoiled)
    run = _start(CLIP_MODEL_DIR=str(spoiled))
    assert run.returncode != 0
    (line,) = _log(run)  # one line, and it is JSON
    assert line["level"] == "CRITICAL"
    assert line["message"].startswith("the service cannot start: ")
    assert "\n" not in line["message"]
    for word in words:
        assert word in line["message"], line


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CLIP_THREADS", "many", "CLIP_THREADS must be a whole number, not 'many'"),
        ("CLIP_ENGINE", "tpu", "CLIP_ENGINE must be one of auto, onnx, torch, not 'tpu'"),
        ("CLIP_PREPROCESS", "best", "CLIP_PREPROCESS must be one of openai, corrected, not 'best'"),
        ("CLIP_TOWERS", "texts", "CLIP_TOWERS must be one of image, text, not 'texts'"),
        ("CLIP_LOG_LEVEL", "loud", "CLIP_LOG_LEVEL must be one of"),
        ("CLIP_MODEL_DIR", "/nowhere", "no model at /nowhere/model.json"),
        ("CLIP_MODEL_DIR", "/etc/hostname", "/etc/hostname"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(
    model_dir: Path, name: str, value: str, words: str
) -> None:
    run = _start(**{"CLIP_MODEL_DIR": str(model_dir), name: value})
    assert run.returncode != 0
    (line,) = _log(run)
    assert line["level"] == "CRITICAL"
    assert words in line["message"]


def test_the_web_server_too_says_so_last(model_dir: Path) -> None:
    command = [sys.executable, "-m", "uvicorn", "handler.main:app", "--port", "0"]
    environment = os.environ | {"CLIP_MODEL_DIR": str(model_dir), "CLIP_MAX_PIXELS": "huge"}
    run = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, stdout=-1, stderr=-2, text=True, timeout=60
    )
    assert run.returncode != 0
    assert "CLIP_MAX_PIXELS must be a whole number, not 'huge'" in run.stdout.splitlines()[-1]


def test_changed_weights_of_the_same_size_serve_nothing(spoiled: Path, tmp_path: Path) -> None:
    path = _own(spoiled / "visual.onnx.data")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        block = np.frombuffer(file.read(2**20), np.uint8)
        file.seek(path.stat().st_size // 2)
        file.write(block[::-1].tobytes())
    with server(spoiled, tmp_path) as service:
        health, answer = service.health(), service.encode(picture(1))
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        assert (answer.status_code, answer.json()["code"]) == (503, "model_unhealthy")
        assert answer.headers["retry-after"]
        errors = [line for line in service.log.splitlines() if '"level": "ERROR"' in line]
        assert len(errors) == 1
        assert "self-check" in errors[0]
        assert "model.json" in errors[0]


ENCODE = """
import base64, json, sys
files = [base64.b64encode(open(path, "rb").read()).decode() for path in %r]
answers = [main.handler({"image": file}, None) for file in files]
print(json.dumps([answer["embedding"] for answer in answers]))
"""


@pytest.mark.parametrize("home", [None, "/nonexistent", "/proc/self"])
def test_no_home(model_dir: Path, tmp_path: Path, encoder: Encoder, home: str | None) -> None:
    (tmp_path / "image").write_bytes(picture(1))
    run = _start(
        ENCODE % [str(tmp_path / "image")],
        **{"CLIP_MODEL_DIR": str(model_dir), "HOME": home, "XDG_CACHE_HOME": None, "TMPDIR": home},
    )
    assert run.returncode == 0, run.stderr
    (vector,) = json.loads(run.stdout.splitlines()[-1])
    np.testing.assert_array_equal(np.array(vector, np.float32), encoder.encode(picture(1)))


def test_a_read_only_file_system_without_shared_memory(
    model_dir: Path, tmp_path: Path, encoder: Encoder
) -> None:
    """Everything is read-only, /tmp too (Lambda's is not), and /dev/shm takes nothing."""
    (tmp_path / "image").write_bytes(picture(1))
    script = "umount -l /dev/shm || true; mount -t tmpfs -o ro,size=4k none /dev/shm || exit 77\n"
    script += 'for m in $(cut -d" " -f5 /proc/self/mountinfo); do\n'
    script += '    mount -o remount,bind,ro "$m" 2>/dev/null; done\n'
    script += (
        '! touch /tmp/probe 2>/dev/null && ! touch /dev/shm/probe 2>/dev/null || exit 77\nexec "$@"'
    )
    code = f"import handler.main as main\n{ENCODE % [str(tmp_path / 'image')]}"
    run = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", code],
        check=False,
        cwd=ROOT,
        env=os.environ | {"CLIP_MODEL_DIR": str(model_dir), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    require(
        "mounts",
        run.returncode not in (1, 77) or "main" in run.stderr,
        f"no mounts here: {run.stderr}",
    )
    assert run.returncode == 0, run.stderr
    (vector,) = json.loads(run.stdout.splitlines()[-1])
    np.testing.assert_array_equal(np.array(vector, np.float32), encoder.encode(picture(1)))


SHORT_OF_MEMORY = """
import json, resource
from pathlib import Path
from events.generate import http_api
from tests.fuzz.worker import limit_memory

events = [http_api("/encode_image", "image/png", Path(path).read_bytes()) for path in %r]
limit_memory(200 * 2**20)
for event in events:
    answer = main.handler(event, None)
    print("answer", json.dumps([answer["statusCode"], json.loads(answer["body"])]))
"""


def test_a_huge_image_without_the_memory_for_it_costs_the_next_nothing(
    model_dir: Path, tmp_path: Path, encoder: Encoder
) -> None:
    """800 MB of pixels with 200 MB to go, and what loading has left over."""
    large = bombs.encoded(Image.new("RGB", (16_384, 12_288)), "PNG", compress_level=1)
    for name, data in (("large", large), ("small", picture(1))):
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in ("small", "large", "large", "small")]
    run = _start(SHORT_OF_MEMORY % paths, CLIP_MODEL_DIR=str(model_dir), CLIP_MAX_PIXELS=str(2**30))
    assert run.returncode == 0, run.stderr
    answers = [
        json.loads(line[7:]) for line in run.stdout.splitlines() if line.startswith("answer ")
    ]
    assert [status for status, _ in answers] == [200, 422, 422, 200]
    assert answers[1][1]["code"] == "image_too_costly"
    assert answers[3][1] == answers[0][1]
    np.testing.assert_array_equal(np.array(answers[3][1], np.float32), encoder.encode(picture(1)))


def test_a_refused_image_is_forgotten_at_once(encoder: Encoder) -> None:
    """Not when the garbage collector next comes by: until then each would hold its megabytes."""
    data = bombs.encoded(Image.radial_gradient("L").convert("RGB").resize((2000, 1500)), "PNG")
    broken = data[:-500]
    gc.collect()
    before = sys.getrefcount(broken)
    gc.disable()
    try:
        with pytest.raises(ClipError):
            encoder.encode(broken)
        outcomes = encoder.encode_images([Outcome(broken), Outcome(data), Outcome(b"no image")])
        assert [outcome.error is None for outcome in outcomes] == [False, True, False]
        assert sys.getrefcount(broken) == before
    finally:
        gc.enable()


def test_the_clock_may_jump(model_dir: Path, tmp_path: Path, encoder: Encoder) -> None:
    require("faketime", FAKETIME, "Debian's libfaketime is not installed")
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    fake = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    vector = encoder.encode(picture(1))
    with server(model_dir, tmp_path, **fake) as service:
        for jump in ("+0", "-40y", "+30y", "+0"):
            offset.write_text(f"{jump}\n")
            time.sleep(1.1)  # until the file is read again
            answer = service.encode(picture(1))
            np.testing.assert_array_equal(np.array(answer.json(), np.float32), vector)
        lines = [json.loads(line) for line in service.log.splitlines() if '"latency_ms"' in line]
        assert len(lines) == 4
        assert all(0 < line["latency_ms"] < 60_000 for line in lines)
