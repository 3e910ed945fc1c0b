"""The real Lambda runtime client under the real Runtime Interface Emulator, without a container."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from events.generate import HERE, PHOTO
from handler.encoder import Encoder

EVENTS = sorted(path.name for path in HERE.glob("*.json"))
INVOKE = "/2015-03-31/functions/function/invocations"


def _invoke(client: httpx.Client, name: str) -> Any:
    return client.post(INVOKE, content=(HERE / name).read_bytes()).json()


ERRORS = {
    "bad_not_an_image.json": ("NotAnImage", "not_an_image: "),
    "bad_base64.json": ("InvalidBase64", "invalid_base64: "),
    "bad_unknown_keys.json": ("InvalidEvent", "invalid_event: "),
}


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_file(lambda_client: httpx.Client, name: str, encoder: Encoder) -> None:
    answer = _invoke(lambda_client, name)
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
        return
    if isinstance(answer, dict):
        answer = answer["embeddings"][2] if "embeddings" in answer else answer["embedding"]
    np.testing.assert_array_equal(np.array(answer, np.float32), encoder.encode(PHOTO))


def test_a_bad_event_costs_the_next_one_nothing(lambda_client: httpx.Client) -> None:
    before = _invoke(lambda_client, "direct_image.json")
    for name in ERRORS:
        _invoke(lambda_client, name)
    assert lambda_client.post(INVOKE, content=b"[]").json()["errorType"] == "InvalidEvent"
    assert _invoke(lambda_client, "direct_image.json") == before
