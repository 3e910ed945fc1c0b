"""``make run`` in a fresh clone: with one source of weights that can be reached, and with none."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

pytest.importorskip("torch")

from export.sources import Official
from tests import checkpoints
from tests.conftest import ROOT, free_port
from tests.hub import COMMIT, Hub, serving


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Official, Path]:
    """A small model in the place of ViT-B/32, and the folder of its two files."""
    folder = tmp_path_factory.mktemp("official")
    return checkpoints.write_official(folder), folder


@pytest.fixture
def clone(official: tuple[Official, Path], tmp_path: Path) -> Path:
    """What a clone has, with other weights in the table of official ones."""
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("export", "handler"):
        shutil.copytree(ROOT / name, clone / name, ignore=ignored)
    for name in ("Makefile", "requirements-export.txt", "requirements-torch.txt"):
        shutil.copy2(ROOT / name, clone)
    (clone / "export/__main__.py").write_text(checkpoints.exporter(official[0]))
    return clone


class Service(NamedTuple):
    """A running service, and what it has printed."""

    client: httpx.Client
    log: Path


@contextmanager
def running(clone: Path, *variables: str, **env: str) -> Iterator[Service]:
    """``make run`` in `clone`, until it answers."""
    port, log = free_port(), clone / "log"
    settings = {"HOME": str(clone / "home"), "HF_HOME": str(clone / "hf"), "HF_HUB_OFFLINE": "0"}
    venv = Path(sys.executable).parent.parent
    command = ["make", "run", f"VENV={venv}", f"EXPORTER={venv}/bin/python", f"PORT={port}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *variables],
            cwd=clone,
            env=os.environ | settings | env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while "ready: " not in log.read_text():
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield Service(client, log)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


@pytest.fixture
def hub(official: tuple[Official, Path]) -> Iterator[Hub]:
    with serving({official[0].hub.repository: official[1] / "hub"}) as hub:
        yield hub


def test_with_hugging_face_alone_the_weights_are_openais(
    clone: Path, hub: Hub, official: tuple[Official, Path]
) -> None:
    with running(clone, HF_ENDPOINT=hub.url) as service:
        health = service.client.get("/health").json()
    assert (health["status"], health["weights"], health["model"]) == (
        *("healthy", "openai", "ViT-B/32"),
    )
    # Named by OpenAI's own file, which was not to be had.
    assert health["fingerprint"] == f"ViT-B-32.openai.{official[0].sha256[:12]}.fp32"
    said = service.log.read_text()
    assert said.count("no weights  http://127.0.0.1:9/") == 2
    assert "SYNTHETIC" not in said


def test_a_model_of_hugging_face_is_named_by_its_commit_and_made_once(
    clone: Path, hub: Hub, tmp_path: Path
) -> None:
    """As ``MODEL=hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K make run``."""
    architecture = checkpoints.SMALL._replace(activation="gelu")
    theirs = checkpoints.open_clip(architecture)
    folder = checkpoints.write_open_clip(theirs, architecture, tmp_path / "laion")
    hub.repositories = {"laion/CLIP-ViT-B-32.v2": folder}
    asked = "MODEL=hf:laion/CLIP-ViT-B-32.v2"
    with running(clone, asked, HF_ENDPOINT=hub.url) as service:
        health = service.client.get("/health").json()
    assert (health["weights"], health["model"]) == ("custom", "laion/CLIP-ViT-B-32.v2@3d74acf")
    card = json.loads((clone / "model/model.json").read_text())
    found = card["checkpoint"]
    assert (found["repository"], found["file"]) == (
        *("laion/CLIP-ViT-B-32.v2", "open_clip_model.safetensors"),
    )
    assert found["revision"] == COMMIT
    assert card["architecture"]["activation"] == "gelu"
    name = "laion-CLIP-ViT-B-32-v2-3d74acf"
    assert health["fingerprint"] == f"{name}.custom.{found['sha256'][:12]}.fp32"
    hub.requests.clear()
    with running(clone, asked, HF_ENDPOINT=hub.url) as service:
        assert service.client.get("/health").json() == health
    assert hub.requests == []


def test_without_any_source_it_says_so_last_and_what_mends_it(clone: Path) -> None:
    with running(clone, HF_ENDPOINT="http://127.0.0.1:9") as service:
        assert service.client.get("/health").json()["status"] == "synthetic"
    said = service.log.read_text()
    after = said[said.index("ready: ") :]
    lines = [line for line in after.splitlines() if line]
    assert lines[1] == "SYNTHETIC weights: every vector is well formed and means nothing."
    assert lines[2] == "No source had the weights of ViT-B/32:"
    assert [line.rsplit(": ", 1)[1] for line in lines[3:6]] == ["Connection refused"] * 3
    assert "and run: make model" in after
    with running(clone, HF_ENDPOINT="http://127.0.0.1:9") as service:
        pass
    again = service.log.read_text()
    assert again[again.index("ready: ") :].count("No source had the weights") == 1


def test_make_model_fails_with_the_same_text(clone: Path) -> None:
    venv = Path(sys.executable).parent.parent
    run = subprocess.run(
        ["make", "model", f"VENV={venv}", f"EXPORTER={venv}/bin/python"],
        cwd=clone,
        env=os.environ | {"HOME": str(clone / "home"), "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "No source had the weights of ViT-B/32:" in run.stderr
    assert "and run: make model" in run.stderr
    assert not (clone / "model").exists()
