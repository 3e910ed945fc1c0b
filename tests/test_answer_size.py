"""No answer is larger than what carries it takes; what might be is refused before any work."""

import base64
import copy
import json
import math
import re
import types
from typing import Any

import numpy as np
import pytest
from awslambdaric.lambda_runtime_marshaller import LambdaMarshaller
from hypothesis import given
from hypothesis import strategies as st

from events.generate import in_s3, map_batch
from handler import answers
from handler.answers import LAMBDA, LOAD_BALANCER, STEP_FUNCTIONS
from handler.encoder import Encoder
from handler.engines import Embedding
from handler.errors import ClipError, InvalidField, ResultTooLarge
from handler.events import direct
from handler.outcome import Outcome
from handler.rank import Ranking
from tests import documents
from tests.conftest import image_tower, serve, with_settings
from tests.test_every_way_in import event, main

__all__ = ["main"]  # the fixture

LONGEST = np.float32(-1.04776625e-07)
"""A number of as many characters as a float32 can have."""
SIZE = 512


def sent(answer: object) -> int:
    """Bytes that Lambda's own runtime client makes of an answer."""
    text, _ = LambdaMarshaller().marshal_response(answer)
    return len(text.encode())


def over_http(body: str) -> dict[str, Any]:
    """The answer to an HTTP event, its headers as long as ours can be."""
    names = ("content-type", "x-clip-fingerprint", "x-request-id", "access-control-allow-origin")
    headers = dict.fromkeys(names, "v" * 256)
    more = {name: [value] for name, value in headers.items()}
    return {"statusCode": 200, "headers": headers, "multiValueHeaders": more, "body": body}


def most(check: Any, *given: Any) -> int:
    """The largest count that `check` lets pass."""
    low, high = 0, 2**20
    while high - low > 1:
        middle = (low + high) // 2
        try:
            check(middle, *given)
        except ResultTooLarge:
            high = middle
        else:
            low = middle
    return low


@given(st.floats(-1, 1, width=32))
def test_no_number_is_longer_than_the_longest(value: float) -> None:
    """Of those from -1 to 1, as all are here: elements of unit vectors, cosines, probabilities."""
    number = np.array([value], np.float32)
    assert len(str(number[0])) <= len(str(LONGEST)) == 15
    assert sent(answers.to_floats(number)) <= len("[]") + len(str(LONGEST))


def vectors(count: int) -> list[Outcome[Embedding]]:
    return [Outcome(np.full(SIZE, LONGEST))] * count


@pytest.mark.parametrize("limit", [LAMBDA, LOAD_BALANCER, STEP_FUNCTIONS])
def test_as_many_vectors_as_may_be_sent_fit_whatever_their_numbers(limit: int) -> None:
    count = most(answers.check_vectors, SIZE, limit)
    full = vectors(count)
    cut = list(range(count))
    by_invoke = {"embeddings": answers.batch_floats(full), "errors": [], "truncated": cut}
    by_event = over_http(answers.batch_json(full, truncated=cut))
    for answer in (by_invoke, by_event):
        assert 0.9 * limit < sent(answer) <= limit


@pytest.mark.parametrize("as_base64", [False, True])
def test_nor_does_openais_shape_take_more(as_base64: bool) -> None:
    count = most(answers.check_vectors, SIZE, LOAD_BALANCER, as_base64)
    vector = vectors(1)[0].get()
    text = base64.b64encode(answers.to_bytes(vector)).decode()
    embedding = text if as_base64 else answers.to_floats(vector)
    data = [
        {"object": "embedding", "index": 10_000 + index, "embedding": embedding}
        for index in range(count)
    ]
    body = json.dumps({"object": "list", "data": data, "model": "m" * 32}, separators=(",", ":"))
    assert 0.9 * LOAD_BALANCER < sent(over_http(body)) <= LOAD_BALANCER


def ranking(rows: int, columns: int, failed: tuple[bool, bool]) -> Ranking:
    """Numbers that are as long as any, and of each list all or nothing failed, as badly as can be.

    An unknown field is quoted with 64 characters, and none takes more bytes than these.
    """
    names = InvalidField(f"unknown field {64 * chr(0xE0001)!r}; known: image, s3, text, embedding")
    error: Outcome[Embedding] = Outcome(error=names)
    queries, candidates = (
        [error if all_failed else Outcome(np.zeros(1, np.float32))] * count
        for count, all_failed in zip((rows, columns), failed, strict=True)
    )
    numbers = np.full((rows, columns), np.nan if any(failed) else LONGEST, np.float32)
    return Ranking(numbers, numbers, queries, candidates, [], False)


@pytest.mark.parametrize("limit", [LAMBDA, LOAD_BALANCER])
@pytest.mark.parametrize("queries", [1, 7, 100, 300, 512])
@pytest.mark.parametrize("failed", [(False, False), (False, True), (True, False), (True, True)])
def test_a_ranking_that_may_be_sent_fits_whatever_fails_in_it(
    limit: int, queries: int, failed: tuple[bool, bool]
) -> None:
    columns = most(lambda count: answers.check_ranking(queries, count, limit))
    columns = min(columns, 1024 - queries)
    made = ranking(queries, columns, failed)
    by_event = over_http(answers.rank_json(made))
    for answer in (answers.rank_floats(made), by_event):
        assert sent(answer) <= limit


def test_what_is_refused_would_be_too_large() -> None:
    """Or nearly: the refusal is not made of numbers plucked from the air."""
    rows = 512
    columns = most(lambda count: answers.check_ranking(rows, count, LAMBDA))
    made = ranking(rows, columns, (False, False))
    assert sent(answers.rank_floats(made)) > 0.97 * LAMBDA


def test_the_error_says_how_many_may_be_sent() -> None:
    with pytest.raises(ResultTooLarge) as caught:
        answers.check_vectors(256, SIZE, LOAD_BALANCER)
    assert str(caught.value) == (
        "result_too_large: the answer to 256 items may have over 1,000,000 bytes, the most that "
        "can be answered here: send at most 113 in one request"
    )
    answers.check_vectors(113, SIZE, LOAD_BALANCER)
    with pytest.raises(ResultTooLarge, match=r"512 x 512 pairs .*: send at most 184,\d\d\d pairs"):
        answers.check_ranking(512, 512, LAMBDA)


def test_the_page_says_how_many() -> None:
    section = documents.read("docs/api.md").partition("## How much fits into an answer")[2]
    rows = [line.split("|")[2:5] for line in section.splitlines() if line.startswith("| ")][1:4]
    limits, counts, pairs = zip(*rows, strict=True)
    assert [_numbers(cell) for cell in limits] == [[LAMBDA], [LOAD_BALANCER], [STEP_FUNCTIONS]]
    of_numbers = [most(answers.check_vectors, SIZE, _numbers(cell)[0]) for cell in limits]
    assert [_numbers(cell)[0] for cell in counts] == of_numbers
    assert most(answers.check_vectors, SIZE, LOAD_BALANCER, True) == _numbers(counts[1])[1]
    for cell, limit in zip(pairs, (LAMBDA, LOAD_BALANCER), strict=False):
        count = _numbers(cell)[0]
        queries = math.isqrt(count)
        answers.check_ranking(queries, count // queries, limit)
        with pytest.raises(ResultTooLarge):
            answers.check_ranking(queries, int(1.02 * count / queries), limit)


def _numbers(cell: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\b", cell)]


# --- through the ways in --------------------------------------------------------------------------


class Idle:
    """An engine, and a tokenizer, that nobody may ask anything of."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


@pytest.fixture
def idle(main: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """``handler.main``, in which no image is decoded and no text becomes tokens."""
    monkeypatch.setattr(main.encoder, "images", Idle())
    monkeypatch.setattr(main.encoder, "texts", Idle())
    monkeypatch.setattr(main.encoder, "config", with_limits(main.encoder).config)
    return main


def with_limits(encoder: Encoder) -> Encoder:
    """As many images and texts as anybody wants."""
    return with_settings(encoder, max_images=2000, max_texts=2000)


def vector_item(seed: int) -> dict[str, str]:
    numbers = np.random.default_rng(seed).standard_normal(SIZE).astype("<f4")
    return {"embedding": base64.b64encode(numbers.tobytes()).decode()}


def pairs(rows: int, columns: int) -> dict[str, Any]:
    items = [vector_item(seed) for seed in range(max(rows, columns))]
    return {"queries": items[:rows], "candidates": items[:columns]}


TEXTS = {"texts": ["a"] * 800}
REQUESTS = {
    "/encode_texts": TEXTS,
    "/encode_images": {"images": ["aGk="] * 800},
    "/v1/embeddings": {"input": ["a"] * 800},
    "/rank": pairs(512, 512),
}


def asked(name: str, path: str, body: object) -> dict[str, Any]:
    """The event `name`, which asks for something else."""
    request = copy.deepcopy(event(name))
    context = request["requestContext"]
    for place in (request, context, context.get("http", {})):
        for key in ("path", "rawPath"):
            if key in place:
                place[key] = path
    for headers in filter(None, (request.get("headers"), request.get("multiValueHeaders"))):
        for header in [header for header in headers if header.lower() == "content-type"]:
            value = "application/json"
            headers[header] = [value] if isinstance(headers[header], list) else value
    return request | {"body": json.dumps(body), "isBase64Encoded": False}


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("name", ["rest_text", "http_api_raw", "function_url", "alb"])
def test_an_event_whose_answer_would_not_pass_is_refused_before_any_work(
    idle: types.ModuleType, name: str, path: str
) -> None:
    response = idle.handler(asked(name, path, REQUESTS[path]), None)
    body = json.loads(response["body"])
    error = body.get("error", body)
    assert (response["statusCode"], error["code"]) == (413, "result_too_large")
    limit = LOAD_BALANCER if name == "alb" else LAMBDA
    assert f"{limit:,} bytes" in (error.get("message") or error["detail"])
    if path == "/v1/embeddings":
        assert error["param"] == "input"


@pytest.mark.parametrize(
    "invoke",
    [TEXTS, {"images": ["aGk="] * 800}, {"rank": pairs(512, 512)}],
    ids=lambda x: next(iter(x)),
)
def test_so_is_a_direct_invoke(idle: types.ModuleType, invoke: dict[str, Any]) -> None:
    with pytest.raises(ResultTooLarge, match="6,291,556 bytes"):
        idle.handler(invoke, None)


def test_so_is_a_maps_batch_that_would_have_its_vectors_back(encoder: Encoder) -> None:
    here = with_settings(encoder, s3_buckets=())
    items = [in_s3(str(number)) for number in range(30)]
    with pytest.raises(ResultTooLarge, match="262,144 bytes"):
        direct.invoke(map_batch(*items), None, here)
    answer = direct.invoke(map_batch(*items[:29]), None, here)
    assert len(answer["errors"]) == 29


def test_what_a_load_balancer_takes_is_answered(main: types.ModuleType) -> None:
    limit = main.encoder.config.max_texts
    assert limit == 256  # of which a load balancer takes fewer
    texts = {"texts": ["a"] * 113}
    response = main.handler(asked("alb", "/encode_texts", texts), None)
    assert (response["statusCode"], len(json.loads(response["body"])["embeddings"])) == (200, 113)
    assert sent(response) <= LOAD_BALANCER
    both = {"input": ["a"] * 256, "encoding_format": "base64"}
    response = main.handler(asked("alb", "/v1/embeddings", both), None)
    assert (response["statusCode"], len(json.loads(response["body"])["data"])) == (200, 256)
    assert sent(response) <= LOAD_BALANCER


def test_the_largest_ranking_that_lambda_takes_is_answered(main: types.ModuleType) -> None:
    for name, path in (("rest_text", "/rank"), ("function_url", "/rank")):
        response = main.handler(asked(name, path, pairs(430, 429)), None)
        assert response["statusCode"] == 200
        assert LAMBDA / 2 < sent(response) <= LAMBDA
    answer = main.handler({"rank": pairs(430, 429)}, None)
    assert sent(answer) <= LAMBDA


def test_a_web_server_answers_whatever_it_is_asked(encoder: Encoder) -> None:
    with serve(encoder) as client:
        answer = client.post("/rank", json=pairs(512, 512), timeout=60)
    assert answer.status_code == 200
    assert len(answer.content) > LAMBDA


def test_the_tower_is_what_is_not_asked(encoder: Encoder) -> None:
    """So that `idle` finds out what it should."""
    busy = copy.copy(with_limits(encoder))
    assert image_tower(busy)
    busy.texts = Idle()  # type: ignore[assignment]
    with pytest.raises((AssertionError, ClipError), match="was asked for"):
        direct.invoke({"texts": ["a"]}, None, busy)
