"""The same photograph through every way in gives the same 512 numbers."""

import asyncio
import base64
import importlib
import json
import types
from typing import Any

import httpx
import numpy as np
import pytest

from events.generate import HERE, PHOTO
from handler.encoder import Encoder
from handler.engines import Engine
from handler.errors import ClipError
from handler.model import Model
from tests.conftest import image_tower

Event = dict[str, Any]


def event(name: str) -> Event:
    loaded: Event = json.loads((HERE / f"{name}.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def main(model: Model) -> types.ModuleType:
    """``handler.main`` as Lambda imports it: it loads the model now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_MODEL_DIR", str(model.directory))
        return importlib.import_module("handler.main")


@pytest.fixture(scope="module")
def vector(encoder: Encoder) -> list[float]:
    return [float(str(x)) for x in encoder.encode(PHOTO)]


@pytest.mark.parametrize(
    "name",
    [
        "rest_multipart",
        "rest_base64_json",
        "http_api_multipart",
        "http_api_raw",
        "function_url",
        "alb",
    ],
)
def test_http_events(main: types.ModuleType, vector: list[float], name: str) -> None:
    response = main.handler(event(name), None)
    assert response["statusCode"] == 200
    assert response["isBase64Encoded"] is False
    assert json.loads(response["body"]) == vector
    assert response["headers"]["x-clip-fingerprint"] == main.encoder.fingerprint


def test_direct_invokes(main: types.ModuleType, vector: list[float]) -> None:
    assert main.handler(event("direct_image"), None) == {
        "embedding": vector,
        "embedding_size": 512,
        "model": "ViT-B/32",
    }
    batch = main.handler(event("direct_images"), None)
    assert batch["embeddings"][2] == vector
    assert len(batch["embeddings"]) == 5
    assert all(np.linalg.norm(e) == pytest.approx(1, abs=1e-6) for e in batch["embeddings"])
    assert batch["errors"] == []


def test_the_web_server(client: httpx.Client, vector: list[float]) -> None:
    text = base64.b64encode(PHOTO).decode()
    raw = {"content-type": "image/jpeg"}
    octets = {"accept": "application/octet-stream"}
    answers = [
        client.post("/encode_image", files={"image": ("photo.jpg", PHOTO, "image/jpeg")}).json(),
        client.post("/encode_image", json={"image": text}).json(),
        client.post("/encode_image", json={"image": f"data:image/jpeg;base64,{text}"}).json(),
        client.post("/encode_image", content=PHOTO, headers=raw).json(),
        client.post("/encode_images", json={"images": [text] * 5}).json()["embeddings"][4],
        client.post("/encode_images", files=[("images", PHOTO)] * 2).json()["embeddings"][1],
    ]
    assert answers == [vector] * len(answers)
    binary = client.post("/encode_image", content=PHOTO, headers=raw | octets).content
    np.testing.assert_array_equal(np.frombuffer(binary, "<f4"), np.array(vector, np.float32))
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_both_engines_through_the_same_path(
    engine: Engine, model: Model, encoder: Encoder, vector: list[float]
) -> None:
    from handler.config import Config

    tried = Encoder(engine, model, Config(), image_tower(encoder).decoder)
    assert tried.fault is None
    assert float(tried.encode(PHOTO) @ np.array(vector, np.float32)) >= 0.9999


def test_a_binary_response_through_api_gateway(main: types.ModuleType, vector: list[float]) -> None:
    request = event("http_api_raw")
    request["headers"]["accept"] = "application/octet-stream"
    response = main.handler(request, None)
    assert response["isBase64Encoded"] is True
    numbers = np.frombuffer(base64.b64decode(response["body"]), "<f4")
    np.testing.assert_array_equal(numbers, np.array(vector, np.float32))


def test_an_answer_is_binary_only_where_api_gateway_sees_that_it_is_asked_for(
    main: types.ModuleType, vector: list[float]
) -> None:
    """It would pass the base64 of any other on as it is."""
    request = event("rest_multipart")
    accept = "application/json;q=0.5, application/octet-stream"
    request["headers"]["Accept"], request["multiValueHeaders"]["Accept"] = accept, [accept]
    response = main.handler(request, None)
    assert response["isBase64Encoded"] is False
    assert json.loads(response["body"]) == vector


class NoTimeLeft:
    """Lambda's context, when it is about to end the function."""

    aws_request_id = "1"

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return 0


def test_lambdas_time_reaches_the_images_of_a_request(main: types.ModuleType) -> None:
    response = main.handler(event("http_api_raw"), NoTimeLeft)
    assert response["statusCode"] == 503
    assert json.loads(response["body"])["code"] == "out_of_time"
    assert response["headers"]["retry-after"] == "1"
    request = event("http_api_multipart")
    for place in (request, request["requestContext"]["http"]):
        place["path"] = place["rawPath"] = "/encode_images"
    request["body"] = base64.b64encode(
        base64.b64decode(request["body"]).replace(b'name="image"', b'name="images"')
    ).decode()
    response = main.handler(request, NoTimeLeft)
    assert response["statusCode"] == 200
    body = json.loads(response["body"])
    assert body["embeddings"] == [None]
    assert [error["code"] for error in body["errors"]] == ["out_of_time"]
    assert main.handler(event("http_api_raw"), None)["statusCode"] == 200


def test_health_and_warm_up(main: types.ModuleType) -> None:
    health = json.loads(main.handler(event("rest_health"), None)["body"])
    assert health["status"] == "synthetic"
    assert main.handler(event("direct_health"), None) == health
    assert main.handler(event("scheduled_warmup"), None) == health


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (event("bad_not_an_image"), "not_an_image: "),
        (event("bad_base64"), "invalid_base64: "),
        (event("bad_unknown_keys"), "invalid_event: expected .* got the keys 'picture', 'size'"),
        ({}, "invalid_event: expected .* got the keys \\(none\\)"),
        ([], "invalid_event: expected .* got a list"),
        ("text", "invalid_event: expected .* got a str"),
        (None, "invalid_event: expected .* got a NoneType"),
        ({"action": "reboot"}, "invalid_event: "),
        ({"text": None}, "invalid_field: the field 'text'"),
        ({"text": "a" * 10_001}, "text_too_long: the text has 10,001 characters"),
        ({"texts": []}, "invalid_field: the field 'texts'"),
        ({"texts": ["a"] * 257}, "too_many_texts: 257 texts"),
        ({"rank": {"queries": []}}, "invalid_field: the field 'rank.queries'"),
        ({"rank": {"queries": [7]}}, "missing_field: the field 'rank.candidates' is missing"),
        ({"image": None}, "invalid_field: the field 'image'"),
        ({"image": "aGk=", "model": "L/14"}, "invalid_field: unknown field 'model'"),
        ({"images": []}, "invalid_field: the field 'images'"),
        ({"images": ["aGk="] * 33}, "too_many_images: 33 images"),
        ({"requestContext": {"http": {}}}, "invalid_event: expected"),
        ({"requestContext": {"elb": {}}, "httpMethod": ["GET"]}, "invalid_event: expected"),
        (
            {"requestContext": {}, "httpMethod": "GET"},
            "invalid_event: an HTTP event, but malformed",
        ),
    ],
)
def test_a_bad_direct_event_says_what_was_expected_and_never_what_came(
    main: types.ModuleType, payload: object, message: str
) -> None:
    with pytest.raises(ClipError, match=message) as caught:
        main.handler(payload, None)
    assert "c2VjcmV0" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("payload", "got"),
    [
        ({}, "got the keys (none)"),
        ({"a": 1, 2: 3}, "got the keys 'a', '2'"),
        ({"b" * 70: 1}, f"got the keys '{64 * 'b'}'"),
        (
            dict.fromkeys(range(25)),
            "got the keys " + ", ".join(f"'{number}'" for number in range(20)),
        ),
    ],
)
def test_of_an_event_of_no_known_kind_the_keys_are_named(
    main: types.ModuleType, payload: object, got: str
) -> None:
    with pytest.raises(ClipError) as caught:
        main.handler(payload, None)
    assert caught.value.detail.rpartition("; ")[2] == got


def test_an_http_event_with_a_bad_body_is_a_4xx(main: types.ModuleType) -> None:
    request = event("rest_multipart")
    request["body"] = base64.b64encode(base64.b64decode(request["body"])[:5000]).decode()
    response = main.handler(request, None)
    assert response["statusCode"] == 400
    assert json.loads(response["body"])["code"] == "invalid_multipart"


def test_an_http_event_after_another_loop_has_run_in_this_thread(main: types.ModuleType) -> None:
    """`asyncio.run` and its like leave the thread without one, and Mangum needs one."""
    asyncio.run(asyncio.sleep(0))
    event = json.loads((HERE / "rest_base64_json.json").read_text())
    assert main.handler(event, None)["statusCode"] == 200
