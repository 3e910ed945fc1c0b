"""Requests made by Hypothesis: what is sound is read exactly, all else is refused by its code."""

import base64
import json
import types
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from handler.errors import ClipError, MissingField, RequestError
from handler.http.bodies import multipart_parts
from handler.images.strings import decode_base64
from handler.schemas import (
    EncodeBatchRequest,
    EncodeRequest,
    EncodeTextRequest,
    EncodeTextsRequest,
    RankItem,
    RankRequest,
    Request,
    read_embedding,
    validate,
)
from tests.bombs import encoded, small
from tests.fuzz.worker import Worker
from tests.test_every_way_in import main

__all__ = ["main"]  # the fixture

IMAGE = base64.b64encode(encoded(small(), "PNG")).decode()
relaxed = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
strings = (
    st.sampled_from([IMAGE, f"data:image/png;base64,{IMAGE}", IMAGE[:-30], "data:,", ""])
    | st.text()
)
values = st.recursive(
    scalars | strings, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
keys = st.sampled_from(["image", "s3", "images", "Items", "Records", "action", "detail-type"]) | (
    st.sampled_from(["requestContext", "httpMethod", "text", "texts", "rank"]) | st.text()
)
# With the halves of surrogate pairs that JSON can write and UTF-8 cannot.
words = st.text() | st.text(st.characters(categories=["Cs", "Cf", "Mn", "Lo", "So"]))
items = (
    st.fixed_dictionaries({"text": words})
    | st.fixed_dictionaries({"image": strings})
    | st.fixed_dictionaries({"embedding": strings | st.lists(scalars, max_size=3)})
    | values
)
rankings = st.fixed_dictionaries(
    {
        "queries": st.lists(items, max_size=3) | values,
        "candidates": st.lists(items, max_size=3) | values,
    },
    optional={
        "templates": st.lists(words.map(lambda text: f"{text[:20]} {{}}"), max_size=2) | values,
        "truncate": st.booleans() | values,
    },
)
of_texts = (
    st.fixed_dictionaries({"text": words}, optional={"truncate": st.booleans()})
    | st.fixed_dictionaries({"texts": st.lists(words | values, max_size=5)})
    | st.fixed_dictionaries({"rank": rankings})
)
events = st.dictionaries(keys, values | st.lists(strings, max_size=40)) | values
contexts = st.dictionaries(
    st.sampled_from(["http", "elb", "requestId", "domainName", "stage"]), values
)
HTTP_KEYS = (
    *("httpMethod", "path", "headers", "multiValueHeaders", "queryStringParameters"),
    *("body", "isBase64Encoded", "version", "rawPath", "rawQueryString", "cookies"),
)


@pytest.fixture(scope="module")
def worker(main: types.ModuleType) -> Worker:
    return Worker(main)


@relaxed
@given(event=events)
def test_any_event(worker: Worker, event: Any) -> None:
    worker.run("event", json.dumps(event).encode())


@settings(relaxed, max_examples=200)
@given(event=of_texts)
def test_any_event_of_texts(worker: Worker, event: Any) -> None:
    worker.run("event", json.dumps(event).encode())


@relaxed
@given(
    event=st.fixed_dictionaries(
        {"requestContext": contexts},
        optional=dict.fromkeys(HTTP_KEYS, values),
    )
)
def test_any_event_that_looks_like_http(worker: Worker, event: Any) -> None:
    worker.run("event", json.dumps(event).encode())


@relaxed
@example(text="001=")
@given(text=st.text() | st.text("ABCabc019+/= \r\n,:;data"))
def test_any_text_as_base64(text: str) -> None:
    try:
        data = decode_base64(text)
    except RequestError:
        return
    payload = text.partition(",")[2] if text.startswith("data:") else text
    again, sent = base64.b64encode(data).decode().rstrip("="), "".join(payload.split()).rstrip("=")
    assert (again[:-1], len(again)) == (
        sent[:-1],
        len(sent),
    )  # the last holds bits that mean nothing


@relaxed
@given(data=st.binary(), width=st.integers(1, 80), uri=st.booleans())
def test_base64_round_trips(data: bytes, width: int, uri: bool) -> None:
    text = base64.b64encode(data).decode()
    lines = "\r\n".join(text[i : i + width] for i in range(0, len(text), width))
    assert decode_base64(f"data:image/png;base64,{lines}" if uri else lines) == data


SCHEMAS = (
    *(EncodeRequest, EncodeBatchRequest, EncodeTextRequest, EncodeTextsRequest),
    *(RankItem, RankRequest),
)


@relaxed
@given(
    body=st.binary()
    | (values | of_texts | rankings | items).map(lambda value: json.dumps(value).encode())
)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_any_body_as_json(schema: type[Request], body: bytes) -> None:
    try:
        request = validate(schema, body)
    except RequestError as error:
        _check_detail(error)
    else:
        assert request.model_dump(exclude_unset=True) == json.loads(body)


def _check_detail(error: RequestError) -> None:
    """However much was sent, little is said about it."""
    assert 0 < len(error.detail) < 500


tokens = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20)
pieces = st.binary() | st.sampled_from([b"\r\n", b"\r\n--", b"--", b"\r", b"\r\n--b"])
bodies = st.lists(pieces).map(b"".join)


def _form(boundary: str, parts: list[tuple[str, bytes]]) -> bytes:
    body = b""
    for name, data in parts:
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'
        )
        body += head.encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


@relaxed
@given(boundary=tokens, parts=st.lists(st.tuples(st.just("image") | tokens, bodies), max_size=5))
def test_multipart_round_trips(boundary: str, parts: list[tuple[str, bytes]]) -> None:
    boundary = f"b{boundary}"
    parts = [(name, data.replace(f"--{boundary}".encode(), b"")) for name, data in parts]
    parts = [(name, data) for name, data in parts if f"--{boundary}".encode() not in data]
    expected = [data for name, data in parts if name == "image"]
    content_type = f"multipart/form-data; boundary={boundary}"
    if expected:
        found = multipart_parts(content_type, _form(boundary, parts), "image")
        assert [bytes(part.data) for part in found] == expected
    else:
        with pytest.raises(MissingField):
            multipart_parts(content_type, _form(boundary, parts), "image")


headers = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=400)
MANY = b"".join(
    b'--b\r\nContent-Disposition: form-data; name="part %d"\r\n\r\n\r\n' % i for i in range(500)
)
content_types = headers | headers.map(lambda text: f"multipart/form-data; boundary={text}")


@relaxed
@example(content_type=f"multipart/form-data; boundary={'b' * 300}", parts=b"", name="", cut=0)
@example(content_type="multipart/form-data; boundary=b", parts=MANY, name="", cut=0)
@given(content_type=content_types, parts=bodies, name=headers, cut=st.integers(0, 200))
def test_any_multipart(content_type: str, parts: bytes, name: str, cut: int) -> None:
    boundary = content_type.rpartition("=")[2]
    body = _form(boundary, [(name, parts), ("image", parts)])
    for sent in (body, body[:-cut], parts):
        try:
            multipart_parts(content_type, sent, "image")
        except RequestError as error:
            _check_detail(error)


floats = st.floats() | st.integers() | st.sampled_from([10**400, 1e308, 5e-324, -0.0])


@relaxed
@given(numbers=st.lists(floats, min_size=4, max_size=4))
def test_any_numbers_as_a_vector(numbers: list[float]) -> None:
    try:
        vector = read_embedding(numbers, size=4)
    except RequestError as error:
        _check_detail(error)
    else:
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        largest = np.abs(np.array(numbers, np.float64)).argmax()
        assert np.abs(vector[largest]) == np.abs(vector).max()


@relaxed
@given(data=st.binary(max_size=20) | st.binary(min_size=16, max_size=16))
def test_any_bytes_as_a_vector(data: bytes) -> None:
    try:
        vector = read_embedding(base64.b64encode(data).decode(), size=4)
    except RequestError as error:
        _check_detail(error)
    else:
        assert len(data) == 16
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


PATHS = ["/encode_image", "/encode_images", "/encode_text", "/encode_texts", "/rank"]
kinds = st.sampled_from(
    ["application/json", "multipart/form-data; boundary=b", "image/png", "text/plain", ""]
)


@settings(relaxed, max_examples=200)
@given(path=st.sampled_from(PATHS), kind=kinds | tokens, body=bodies)
def test_any_request(client: httpx.Client, path: str, kind: str, body: bytes) -> None:
    response = client.post(path, content=body, headers={"content-type": kind})
    assert response.status_code in (400, 415, 422)
    assert response.json().keys() == {"code", "detail"}
    assert response.json()["code"] in CODES


CODES = {error.code for parent in ClipError.__subclasses__() for error in parent.__subclasses__()}
