"""The README's commands are run, and their output compared with what it shows."""

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from events.generate import PHOTO
from handler import errors, output
from handler.config import Config
from handler.encoder import Encoder
from handler.s3 import Source
from tests.aws import aws
from tests.conftest import ROOT, free_port, wait_for
from tests.test_errors import LEAVES

README = (ROOT / "README.md").read_text()
CONSOLE = "\n".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL))
# A command and the lines it prints; those that serve and test are run by the fixture and by pytest.
COMMANDS = [
    (command, output)
    for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", CONSOLE, re.MULTILINE)
    if not command.startswith("make ")
]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def port(model_dir: Path) -> Iterator[int]:
    """A server started as the README says, by ``make run``."""
    port = free_port()
    command = ["make", "run", f"PORT={port}", f"MODEL_DIR={model_dir}"]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    wait_for(port, process)
    yield port
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=10)


@pytest.fixture
def vectors(encoder: Encoder) -> Iterator[None]:
    """An S3 with vectors that a batch has written."""
    with aws() as cloud:
        cloud.s3.create_bucket(Bucket="clip-vectors")
        entries = [output.Entry(Source("shop-photos", "photo.jpg"), encoder.encode(PHOTO))]
        body = output.to_npz(entries, encoder)
        cloud.s3.put_object(Bucket="clip-vectors", Key="vectors/model/0123.npz", Body=body)
        yield


def _masked(output: str) -> list[str | float]:
    """Words and numbers; the hash of synthetic weights differs from one torch to the next."""
    output = re.sub(r"synthetic\.[0-9a-f]{12}\.", "synthetic.HASH.", output)
    parts = re.split(r"(-?\d+\.\d+(?:e-?\d+)?)", output.strip())
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


@pytest.mark.parametrize(("command", "expected"), COMMANDS)
def test_the_commands_print_what_the_readme_shows(port: int, command: str, expected: str) -> None:
    command = command.replace("localhost:3000", f"127.0.0.1:{port}")
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    actual, shown = _masked(run.stdout), _masked(expected)
    assert len(actual) == len(shown)
    for a, b in zip(actual, shown, strict=True):
        # Processors round differently, and `cut` may cut a number short.
        assert a == (pytest.approx(b, abs=1e-5) if isinstance(b, float) else b), run.stdout


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_examples_print_what_their_comments_say(
    port: int,
    lambda_client: httpx.Client,
    vectors: None,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", str(lambda_client.base_url))
    code = code.replace("localhost:3000", f"127.0.0.1:{port}")
    code = code.replace('"clip-image-encoder"', '"function"')  # the emulator's one name
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue().split() == re.findall(r"print\(.*# (.*)", code)[0].split()


def test_the_first_command_stands_before_line_20() -> None:
    assert "$ make run" in README.splitlines()[:20]
    assert "$ make test" in README.splitlines()[:20]


def test_the_settings_table_is_the_configs() -> None:
    table = dict(re.findall(r"^\| `(CLIP_\w+)` \| (.*?) \|", README, re.MULTILINE))
    defaults = {f"CLIP_{f.name.upper()}": f.default for f in dataclasses.fields(Config)}
    assert table.keys() == defaults.keys()
    for name, default in defaults.items():
        if not isinstance(default, Path):
            assert table[name] == ("none" if default == () else f"`{default}`")


def test_every_error_code_is_listed_under_its_status() -> None:
    for error in LEAVES:
        assert re.search(rf"^\| [\d, ]*{error.status}.*`{error.code}`", README, re.MULTILINE), error.code
    assert errors.__doc__


def test_the_figures_of_the_parity_gate(model_dir: Path) -> None:
    parity = json.loads((model_dir / "model.json").read_text())["parity"]
    assert f"unless {parity['images']} images" in README
    assert parity["min_cosine"] == pytest.approx(0.9999997, abs=3e-7)
