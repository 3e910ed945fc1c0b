"""The encoder around an engine: one inference at a time, and no vector of a model gone wrong."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from handler.config import Config
from handler.encoder import Encoder
from handler.engines import Embeddings, Engine, Pixels, TokenIds
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.errors import ModelUnhealthy
from handler.model import Model
from tests.conftest import image_tower, serve, with_golden


class Watched:
    """A real engine, with a count of the threads inside it, and a precision of one's choice."""

    def __init__(self, engine: Engine, precision: str = "fp32") -> None:
        self.engine, self.precision = engine, precision
        self.name, self.device = engine.name, engine.device
        self.inside = self.most = 0
        self._count = threading.Lock()

    def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
        with self._count:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            return self.engine.encode(inputs)
        finally:
            with self._count:
                self.inside -= 1


@pytest.fixture(scope="module")
def onnx(model: Model) -> OnnxCpuEngine:
    return OnnxCpuEngine(model, threads=1)


def test_the_engine_works_for_one_request_at_a_time(
    onnx: OnnxCpuEngine, encoder: Encoder, photo: bytes
) -> None:
    """Each inference uses every CPU: two at once would only wait for each other."""
    watched = Watched(onnx)
    busy = Encoder(watched, encoder.model, Config(), image_tower(encoder).decoder)
    together = threading.Barrier(4)

    def client(_: int) -> bytes:
        together.wait()
        return b"".join(busy.encode(photo).tobytes() for _ in range(4))

    with ThreadPoolExecutor(4) as clients:
        answers = set(clients.map(client, range(4)))
    assert len(answers) == 1
    assert watched.most == 1


# What docs/models.md promises of each precision; `fp16` is what torch uses on a GPU.
LIMITS = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.997}


def turned(vector: Embeddings, cosine: float) -> Embeddings:
    """A unit vector that has this cosine with `vector`."""
    other = np.roll(vector, 1)
    other -= (other @ vector) * vector
    other /= np.linalg.norm(other)
    return np.asarray(cosine * vector + math.sqrt(1 - cosine**2) * other, np.float32)


@pytest.mark.parametrize(("precision", "limit"), LIMITS.items())
def test_a_model_whose_vectors_are_off_by_more_than_its_precision_allows_serves_nothing(
    onnx: OnnxCpuEngine, encoder: Encoder, photo: bytes, precision: str, limit: float
) -> None:
    def off_by(cosine: float) -> Encoder:
        golden = turned(encoder.model.towers["image"].golden.embedding, cosine)
        model = with_golden(encoder.model, "image", golden)
        return Encoder(Watched(onnx, precision), model, Config(), image_tower(encoder).decoder)

    allowed = (1 - limit) / 20  # so far on either side of the limit
    with serve(off_by(limit + allowed)) as client:
        assert client.get("/health").json()["status"] == "synthetic"
        assert client.post("/encode_image", files={"image": photo}).status_code == 200
    sick = off_by(limit - allowed)
    with serve(sick) as client:
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        refused = client.post("/encode_image", files={"image": photo})
        assert (refused.status_code, refused.json()["code"]) == (503, "model_unhealthy")
    with pytest.raises(ModelUnhealthy):
        sick.encode(photo)


def test_a_model_whose_vectors_are_no_numbers_serves_nothing(
    onnx: OnnxCpuEngine, encoder: Encoder, photo: bytes
) -> None:
    golden = np.full_like(encoder.model.towers["image"].golden.embedding, np.nan)
    model = with_golden(encoder.model, "image", golden)
    with pytest.raises(ModelUnhealthy):
        Encoder(onnx, model, Config(), image_tower(encoder).decoder).encode(photo)
