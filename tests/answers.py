"""What the runtime must answer to each event file, without a container and in one."""

import json
from typing import Any

import numpy as np

from events.generate import HERE
from handler.encoder import Embedding

INVOKE = "/2015-03-31/functions/function/invocations"
EVENTS = sorted(path.name for path in HERE.glob("*.json"))
ERRORS = {
    "bad_not_an_image.json": ("NotAnImage", "not_an_image: "),
    "bad_base64.json": ("InvalidBase64", "invalid_base64: "),
    "bad_unknown_keys.json": ("InvalidEvent", "invalid_event: "),
}


def check_answer(name: str, answer: Any, vector: Embedding, atol: float = 1e-6) -> None:
    """The right answer to the event file `name`: the photograph's vector, health, or its error."""
    if name in ERRORS:
        kind, text = ERRORS[name]
        assert answer["errorType"] == kind
        assert answer["errorMessage"].startswith(text)
        return
    if "statusCode" in answer:
        assert answer["statusCode"] == 200
        answer = json.loads(answer["body"])
    if "health" in name or "warmup" in name:
        assert answer["status"] == "synthetic"
        assert answer["engine"] == "onnx"
        return
    if isinstance(answer, dict):
        answer = answer["embeddings"][2] if "embeddings" in answer else answer["embedding"]
    assert_same(answer, vector, atol)


def assert_same(answer: Any, vector: Embedding, atol: float = 1e-6) -> None:
    """Equal but for the rounding of another thread count or batch size; exactly, with `atol` 0."""
    np.testing.assert_allclose(np.array(answer, np.float32), vector, rtol=0, atol=atol)
