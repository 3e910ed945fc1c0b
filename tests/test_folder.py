"""A new model takes an old one's place whole, or not at all, whatever breaks the export off.

The models here are a ``model.json`` and a few bytes: what is tried is the folder.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export import ExportError, folder
from export.folder import replacing
from tests.conftest import ROOT

OLD = ("visual.onnx", "visual.pt")
NEW = ("visual.int8.onnx", "visual.onnx")
"""Some of the old names and one of its own."""


def write(directory: Path, version: str, names: tuple[str, ...]) -> None:
    """A model whose files hold the word `version`."""
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text(version)
    files = {name: {"bytes": len(version)} for name in names}
    card = {"format": 1, "model": "ViT-B/32", "version": version, "files": files}
    (directory / "model.json").write_text(json.dumps(card))


def model_in(directory: Path) -> str | None:
    """The version that a reader finds, every file of which must be there; None: no model."""
    if not (directory / "model.json").exists():
        return None
    card = json.loads((directory / "model.json").read_text())
    for name in card["files"]:
        assert (directory / name).read_text() == card["version"], name
    version: str = card["version"]
    return version


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def export(out: Path, version: str = "new") -> None:
    with replacing(out) as new:
        assert names(new.directory) == set()
        write(new.directory, version, NEW)
        new.publish()


def fail(out: Path, error: BaseException) -> None:
    """Export to `out` as far as a new model, and raise `error` then."""
    with replacing(out) as new:
        assert names(new.directory) == set()
        write(new.directory, "new", NEW)
        raise error


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with a model, alone in another."""
    write(tmp_path / "model", "old", OLD)
    return tmp_path / "model"


# --- what is replaced -----------------------------------------------------------------------------


def test_a_model_is_replaced_and_its_files_are_gone(out: Path) -> None:
    out.chmod(0o750)
    export(out)
    assert model_in(out) == "new"
    assert names(out) == {"model.json", *NEW}
    assert names(out.parent) == {"model"}
    assert out.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("existing", [True, False])
def test_a_new_or_empty_folder_is_filled(tmp_path: Path, existing: bool) -> None:
    out = tmp_path / "deep" / "model"
    if existing:
        out.mkdir(parents=True)
    export(out)
    assert model_in(out) == "new"
    assert names(out.parent) == {"model"}


def test_a_link_stays_and_what_it_points_at_is_replaced(out: Path) -> None:
    link = out.parent / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to("../model")
    export(link)
    assert os.readlink(link) == "../model"
    assert model_in(out) == model_in(link) == "new"
    assert names(link.parent) == {"link"}


def test_a_link_to_nothing_is_given_something(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("model")
    export(tmp_path / "link")
    assert model_in(tmp_path / "model") == "new"


@pytest.mark.parametrize("path", [".", "../model", "sub/..", "./"])
def test_the_current_folder_and_dots(out: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.startswith("sub"):
        (out / "sub").mkdir()
    monkeypatch.chdir(out)
    inode = out.stat().st_ino
    export(Path(path))
    assert out.stat().st_ino == inode  # the shell that stands in it goes on standing there
    assert model_in(Path.cwd()) == "new"
    assert names(out) - {"sub"} == {"model.json", *NEW}


def test_files_of_others_stay(out: Path) -> None:
    (out / "notes").mkdir()
    (out / "notes" / "why.txt").write_text("precious")
    (out / "visual.txt").write_text("precious")
    export(out)
    assert model_in(out) == "new"
    assert names(out) == {"model.json", *NEW, "notes", "visual.txt"}
    assert (out / "notes" / "why.txt").read_text() == (out / "visual.txt").read_text() == "precious"


def test_a_file_that_comes_meanwhile_stays_too(out: Path) -> None:
    with replacing(out) as new:
        write(new.directory, "new", NEW)
        (out / "notes.txt").write_text("precious")
        new.publish()
    assert model_in(out) == "new"
    assert (out / "notes.txt").read_text() == "precious"


def test_where_the_system_cannot_exchange_folders(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(one: Path, other: Path) -> None:
        raise OSError("as on macOS, and on some file systems")

    monkeypatch.setattr(folder, "_exchange", refuse)
    export(out)
    assert model_in(out) == "new"
    assert names(out) == {"model.json", *NEW}
    assert names(out.parent) == {"model"}


# --- what is refused ------------------------------------------------------------------------------

OTHERS = {
    "a thesis": {"thesis.tex": "precious"},
    "a model.json of another program": {"model.json": '{"weights": 1}'},
    "a model.json that is a list": {"model.json": "[]"},
    "a model of another kind": {"model.json": '{"format": 1, "model": "RN50", "files": {}}'},
    "a damaged model.json": {"model.json": '{"format": 1, '},
}


@pytest.mark.parametrize("name", ["ViT-L/14@336px", "ViT-1280x32/14", "laion/CLIP@3d74acf"])
def test_a_model_of_any_name_may_be_replaced(tmp_path: Path, name: str) -> None:
    write(tmp_path, "old", OLD)
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(card | {"model": name}))
    export(tmp_path)
    assert model_in(tmp_path) == "new"


@pytest.mark.parametrize("kind", OTHERS)
def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path, kind: str) -> None:
    for name, text in OTHERS[kind].items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ExportError, match="holds no model"):
        export(tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == OTHERS[kind]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("precious")
    with pytest.raises(ExportError, match="is a file"):
        export(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "precious"


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to("model")
    with pytest.raises(ExportError, match="leads to itself"):
        export(tmp_path / "model")


def test_a_file_of_others_is_not_overwritten(out: Path) -> None:
    (out / "visual.int8.onnx").write_text("precious")  # model.json does not list it
    with pytest.raises(ExportError, match=r"visual\.int8\.onnx is in the way"):
        export(out)
    assert model_in(out) == "old"
    assert names(out) == {"model.json", *OLD, "visual.int8.onnx"}
    assert (out / "visual.int8.onnx").read_text() == "precious"


def test_two_exports_at_once_do_not_mix(out: Path) -> None:
    with replacing(out) as first:
        write(first.directory, "new", NEW)
        with pytest.raises(ExportError, match="another export"):
            export(out, "another")
        first.publish()
    assert model_in(out) == "new"


# --- what breaks it off ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ExportError("the gate"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("others", [True, False])
def test_an_export_that_fails_changes_nothing(
    out: Path, error: BaseException, others: bool
) -> None:
    if others:
        (out / "notes.txt").write_text("precious")
    before = names(out)
    with pytest.raises(type(error)):
        fail(out, error)
    assert model_in(out) == "old"
    assert (names(out), names(out.parent)) == (before, {"model"})


# Replaces the model in argv[1], and sends itself the signal argv[3] just before step argv[2].
BROKEN_OFF = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, os.environ["ROOT"])
from export.folder import replacing

STEPS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"}
steps = 0

def count(event, arguments):
    global steps
    if event in STEPS:
        steps += 1
        if steps == int(sys.argv[2]):
            os.kill(os.getpid(), int(sys.argv[3]))

sys.addaudithook(count)
with replacing(Path(sys.argv[1])) as new:
    for name in ("visual.int8.onnx", "visual.onnx"):
        (new.directory / name).write_text("new")
    files = '{"visual.int8.onnx": {}, "visual.onnx": {}}'
    card = '{"format": 1, "model": "ViT-B/32", "version": "new", "files": %s}' % files
    (new.directory / "model.json").write_text(card)
    new.publish()
"""
PLACES = ("whole", "beside files of others", "current folder", "empty current folder")


def broken_off(out: Path, place: str, step: int, number: signal.Signals) -> bool:
    """Export in a process that gets a signal before its `step`; False: it had fewer steps."""
    here = "current folder" in place
    run = subprocess.run(
        [sys.executable, "-c", BROKEN_OFF, "." if here else str(out), str(step), str(int(number))],
        check=False,
        cwd=out if here else ROOT,
        env=os.environ | {"ROOT": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    assert run.returncode in (0, -number)
    return run.returncode == -number


def prepare(out: Path, place: str) -> None:
    out.mkdir(parents=True)
    if place != "empty current folder":
        write(out, "old", OLD)
    if place == "beside files of others":
        (out / "notes.txt").write_text("precious")


def assert_clean(out: Path, place: str, version: str | None) -> None:
    """`out` holds this model and nothing else, but for the file of others."""
    files = {"old": {"model.json", *OLD}, "new": {"model.json", *NEW}, None: set()}[version]
    assert model_in(out) == version
    assert names(out) == files | ({"notes.txt"} if place == "beside files of others" else set())
    assert names(out.parent) == {"model"}


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_any_step_it_leaves_one_model_and_the_next_export_cleans_up(
    tmp_path: Path, place: str
) -> None:
    old = None if place == "empty current folder" else "old"
    found = []
    for step in itertools.count(1):
        out = tmp_path / str(step) / "model"
        prepare(out, place)
        if not broken_off(out, place, step, signal.SIGKILL):
            break
        found.append(model_in(out))  # which asserts that it is no mixture
        with pytest.raises(ExportError, match="the gate"):
            fail(out, ExportError("the gate"))  # as the next export may
        assert_clean(out, place, found[-1] or old)
    assert (found[0], found[-1]) == (old, "new")
    if place == "whole":
        assert None not in found


def test_killed_while_it_undoes_it_can_be_undone_still(tmp_path: Path) -> None:
    place = "beside files of others"
    half = tmp_path / "half" / "model"
    prepare(half, place)
    step = 1
    while (half / "model.json").exists() or not (half / "visual.int8.onnx").exists():
        step += 1  # until the old model has left, and a part of the new has arrived
        shutil.rmtree(half.parent)
        prepare(half, place)
        assert broken_off(half, place, step, signal.SIGKILL)
    for step in itertools.count(1):
        out = tmp_path / str(step) / "model"
        shutil.copytree(half, out)
        if not broken_off(out, place, step, signal.SIGKILL):
            break
        found = model_in(out)
        with pytest.raises(ExportError, match="the gate"):
            fail(out, ExportError("the gate"))
        assert_clean(out, place, found or "old")


@pytest.mark.parametrize("place", PLACES)
def test_interrupted_at_any_step_it_leaves_one_model_at_once(tmp_path: Path, place: str) -> None:
    found = []
    for step in itertools.count(1):
        out = tmp_path / str(step) / "model"
        prepare(out, place)
        if not broken_off(out, place, step, signal.SIGINT):
            break
        found.append(model_in(out))
    assert set(found) == ({None, "new"} if place == "empty current folder" else {"old", "new"})
