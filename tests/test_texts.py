"""Texts through every way in: their vectors, their limits, and what they cost who sends images."""

import base64
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from events.generate import PHOTO, TEXTS
from handler.config import Config
from handler.encoder import Encoder, load_encoder
from handler.engines import Embedding
from handler.errors import ClipError, InvalidField, TextTooLong
from handler.events import direct
from handler.model import Model
from tests.answers import INVOKE, assert_same
from tests.conftest import ROOT, image_tower, serve, with_golden, with_settings
from tests.test_every_way_in import NoTimeLeft, event, main
from tests.test_faults import _own, spoiled
from tests.test_server import picture, server

if TYPE_CHECKING:
    from export.checkpoint import Reference

__all__ = ["main", "spoiled"]  # the fixtures

LONG = "red shoes, " * 40
"""A text of 122 tokens."""
JSON = {"content-type": "application/json"}
OCTETS = {"accept": "application/octet-stream"}


def encoded(encoder: Encoder, text: str) -> Embedding:
    """The vector of a text, the end of a long one cut off."""
    return encoder.encode(encoder.tokenize(text, truncate=True))


@pytest.fixture(scope="module")
def vector(encoder: Encoder) -> Embedding:
    return encoded(encoder, TEXTS[0])


@pytest.fixture(scope="module")
def small(encoder: Encoder) -> Iterator[httpx.Client]:
    """A server that takes three texts at once."""
    with serve(with_settings(encoder, max_texts=3)) as client:
        yield client


# --- the vectors ----------------------------------------------------------------------------------


def test_they_are_clips(encoder: Encoder, reference: "Reference") -> None:
    from export import parity
    from handler.engines.torch_clip import import_clip

    texts = [*TEXTS, "", LONG]
    theirs = import_clip().tokenize(texts, truncate=True)
    expected = parity.reference_text_embeddings(reference, theirs)
    found = np.stack([encoded(encoder, text) for text in texts])
    assert np.sum(found * expected, axis=1) == pytest.approx(1, abs=1e-5)


def test_the_web_server(client: httpx.Client, vector: Embedding) -> None:
    answer = client.post("/encode_text", json={"text": TEXTS[0]})
    assert_same(answer.json(), vector, atol=0)
    assert answer.headers["content-type"] == "application/json"
    binary = client.post("/encode_text", json={"text": TEXTS[0]}, headers=OCTETS)
    assert binary.headers["content-type"] == "application/octet-stream"
    assert_same(np.frombuffer(binary.content, "<f4"), vector, atol=0)
    batch = client.post("/encode_texts", json={"texts": [TEXTS[0], "", TEXTS[0]]}).json()
    assert (batch["errors"], batch["truncated"]) == ([], [])
    assert_same([batch["embeddings"][place] for place in (0, 2)], np.stack([vector] * 2))
    assert np.linalg.norm(batch["embeddings"], axis=1) == pytest.approx(1, abs=1e-6)


def test_http_events(main: types.ModuleType, vector: Embedding) -> None:
    response = main.handler(event("rest_text"), None)
    assert response["statusCode"] == 200
    assert_same(json.loads(response["body"]), vector, atol=0)
    assert response["headers"]["x-clip-fingerprint"] == main.encoder.texts.fingerprint


def test_direct_invokes(main: types.ModuleType, vector: Embedding) -> None:
    answer = main.handler(event("direct_text"), None)
    assert_same(answer.pop("embedding"), vector, atol=0)
    assert answer == {"embedding_size": 512, "model": "ViT-B/32", "truncated": False}
    over_http = json.loads(main.handler(event("http_api_texts"), None)["body"])
    batch = main.handler(event("direct_texts"), None)
    assert batch == over_http
    assert [embedding is None for embedding in batch["embeddings"]] == [False] * 3 + [True]


def test_under_lambdas_runtime(lambda_client: httpx.Client, vector: Embedding) -> None:
    answer = lambda_client.post(INVOKE, json={"text": TEXTS[0]}).json()
    assert_same(answer["embedding"], vector, atol=0)
    refused = lambda_client.post(INVOKE, json={"text": LONG}).json()
    assert refused["errorType"] == "TextTooLong"
    assert refused["errorMessage"].startswith("text_too_long: the text has 122 tokens")


def test_many_in_one_request_are_each_what_they_are_alone(encoder: Encoder) -> None:
    """In order, though those of one length go through the engine together."""
    texts = [f"{'very ' * (number % 7)}old shoe {number}" for number in range(40)]
    answer = direct.invoke({"texts": texts}, None, encoder)
    assert_same(answer["embeddings"], np.stack([encoded(encoder, text) for text in texts]))


# --- headers --------------------------------------------------------------------------------------


def test_an_answer_names_what_made_its_vectors(client: httpx.Client, encoder: Encoder) -> None:
    assert encoder.texts
    texts = [
        client.post("/encode_text", json={"text": "a"}),
        client.post("/encode_texts", json={"texts": ["a"]}),
    ]
    fingerprints = [answer.headers.get_list("x-clip-fingerprint") for answer in texts]
    assert fingerprints == [[encoder.texts.fingerprint]] * 2
    image = client.post("/encode_image", files={"image": PHOTO})
    assert image.headers.get_list("x-clip-fingerprint") == [encoder.fingerprint]
    # What they have in common is what must be equal for the two to be compared.
    pair = encoder.fingerprint.split("."), str(encoder.texts.fingerprint).split(".")
    assert pair[0][:3] == pair[1][:3]
    assert pair[0] != pair[1]


def test_health_names_both_towers(model: Model, encoder: Encoder) -> None:
    """The text tower's fingerprint is known once its files are open: at the first text."""
    tower = image_tower(encoder)
    fresh = Encoder(tower.engine, model, Config(), tower.decoder)
    with serve(fresh) as client:
        assert client.get("/health").json()["text_fingerprint"] is None
        client.post("/encode_text", json={"text": "a"})
        health = client.get("/health").json()
    assert fresh.texts
    assert health["text_fingerprint"] == fresh.texts.fingerprint
    assert health["fingerprint"] == encoder.fingerprint
    assert health["towers"] == ["image", "text"]
    assert health["logit_scale"] == model.logit_scale


# --- long texts -----------------------------------------------------------------------------------


def test_a_long_text_is_refused_or_cut_and_that_is_said(
    client: httpx.Client, encoder: Encoder
) -> None:
    refused = client.post("/encode_text", json={"text": LONG})
    assert (refused.status_code, refused.json()["code"]) == (422, "text_too_long")
    assert "122 tokens" in refused.json()["detail"]
    cut = client.post("/encode_text", json={"text": LONG, "truncate": True})
    assert cut.headers["x-clip-truncated"] == "true"
    assert_same(cut.json(), encoded(encoder, LONG), atol=0)
    short = client.post("/encode_text", json={"text": "a", "truncate": True})
    assert "x-clip-truncated" not in short.headers
    with pytest.raises(TextTooLong):
        direct.invoke({"text": LONG}, None, encoder)
    assert direct.invoke({"text": LONG, "truncate": True}, None, encoder)["truncated"] is True


def test_in_a_batch_they_are_named(client: httpx.Client, encoder: Encoder) -> None:
    request = {"texts": ["a", LONG, "b", LONG + "!"]}
    refused = client.post("/encode_texts", json=request)
    codes = [(error["index"], error["code"]) for error in refused.json()["errors"]]
    assert codes == [(1, "text_too_long"), (3, "text_too_long")]
    assert refused.json()["truncated"] == []
    assert "x-clip-truncated" not in refused.headers
    cut = client.post("/encode_texts", json=request | {"truncate": True})
    assert (cut.json()["errors"], cut.json()["truncated"]) == ([], [1, 3])
    assert cut.headers["x-clip-truncated"] == "true"
    assert direct.invoke(request | {"truncate": True}, None, encoder) == cut.json()


# --- bad requests ---------------------------------------------------------------------------------


def test_one_bad_text_costs_no_other(client: httpx.Client, vector: Embedding) -> None:
    texts = [TEXTS[0], 7, LONG, None, ["a"], "a" * 10_001, TEXTS[0]]
    body = client.post("/encode_texts", json={"texts": texts}).json()
    assert_same([body["embeddings"][place] for place in (0, 6)], np.stack([vector] * 2))
    assert body["embeddings"][1:6] == [None] * 5
    assert [(error["index"], error["code"]) for error in body["errors"]] == [
        (1, "invalid_field"),
        (2, "text_too_long"),
        (3, "invalid_field"),
        (4, "invalid_field"),
        (5, "text_too_long"),
    ]


MANY_FIELDS = json.dumps(dict.fromkeys(range(101))).encode()


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "detail"),
    [
        ("/encode_text", b"{", 400, "invalid_json", "EOF while parsing"),
        ("/encode_text", b'"a"', 400, "invalid_json", 'send {"text": "a red shoe"}'),
        ("/encode_text", b"{}", 400, "missing_field", "'text'"),
        ("/encode_text", b'{"text": null}', 400, "invalid_field", "valid string"),
        ("/encode_text", b'{"text": "a", "truncate": 1}', 400, "invalid_field", "'truncate'"),
        ("/encode_text", b'{"text": "a", "cut": true}', 400, "invalid_field", "known: truncate"),
        ("/encode_text", b'{"text": "\xff"}', 400, "invalid_json", "invalid unicode"),
        ("/encode_text", b'{"text": "\\udc00"}', 400, "invalid_json", "lone leading surrogate"),
        ("/encode_text", b'{"text": "\\ud800"}', 400, "invalid_json", "hex escape at line 1"),
        ("/encode_text", b'{"text": "' + b"," * 2**16 + b'"}', 400, "invalid_json", "65,537 val"),
        ("/encode_text", b'{"text": "' + b"," * 10**4 + b'"}', 422, "text_too_long", "tokens"),
        ("/encode_text", b'{"text": "' + b"a" * 10**6 + b'"}', 422, "text_too_long", "1,000,000"),
        ("/encode_text", MANY_FIELDS, 400, "invalid_field", "101 fields"),
        ("/encode_texts", b'{"texts": []}', 400, "invalid_field", "'texts'"),
        ("/encode_texts", b'{"texts": "a"}', 400, "invalid_field", "valid list"),
        ("/encode_texts", b'{"texts": ["\\ud800"]}', 400, "invalid_json", "hex escape"),
        ("/encode_texts", b'{"texts": [1, 2, 3, 4]}', 413, "too_many_texts", "the limit is 3"),
    ],
)
def test_bad_requests(
    small: httpx.Client, path: str, body: bytes, status: int, code: str, detail: str
) -> None:
    response = small.post(path, content=body, headers=JSON)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert detail in response.json()["detail"]


@pytest.mark.parametrize("path", ["/encode_text", "/encode_texts", "/rank"])
@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_anything_but_json_is_told_what_to_send(client: httpx.Client, path: str, kind: str) -> None:
    response = client.post(path, content=b"text=a", headers={"content-type": kind} if kind else {})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: application/json and, as the body, {" in response.json()["detail"]


def test_half_a_surrogate_pair_is_no_text(encoder: Encoder) -> None:
    """Lambda's runtime reads one out of JSON, which the web server does not."""
    with pytest.raises(InvalidField, match="surrogate"):
        direct.invoke({"text": "a\ud800"}, None, encoder)
    answer = direct.invoke({"texts": ["\udc00", "\U0001f600"]}, None, encoder)
    assert [error["index"] for error in answer["errors"]] == [0]
    ranking = {"queries": [{"text": "a"}], "candidates": [{"text": "a"}], "templates": ["{}\ud800"]}
    with pytest.raises(InvalidField, match="unicode"):
        direct.invoke({"rank": ranking}, None, encoder)


def test_lambdas_time_reaches_texts(main: types.ModuleType) -> None:
    response = main.handler(event("rest_text"), NoTimeLeft)
    assert (response["statusCode"], json.loads(response["body"])["code"]) == (503, "out_of_time")
    answer = main.handler({"texts": list(TEXTS)}, NoTimeLeft)
    assert [error["code"] for error in answer["errors"]] == ["out_of_time"] * 3


# --- what they cost who sends images --------------------------------------------------------------

LAZY = """
import base64, json, os, sys

opened = set()
sys.addaudithook(lambda name, args: opened.add(str(args[0])) if name == "open" else None)
import handler.main as main

def of_texts():
    mapped = {line.split()[-1] for line in open("/proc/self/maps")}
    files = {os.path.basename(path) for path in opened | mapped}
    files &= set(os.listdir(os.environ["CLIP_MODEL_DIR"]))
    files = {name for name in files if not name.startswith(("visual.", "model."))}
    return sorted(files), [name for name in ("regex", "ftfy") if name in sys.modules]

photo = base64.b64encode(open("events/photo.jpg", "rb").read()).decode()
main.handler({"image": photo}, None)
image = of_texts()
main.handler({"text": "Käse &amp; Brot"}, None)
print(json.dumps([image, of_texts()]))
"""


def test_a_cold_start_that_answers_an_image_opens_and_imports_nothing_for_texts(
    model_dir: Path,
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LAZY],
        check=True,
        cwd=ROOT,
        env=os.environ | {"CLIP_MODEL_DIR": str(model_dir)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    image, text = json.loads(run.stdout.splitlines()[-1])
    assert image == [[], []]
    # The same look finds what a text needs.
    assert text == [["text.onnx.data", "vocabulary.json"], ["regex", "ftfy"]]


def test_the_first_texts_may_come_at_once(
    model_dir: Path, tmp_path: Path, encoder: Encoder
) -> None:
    """The tower is loaded, and the models of such requests are compiled, once for all of them."""
    vectors = [encoded(encoder, text) for text in TEXTS]
    body = json.dumps({"texts": TEXTS}).encode()
    with server(model_dir, tmp_path) as service, ThreadPoolExecutor(16) as clients:
        answers = clients.map(lambda _: service.post("/encode_texts", body, JSON), range(16))
        for answer in answers:
            assert answer.status_code == 200
            assert_same(answer.json()["embeddings"], np.stack(vectors))


# --- a tower that is left out, or broken ----------------------------------------------------------


def posted(service: Any, path: str, body: object) -> tuple[int, Any]:
    answer = service.post(path, json.dumps(body).encode(), JSON)
    return answer.status_code, answer.json()


PAIR = {"queries": [{"text": "a"}], "candidates": [{"image": base64.b64encode(PHOTO).decode()}]}


def test_without_the_text_tower(model_dir: Path, tmp_path: Path) -> None:
    with server(model_dir, tmp_path, CLIP_TOWERS="image") as service:
        status, error = posted(service, "/encode_text", {"text": "a"})
        assert (status, error["code"]) == (422, "no_such_tower")
        assert "images only" in error["detail"]
        status, batch = posted(service, "/encode_texts", {"texts": ["a", 7]})
        assert status == 200
        assert [error["code"] for error in batch["errors"]] == ["no_such_tower", "invalid_field"]
        status, ranking = posted(service, "/rank", PAIR)
        assert (status, ranking["probabilities"]) == (200, [None])
        assert [error["code"] for error in ranking["errors"]] == ["no_such_tower"]
        assert service.encode(PHOTO).status_code == 200
        health = service.health().json()
        assert (health["status"], health["towers"]) == ("synthetic", ["image"])
        assert health["text_fingerprint"] is None


@pytest.mark.parametrize(
    ("initialization", "is_loaded"),
    [("snap-start", True), ("provisioned-concurrency", True), ("on-demand", False)],
)
def test_the_text_tower_is_ready_where_lambda_starts_ahead(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, initialization: str, is_loaded: bool
) -> None:
    """In a snapshot it saves every restored instance the opening; elsewhere images would wait."""
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", initialization)
    encoder = load_encoder(Config(model_dir=model_dir))
    assert encoder.texts
    assert (encoder.texts.fingerprint is not None) == is_loaded


def test_without_the_image_tower(model_dir: Path, tmp_path: Path, encoder: Encoder) -> None:
    with server(model_dir, tmp_path, CLIP_TOWERS="text") as service:
        answer = service.encode(PHOTO)
        assert (answer.status_code, answer.json()["code"]) == (422, "no_such_tower")
        photo = base64.b64encode(PHOTO).decode()
        status, batch = posted(service, "/encode_images", {"images": [photo]})
        assert (status, batch["errors"][0]["code"]) == (200, "no_such_tower")
        status, ranking = posted(service, "/rank", PAIR)
        assert (status, ranking["probabilities"]) == (200, [[None]])
        # The tower is loaded at the start, not at the first text.
        health = service.health().json()
        assert (health["status"], health["towers"]) == ("synthetic", ["text"])
        assert health["fingerprint"] is None
        assert encoder.texts
        assert health["text_fingerprint"] == encoder.texts.fingerprint
        assert answer.headers["x-clip-fingerprint"] == health["text_fingerprint"]
        status, numbers = posted(service, "/encode_text", {"text": TEXTS[0]})
        assert status == 200
        assert_same(numbers, encoded(encoder, TEXTS[0]))


def _no_vocabulary(folder: Path) -> None:
    path = _own(folder / "vocabulary.json")
    path.write_bytes(bytes(path.stat().st_size))


def _zeros_for_weights(folder: Path) -> None:
    path = _own(folder / "text.onnx.data")
    path.write_bytes(bytes(path.stat().st_size))


def _no_graph(folder: Path) -> None:
    path = _own(folder / "text.onnx")
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("spoil", [_no_vocabulary, _zeros_for_weights, _no_graph])
def test_a_broken_text_tower_leaves_images_served(
    spoiled: Path, tmp_path: Path, encoder: Encoder, spoil: Any
) -> None:
    """Nothing is known of it before the first text, which does not get a wrong vector."""
    spoil(spoiled)
    with server(spoiled, tmp_path) as service:
        assert service.health().status_code == 200
        for path, body in (
            ("/encode_text", {"text": "a"}),
            ("/encode_texts", {"texts": ["a", 7]}),
            ("/rank", PAIR),
        ):
            status, error = posted(service, path, body)
            assert (status, error["code"]) == (503, "model_unhealthy")
            assert str(spoiled) not in error["detail"]
        health = service.health()
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        assert_same(service.encode(picture(1)).json(), encoder.encode(picture(1)))
        alone = {"queries": PAIR["candidates"], "candidates": PAIR["candidates"]}
        assert posted(service, "/rank", alone)[1]["probabilities"] == [[1]]


def test_a_text_tower_of_other_weights_serves_nothing(model: Model, encoder: Encoder) -> None:
    tower = image_tower(encoder)
    other = with_golden(model, "text", np.roll(model.towers["text"].golden.embedding, 1))
    with serve(Encoder(tower.engine, other, Config(), tower.decoder)) as client:
        refused = client.post("/encode_text", json={"text": "a"})
        assert (refused.status_code, refused.json()["code"]) == (503, "model_unhealthy")
        assert refused.headers["retry-after"]
        assert client.get("/health").status_code == 503
        assert client.post("/encode_image", files={"image": PHOTO}).status_code == 200


def test_no_error_of_a_text_repeats_it(encoder: Encoder) -> None:
    secret = "c2VjcmV0 " * 2000
    for sent in ({"text": secret}, {"text": secret[:5000]}, {"text": {"a": secret}}):
        with pytest.raises(ClipError) as caught:
            direct.invoke(sent, None, encoder)
        assert "c2VjcmV0" not in str(caught.value)
        assert len(str(caught.value)) < 300
