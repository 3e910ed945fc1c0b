"""The HTTP interface, over a real server."""

import asyncio
import base64
import copy
import dataclasses
import json
import logging
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.types import Message

from handler import __version__
from handler.config import Config
from handler.encoder import Encoder
from handler.engines import Embeddings, Pixels, TokenIds
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.health import cpu_features
from handler.http.app import create_app
from handler.images.walls import Walls
from handler.model import Model
from tests.conftest import image_tower, serve, with_golden, with_settings

JPEG = {"content-type": "image/jpeg"}


@pytest.fixture(scope="module")
def vector(encoder: Encoder, photo: bytes) -> list[float]:
    return [float(str(x)) for x in encoder.encode(photo)]


def test_health_is_the_old_services_and_more(client: httpx.Client, model: Model) -> None:
    response = client.get("/health")
    assert response.status_code == 200
    body = response.json()
    fingerprint = response.headers["x-clip-fingerprint"]
    # The old service's fields, in its order, come first.
    assert list(body)[:4] == ["status", "model", "device", "embedding_size"]
    assert body == {
        "status": "synthetic",
        "model": "ViT-B/32",
        "device": "cpu",
        "embedding_size": 512,
        "engine": "onnx",
        "weights": "synthetic",
        "version": __version__,
        "fingerprint": fingerprint,
        "cpu_features": cpu_features(),
        "sandbox": dict.fromkeys(Walls._fields, True),
        "towers": ["image", "text"],
        "text_fingerprint": body["text_fingerprint"],  # null before the first text
        "logit_scale": model.logit_scale,
    }
    assert "synthetic" in fingerprint


def test_the_answer_is_a_bare_array_that_round_trips_float32(
    client: httpx.Client, photo: bytes, encoder: Encoder
) -> None:
    response = client.post("/encode_image", files={"image": photo})
    assert response.headers["content-type"] == "application/json"
    np.testing.assert_array_equal(np.array(response.json(), np.float32), encoder.encode(photo))
    assert len(response.content) < 7000  # shortest decimals; float64's would be 11 KB


def test_float32_bytes_on_request(client: httpx.Client, photo: bytes, encoder: Encoder) -> None:
    octets = {"accept": "application/octet-stream"}
    response = client.post("/encode_image", files={"image": photo}, headers=octets)
    assert response.headers["content-type"] == "application/octet-stream"
    assert len(response.content) == 2048
    np.testing.assert_array_equal(np.frombuffer(response.content, "<f4"), encoder.encode(photo))


@pytest.mark.parametrize(
    "content_type",
    ["image/jpeg", "image/png", "IMAGE/JPEG", "image/jpeg; x=1", "application/octet-stream"],
)
def test_a_raw_body(
    client: httpx.Client, photo: bytes, vector: list[float], content_type: str
) -> None:
    # What it is called does not matter, what it is does.
    response = client.post("/encode_image", content=photo, headers={"content-type": content_type})
    assert response.json() == vector


def test_base64_with_line_breaks(client: httpx.Client, photo: bytes, vector: list[float]) -> None:
    body = {"image": base64.encodebytes(photo).decode()}
    assert client.post("/encode_image", json=body).json() == vector


def test_a_multipart_part_without_a_file_name(
    client: httpx.Client, photo: bytes, vector: list[float]
) -> None:
    part = b'--b\r\ncontent-disposition: form-data; name="image"\r\n\r\n' + photo + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post("/encode_image", content=part, headers=headers).json() == vector


def test_a_batch_keeps_order_and_one_bad_image_costs_no_other(
    client: httpx.Client, photo: bytes, photo_base64: str, vector: list[float]
) -> None:
    images = [photo_base64, "!", base64.b64encode(photo[:2000]).decode(), 7, photo_base64]
    response = client.post("/encode_images", json={"images": images})
    assert response.status_code == 200
    body = response.json()
    assert [e == vector for e in body["embeddings"]] == [True, False, False, False, True]
    assert body["embeddings"][1:4] == [None, None, None]
    assert [(e["index"], e["code"]) for e in body["errors"]] == [
        (1, "invalid_base64"),
        (2, "truncated_image"),
        (3, "invalid_field"),
    ]
    assert all(e["detail"] for e in body["errors"])


def test_a_multipart_batch(client: httpx.Client, photo: bytes, vector: list[float]) -> None:
    files = [("images", photo), ("images", b"not an image"), ("images", photo)]
    body = client.post("/encode_images", files=files).json()
    assert body["embeddings"] == [vector, None, vector]
    assert [(e["index"], e["code"]) for e in body["errors"]] == [(1, "not_an_image")]


def test_a_field_of_text_costs_a_batch_only_its_place(
    client: httpx.Client, photo: bytes, vector: list[float]
) -> None:
    form = _form(("images", b"a.jpg"), ("images", photo))
    body = client.post("/encode_images", content=form, headers=FORM).json()
    assert body["embeddings"] == [None, vector]
    (error,) = body["errors"]
    assert (error["index"], error["code"]) == (0, "invalid_field")
    assert "-F images=@photo.jpg" in error["detail"]


def test_a_batch_of_only_bad_images_is_still_an_answer(client: httpx.Client) -> None:
    body = client.post("/encode_images", json={"images": ["!", "?"]}).json()
    assert body["embeddings"] == [None, None]
    assert [e["index"] for e in body["errors"]] == [0, 1]


def test_a_batch_is_one_pass_through_the_engine(
    model: Model, config: Config, encoder: Encoder, photo_base64: str
) -> None:
    sizes = []

    class Counting(OnnxCpuEngine):
        def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
            sizes.append(len(inputs))
            return super().encode(inputs)

    with serve(
        Encoder(Counting(model, threads=1), model, config, image_tower(encoder).decoder)
    ) as client:
        client.post("/encode_images", json={"images": [photo_base64] * 5 + ["!"]})
    assert sizes == [1, 5]  # the self-check's, then the batch


JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=b"}
ENCODED = {"content-type": "application/x-www-form-urlencoded"}


def _form(*parts: tuple[str, bytes]) -> bytes:
    """A form of fields without a file's name, with boundary b."""
    body = b""
    for name, data in parts:
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        body += head.encode() + data + b"\r\n"
    return body + b"--b--\r\n"


@pytest.mark.parametrize(
    ("body", "headers", "status", "code", "detail"),
    [
        (b"{", JSON, 400, "invalid_json", "JSON object"),
        (b"[1]", JSON, 400, "invalid_json", "JSON object"),
        (b"\xff\xfe", JSON, 400, "invalid_json", "JSON object"),
        (b"{}", JSON, 400, "missing_field", "'image'"),
        (b'{"image": 5}', JSON, 400, "invalid_field", "'image'"),
        (b'{"image": "aGk=", "imgae": 1}', JSON, 400, "invalid_field", "'imgae'"),
        (b'{"image": "a"}', JSON, 400, "invalid_base64", "base64"),
        ('{"image": "ü"}'.encode(), JSON, 400, "invalid_base64", "base64"),
        (b'{"image": "data:image/png,raw"}', JSON, 400, "invalid_base64", "data: URI"),
        (b'{"image": ""}', JSON, 400, "missing_field", "empty"),
        (b'"text"', JSON, 400, "invalid_json", 'send {"image": "<base64 of a file>"} or {"s3": {'),
        (b'{"image": "https://a.example/b.jpg"}', JSON, 400, "invalid_field", "not fetched"),
        (b'{"image": "HTTP://a.example/b.jpg"}', JSON, 400, "invalid_field", "s3://bucket/key"),
        (b'{"image": "file:///photo.jpg"}', JSON, 400, "invalid_field", "URLs are not fetched"),
        (b'{"image": "photo.jpg"}', JSON, 400, "invalid_base64", "base64 of an image file"),
        (b"", {"content-type": "image/png"}, 400, "missing_field", "empty"),
        (b"--b\r\n\r\n", FORM, 400, "invalid_multipart", "too early"),
        (b"garbage", FORM, 400, "invalid_multipart", "well-formed"),
        (b"", FORM, 400, "invalid_multipart", "too early"),
        (b"--b--\r\n", FORM, 400, "missing_field", "parts sent: none"),
        (b"--b\r\nno empty line\r\n--b--\r\n", FORM, 400, "invalid_multipart", "well-formed"),
        (b"--b\r\n\r\n" + b"\r\n--bX" * 99, FORM, 400, "invalid_multipart", "too early"),
        (b"--b\r\n\r\n" + b"\r\n--bX" * 200, FORM, 400, "invalid_multipart", "of its content"),
        (b"--b\r\n\r\nno headers\r\n--b--\r\n", FORM, 400, "missing_field", "parts sent: none"),
        (_form(("x" * 9000, b"x")), FORM, 400, "invalid_multipart", "well-formed"),
        (_form(*[("x", b"")] * 16), FORM, 400, "missing_field", "parts sent: 'x'"),
        (_form(*[("x", b"")] * 17), FORM, 413, "too_many_images", "more than 16 parts"),
        (b"x", {"content-type": "multipart/form-data"}, 400, "invalid_multipart", "boundary"),
        (
            _form(("file", b"x")),
            *(FORM, 400, "missing_field", "'image' in the form: name it so; parts sent: 'file'"),
        ),
        (_form(("images", b"x")), FORM, 400, "missing_field", "send it to /encode_images"),
        (
            _form(("image", b"x"), ("image", b"x")),
            FORM,
            400,
            "invalid_field",
            "2 parts named 'image'",
        ),
        (_form(("image", b"photo.jpg")), FORM, 400, "invalid_field", "-F image=@photo.jpg"),
        (_form(("image", "Käse.jpg".encode())), FORM, 400, "invalid_field", "put @ before"),
        (_form(("image", b"aGk=\r\n" * 99)), FORM, 400, "invalid_field", "sent as JSON"),
        (_form(("image", b"")), FORM, 400, "missing_field", "empty"),
        (_form(("image", b"\0\1")), FORM, 422, "not_an_image", "JPEG, PNG"),
        (b'{"image": ""}', {}, 415, "unsupported_media_type", "Content-Type: application/json"),
        (b'{"image": ""}', ENCODED, 415, "unsupported_media_type", "Type: application/json"),
        (b"image=photo.jpg", ENCODED, 415, "unsupported_media_type", "-F image=@photo.jpg"),
        (b"x", {}, 415, "unsupported_media_type", "there is no Content-Type"),
        (b"x", {}, 415, "unsupported_media_type", "multipart/form-data"),
        (b"x", {"content-type": "text/plain"}, 415, "unsupported_media_type", "'text/plain'"),
        (b"hello", {"content-type": "image/png"}, 422, "not_an_image", "JPEG, PNG"),
        (b"%PDF-1.7", {"content-type": "image/png"}, 422, "unsupported_format", "PDF"),
    ],
)
def test_bad_requests(
    client: httpx.Client, body: bytes, headers: dict[str, str], status: int, code: str, detail: str
) -> None:
    response = client.post("/encode_image", content=body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert detail in response.json()["detail"]
    assert response.json().keys() == {"code", "detail"}
    assert response.headers["x-clip-fingerprint"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b'{"images": []}', JSON, 400, "invalid_field"),
        (b'{"images": "aGk="}', JSON, 400, "invalid_field"),
        (b'{"image": "aGk="}', JSON, 400, "missing_field"),
        (b"x", JSON, 400, "invalid_json"),
        (_form(("image", b"x")), FORM, 400, "missing_field"),
        (json.dumps({"images": ["aGk="] * 33}).encode(), JSON, 413, "too_many_images"),
        (b"x", {"content-type": "image/png"}, 415, "unsupported_media_type"),
    ],
)
def test_bad_batches(
    client: httpx.Client, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    response = client.post("/encode_images", content=body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_too_large_a_body_is_refused_before_it_is_all_read(
    encoder: Encoder, config: Config, model: Model
) -> None:
    small = dataclasses.replace(config, max_body_bytes=1000, max_image_bytes=500)
    with serve(
        Encoder(image_tower(encoder).engine, model, small, image_tower(encoder).decoder)
    ) as client:
        over = client.post("/encode_image", content=b"x" * 1001, headers=JPEG)
        assert (over.status_code, over.json()["code"]) == (413, "body_too_large")
        over = client.post("/encode_image", content=b"x" * 501, headers=JPEG)
        assert (over.status_code, over.json()["code"]) == (413, "image_too_large")


@pytest.mark.parametrize(
    ("content_type", "before", "after", "copies"),
    [
        ("image/png", b"", b"", 1),
        (FORM["content-type"], *_form(("image", b"\0middle")).split(b"middle"), 1),
        # Its text, and the text decoded, are made of it.
        ("application/json", b'{"image": "', b'"}', 1 + 1 + 0.75),
    ],
)
def test_how_often_a_body_is_in_memory(
    encoder: Encoder, content_type: str, before: bytes, after: bytes, copies: float
) -> None:
    """Without a server and a client, which have buffers of their own."""
    body = before + b"aaaa" * (6 * 2**20) + after
    chunks = [body[at : at + 2**16] for at in range(0, len(body), 2**16)]
    answered: list[Message] = []

    async def receive() -> Message:
        if not chunks:
            return await asyncio.Future()  # the client stays
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Message) -> None:
        answered.append(message)

    scope = {
        **{"type": "http", "method": "POST", "path": "/encode_image", "query_string": b""},
        "headers": [(b"content-type", content_type.encode())],
    }
    app = create_app(encoder)
    loop = asyncio.new_event_loop()  # not the one that is set, which may be `handler.main`'s
    tracemalloc.start()
    try:
        loop.run_until_complete(app(scope, receive, send))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        loop.close()
    assert json.loads(answered[1]["body"])["code"] == "not_an_image"
    print(f"{peak / len(body):.2f} times")
    assert peak < (copies + 0.3) * len(body)  # a growing body has up to an eighth of spare room


def test_health_has_a_head_that_is_no_operation_of_its_own(client: httpx.Client) -> None:
    head, get = client.head("/health"), client.get("/health")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "x-clip-fingerprint"):
        assert head.headers[name] == get.headers[name]
    assert list(client.get("/openapi.json").json()["paths"]["/health"]) == ["get"]


OF_A_WEB_SERVER = ("GET /live", "GET /ready", "GET /metrics", "GET /")
"""What there is on a web server and not on Lambda: not part of the documented interface."""


def test_where_nothing_is_the_answer_says_what_exists(client: httpx.Client) -> None:
    answer = client.get("/nope")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    documented = client.get("/openapi.json").json()["paths"]
    operations = [
        f"{method.upper()} {path}" for path, methods in documented.items() for method in methods
    ]
    there = ", ".join([*operations, *OF_A_WEB_SERVER, "GET /docs"])
    assert answer.json()["detail"] == f"there is only {there}"


def test_unknown_paths_and_methods_answer_in_the_same_form(client: httpx.Client) -> None:
    assert client.get("/nope").json()["code"] == "not_found"
    wrong = client.get("/encode_image")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert wrong.headers["x-clip-fingerprint"]


def test_openapi_documents_every_way_in_with_examples_that_work(client: httpx.Client) -> None:
    assert "swagger" in client.get("/docs").text.lower()
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths["/encode_image"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
        "image/*",
        "application/octet-stream",
    }
    tried: dict[str, list[Any]] = {}
    for path, methods in paths.items():
        for operation in methods.values():
            assert "200" in operation["responses"]
            if "requestBody" in operation:
                assert {"400", "413", "415", "422", "503"} <= operation["responses"].keys()
                of_json = operation["requestBody"]["content"]["application/json"]
                tried[path] = [value["value"] for value in of_json["examples"].values()]
    answers = {
        path: [client.post(path, json=example) for example in examples]
        for path, examples in tried.items()
    }
    assert all(answer.status_code == 200 for given in answers.values() for answer in given)
    assert [len(answer.json()) for answer in answers["/encode_image"]] == [512, 512]
    assert [len(answer.json()) for answer in answers["/encode_text"]] == [512, 512]
    for path in ("/encode_images", "/encode_texts"):
        (one_good_one_bad,) = answers[path]
        found = one_good_one_bad.json()["embeddings"]
        assert [embedding is None for embedding in found] == [False, True]
    shown, for_text = (answer.json()["probabilities"] for answer in answers["/rank"])
    assert np.sum(shown, axis=1) == pytest.approx(1, abs=1e-6)
    assert for_text == [[1, None]]


def test_a_model_that_fails_its_self_check_serves_nothing(
    encoder: Encoder, model: Model, config: Config, photo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    tower = image_tower(encoder)
    other = with_golden(model, "image", np.roll(model.towers["image"].golden.embedding, 1))
    broken = Encoder(tower.engine, other, config, tower.decoder)
    assert "self-check" in caplog.text
    with serve(broken) as client:
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        refused = client.post("/encode_image", content=photo, headers=JPEG)
        assert (refused.status_code, refused.json()["code"]) == (503, "model_unhealthy")


def test_official_weights_are_healthy(encoder: Encoder, model: Model, config: Config) -> None:
    tower, official = image_tower(encoder), dataclasses.replace(model, weights="openai")
    encoder = Encoder(tower.engine, official, config, tower.decoder)
    assert encoder.health()["status"] == "healthy"
    assert "openai" in encoder.fingerprint


def test_a_fault_of_ours_is_logged_and_tells_the_caller_nothing(
    model: Model, config: Config, encoder: Encoder, photo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(OnnxCpuEngine):
        calls = 0

        def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
            self.calls += 1
            if self.calls > 1:  # after the self-check
                raise RuntimeError("secret internals")
            return super().encode(inputs)

    with serve(
        Encoder(Failing(model, threads=1), model, config, image_tower(encoder).decoder)
    ) as client:
        response = client.post("/encode_image", content=photo, headers=JPEG)
        assert response.status_code == 500
        assert response.json()["code"] == "internal_error"
        assert "secret" not in response.text
        assert response.headers["x-clip-fingerprint"]
        assert client.get("/health").status_code == 200
    (logged,) = [r for r in caplog.records if r.levelno >= logging.ERROR]  # once
    assert "POST /encode_image" in logged.getMessage()
    assert logged.exc_info


# --- pages that call the service ------------------------------------------------------------------

SHOP = {"origin": "https://shop.example"}
ASKS = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type,x-api-key",
}


def test_a_page_of_an_allowed_origin_may_call_and_read(encoder: Encoder, photo: bytes) -> None:
    with serve(
        with_settings(encoder, cors_origins=("https://shop.example", "https://b.example"))
    ) as client:
        leave = client.options("/encode_image", headers=SHOP | ASKS)
        answer = client.post("/encode_image", content=photo, headers=JPEG | SHOP)
    assert (leave.status_code, answer.status_code) == (200, 200)
    assert leave.headers["access-control-allow-origin"] == SHOP["origin"]
    assert "POST" in leave.headers["access-control-allow-methods"]
    assert leave.headers["access-control-allow-headers"] == "content-type,x-api-key"
    assert leave.headers["x-request-id"]
    assert answer.headers["access-control-allow-origin"] == SHOP["origin"]
    assert answer.headers["access-control-expose-headers"] == (
        "X-Clip-Fingerprint, X-Clip-Truncated, X-Request-Id"
    )
    assert "Origin" in answer.headers["vary"]


def test_no_other_page_may(encoder: Encoder) -> None:
    with serve(with_settings(encoder, cors_origins=("https://shop.example",))) as client:
        other = {"origin": "https://shop.example.evil"}
        leave = client.options("/encode_image", headers=other | ASKS)
        assert leave.status_code == 400
        answers = [leave, client.get("/health", headers=other)]
    assert not [answer for answer in answers if "access-control-allow-origin" in answer.headers]


def test_any_page_may_where_the_setting_is_a_star(encoder: Encoder) -> None:
    with serve(with_settings(encoder, cors_origins=("*",))) as client:
        assert client.get("/health", headers=SHOP).headers["access-control-allow-origin"] == "*"


def test_by_default_no_page_may(client: httpx.Client) -> None:
    assert client.options("/encode_image", headers=SHOP | ASKS).status_code == 405
    assert "access-control-allow-origin" not in client.get("/health", headers=SHOP).headers


def test_a_page_may_read_errors_too(model: Model, encoder: Encoder, photo: bytes) -> None:
    """The caller's, a fault of ours, and the refusal of one request too many."""
    busy, go_on = threading.Event(), threading.Event()

    class Failing(OnnxCpuEngine):
        def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
            busy.set()
            go_on.wait(timeout=60)
            raise RuntimeError

    failing = with_settings(encoder, cors_origins=("https://shop.example",), max_pending=1)
    failing.images = copy.copy(image_tower(encoder))
    failing.images.engine = Failing(model, threads=1)
    with serve(failing) as client, ThreadPoolExecutor(1) as other:
        first = other.submit(client.post, "/encode_image", content=photo, headers=JPEG | SHOP)
        assert busy.wait(timeout=60)
        refused = client.post("/encode_image", content=photo, headers=JPEG | SHOP)
        assert client.options("/encode_image", headers=SHOP | ASKS).status_code == 200
        go_on.set()
        answers = [refused, first.result()]
        answers.append(client.post("/encode_image", content=b"no image", headers=JPEG | SHOP))
        answers.append(client.get("/nope", headers=SHOP))
    assert [answer.status_code for answer in answers] == [503, 500, 422, 404]
    assert {answer.headers["access-control-allow-origin"] for answer in answers} == {SHOP["origin"]}
