"""ONNX Runtime on CPU: the engine on Lambda. The graph is built by ``export/graph.py``."""

import ctypes
import os

# Unless told not to before it is imported, ONNX Runtime reports its use to Microsoft.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from handler.engines import Embeddings, Pixels, TokenIds
from handler.model import Model, ModelError
from handler.precision import PRECISIONS


class OnnxCpuEngine:
    """One graph: what comes before the tower, the tower, and unit length."""

    name = "onnx"
    device = "cpu"

    def __init__(
        self, model: Model, threads: int, precision: str = "fp32", tower: str = "image"
    ) -> None:
        """Map the weights and plan the graph for `threads` compute threads.

        Raises:
            ModelError: the graph of this precision or its weights are missing or unreadable, as
                int8's are of an export without ``--precision int8``; or it is of another scheme,
                so that its vectors would not be those that the fingerprint promises.
        """
        self.precision = precision
        _keep_freed_memory()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait are 5 % faster on idle CPUs, and at half the speed where
        # CPUs are shared or capped.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only: its warnings would reach the caller's log
        path = model.directory / PRECISIONS[precision].file(tower)
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise ModelError(f"{path} cannot be loaded: {error}") from error
        # Graphs that name no scheme are of the first one, whose name was the precision's.
        scheme = self._session.get_modelmeta().custom_metadata_map.get("scheme", precision)
        if scheme != PRECISIONS[precision].scheme:
            raise ModelError(
                f"{path} is of the scheme {scheme}, this package reads "
                f"{PRECISIONS[precision].scheme}: export the model again"
            )

        self._input = self._session.get_inputs()[0].name

    def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
        """See `Engine.encode`."""
        (embeddings,) = self._session.run(["embeddings"], {self._input: inputs})
        return embeddings  # type: ignore[no-any-return]  # the graph's declared output


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory, up to 64 MB of it, for the next allocation.

    By default glibc takes each large block fresh from the kernel and gives it back when it is
    freed. The kernel clears every page that it hands out. Loading a model allocates each weight
    twice (widened to fp32, then packed for the processor), so that this clearing is a third of its
    time.

    The block sizes are a few MB: a matrix of 768 x 3,072 floats has 9.4 MB, one of ViT-L/14's 1,024
    x 4,096 has 16.8. Below the mmap threshold blocks come from the heap, where freed ones are used
    again. Above the trim threshold the heap's free end goes back to the kernel.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # the options' numbers in glibc's malloc.h
        mallopt(m_mmap_threshold, 32 << 20)  # the largest that glibc takes; its default is 128 KB
        mallopt(m_trim_threshold, 64 << 20)  # holds the few blocks that are free at one time
