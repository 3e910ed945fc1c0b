"""Faults of the world around: a clear message, the right status, no corrupt answer."""

import base64
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from events.generate import HERE
from export import images
from tests.conftest import ROOT

INVOKE = """
import json, sys
from handler import main
for name in sys.argv[1:]:
    try:
        print(json.dumps(main.handler(json.load(open(name)), None)))
    except Exception as error:
        print(json.dumps({"error": str(error)}))
"""


def start(
    model_dir: Path, *events: Path, limit: int = 0, wrapper: tuple[str, ...] = (), **settings: str | None
) -> subprocess.CompletedProcess[str]:
    """A fresh process that loads the service and answers `events`; a setting of None is unset."""
    env = os.environ | {"CLIP_MODEL_DIR": str(model_dir), "CLIP_LOG_LEVEL": "ERROR", "CLIP_ENGINE": "onnx"}
    env |= {name: value for name, value in settings.items() if value is not None}
    for name in [name for name, value in settings.items() if value is None]:
        env.pop(name, None)

    def limit_memory() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    command = [*wrapper, sys.executable, "-c", INVOKE, *map(str, events)]
    return subprocess.run(
        command, cwd=ROOT, env=env, preexec_fn=limit_memory, capture_output=True, text=True, check=False
    )


def answers(run: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    """What was answered, without the log's lines."""
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return [line for line in lines if "level" not in line]


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own."""
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder, ignore=shutil.ignore_patterns("visual.pt"))
    return folder


IMAGE = HERE / "direct_image.json"
HEALTH = HERE / "direct_health.json"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", None, "no model at"),
        ("model.json", b"{", "export the model again"),
        ("model.json", b'{"format": 0}', "is of format 0, this package reads 1"),
        ("visual.onnx", None, "visual.onnx cannot be loaded"),
        ("visual.onnx", b"", "visual.onnx has 0 bytes instead of"),
        ("visual.onnx.data", None, "visual.onnx cannot be loaded"),
        ("visual.onnx.data", b"x", "visual.onnx.data has 1 bytes instead of"),
    ],
)
def test_a_model_that_cannot_be_loaded(copy: Path, name: str, content: bytes | None, message: str) -> None:
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    run = start(copy)
    assert run.returncode != 0
    (line,) = [json.loads(line) for line in run.stdout.splitlines()]
    assert line["level"] == "CRITICAL"
    assert message in line["message"]
    assert message in run.stderr.splitlines()[-1] or "ONNXRuntimeError" in run.stderr


def test_a_wrong_setting(model_dir: Path) -> None:
    run = start(model_dir, CLIP_THREADS="many")
    assert run.returncode != 0
    (line,) = [json.loads(line) for line in run.stdout.splitlines()]
    assert "CLIP_THREADS must be a whole number, not 'many'" in line["message"]


def test_weights_changed_in_place_serve_nothing(copy: Path) -> None:
    """The size is right, so only the golden vector can tell."""
    path = copy / "visual.onnx.data"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2_000_000] = content[:2_000_000]
    path.write_bytes(content)
    run = start(copy, HEALTH, IMAGE)
    health, image = answers(run)
    assert health["status"] == "unhealthy"
    assert str(image["error"]).startswith("model_unhealthy: ")
    assert "not those that model.json describes" in run.stdout


def test_neither_home_nor_shared_memory_nor_a_writable_disk_is_needed(
    model_dir: Path, tmp_path: Path
) -> None:
    """In a mount namespace of its own: everything read-only, /dev/shm gone, no HOME."""
    enter = 'mount -o remount,bind,ro / 2>/dev/null; mount -t tmpfs -o ro none /dev/shm && exec "$@"'
    wrapper = ("unshare", "--mount", "sh", "-c", enter, "sh")
    if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces need root; `make e2e` runs it on a read-only root too")
    run = start(model_dir, IMAGE, wrapper=wrapper, HOME=None, PYTHONDONTWRITEBYTECODE="1")
    (plain,) = answers(start(model_dir, IMAGE))
    assert answers(run) == [plain], run.stderr


def test_too_little_memory_for_a_large_image_is_an_answer_and_not_the_end(
    model_dir: Path, tmp_path: Path
) -> None:
    large = images.encoded(images.photograph("coffee").resize((8000, 6000)), "PNG", compress_level=1)
    event = tmp_path / "large.json"
    event.write_text(json.dumps({"image": base64.b64encode(large).decode()}))
    limit = 1_900 * 2**20  # address space, most of which is only reserved
    roomy = start(model_dir, IMAGE, CLIP_MAX_IMAGE_BYTES=str(2**30))
    run = start(model_dir, event, IMAGE, limit=limit, CLIP_MAX_IMAGE_BYTES=str(2**30), CLIP_THREADS="1")
    first, second = answers(run)
    assert "embedding" in first or str(first["error"]).startswith("too_many_pixels: ")
    assert [second] == answers(roomy)
