"""The README's commands are run, and their output compared with what it shows."""

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from events.generate import PHOTO
from handler import errors
from handler.config import Config
from handler.encoder import Encoder
from handler.engines import Embedding
from handler.events import output
from handler.events.output import Entry
from handler.images.s3 import Source
from tests import commands
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


Rows = Mapping[str, tuple[float, Embedding]]
Times = Mapping[str, float]


@pytest.fixture
def vectors(encoder: Encoder) -> Iterator[None]:
    """An S3 as engines leave it: objects encoded twice, in files whose names are not in the order
    of time.
    """
    ours, other = encoder.encode(PHOTO), -encoder.encode(PHOTO)
    folder = re.findall(r'"Prefix": "(vectors/.*/)"', README)[0]
    files = {
        # A run read both, long ago; then the photograph was replaced and the other object was
        # removed.
        "runs/2026-01-01T00:00:00Z_a/1.npz": _archive(
            encoder, {"photo.jpg": (1.0, other), "gone.jpg": (1.0, other)}
        ),
        "objects/1.npz": _archive(encoder, {"photo.jpg": (3.0, ours)}),
        "objects/2.npz": _archive(encoder, removed={"gone.jpg": 2.0}),
        # What was removed before it was there again counts no more.
        "objects/0.npz": _archive(encoder, removed={"photo.jpg": 2.0}),
    }
    with aws() as cloud:
        cloud.s3.create_bucket(Bucket="clip-vectors")
        for name, body in files.items():
            cloud.s3.put_object(Bucket="clip-vectors", Key=folder + name, Body=body)
        elsewhere = "vectors/another-fingerprint/objects/3.npz"
        body = _archive(encoder, {"photo.jpg": (9.0, other)})
        cloud.s3.put_object(Bucket="clip-vectors", Key=elsewhere, Body=body)
        yield


def _archive(
    encoder: Encoder, rows: Rows = MappingProxyType({}), removed: Times = MappingProxyType({})
) -> bytes:
    """A file as the batch function writes it: key -> when it was read, and its vector."""
    entries = [
        Entry(Source("shop-photos", key, read_at=when), vector)
        for key, (when, vector) in rows.items()
    ]
    entries += [
        Entry(Source("shop-photos", key, read_at=when), None) for key, when in removed.items()
    ]
    return output.to_npz(entries, encoder)


def _masked(output: str) -> list[str | float]:
    """Words and numbers; synthetic weights differ from one torch, or kind of CPU, to the next."""
    output = re.sub(r"synthetic\.[0-9a-f]{12}\.", "synthetic.HASH.", output)
    output = re.sub(r'"cpu_features":\[[^]]*\]', '"cpu_features":[CPU]', output)
    parts = re.split(r"(-?\d+\.\d+(?:e-?\d+)?)", output.strip())
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


@pytest.mark.parametrize(("command", "expected"), COMMANDS)
def test_the_commands_print_what_the_readme_shows(port: int, command: str, expected: str) -> None:
    command = command.replace("localhost:3000", f"127.0.0.1:{port}")
    run = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
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
    encoder: Encoder,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", str(lambda_client.base_url))
    code = code.replace("localhost:3000", f"127.0.0.1:{port}")
    code = code.replace('"clip-image-encoder:live"', '"function"')  # the emulator's one name
    printed, names = io.StringIO(), dict[str, Any]()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), names)
    assert printed.getvalue().split() == re.findall(r"print\(.*# (.*)", code)[0].split()
    if "vectors" in names:  # the newest of each object's, or none
        assert names["vectors"]["s3://shop-photos/photo.jpg"] == pytest.approx(
            encoder.encode(PHOTO), abs=1e-5
        )


def test_direct_invokes_name_the_alias() -> None:
    """Without it a caller gets whatever was built last, also after a roll-back."""
    invoked = re.findall(
        r"(?:^name = \"|lambda invoke --function-name )([\w:-]+)", commands.text(), re.MULTILINE
    )
    assert set(invoked) == {"clip-image-encoder:live"}
    assert len(invoked) == 2


def _would_run(*arguments: str) -> str:
    run = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return run.stdout + run.stderr


def test_make_exports_and_serves_the_profile_that_it_is_told(tmp_path: Path) -> None:
    where = f"MODEL_DIR={tmp_path / 'model'}"
    exact, fast = _would_run("run", where), _would_run("run", where, "PROFILE=fast")
    assert "CLIP_PROFILE=exact " in exact
    assert "--precision" not in exact
    assert "CLIP_PROFILE=fast " in fast
    assert "--precision int8" in fast
    assert "PROFILE is exact or fast, not 'fats'" in _would_run("run", where, "PROFILE=fats")


def test_a_model_without_int8_is_exported_again_when_fast_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "model.json").touch()
    assert "export" not in _would_run("run", f"MODEL_DIR={tmp_path}")
    assert "--precision int8" in _would_run("run", f"MODEL_DIR={tmp_path}", "PROFILE=fast")
    # What is tried on other processors is int8, whatever is served.
    assert "--precision int8" in _would_run("cpus", f"MODEL_DIR={tmp_path}", "PROFILE=exact")
    (tmp_path / "visual.int8.onnx").touch()
    assert "export" not in _would_run("run", f"MODEL_DIR={tmp_path}", "PROFILE=fast")
    assert "-m export" not in _would_run("cpus", f"MODEL_DIR={tmp_path}")


@pytest.mark.parametrize(("arguments", "host"), [([], "127.0.0.1"), (["HOST=0.0.0.0"], "0.0.0.0")])
def test_make_run_listens_on_this_machine_alone_unless_told(
    arguments: list[str], host: str
) -> None:
    command = ["make", "--dry-run", "run", *arguments]
    environment = os.environ | {"HOST": "what-some-shells-put-there"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert re.findall(r"--host (\S+)", run.stdout) == [host]


def test_the_first_command_stands_before_line_20() -> None:
    assert "$ make run" in README.splitlines()[:20]
    assert "$ make test" in README.splitlines()[:20]


def test_the_settings_table_is_the_configs() -> None:
    table = dict(re.findall(r"^\| `(CLIP_\w+)` \| (.*?) \|", README, re.MULTILINE))
    defaults = {f"CLIP_{f.name.upper()}": f.default for f in dataclasses.fields(Config)}
    assert table.keys() == defaults.keys()
    for name, default in defaults.items():
        if not isinstance(default, Path):
            assert table[name] == ("none" if default in ((), "") else f"`{default}`")


def test_every_error_code_is_listed_under_its_status() -> None:
    for error in LEAVES:
        assert re.search(rf"^\| [\d, ]*{error.status}.*`{error.code}`", README, re.MULTILINE), (
            error.code
        )
    assert errors.__doc__


def test_the_figures_of_the_parity_gate(model_dir: Path) -> None:
    parity = json.loads((model_dir / "model.json").read_text())["parity"]
    assert f"unless {parity['images']} images" in README
    assert parity["min_cosine"] == pytest.approx(0.9999997, abs=3e-7)
