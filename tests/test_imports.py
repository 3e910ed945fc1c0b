"""What a cold start does not pay for."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def _modules_after(code: str, **env: str) -> set[str]:
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_handler_loads_neither_torch_nor_boto3(model_dir: Path) -> None:
    modules = _modules_after("import handler.main", CLIP_MODEL_DIR=str(model_dir))
    assert "onnxruntime" in modules
    unwanted = {"torch", "torchvision", "clip", "boto3", "botocore", "onnx", "scipy", "skimage", "uvicorn"}
    assert modules.isdisjoint(unwanted), modules & unwanted


def test_only_main_has_effects_at_import() -> None:
    """Every other module imports without a model on disk."""
    names = [f"handler.{path.stem}" for path in (ROOT / "handler").glob("*.py") if path.stem != "main"]
    modules = _modules_after(f"import {', '.join(names)}", CLIP_MODEL_DIR="/nonexistent")
    assert set(names) - {"handler.__init__"} <= modules


def test_onnx_runtime_sends_no_telemetry(model_dir: Path, tmp_path: Path) -> None:
    """Its telemetry, on by default, would keep a device id and a queue of events in the home folder."""
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    _modules_after("import handler.main", CLIP_MODEL_DIR=str(model_dir), **home)
    assert list(tmp_path.rglob("*")) == []
