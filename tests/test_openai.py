"""The shape of OpenAI's embeddings API, spoken by OpenAI's own client and by LangChain's."""

import base64
import copy
import json
import socket
import types
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given
from langchain_openai import OpenAIEmbeddings

from handler.config import Config
from handler.encoder import Encoder
from handler.engines import Embedding, Embeddings, Pixels, TokenIds
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.model import Model
from tests.conftest import serve, with_settings
from tests.test_every_way_in import event, main
from tests.test_requests import relaxed, values

__all__ = ["main"]  # the fixture

CAPTION = "a photograph of a tabby cat, sitting"
LONG = "red shoes " * 50
ERROR = {"message", "type", "param", "code"}


@pytest.fixture(scope="module", autouse=True)
def _only_this_machine() -> Iterator[None]:
    """Whatever a client library would tell its makers, it cannot."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        assert address[0] in ("127.0.0.1", "::1"), f"a connection to {address}"
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setenv("LANGSMITH_TRACING", "false")
        yield


@pytest.fixture(scope="module")
def speaker(client: httpx.Client) -> Iterator[openai.OpenAI]:
    with speaker_of(client) as speaker:
        yield speaker


def speaker_of(client: httpx.Client, max_retries: int = 0) -> openai.OpenAI:
    """OpenAI's client, for the server of `client`."""
    return openai.OpenAI(
        base_url=f"{client.base_url}/v1",
        api_key="none",
        max_retries=max_retries,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


@pytest.fixture(scope="module")
def text_vector(client: httpx.Client) -> Embedding:
    answer = client.post("/encode_text", json={"text": CAPTION})
    return np.array(answer.json(), np.float32)


@pytest.fixture(scope="module")
def image_vector(client: httpx.Client, photo: bytes) -> Embedding:
    answer = client.post("/encode_image", content=photo, headers={"content-type": "image/jpeg"})
    return np.array(answer.json(), np.float32)


@pytest.fixture(scope="module")
def data_uri(photo_base64: str) -> str:
    return f"data:image/jpeg;base64,{photo_base64}"


def post(client: httpx.Client, **fields: object) -> httpx.Response:
    return client.post("/v1/embeddings", json=fields)


def vectors(response: httpx.Response) -> Embeddings:
    assert response.status_code == 200, response.text
    return np.array([entry["embedding"] for entry in response.json()["data"]], np.float32)


# --- the real clients -----------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_openais_client_gets_the_vectors_to_the_bit(
    speaker: openai.OpenAI,
    encoder: Encoder,
    text_vector: Embedding,
    image_vector: Embedding,
    data_uri: str,
    asked: dict[str, Any],
) -> None:
    answer = speaker.embeddings.create(model="ViT-B-32", input=[CAPTION, data_uri], **asked)
    assert (answer.object, answer.model) == ("list", "ViT-B-32")
    assert [(entry.object, entry.index) for entry in answer.data] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    tokens = len(encoder.tokenize(CAPTION).ids)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    found = [entry.embedding for entry in answer.data]
    if asked.get("encoding_format") == "base64":  # who asks for it decodes it
        found = [np.frombuffer(base64.b64decode(str(text)), "<f4").tolist() for text in found]
    np.testing.assert_array_equal(np.array(found, np.float32), [text_vector, image_vector])


def test_openais_client_asks_for_base64_by_itself(
    client: httpx.Client, text_vector: Embedding
) -> None:
    asked: list[dict[str, Any]] = []
    with speaker_of(client) as speaker:
        speaker._client.event_hooks["request"] = [
            lambda request: asked.append(json.loads(request.content))
        ]
        answer = speaker.embeddings.create(model="ViT-B-32", input=CAPTION)
    assert asked == [{"input": CAPTION, "model": "ViT-B-32", "encoding_format": "base64"}]
    np.testing.assert_array_equal(np.array(answer.data[0].embedding, np.float32), text_vector)


def test_langchain_stores_documents_and_asks_for_them(
    client: httpx.Client, encoder: Encoder, text_vector: Embedding
) -> None:
    documents = ["red shoes", CAPTION, "a blue hat"]
    with openai.DefaultHttpxClient(trust_env=False) as connections:
        embeddings = OpenAIEmbeddings(
            model="ViT-B-32",
            base_url=f"{client.base_url}/v1",
            api_key="none",  # type: ignore[arg-type]  # pydantic makes a secret of it
            check_embedding_ctx_length=False,
            chunk_size=2,
            max_retries=0,
            http_client=connections,
        )
        of_query = np.array(embeddings.embed_query(CAPTION), np.float32)
        found = np.array(embeddings.embed_documents(documents), np.float32)
    np.testing.assert_array_equal(of_query, text_vector)
    expected = [encoder.encode(encoder.tokenize(text)) for text in documents]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_models(speaker: openai.OpenAI, model: Model) -> None:
    (only,) = speaker.models.list()
    assert only.to_dict() == {
        **{"id": "ViT-B-32", "object": "model", "created": 0, "owned_by": "synthetic"},
    }
    assert speaker.models.retrieve("ViT-B-32") == only
    assert speaker.models.retrieve("ViT-B/32") == only  # a slash within the path
    with pytest.raises(openai.NotFoundError) as caught:
        speaker.models.retrieve("text-embedding-3-small")
    assert caught.value.code == "model_not_found"
    assert "ViT-B-32" in caught.value.message


@pytest.mark.parametrize(
    ("asked", "error", "code", "param"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found", "model"),
        ({"dimensions": 256}, openai.BadRequestError, "invalid_field", "dimensions"),
        ({"input": []}, openai.BadRequestError, "invalid_field", "input"),
        ({"input": [[1, 2, 3]]}, openai.BadRequestError, "invalid_field", "input[0]"),
        ({"input": LONG}, openai.UnprocessableEntityError, "text_too_long", "input"),
        ({"input": ["a", LONG]}, openai.UnprocessableEntityError, "text_too_long", "input[1]"),
        (
            {"input": ["a", "data:image/png;base64,aGVsbG8="]},
            openai.UnprocessableEntityError,
            *("not_an_image", "input[1]"),
        ),
        ({"input": ["s3://private/1"]}, openai.PermissionDeniedError, "source_not_allowed", None),
        ({"input": ["a"] * 257}, openai.APIStatusError, "too_many_texts", "input"),
    ],
)
def test_openais_client_raises_what_its_callers_catch(
    speaker: openai.OpenAI,
    asked: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str,
    param: str | None,
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        speaker.embeddings.create(**{"model": "ViT-B-32", "input": "a", **asked})
    assert type(caught.value) is error
    assert (caught.value.code, caught.value.type) == (code, "invalid_request_error")
    assert caught.value.param == (param or "input[0]")
    assert len(caught.value.message) > 20


# --- what is read ---------------------------------------------------------------------------------


def test_every_form_of_an_item(
    encoder: Encoder, data_uri: str, photo_base64: str, photo: bytes, cloud: SimpleNamespace
) -> None:
    cloud.s3.put_object(Bucket="photos", Key="openai.jpg", Body=photo)
    in_s3 = "s3://photos/openai.jpg"
    url = "https://shop.example/cat.jpg"
    images = [
        *(data_uri, in_s3, {"image": photo_base64}, {"image": data_uri}, {"image": in_s3}),
        {"content": [{"type": "image_url", "image_url": {"url": data_uri, "detail": "low"}}]},
        {"content": [{"type": "image_url", "image_url": {"url": in_s3}}], "role": "user"},
    ]
    texts = [
        *(CAPTION, {"text": CAPTION}, {"content": [{"type": "text", "text": CAPTION}]}),
        {"text": url},
        *(f"{url} shows a cat", "data:text/plain,a", "", "S3"),
    ]
    with serve(with_settings(encoder, s3_buckets=("photos",))) as client:
        found = vectors(post(client, input=[*images, *texts], model=None, user="me", store=True))
    spoken = [CAPTION, CAPTION, CAPTION, url, f"{url} shows a cat", "data:text/plain,a", "", "S3"]
    expected = [encoder.encode(photo)] * len(images)
    expected += [encoder.encode(encoder.tokenize(text)) for text in spoken]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_modality_says_what_strings_are(
    client: httpx.Client, encoder: Encoder, photo_base64: str, image_vector: Embedding
) -> None:
    found = vectors(post(client, input=photo_base64, modality="image"))
    np.testing.assert_array_equal(found, [image_vector])
    # A text may look like anything; an item that names its own kind is not changed.
    strings = ["s3://photos/1.jpg", "https://shop.example/1.jpg"]
    found = vectors(post(client, input=[*strings, {"image": photo_base64}], modality="text"))
    expected = [encoder.encode(encoder.tokenize(text)) for text in strings]
    np.testing.assert_allclose(found, [*expected, image_vector], rtol=0, atol=1e-6)


def test_a_long_text_is_cut_on_request_and_the_answer_says_so(
    client: httpx.Client, encoder: Encoder
) -> None:
    answer = post(client, input=["short", LONG], truncate=True)
    assert answer.headers["x-clip-truncated"] == "true"
    cut = encoder.tokenize(LONG, truncate=True)
    np.testing.assert_allclose(vectors(answer)[1], encoder.encode(cut), rtol=0, atol=1e-6)
    assert answer.json()["usage"]["prompt_tokens"] == 3 + 77
    assert "x-clip-truncated" not in post(client, input="short", truncate=True).headers


def test_an_answer_names_what_made_its_vectors(
    client: httpx.Client, encoder: Encoder, data_uri: str
) -> None:
    def fingerprints(*items: str) -> str:
        return post(client, input=items).headers["x-clip-fingerprint"]

    assert encoder.images
    assert encoder.texts
    of_images, of_texts = encoder.images.fingerprint, encoder.texts.fingerprint
    assert fingerprints(data_uri) == of_images
    assert fingerprints("a") == of_texts
    assert fingerprints("a", data_uri, "b") == f"{of_images}, {of_texts}"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "input", "'input' is missing: send {\"input\": ["),
        ({"input": None}, "input", "'input' is missing"),
        ({"input": [], "truncate": True}, "input", "empty list"),
        ({"input": [1, 2, 3]}, "input[0]", "check_embedding_ctx_length=False"),
        ({"input": ["a", [1, 2]]}, "input[1]", "check_embedding_ctx_length=False"),
        ({"input": ["a", "HTTPS://a.example/b.jpg "]}, "input[1]", "URLs are not fetched"),
        ({"input": "http://a.example/b.jpg"}, "input", '{"text": "..."}'),
        ({"input": [{"image": "https://a.example/b.jpg"}]}, "input[0]", "URLs are not fetched"),
        ({"input": "https://a.b", "modality": "image"}, "input", "URLs are not fetched"),
        ({"input": {"image": "a", "text": "a"}}, "input", "must be one of these"),
        ({"input": [{"image": 7}]}, "input[0]", "an item of 'input' must be a string, {"),
        ({"input": [{"content": []}]}, "input[0]", "with one part"),
        ({"input": [{"content": [{"type": "text", "text": "a"}] * 2}]}, "input[0]", "one part"),
        ({"input": [{"content": [{"type": "image_url"}]}]}, "input[0]", "one part"),
        ({"input": [1.5]}, "input[0]", "an item of 'input' must be"),
        ({"input": ["a", None]}, "input[1]", "an item of 'input' must be"),
        ({"input": [{"image": "a"}]}, "input[0]", "not valid base64"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", '"float" or "base64"'),
        ({"input": "a", "dimensions": 256}, "dimensions", "must be 512, or left out"),
        ({"input": "a", "dimensions": "512"}, "dimensions", "must be 512"),
        ({"input": "a", "modality": "audio"}, "modality", '"text" or "image"'),
        ({"input": "a", "truncate": "yes"}, "truncate", "must be false or true"),
        ({"input": "a", "encoding_format": [[]]}, "encoding_format", '"float" or "base64"'),
    ],
)
def test_a_bad_request_says_which_part_is_wrong(
    client: httpx.Client, fields: dict[str, Any], param: str, message: str
) -> None:
    answer = post(client, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]
    assert len(error["message"]) < 500


def test_the_values_that_are_served_may_be_said(
    client: httpx.Client, text_vector: Embedding
) -> None:
    said = {"dimensions": 512, "encoding_format": "float", "modality": "text", "truncate": False}
    nothing = dict.fromkeys(said, None)
    for model in ("ViT-B-32", "ViT-B/32", None):
        for fields in (said, nothing):
            found = vectors(post(client, input=CAPTION, model=model, **fields))
            np.testing.assert_array_equal(found, [text_vector])


def test_texts_and_images_have_each_their_limit(encoder: Encoder, data_uri: str) -> None:
    with serve(with_settings(encoder, max_texts=2, max_images=1)) as client:
        assert len(vectors(post(client, input=["a", "b", data_uri]))) == 3
        for items, code in (
            (["a", "b", "c"], "too_many_texts"),
            ([data_uri] * 2, "too_many_images"),
        ):
            answer = post(client, input=items)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, code)


def test_the_first_bad_item_costs_the_others_no_work(
    model: Model, config: Config, encoder: Encoder, data_uri: str
) -> None:
    sizes = []

    class Counting(OnnxCpuEngine):
        def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
            sizes.append(len(inputs))
            return super().encode(inputs)

    assert encoder.images
    counting = Encoder(Counting(model, threads=1), model, config, encoder.images.decoder)
    with serve(counting) as client:
        assert post(client, input=[data_uri, LONG, "!", 7]).json()["error"]["param"] == "input[1]"
    assert sizes == [1]  # the self-check's


# --- errors, wherever they come from --------------------------------------------------------------


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error that an answer holds, and nothing but that, in OpenAI's shape."""
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    (error,) = answer.json().values()
    assert list(answer.json()) == ["error"]
    assert error.keys() == ERROR
    assert (error["type"] == "server_error") == (answer.status_code >= 500)
    found: dict[str, Any] = error
    return found


JSON = {"content-type": "application/json"}
EMBEDDINGS = "/v1/embeddings"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code", "message"),
    [
        ("GET", "/v1/nothing", b"", {}, 404, "not_found", "POST /v1/embeddings"),
        ("POST", "/v1/chat/completions", b"{}", JSON, 404, "not_found", "there is only"),
        ("GET", "/v1/models/gpt-5", b"", {}, 404, "model_not_found", "ViT-B-32"),
        ("GET", EMBEDDINGS, b"", {}, 405, "method_not_allowed", "takes POST"),
        ("DELETE", "/v1/models", b"", {}, 405, "method_not_allowed", "takes GET, HEAD"),
        ("POST", EMBEDDINGS, b"", JSON, 400, "invalid_json", "not a JSON object"),
        ("POST", EMBEDDINGS, b"[1]", JSON, 400, "invalid_json", "not a JSON object: send {"),
        ("POST", EMBEDDINGS, b"[" * 9000, JSON, 400, "invalid_json", "recursion"),
        ("POST", EMBEDDINGS, b"," * 70_000, JSON, 400, "invalid_json", "70,000 values"),
        ("POST", EMBEDDINGS, b'{"input": "\\ud800"}', JSON, 400, "invalid_json", "hex escape"),
        ("POST", EMBEDDINGS, b"\xff", JSON, 400, "invalid_json", "not a JSON object"),
        ("POST", EMBEDDINGS, b"a cat", {}, 415, "unsupported_media_type", "application/json"),
        ("POST", f"{EMBEDDINGS}/", b"x", {}, 415, "unsupported_media_type", "no Content-Type"),
    ],
)
def test_every_error_has_openais_shape(
    client: httpx.Client,
    method: str,
    path: str,
    body: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
    message: str,
) -> None:
    answer = client.request(method, path, content=body, headers=headers)
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (status, code, None)
    assert message in error["message"]
    assert answer.headers["x-request-id"]
    assert ("allow" in answer.headers) == (status == 405)


def test_a_body_that_is_too_large(encoder: Encoder) -> None:
    with serve(with_settings(encoder, max_body_bytes=1000)) as client:
        answer = post(client, input="a" * 1000)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")


def test_what_may_work_later_is_tried_again_by_openais_client(
    encoder: Encoder, data_uri: str
) -> None:
    unhealthy = with_settings(encoder)
    unhealthy.images = copy.copy(encoder.images)
    assert unhealthy.images
    unhealthy.images.fault = "as a self-check would say"
    with serve(unhealthy) as client:
        answer = post(client, input=data_uri)
        with (
            speaker_of(client, max_retries=1) as speaker,
            pytest.raises(openai.InternalServerError) as caught,
        ):
            speaker.embeddings.create(model="ViT-B-32", input=data_uri)
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (503, "model_unhealthy")
    assert answer.headers["retry-after"] == "1"
    assert (caught.value.code, caught.value.type) == ("model_unhealthy", "server_error")
    assert caught.value.request.headers["x-stainless-retry-count"] == "1"


def test_a_fault_of_ours_tells_nothing(
    model: Model, config: Config, encoder: Encoder, data_uri: str
) -> None:
    class Failing(OnnxCpuEngine):
        calls = 0

        def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
            self.calls += 1
            if self.calls > 1:  # after the self-check
                raise RuntimeError("secret internals")
            return super().encode(inputs)

    assert encoder.images
    failing = Encoder(Failing(model, threads=1), model, config, encoder.images.decoder)
    with serve(failing) as client:
        answer = post(client, input=data_uri)
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


def test_a_service_without_a_tower_says_so(encoder: Encoder, data_uri: str) -> None:
    without = with_settings(encoder)
    without.texts = None
    with serve(without) as client:
        assert len(vectors(post(client, input=[data_uri]))) == 1
        answer = post(client, input=[data_uri, "a"])
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (422, "no_such_tower")
    assert error["param"] == "input[1]"


def test_other_routes_keep_their_own_shape(client: httpx.Client) -> None:
    for path in ("/v1", "/v2/models", "/nothing"):
        assert client.get(path).json().keys() == {"code", "detail"}


def test_a_head_has_no_body(client: httpx.Client) -> None:
    head, get = client.head("/v1/models/gpt-5"), client.get("/v1/models/gpt-5")
    assert (head.status_code, head.content) == (404, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


def test_on_lambda(main: types.ModuleType, text_vector: Embedding) -> None:
    def invoke(**fields: object) -> dict[str, Any]:
        request = event("http_api_openai") | {"body": json.dumps(fields), "isBase64Encoded": False}
        answer: dict[str, Any] = main.handler(request, None)
        return answer

    good, bad = invoke(input=[CAPTION]), invoke(input=["a", LONG])
    (entry,) = json.loads(good["body"])["data"]
    np.testing.assert_allclose(entry["embedding"], text_vector, rtol=0, atol=1e-6)
    assert bad["statusCode"] == 422
    assert json.loads(bad["body"])["error"]["param"] == "input[1]"


@relaxed
@given(items=values, others=values)
def test_any_input(client: httpx.Client, items: object, others: object) -> None:
    fields = {"input": items, "unknown": others}
    answer = client.post(EMBEDDINGS, content=json.dumps(fields), headers=JSON)
    if answer.status_code != 200:
        assert answer.status_code in (400, 403, 413, 415, 422)
        assert len(error_of(answer)["message"]) < 500


# --- the document ---------------------------------------------------------------------------------


def test_the_document_has_the_routes_with_examples_that_work(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    embeddings = paths["/v1/embeddings"]["post"]
    for example in embeddings["requestBody"]["content"]["application/json"]["examples"].values():
        answer = post(client, **example["value"])
        assert answer.status_code == 200, answer.text
    for operation, path in (("post", "/v1/embeddings"), ("get", "/v1/models/{model_id}")):
        (content,) = paths[path][operation]["responses"]["404"]["content"].values()
        assert content["schema"]["properties"]["error"]["required"] == [
            *("message", "type", "param", "code")
        ]
