"""What the documents show is run and compared: commands, programs, tables, links and figures."""

import contextlib
import dataclasses
import gc
import io
import json
import os
import re
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import numpy as np
import playwright
import pytest

from events.generate import PHOTO
from export import images
from handler import errors, serve
from handler.config import Config
from handler.encoder import Encoder
from handler.engines import Embedding
from handler.events import output
from handler.events.output import Entry
from handler.images.s3 import Source
from tests import documents, stack
from tests.aws import aws
from tests.conftest import ROOT, free_port, wait_for, with_settings
from tests.test_errors import LEAVES
from tests.test_imports import FLOORS

SERVED = "localhost:3000"
"""Where the documents say that the service is."""
NODE = Path(playwright.__file__).parent / "driver" / "node"
"""Playwright brings a Node of its own."""


def _commands() -> list[tuple[str, str, str]]:
    """Of each console block: the page, a command, and the lines that it prints.

    A command that goes on in further lines ends with the line ``END``. Those of make are run by the
    fixture and by pytest.
    """
    found = []
    for page, block in documents.blocks("console"):
        for command, printed in re.findall(
            r"^\$ (.*<<END\n(?:.*\n)*?END|.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE
        ):
            if not command.startswith("make "):
                found.append((page, command, printed))
    return found


class Run(NamedTuple):
    """A server as the README starts it, by ``make run``."""

    port: int
    log: Path

    def here(self, code: str) -> str:
        """`code` of a document, with this server in the place of the one that it names."""
        return code.replace(SERVED, f"127.0.0.1:{self.port}")


@pytest.fixture(scope="module")
def served(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    port, log = free_port(), tmp_path_factory.mktemp("run") / "log"
    command = ["make", "run", f"PORT={port}", f"MODEL_DIR={model_dir}"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, start_new_session=True)
    wait_for(port, process)
    # What `/health` shows is what it says after the first text.
    text = {"text": "the first text loads its tower"}
    httpx.post(f"http://127.0.0.1:{port}/encode_text", json=text, timeout=60, trust_env=False)
    yield Run(port, log)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=10)


@pytest.fixture(scope="module")
def folder(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader is: the repository's folders, pictures, a model, and old vectors."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "events").symlink_to(ROOT / "events")
    (folder / "model").symlink_to(model_dir)
    (folder / "photos").mkdir()
    for name in ("chelsea", "coffee"):
        picture = images.encoded(images.photograph(name), "JPEG")
        (folder / "photos" / f"{name}.jpg").write_bytes(picture)
    np.save(folder / "old.npy", np.random.default_rng(0).normal(10, 1, (3, 512)))
    return folder


Rows = Mapping[str, tuple[float, Embedding]]
Times = Mapping[str, float]


@pytest.fixture
def vectors(encoder: Encoder) -> Iterator[None]:
    """An S3 as engines leave it: objects encoded twice, in files whose names are not in the order
    of time.
    """
    ours, other = encoder.encode(PHOTO), -encoder.encode(PHOTO)
    folder = re.findall(r'"Prefix": "(vectors/.*/)"', documents.read("docs/batch.md"))[0]
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


@pytest.fixture
def index(encoder: Encoder) -> Iterator[None]:
    """An index as the template makes it, with a photograph's vector as the function writes it."""
    with aws():
        name = re.findall(r"bucket/([\w-]+)/index/([\w-]+)", documents.read("docs/batch.md"))
        stack.create_index(*name[0])
        to_index = with_settings(encoder, output="s3vectors://{}/{}".format(*name[0]))
        photo = Entry(Source("shop-photos", "photo.jpg"), encoder.encode(PHOTO))
        assert output.write([photo], to_index) == {}
        yield


def test_the_searchers_rights_are_those_of_the_example() -> None:
    """S3 Vectors wants GetVectors too of who asks for metadata."""
    page = documents.read("docs/batch.md")
    (rights,) = (json.loads(block) for _, block in documents.blocks("json") if "s3vectors" in block)
    assert rights["Action"] == ["s3vectors:QueryVectors", "s3vectors:GetVectors"]
    assert f'indexArn="{rights["Resource"]}"' in page


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
    output = re.sub(r"(text-)[0-9a-f]{12}", r"\1HASH", output)
    output = re.sub(r'"cpu_features":\[[^]]*\]', '"cpu_features":[CPU]', output)
    parts = re.split(r"(-?\d+\.\d+(?:e-?\d+)?)", output.strip())
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


@pytest.mark.parametrize(("page", "command", "expected"), _commands())
def test_the_commands_print_what_the_pages_show(
    served: Run, folder: Path, page: str, command: str, expected: str
) -> None:
    run = subprocess.run(
        ["bash", "-c", served.here(command)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    actual, shown = _masked(run.stdout), _masked(expected)
    assert len(actual) == len(shown), run.stdout
    for a, b in zip(actual, shown, strict=True):
        # Processors round differently.
        assert a == (pytest.approx(b, abs=1e-5) if isinstance(b, float) else b), run.stdout


# Those of the client are run by tests/test_client_commands.py.
PYTHON = [(page, code) for page, code in documents.blocks("python") if page != "docs/client.md"]


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_the_python_examples_print_what_their_comments_say(
    served: Run,
    encoder: Encoder,
    folder: Path,
    page: str,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    for package in re.findall(r"^from (openai|clip_encoder)\b", code, re.MULTILINE):
        pytest.importorskip(package)
    monkeypatch.chdir(folder)
    if 'client("lambda")' in code:
        function = request.getfixturevalue("lambda_client")
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", str(function.base_url))
        for name in ("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "nowhere")
    if 'client("s3")' in code:
        request.getfixturevalue("vectors")
    if 'client("s3vectors")' in code:
        request.getfixturevalue("index")
    code = served.here(code)
    code = code.replace('"clip-image-encoder:live"', '"function"')  # the emulator's one name
    printed, names = io.StringIO(), dict[str, Any]()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # a file that is not closed, in a short one
        exec(compile(code, page, "exec"), names)
        vectors_read = names.get("vectors") if "latest" in names else None
        names.clear()
        gc.collect()  # which closes what the program left open
    shown = re.findall(r"print\(.*# (.*)", code)[0].split()
    words = printed.getvalue().split()
    # Percentages are of weights that mean nothing.
    assert [word for word in words if not word.endswith("%")] == shown
    if vectors_read is not None:  # the newest of each object's, or none
        assert vectors_read["s3://shop-photos/photo.jpg"] == pytest.approx(
            encoder.encode(PHOTO), abs=1e-5
        )


def test_the_javascript_for_node_prints_what_its_comment_says(served: Run, folder: Path) -> None:
    (code,) = (code for _, code in documents.blocks("js") if "node:fs" in code)
    (folder / "example.mjs").write_text(served.here(code))
    assert _node(folder, "example.mjs") == re.findall(r"console.log\(.*// (.*)", code)


def test_the_javascript_for_browsers_gives_cosines(
    served: Run, folder: Path, encoder: Encoder
) -> None:
    """Node has the browser's `fetch` and `FormData`; the element with the files is made up."""
    (code,) = (code for _, code in documents.blocks("js") if "node:fs" not in code)
    code += """
import { openAsBlob } from "node:fs";
const files = [];
for (const name of ["chelsea", "coffee", "chelsea"])
  files.push(new File([await openAsBlob(`photos/${name}.jpg`)], name));
console.log((await similarities({ files })).join("\\n"));
"""
    (folder / "browser.mjs").write_text(served.here(code))
    other, same = map(float, _node(folder, "browser.mjs"))
    first, second = (
        encoder.encode((folder / "photos" / f"{name}.jpg").read_bytes())
        for name in ("chelsea", "coffee")
    )
    assert same == pytest.approx(1, abs=1e-5)
    assert other == pytest.approx(float(first @ second), abs=1e-4)


def _node(folder: Path, program: str) -> list[str]:
    run = subprocess.run(
        [str(NODE), "--no-warnings", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.split()


def test_make_run_says_where_to_click_and_what_to_paste(served: Run) -> None:
    deadline = time.monotonic() + 10
    while "ready: " not in served.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    (address, command) = re.findall(
        r"^ready: open (\S+) or paste: (.*)$", served.log.read_text(), re.M
    )[0]
    assert httpx.get(address, trust_env=False).status_code == 200
    run = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(json.loads(run.stdout)) == 512
    shown = re.findall(r"^ready: .*$", documents.read("README.md"), re.MULTILINE)
    assert shown == [serve.welcome("127.0.0.1", 3000)]


def test_all_pages_are_known() -> None:
    found = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")}
    assert set(documents.PAGES) == found | {"README.md"}


def test_the_readme_fits_on_two_screens_and_names_every_page() -> None:
    readme = documents.read("README.md")
    assert len(readme.splitlines()) < 150
    for name in set(documents.PAGES) - {"README.md"}:
        assert f"({name})" in readme, name


def _anchors(markdown: str) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", documents.without_blocks(markdown), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "name", [*documents.PAGES, "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)]+)\)", documents.without_blocks(page.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text()), link


def test_the_drawing_of_the_house_is_the_one_that_imports_are_held_to() -> None:
    ((_, drawing),) = [
        block for block in documents.blocks("text") if block[1].startswith("main  worker  serve")
    ]
    floors = [set(re.split(r" {3,}", line)[0].split()) for line in drawing.splitlines()]
    assert tuple(floors) == FLOORS


def test_direct_invokes_name_the_alias() -> None:
    """Without it a caller gets whatever was built last, also after a roll-back."""
    invoked = re.findall(
        r"(?:^name = \"|lambda invoke --function-name )([\w:-]+)", documents.text(), re.MULTILINE
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
    lines = documents.read("README.md").splitlines()[:20]
    assert "$ make run" in lines
    assert "$ make test" in lines


def test_the_settings_table_is_the_configs() -> None:
    table = dict(
        re.findall(
            r"^\| `(CLIP_\w+)` \| (.*?) \|", documents.read("docs/settings.md"), re.MULTILINE
        )
    )
    defaults = {f"CLIP_{f.name.upper()}": f.default for f in dataclasses.fields(Config)}
    assert table.keys() == defaults.keys()
    for name, default in defaults.items():
        if not isinstance(default, Path):
            assert table[name] == ("none" if default in ((), "") else f"`{default}`")


def test_every_error_code_is_listed_under_its_status() -> None:
    page = documents.read("docs/api.md")
    for error in LEAVES:
        row = rf"^\| [\d, ]*{error.status}.*`{error.code}`"
        assert re.search(row, page, re.MULTILINE), error.code
    assert errors.__doc__


def test_the_figures_of_the_parity_gate(model_dir: Path) -> None:
    parity = json.loads((model_dir / "model.json").read_text())["towers"]["image"]["parity"]
    assert f" {parity['samples']} images (photographs" in documents.read("docs/models.md")
    assert parity["min_cosine"] == pytest.approx(0.9999997, abs=3e-7)
