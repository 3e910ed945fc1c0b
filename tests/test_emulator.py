"""The real Lambda runtime client under the real Runtime Interface Emulator, without a container."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from events.generate import HERE, PHOTO
from handler.encoder import Encoder
from tests.conftest import ROOT, require

EVENTS = sorted(path.name for path in HERE.glob("*.json"))
INVOKE = "/2015-03-31/functions/function/invocations"
EMULATOR = os.environ.get("RIE") or shutil.which("aws-lambda-rie", path=Path(sys.executable).parent)


@pytest.fixture(scope="module")
def lambda_(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A Lambda execution environment of ``handler.main.handler``."""
    require("emulator", EMULATOR, "no aws-lambda-rie beside python and none named by RIE")
    port, api = _free_port(), _free_port()
    command = [
        *(str(EMULATOR), "--log-level", "error"),
        *("--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
        *("--runtime-api-address", f"127.0.0.1:{api}"),
        *(sys.executable, "-m", "awslambdaric", "handler.main.handler"),
    ]
    settings = {
        "AWS_LAMBDA_FUNCTION_NAME": "clip",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "29",
        "LAMBDA_TASK_ROOT": str(ROOT),
        "CLIP_MODEL_DIR": str(model_dir),
    }
    log = tmp_path_factory.mktemp("emulator") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | settings, stdout=output, stderr=output, start_new_session=True
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            _wait_for(port, process)
            yield client
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=10)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, "the emulator stopped"
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("the emulator does not listen")


def _invoke(client: httpx.Client, name: str) -> Any:
    return client.post(INVOKE, content=(HERE / name).read_bytes()).json()


ERRORS = {
    "bad_not_an_image.json": ("NotAnImage", "not_an_image: "),
    "bad_base64.json": ("InvalidBase64", "invalid_base64: "),
    "bad_unknown_keys.json": ("InvalidEvent", "invalid_event: "),
}


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_file(lambda_: httpx.Client, name: str, encoder: Encoder) -> None:
    answer = _invoke(lambda_, name)
    if name in ERRORS:
        kind, text = ERRORS[name]
        assert answer["errorType"] == kind
        assert answer["errorMessage"].startswith(text)
        return
    if "statusCode" in answer:
        assert answer["statusCode"] == 200
        answer = json.loads(answer["body"])
    if "health" in name or "warmup" in name:
        assert answer["status"] == "synthetic"
        return
    if isinstance(answer, dict):
        answer = answer["embeddings"][2] if "embeddings" in answer else answer["embedding"]
    np.testing.assert_array_equal(np.array(answer, np.float32), encoder.encode(PHOTO))


def test_a_bad_event_costs_the_next_one_nothing(lambda_: httpx.Client) -> None:
    before = _invoke(lambda_, "direct_image.json")
    for name in ERRORS:
        _invoke(lambda_, name)
    assert lambda_.post(INVOKE, content=b"[]").json()["errorType"] == "InvalidEvent"
    assert _invoke(lambda_, "direct_image.json") == before
