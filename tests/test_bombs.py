"""Files that would cost a service its memory or its time: refused, or served, at a bounded cost."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from handler.config import Config
from handler.images.sandbox import Sandbox
from tests.bombs import HOSTILE, SERVED
from tests.conftest import SIDE
from tests.measure import measure
from tests.test_server import Server, server

QUICK = Config(decode_seconds=0.5)
"""The kernel keeps this limit as it keeps the default of 2 s; trying it takes a quarter as long."""


@pytest.fixture(scope="module")
def quick() -> Iterator[Sandbox]:
    box = Sandbox(QUICK, SIDE)
    yield box
    box.close()


@pytest.fixture(scope="module")
def default() -> Iterator[Sandbox]:
    box = Sandbox(Config(), SIDE)
    yield box
    box.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_no_more_than_is_allowed(name: str, quick: Sandbox) -> None:
    cost = measure(quick, HOSTILE[name](), QUICK)
    assert cost.status in (200, 413, 422), cost
    assert cost.seconds <= QUICK.decode_seconds + 0.1, cost
    assert cost.megabytes <= QUICK.decode_mb, cost


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("profile", ["openai", "corrected"])
def test_the_largest_images_of_a_format_are_served(
    name: str, profile: str, default: Sandbox
) -> None:
    config = Config(preprocess=profile)
    cost = measure(default, SERVED[name](), config)
    costly = name in COSTLY
    assert (cost.status, cost.code) == ((422, "image_too_costly") if costly else (200, "")), cost
    assert cost.seconds <= config.decode_seconds + 0.1, cost
    assert cost.megabytes <= config.decode_mb, cost


COSTLY = {"WebP", "WebP, a small frame on a large canvas"}
"""48 megapixels, for which libwebp takes 16 bytes a pixel."""

CHEAP_TO_SEND = {
    "AVIF, 65,600 boxes before its list": "image/avif",
    "JPEG, a resolution of millions of fractions": "image/jpeg",
    "TIFF, a progressive JPEG in it": "image/tiff",
}


def _send(service: Server, name: str) -> httpx.Response:
    if name in CHEAP_TO_SEND:
        headers = {"content-type": CHEAP_TO_SEND[name]}
        return service.post("/encode_image", HOSTILE[name](), headers)
    images = [base64.b64encode(SERVED["AVIF"]()).decode()] * 32
    body = json.dumps({"images": images}).encode()
    return service.post("/encode_images", body, {"content-type": "application/json"})


@pytest.fixture(scope="module")
def busy(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that decodes for a second: as good as eight to see who is held up."""
    limits = {"CLIP_DECODE_SECONDS": "1", "CLIP_REQUEST_SECONDS": "1"}
    with server(model_dir, tmp_path_factory.mktemp("busy"), **limits) as service:
        yield service


@pytest.mark.alone
@pytest.mark.parametrize("name", [*CHEAP_TO_SEND, "32 AVIFs of 840 bytes"])
def test_health_is_answered_at_once_meanwhile(name: str, busy: Server) -> None:
    """Each of these once held the whole server for 3 to 20 s."""
    answers: list[httpx.Response] = []
    sender = threading.Thread(target=lambda: answers.append(_send(busy, name)))
    sender.start()
    waits = []
    while sender.is_alive():
        start = time.perf_counter()
        assert busy.health().status_code == 200
        waits.append(time.perf_counter() - start)
        time.sleep(0.02)
    print(f"{name}: {answers[0].status_code}, health in {sorted(waits)[-3:]}")
    assert len(waits) > 5
    assert sorted(waits)[len(waits) // 2] < 0.1
    if answers[0].status_code != 200:
        assert answers[0].json()["code"] in ("image_too_costly", "invalid_image")
