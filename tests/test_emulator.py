"""The real Lambda runtime client under the real Runtime Interface Emulator, without a container."""

from typing import Any

import httpx
import pytest

from events.generate import HERE, PHOTO
from handler.encoder import Encoder
from tests.answers import ERRORS, EVENTS, INVOKE, check_answer


def _invoke(client: httpx.Client, name: str) -> Any:
    return client.post(INVOKE, content=(HERE / name).read_bytes()).json()


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_file(lambda_client: httpx.Client, name: str, encoder: Encoder) -> None:
    check_answer(name, _invoke(lambda_client, name), encoder.encode(PHOTO), atol=0)


def test_a_bad_event_costs_the_next_one_nothing(lambda_client: httpx.Client) -> None:
    before = _invoke(lambda_client, "direct_image.json")
    for name in ERRORS:
        _invoke(lambda_client, name)
    assert lambda_client.post(INVOKE, content=b"[]").json()["errorType"] == "InvalidEvent"
    assert _invoke(lambda_client, "direct_image.json") == before
