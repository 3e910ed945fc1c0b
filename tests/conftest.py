"""What the tests share: one full-size synthetic model, exported by the real export, and a real server."""

import base64
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from export import checkpoint, images
from export.__main__ import main as export
from export.checkpoint import Reference
from handler.app import create_app
from handler.config import Config
from handler.encoder import Encoder
from handler.engines import Engine
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.engines.torch_clip import TorchClipEngine
from handler.model import Model

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for ~/.cache/clip."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def synthetic(cache: Path) -> Path:
    """A full-size synthetic checkpoint."""
    return checkpoint.make_synthetic(cache / "ViT-B-32-synthetic.pt")


@pytest.fixture(scope="session")
def reference(synthetic: Path) -> Reference:
    """clip itself, with the synthetic weights."""
    return checkpoint.load_reference(synthetic, synthetic=True)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, cache: Path, synthetic: Path) -> Path:
    """A model folder, through the command line and its parity gate."""
    out = tmp_path_factory.mktemp("export") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "CACHE", cache)
        # The same seed gives the same file: no need to make it twice.
        patch.setattr(checkpoint, "make_synthetic", lambda path: synthetic)
        assert export(["--synthetic", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def model(model_dir: Path) -> Model:
    return Model.load(model_dir)


@pytest.fixture(scope="session", params=["onnx", "torch"])
def engine(request: pytest.FixtureRequest, model: Model) -> Engine:
    """Each engine in turn: what holds for one holds for the other."""
    return OnnxCpuEngine(model, threads=2) if request.param == "onnx" else TorchClipEngine(model, "cpu")


@pytest.fixture(scope="session")
def config(model_dir: Path) -> Config:
    return Config(model_dir=model_dir)


@pytest.fixture(scope="session")
def encoder(config: Config, model: Model) -> Encoder:
    return Encoder(OnnxCpuEngine(model, threads=2), model, config)


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
        self.server = uvicorn.Server(uvicorn.Config(create_app(encoder), port=0, log_level="warning"))
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


def require(name: str, present: object, reason: str) -> None:
    """Skip with `reason` unless `present`; fail where ``REQUIRE`` names it, as CI does."""
    if present:
        return
    if name in os.environ.get("REQUIRE", "").split(","):
        pytest.fail(f"{name} is required here: {reason}")
    pytest.skip(reason)
