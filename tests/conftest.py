"""What the tests share: a full-size synthetic model, exported by the real export, and servers.

``TEST_MODEL`` names a model folder to test with instead of exporting one: ``make test-other``
sets it because there is no torch to export with, ``make mutants`` to save the time. What needs
torch itself is skipped where it is not installed, and says so.
"""

import asyncio
import base64
import contextlib
import copy
import dataclasses
import fcntl
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import numpy as np
import pytest
import uvicorn

from export import images
from handler.config import Config
from handler.encoder import Encoder
from handler.engines import Embedding, Engine, Pixels
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.http.app import create_app
from handler.images import sandbox
from handler.model import Model
from handler.text.tokenizer import Tokenizer
from handler.towers.image import ImageTower

if TYPE_CHECKING:
    from export.checkpoint import Reference
    from export.parity import Sample
    from tests.slow import Slow

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
SIDE = 224
"""Of the square that ViT-B/32 sees, which is the model of all tests but those of the others."""
EMULATOR = os.environ.get("RIE") or shutil.which("aws-lambda-rie", path=Path(sys.executable).parent)


LONGEST = (
    *("test_checkpoints", "test_fresh_clone"),
    *("test_int8", "test_client_check", "test_proof", "test_parity", "test_sandbox"),
    *("test_export", "test_server"),
    *("test_state_machine", "test_soak", "test_faults", "test_jpeg_draft", "test_s3"),
    *("test_batch", "test_output", "test_bombs", "test_deadlines", "test_requests"),
    *("test_template", "test_tokenizer", "test_page"),
)
"""The files that take longest, which are begun first.

Where two processes share the files, as in ``make test``, neither then waits for the other's last.
Those with tests that run alone come after all whose tests take long, for which they would wait.
"""


def pytest_configure() -> None:
    """Let nothing of how the tests were started reach the programs that they start.

    A shell's background job ignores SIGINT, and so would all that it starts. The variables of a
    ``make`` around the tests would be those of every ``make`` within.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS", "OTHER", "PROFILE", "WEIGHTS"):
        os.environ.pop(name, None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the files of `LONGEST` to the front; all others keep their order."""

    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this test run: the same one in each process that pytest-xdist runs tests in."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def missing(path: Path) -> Iterator[bool]:
    """Whether `path` must still be made. Another process that asks meanwhile waits until it is."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not path.exists()


@pytest.fixture(autouse=True)
def turn(request: pytest.FixtureRequest, shared: Path) -> Iterator[None]:
    """Let a test that is marked `alone` wait until the other process's has ended, and the reverse.

    Such a test holds a promise about time, which two tests at once would keep the machine from.
    """
    alone = request.node.get_closest_marker("alone") is not None
    with (shared / "gate.lock").open("w") as gate, (shared / "room.lock").open("w") as room:
        # Who waits for the room holds the gate, so that nobody overtakes.
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@pytest.fixture(scope="session")
def synthetic(shared: Path) -> Path:
    """A full-size synthetic checkpoint."""
    pytest.importorskip("torch")
    from export import checkpoint

    path = shared / "ViT-B-32-synthetic.pt"
    with missing(path) as wanted:
        if wanted:
            checkpoint.make_synthetic(path)
    return path


@pytest.fixture(scope="session")
def reference(synthetic: Path) -> "Reference":
    """clip itself, with the synthetic weights."""
    from export import checkpoint

    return checkpoint.load_reference(synthetic, synthetic=True)


@pytest.fixture(scope="session")
def parity_samples(reference: "Reference", shared: Path) -> list["Sample"]:
    """The export's images, with what clip makes of each over the synthetic weights."""
    from export import parity

    def make() -> list["Sample"]:
        return parity.samples(reference, images.parity_images(SIDE))

    return _kept(shared / "samples.pickle", make)


@pytest.fixture(scope="session")
def text_samples(reference: "Reference", shared: Path) -> list["Sample"]:
    """The same of the export's texts."""
    from export import parity, texts, vocabulary

    def make() -> list["Sample"]:
        vocabulary.write(shared)
        return parity.text_samples(reference, Tokenizer.load(shared), texts.captions())

    return _kept(shared / "texts.pickle", make)


def _kept(path: Path, make: Callable[[], list["Sample"]]) -> list["Sample"]:
    """What `make` gives, which is made once for all processes."""
    with missing(path) as wanted:
        if wanted:
            path.write_bytes(pickle.dumps(make()))
    samples: list[Sample] = pickle.loads(path.read_bytes())
    return samples


@pytest.fixture(scope="session")
def model_dir(request: pytest.FixtureRequest, shared: Path) -> Path:
    """A model folder, made through the command line and its parity gate."""
    if made := os.environ.get("TEST_MODEL"):
        return Path(made).absolute()
    out = shared / "model"
    with missing(out) as wanted:
        if wanted:
            made_once = ("reference", "parity_samples", "text_samples")
            _export(out, *map(request.getfixturevalue, made_once))
    return out


def _export(
    out: Path, reference: "Reference", samples: list["Sample"], texts: list["Sample"]
) -> None:
    """Export into `out` what other tests need too, and so is made once: clip and its vectors."""
    from export import checkpoint, parity
    from export.__main__ import main as export

    def load(path: Path, synthetic: bool) -> "Reference":
        assert (path, synthetic) == (reference.path, True)
        return reference

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "make_synthetic", lambda path, architecture: reference.path)
        patch.setattr(checkpoint, "load_reference", load)
        patch.setattr(parity, "samples", lambda reference, images: samples)
        patch.setattr(parity, "text_samples", lambda reference, tokenizer, captions: texts)
        assert export(["--synthetic", "--out", str(out)]) == 0


@pytest.fixture(scope="session")
def model(model_dir: Path) -> Model:
    return Model.load(model_dir)


@pytest.fixture(scope="session", params=["onnx", "torch"])
def engine(request: pytest.FixtureRequest, model: Model) -> Engine:
    """Each engine in turn: what holds for one holds for the other."""
    if request.param == "onnx":
        return OnnxCpuEngine(model, threads=2)
    pytest.importorskip("torch")
    from handler.engines.torch_clip import TorchClipEngine

    return TorchClipEngine(model, "cpu")


@pytest.fixture(scope="session")
def config(model_dir: Path) -> Config:
    return Config(model_dir=model_dir)


@pytest.fixture(scope="session")
def encoder(config: Config, model: Model) -> Iterator[Encoder]:
    decoder = sandbox.start(config, SIDE)
    yield Encoder(OnnxCpuEngine(model, threads=2), model, config, decoder)
    decoder.close()


def pixels_of(data: bytes, config: Config | None = None, side: int = SIDE) -> Pixels:
    """What the service makes of an image file, in this process: uint8 RGB [side, side, 3].

    Raises as `handler.images.sandbox.Decoder.decode`.
    """
    decoded = sandbox.Unconfined(side).decode(data, config or Config(), lambda _: None)
    return np.frombuffer(decoded.pixels, np.uint8).reshape(side, side, 3)


def with_settings(encoder: Encoder, **settings: Any) -> Encoder:
    """`encoder` under other settings, without loading it again."""
    changed = copy.copy(encoder)
    changed.config = dataclasses.replace(encoder.config, **settings)
    return changed


def image_tower(encoder: Encoder) -> ImageTower:
    """The image tower of an encoder that has one."""
    assert encoder.images
    return encoder.images


def with_golden(model: Model, name: str, embedding: Embedding) -> Model:
    """`model`, of which the self-check of the tower `name` expects another vector."""
    tower = model.towers[name]
    changed = dataclasses.replace(
        tower, golden=dataclasses.replace(tower.golden, embedding=embedding)
    )
    return dataclasses.replace(model, towers={**model.towers, name: changed})


@pytest.fixture(scope="session")
def cloud() -> Iterator[SimpleNamespace]:
    """The stand-in for AWS, with a versioned bucket ``photos`` and an empty one, ``vectors``."""
    from tests.aws import aws

    with aws() as cloud:
        for bucket in ("photos", "vectors"):
            cloud.s3.create_bucket(Bucket=bucket)
        cloud.s3.put_bucket_versioning(
            Bucket="photos", VersioningConfiguration={"Status": "Enabled"}
        )
        yield cloud


@pytest.fixture(scope="module")
def server(photo: bytes) -> Iterator["Slow"]:
    """An AWS of raw sockets that hangs, drips and refuses, as the names of its objects say."""
    from tests.slow import slow_aws

    with slow_aws(photo) as server:
        yield server


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A small photograph as a JPEG, not square."""
    return images.encoded(images.photograph("chelsea"), "JPEG", quality=90)


@pytest.fixture(scope="session")
def photo_base64(photo: bytes) -> str:
    return base64.b64encode(photo).decode()


@pytest.fixture(scope="session")
def client(encoder: Encoder) -> Iterator[httpx.Client]:
    """A client of the real server, uvicorn on a free port."""
    with serve(encoder) as client:
        yield client


class serve:  # noqa: N801  # a context manager, used like a function
    """Run `encoder`'s app under uvicorn in a thread; gives an HTTP client."""

    def __init__(self, encoder: Encoder) -> None:
        self.server = uvicorn.Server(
            uvicorn.Config(create_app(encoder), port=0, log_level="warning")
        )
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> httpx.Client:
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "uvicorn did not start"
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="session")
def lambda_client(
    model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A Lambda execution environment of ``handler.main.handler``."""
    with emulator(model_dir, tmp_path_factory.mktemp("emulator") / "log") as (client, _):
        yield client


@contextmanager
def emulator(
    model_dir: Path,
    log: Path,
    handler: str = "handler.main.handler",
    refused: str = "",
    **env: str,
) -> Iterator[tuple[httpx.Client, int]]:
    """Lambda's runtime client under its emulator: gives an HTTP client and the emulator's pid.

    `refused` are the system calls that the kernel refuses the function; see `tests.refusing`.
    """
    require("emulator", EMULATOR, "no aws-lambda-rie beside python and none named by RIE")
    port, api = free_port(), free_port()
    command = [
        *(str(EMULATOR), "--log-level", "error"),
        *("--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
        *("--runtime-api-address", f"127.0.0.1:{api}"),
        *((sys.executable, "-m", "tests.refusing", refused) if refused else ()),
        *(sys.executable, "-m", "awslambdaric", handler),
    ]
    settings = {
        "AWS_LAMBDA_FUNCTION_NAME": "clip",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "29",
        "LAMBDA_TASK_ROOT": str(ROOT),
        "CLIP_MODEL_DIR": str(model_dir),
        **env,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | settings,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False
        ) as client:
            wait_for(port, process)
            yield client, process.pid
            if "COVERAGE_PROCESS_CONFIG" in os.environ:
                _save_coverage(client, process.pid)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _save_coverage(client: httpx.Client, emulator_pid: int) -> None:
    """End the runtime so that it writes down what was covered, which it does when it is signalled.

    It waits for events in C, so that Python sees the signal only after one more event.
    """
    from benchmarks.measure import children
    from tests.answers import INVOKE  # which imports this file

    for runtime in children(emulator_pid):
        os.kill(runtime, signal.SIGTERM)
    with contextlib.suppress(httpx.HTTPError):
        client.post(INVOKE, json={"action": "health"}, timeout=10)


def in_a_loop(scenario: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, which would leave this thread without the loop that Mangum expects."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(scenario)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until `process` listens at `port`, however busy the machine is; fail if it ends."""
    while True:
        assert process.poll() is None, "the server stopped"
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


def with_engine(encoder: Encoder, engine: Engine) -> Encoder:
    """`encoder` with another engine for images, which is not asked to pass the self-check."""
    changed = copy.copy(encoder)
    changed.images = copy.copy(image_tower(encoder))
    changed.images.engine = engine
    return changed


def require(name: str, present: object, reason: str) -> None:
    """Skip with `reason` unless `present`; fail where ``REQUIRE`` names it, as CI does."""
    if present:
        return
    if name in os.environ.get("REQUIRE", "").split(","):
        pytest.fail(f"{name} is required here: {reason}")
    pytest.skip(reason)
