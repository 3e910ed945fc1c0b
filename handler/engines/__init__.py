"""Engines turn pixels or tokens into embeddings: what an engine is, and which one is loaded."""

import ctypes
import importlib.util
import threading
import time
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from handler.config import Config, available_cpus
from handler.model import Model
from handler.precision import PRECISIONS

Pixels = NDArray[np.uint8]
"""uint8 RGB [n, side, side, 3]; the side is the model's resolution."""
TokenIds = NDArray[np.int32]
"""int32 [n, t], t of at most 77; after a text's end any token."""
Embeddings = NDArray[np.float32]
"""float32 [n, embedding size], each row of unit length."""
Embedding = NDArray[np.float32]
"""float32 [embedding size], unit length."""


class Engine(Protocol):
    """One of CLIP's towers. Thread-safe."""

    name: str
    """``"onnx"`` or ``"torch"``."""
    device: str
    """``"cpu"`` or ``"cuda"``."""
    precision: str
    """``"fp32"``, ``"fp16"`` or ``"int8"``."""

    def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
        """What the tower takes, pixels or tokens -> vectors of unit length, for any n >= 1."""


class Turns:
    """A lock that lets one inference at a time have the CPUs, and knows since when one has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since = None
        self._lock.release()

    def seconds(self) -> float:
        """For how long the inference of this moment has been going on; 0 while there is none."""
        since = self._since  # read once, because it may change at any moment
        return 0.0 if since is None else time.monotonic() - since


def load_engine(config: Config, model: Model, tower: str = "image") -> Engine:
    """Load the engine `config` asks for; ``auto`` is torch where CUDA is usable, else onnx.

    Raises:
        ModelError: the engine's weights are missing or unreadable.
        ImportError: the engine asked for is not installed.
    """
    # Imported here, so that nobody waits for the libraries of the engine that is not used.
    if uses_torch(config, model, tower):
        from handler.engines.torch_clip import TorchClipEngine

        return TorchClipEngine(model, tower=tower)
    from handler.engines.onnx_cpu import OnnxCpuEngine

    return OnnxCpuEngine(model, config.threads or available_cpus(), config.precision, tower)


def uses_torch(config: Config, model: Model, tower: str) -> bool:
    """Return True if `load_engine` takes torch, not ONNX Runtime."""
    auto = config.engine == "auto" and config.precision == "fp32"
    return config.engine == "torch" or (auto and _cuda_usable(model, tower))


def _cuda_usable(model: Model, tower: str) -> bool:
    """Whether there are a GPU, torch and weights for it.

    The driver is asked, not torch, whose import would cost every start without a GPU 2 s.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0
    if failed or count.value == 0:
        return False
    has_weights = (model.directory / PRECISIONS["fp16"].file(tower)).exists()
    return has_weights and importlib.util.find_spec("torch") is not None
