"""ONNX Runtime on CPU: the engine on Lambda. The graph is built by ``export/graph.py``."""

import ctypes
import os

# Unless told not to before it is imported, ONNX Runtime reports its use to Microsoft.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from handler.engines import Embeddings, Pixels
from handler.model import Model, ModelError

FILES = {"fp32": "visual.onnx", "int8": "visual.int8.onnx"}
"""The second only of an export with ``--precision int8``."""


class OnnxCpuEngine:
    """One graph: preprocessing constants, tower and unit length."""

    name = "onnx"
    device = "cpu"

    def __init__(self, model: Model, threads: int, precision: str = "fp32") -> None:
        """Map the weights and plan the graph for `threads` compute threads.

        Raises:
            ModelError: the graph of this precision or its weights are missing or unreadable.
        """
        self.precision = precision
        _keep_freed_memory()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait gain 5 % on idle CPUs and lose half on shared or capped
        # ones.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only: its warnings would reach the caller's log
        path = model.directory / FILES[precision]
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise ModelError(f"{path} cannot be loaded: {error}") from error

    def encode(self, pixels: Pixels) -> Embeddings:
        """uint8 [n, 224, 224, 3] -> float32 [n, 512] of unit length."""
        (embeddings,) = self._session.run(["embeddings"], {"pixels": pixels})
        return embeddings  # type: ignore[no-any-return]  # the graph's declared output


def _keep_freed_memory() -> None:
    """Have glibc hand freed memory out again, up to 64 MB of it, instead of back to the kernel.

    Loading allocates every weight twice, widened to fp32 and then packed, in blocks so large that
    each would be fresh memory, which the kernel clears page by page: a third of the load's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 32 << 20)  # the largest it takes
        mallopt(m_trim_threshold, 64 << 20)
