"""What a cold start does not pay for, and who may import whom."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def _modules_after(code: str, **env: str) -> set[str]:
    command = [
        sys.executable,
        "-c",
        f"{code}\nimport sys\nprint(*(name for name, module in sys.modules.items() if module))",
    ]
    # Without what measures coverage, which imports much itself.
    own = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    run = subprocess.run(
        command, cwd=ROOT, env=own | env, capture_output=True, text=True, check=True
    )
    return set(run.stdout.splitlines()[-1].split())  # what comes before is the log


# Every package that a cold start pays for, with its reason to be there. To add one is to decide
# that it is worth its time: `python -X importtime -c "import handler.main"` says how much.
PACKAGES = {
    "handler",
    *("numpy", "onnxruntime"),  # the engine
    *("fastapi", "starlette", "anyio", "mangum", "python_multipart"),  # the interface
    *("pydantic", "pydantic_core", "annotated_types", "annotated_doc", "typing_inspection"),
    *("opentelemetry", "typing_extensions"),  # FastAPI's own
}
# What FastAPI and anyio import wherever they find it. The package does not need them, so a function
# does not have them; here they are because clients that the tests use do.
FOUND_HERE = {"orjson", "sniffio"}
# Parts of those, and of the standard library, that are slow to import and of no use here.
FORBIDDEN = {
    *("pydantic.v1", "fastapi.testclient", "numpy.testing", "numpy.f2py"),
    *("multiprocessing", "unittest", "sqlite3", "xml.dom", "http.server"),
    *("pdb", "pydoc", "difflib", "distutils"),
}
NOT_DEPLOYED = ["orjson", "sniffio"]
"""FastAPI and anyio import these where they find them. Here they come with OpenAI's client."""
MODULES = 570
"""553 today, the standard library's included."""


INTERFACE = {"fastapi", "starlette", "anyio", "mangum", "opentelemetry", "annotated_doc"}
INTERFACE |= {"python_multipart"}
"""What the batch function's entry point, ``handler.worker``, leaves out."""


@pytest.mark.parametrize(
    ("entry", "packages"), [("handler.main", PACKAGES), ("handler.worker", PACKAGES - INTERFACE)]
)
def test_a_cold_start_imports_what_is_listed_and_no_more(
    entry: str, packages: set[str], model_dir: Path
) -> None:
    """By name and number, not by time, which would depend on the machine."""
    before = _modules_after("")
    code = f"import sys; sys.modules.update(dict.fromkeys({NOT_DEPLOYED})); import {entry}"
    loaded = _modules_after(code, **_on_lambda(model_dir)) - before
    found = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert {name for name in found if not name.startswith("_")} - FOUND_HERE == packages
    assert loaded.isdisjoint(FORBIDDEN), loaded & FORBIDDEN
    assert len(loaded | before) < MODULES


def _on_lambda(model_dir: Path) -> dict[str, str]:
    return {"CLIP_MODEL_DIR": str(model_dir), "AWS_LAMBDA_FUNCTION_NAME": "clip"}


CORS = "starlette.middleware.cors"
OF_A_WEB_SERVER = {f"handler.http.{name}" for name in ("page", "policy", "server", "viewer")}
OF_A_WEB_SERVER |= {"handler.http.metrics", "handler.http.probes", "prometheus_client"}


def test_what_a_web_server_has_besides_is_not_imported_on_lambda(model_dir: Path) -> None:
    of_a_server = _modules_after("import handler.main", CLIP_MODEL_DIR=str(model_dir))
    assert of_a_server >= OF_A_WEB_SERVER
    assert _modules_after("import handler.main", **_on_lambda(model_dir)).isdisjoint(
        OF_A_WEB_SERVER
    )


def test_what_pages_need_is_imported_only_where_pages_may_call(model_dir: Path) -> None:
    settings = _on_lambda(model_dir)
    assert CORS not in _modules_after("import handler.main", **settings)
    origins = {"CLIP_CORS_ORIGINS": "https://shop.example"}
    assert CORS in _modules_after("import handler.main", **settings, **origins)


def _evaluated(code: str, model_dir: Path) -> str:
    """The last line that `code` prints in an interpreter of its own."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"CLIP_MODEL_DIR": str(model_dir)},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()[-1]


def test_openapis_models_are_compiled_only_for_the_document(model_dir: Path) -> None:
    """A cold start would pay 50 ms for them. Of ours those are compiled that an image needs."""
    code = """
import sys
import pydantic
from handler import main, schemas
from fastapi.openapi.models import OpenAPI
models = (schemas.EncodeRequest, schemas.EncodeBatchRequest, schemas.RankRequest)
ours = [model.__pydantic_complete__ for model in models]
ours.append("handler.http.models" in sys.modules)
before = OpenAPI.__pydantic_complete__
main.app.openapi()
print(ours, before, OpenAPI.__pydantic_complete__, pydantic.BaseModel.model_config)
"""
    assert _evaluated(code, model_dir) == "[True, True, False, False] False True {}"


@pytest.mark.parametrize("entry", ["main", "worker"])
def test_garbage_is_collected_after_the_start_but_not_among_what_was_loaded(
    entry: str, model_dir: Path
) -> None:
    code = f"import gc; from handler import {entry}; print(gc.isenabled(), gc.get_freeze_count())"
    enabled, frozen = _evaluated(code, model_dir).split()
    assert enabled == "True"
    assert int(frozen) > 50_000


def test_only_the_entry_points_have_effects_at_import() -> None:
    """Every other module imports without a model on disk."""
    entries = ("main", "worker")
    needs_torch = "handler.engines.torch_clip"
    names = {f"handler.{name}" for name in _imports() if name not in entries} - {needs_torch}
    modules = _modules_after(f"import {', '.join(names)}", CLIP_MODEL_DIR="/nonexistent")
    assert names <= modules


FLOORS: tuple[set[str], ...] = (
    {"main", "worker", "serve"},
    {"http", "events"},
    {"schemas", "answers"},
    {"rank"},
    {"encoder"},
    {"health"},
    {"towers"},
    {"images", "text"},
    {"engines"},
    {"model"},
    {"aws", "budget", "telemetry", "outcome"},
    {"config", "errors", "precision", "usage"},
)
"""The rooms of the house, from the top. Each imports from its own and from the floors below it."""


def test_imports_go_down_the_house() -> None:
    for name, imported in _imports().items():
        room = name.partition(".")[0]
        below = {room for floor in FLOORS[_floor(room) + 1 :] for room in floor}
        same = FLOORS[_floor(room)] if _floor(room) >= len(FLOORS) - 2 else set()
        assert imported <= below | same | {room}, f"{name} imports {imported - below - {room}}"


def _floor(room: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def _imports() -> dict[str, set[str]]:
    """Every module of the package, such as ``http.app``, and the rooms that it imports from."""
    found = {}
    for path in (ROOT / "handler").rglob("*.py"):
        if path.name == "__init__.py" and path.parent.name == "handler":
            continue
        parts = path.relative_to(ROOT / "handler").with_suffix("").parts
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "handler":
                names |= {alias.name for alias in node.names if not alias.name.startswith("__")}
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("handler."):
                names.add(str(node.module).split(".")[1])
        found[".".join(part for part in parts if part != "__init__")] = names
    return found


# What a decoder's process has for its memory and its start: Pillow, and what Pillow needs.
DECODER = {"handler", "PIL"}


def test_a_decoder_imports_pillow_and_nothing_else() -> None:
    before = _modules_after("")
    loaded = _modules_after("import handler.images.zygote, handler.images.decode") - before
    found = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert {name for name in found if not name.startswith("_")} == DECODER
    rooms = {name.split(".")[1] for name in loaded if name.startswith("handler.")}
    assert rooms == {"images", "errors"}
    assert loaded.isdisjoint(FORBIDDEN), loaded & FORBIDDEN


def test_onnx_runtime_sends_no_telemetry(model_dir: Path, tmp_path: Path) -> None:
    """Its telemetry, on by default, would keep a device id and a queue of events in the home
    folder.
    """
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    _modules_after("import handler.main", CLIP_MODEL_DIR=str(model_dir), **home)
    assert list(tmp_path.rglob("*")) == []
