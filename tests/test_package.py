"""`pip install .` installs the service as a library: the whole of `handler`, and nothing else."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from handler import __version__
from tests import documents
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from a copy, because a build leaves a folder behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("handler", "export", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    # Without a network: setuptools is here, which an isolated build would download.
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    (built,) = out.iterdir()
    return built


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_it_holds_the_whole_handler_and_nothing_else(wheel: Path) -> None:
    assert wheel.name.startswith(f"clip_image_encoder-{__version__}-")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "handler").rglob("*") if path.is_file())
    assert held == {
        str(path.relative_to(ROOT)) for path in files if path.parent.name != "__pycache__"
    }


def test_the_installed_library_does_what_the_page_shows(
    wheel: Path, model_dir: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "installed"
    _pip("install", "--no-deps", "--target", str(installed), str(wheel))
    (tmp_path / "model").symlink_to(model_dir)
    (tmp_path / "events").symlink_to(ROOT / "events")
    (code,) = (code for _, code in documents.blocks("python") if "load_encoder" in code)
    code += "\nimport handler\nprint(handler.__file__)\n"
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    printed, where = run.stdout.splitlines()
    assert printed == re.findall(r"print\(.*# (.*)", code)[0]
    assert Path(where).is_relative_to(installed)


def test_the_version_has_an_entry_in_the_changelog() -> None:
    first = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert first == __version__
