"""The client against the real server, the real Lambda runtime, and peers that misbehave."""

import io
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from clip_encoder import (
    AsyncClient,
    Client,
    EncoderError,
    FingerprintChanged,
    Refused,
    Result,
    Unreachable,
    Vector,
)
from clip_encoder import images as sent
from clip_encoder.batching import Batcher, Item, batches
from clip_encoder.retries import pause, retry_after
from export import images
from handler.encoder import Encoder
from tests.conftest import free_port, in_a_loop, serve, with_settings
from tests.gateway import CREDENTIALS, OWN, is_signed
from tests.peers import Reply, Request, in_turn, peer, vector

SOON = {"retry-after": "0.01"}


class Awaited:
    """`AsyncClient`, each method run to its end, so that one test is for both clients."""

    def __init__(self, address: str, **options: Any) -> None:
        self._connect = partial(AsyncClient, address, **options)

    def __enter__(self) -> "Awaited":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def encode_image(self, image: Any) -> Vector:
        async def run() -> Vector:
            async with self._connect() as client:
                return await client.encode_image(image)

        return in_a_loop(run())

    def encode_images(self, images: Iterable[Any]) -> Iterator[Result]:
        async def run() -> list[Result]:
            async with self._connect() as client:
                return [result async for result in client.encode_images(images)]

        return iter(in_a_loop(run()))

    def health(self) -> dict[str, Any]:
        async def run() -> dict[str, Any]:
            async with self._connect() as client:
                return await client.health()

        return in_a_loop(run())


Connect = Callable[..., Client | Awaited]


@pytest.fixture(params=[Client, Awaited])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Each of the two clients in turn."""
    chosen: Connect = request.param
    return chosen


@pytest.fixture(scope="module")
def url(client: httpx.Client) -> str:
    return str(client.base_url)


def _float32(number: int) -> Vector:
    """`vector` as the client gives it."""
    return np.array(vector(number), np.float32)


# --- images and answers ---------------------------------------------------------------------------


def test_every_form_of_an_image(
    connect: Connect, url: str, encoder: Encoder, photo: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo)
    picture = images.photograph("coffee").convert("LA")
    with connect(url) as client:
        for image in (path, str(path), photo, bytearray(photo), memoryview(photo)):
            np.testing.assert_array_equal(client.encode_image(image), encoder.encode(photo))
        expected = encoder.encode(images.encoded(picture, "PNG"))
        found = client.encode_image(picture)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32


def test_a_cmyk_picture_keeps_its_pixels(url: str, encoder: Encoder) -> None:
    picture = images.photograph("coffee").convert("CMYK")
    with Client(url) as client:
        found = client.encode_image(picture)
    np.testing.assert_array_equal(found, encoder.encode(images.encoded(picture, "TIFF")))


@pytest.mark.parametrize("image", [17, None, ["photo.jpg"]])
def test_what_is_no_image_is_a_type_error(url: str, image: Any) -> None:
    with Client(url) as client, pytest.raises(TypeError, match="an image is a path"):
        client.encode_image(image)


def test_many_images_in_order_and_failures_as_values(
    connect: Connect, url: str, encoder: Encoder, photo: bytes, tmp_path: Path
) -> None:
    other = images.encoded(images.photograph("coffee"), "JPEG")
    given: list[Any] = [photo, other, b"no image", tmp_path / "missing.jpg", "s3://photos/x.jpg"]
    given *= 9  # more than one request
    with connect(url) as client:
        results = list(client.encode_images(item for item in given))
    assert [result.index for result in results] == list(range(45))
    assert [result.source for result in results] == given
    codes = [None, None, "not_an_image", "unreadable_file", "source_not_allowed"] * 9
    assert [result.code for result in results] == codes
    for start in range(0, 45, 5):
        np.testing.assert_allclose(results[start].get(), encoder.encode(photo), atol=1e-6)
        np.testing.assert_allclose(results[start + 1].get(), encoder.encode(other), atol=1e-6)
        with pytest.raises(EncoderError, match="not_an_image: the data is not an image"):
            results[start + 2].get()


def test_one_image_that_fails_raises(connect: Connect, url: str, tmp_path: Path) -> None:
    with connect(url) as client:
        with pytest.raises(EncoderError, match="send JPEG, PNG") as caught:
            client.encode_image(b"no image")
        assert (caught.value.code, caught.value.status) == ("not_an_image", 422)
        with pytest.raises(EncoderError, match=r"nowhere\.jpg: No such file") as caught:
            client.encode_image(tmp_path / "nowhere.jpg")
        assert caught.value.code == "unreadable_file"


def test_an_async_source(url: str, photo: bytes, encoder: Encoder) -> None:
    async def photographs() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield photo

    async def run() -> list[Result]:
        async with AsyncClient(url) as client:
            return [result async for result in client.encode_images(photographs())]

    results = in_a_loop(run())
    assert len(results) == 3
    np.testing.assert_allclose(results[2].get(), encoder.encode(photo), atol=1e-6)


def test_health(connect: Connect, url: str, encoder: Encoder) -> None:
    with connect(url) as client:
        assert client.health()["fingerprint"] == encoder.fingerprint


def test_the_health_of_a_service_that_is_unhealthy(connect: Connect) -> None:
    body = {"status": "unhealthy", "fingerprint": "f"}
    with peer(lambda _: Reply(503, body)) as service, connect(service.address) as client:
        assert client.health() == body


# --- batches --------------------------------------------------------------------------------------


def test_a_service_that_takes_fewer_images_gets_smaller_requests(
    connect: Connect, encoder: Encoder, photo: bytes
) -> None:
    with (
        serve(with_settings(encoder, max_images=3)) as http,
        connect(str(http.base_url)) as client,
    ):
        results = list(client.encode_images([photo] * 7 + [b"bad"]))
    assert [result.code for result in results] == [None] * 7 + ["not_an_image"]


def test_one_image_that_is_too_large_fails_alone(
    connect: Connect, encoder: Encoder, photo: bytes
) -> None:
    large = photo + bytes(200_000)
    with (
        serve(with_settings(encoder, max_body_bytes=200_000)) as http,
        connect(str(http.base_url)) as client,
    ):
        results = list(client.encode_images([photo, large, photo]))
    assert [result.code for result in results] == [None, "body_too_large", None]


def test_batches_are_bounded_by_number_and_by_bytes() -> None:
    sizes = [10, 10, 10, 10, 400, 10, 100, 60]
    items = [Item(place, None, b"x" * size) for place, size in enumerate(sizes)]
    found = [[item.index for item in group] for group in batches(items, Batcher(3, 200))]
    assert found == [[0, 1, 2], [3], [4], [5, 6], [7]]


def test_a_request_is_never_larger_than_lambda_takes() -> None:
    """Random bytes, 1 MB each: base64 makes 1.4 MB of each, so that four fit."""
    files = [np.random.default_rng(place).bytes(2**20) for place in range(9)]
    with peer(_served) as service, Client(service.address) as client:
        assert len(list(client.encode_images(files))) == 9
    lengths = [len(request.body) for request in service.requests]
    assert max(lengths) <= 6_291_456
    assert len(lengths) == 3  # as few requests as that takes


def _served(request: Request) -> Reply:
    """Each image's vector by its first byte, as the real service answers."""
    count = len(request.json()["images"])
    return Reply(body={"embeddings": [vector(0)] * count, "errors": []})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_long_generator_is_taken_only_as_far_as_needed(asynchronous: bool) -> None:
    taken = 0

    def million() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(1_000_000):
            taken += 1
            yield b"x"

    async def first(address: str) -> Result:
        async with AsyncClient(address, concurrency=2) as client:
            results = client.encode_images(million())
            return await anext(results)

    with peer(_served) as service:
        if asynchronous:
            assert in_a_loop(first(service.address)).index == 0
        else:
            with Client(service.address, concurrency=2) as client:
                assert next(client.encode_images(million())).index == 0
    assert taken <= 32 * 4 + 17  # requests begun and being made, and images read ahead


def test_requests_are_sent_side_by_side(connect: Connect) -> None:
    together = threading.Barrier(3)  # opens when three requests are there at once

    def answer(request: Request) -> Reply:
        together.wait(timeout=20)
        return _served(request)

    with peer(answer) as service, connect(service.address, concurrency=3) as client:
        results = list(client.encode_images([b"x"] * 32 * 3))
    assert all(result.error is None for result in results)


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_sent_again_twice(connect: Connect, status: int) -> None:
    failing = Reply(status, {"message": "not now"}, SOON)
    for replies, count in (((failing, Reply(body=vector(1))), 2), ((failing,), 3)):
        with peer(in_turn(*replies)) as service, connect(service.address) as client:
            if count == 2:
                np.testing.assert_array_equal(client.encode_image(b"x"), _float32(1))
            else:
                with pytest.raises(EncoderError, match="not now"):
                    client.encode_image(b"x")
        assert len(service.requests) == count


@pytest.mark.parametrize("status", [400, 403, 404, 413, 415, 422])
def test_what_is_refused_is_sent_once(connect: Connect, status: int) -> None:
    refusal = Reply(status, {"code": "some_code", "detail": "some detail"}, SOON)
    with (
        peer(lambda _: refusal) as service,
        connect(service.address) as client,
        pytest.raises(EncoderError, match="some_code: some detail") as caught,
    ):
        client.encode_image(b"x")
    assert (caught.value.code, caught.value.status) == ("some_code", status)
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, b"", "unauthorized"),
        (403, {"message": "Forbidden"}, "forbidden"),
        (404, b"<html>", "not_found"),
        (301, b"", "http_301"),
        (200, b"<html>welcome</html>", "http_200"),
    ],
)
def test_what_is_not_the_service_ends_a_run(
    connect: Connect, status: int, body: Any, code: str
) -> None:
    with (
        peer(lambda _: Reply(status, body)) as service,
        connect(service.address) as client,
        pytest.raises(Refused) as caught,
    ):
        list(client.encode_images([b"x", b"y"]))
    assert caught.value.code == code
    assert len(service.requests) == 1


GATEWAYS = {
    "no key": (Refused, "forbidden", 1, "Forbidden: give the API's key"),
    "no such path": (Refused, "forbidden", 1, "Missing Authentication Token: the API has no such"),
    "not permitted": (Refused, "forbidden", 1, "User: anonymous is not authorized"),
    "wrongly signed": (Refused, "forbidden", 1, "The request signature we calculated does not"),
    "unauthorized": (Refused, "unauthorized", 1, "Unauthorized"),
    "too large": (EncoderError, "body_too_large", 1, "Request Too Long"),
    "too many": (EncoderError, "too_many_requests", 3, "Too Many Requests"),
    "quota": (Refused, "quota_exceeded", 1, "Limit Exceeded: the quota of the key's usage plan"),
    "not configured": (EncoderError, "http_500", 3, "HTTP 500"),
    "throttled function": (EncoderError, "http_500", 3, "Internal server error"),
    "crashed function": (EncoderError, "http_502", 3, "Internal server error"),
    "timed out": (EncoderError, "http_504", 3, "Endpoint request timed out"),
    "HTTP API, crashed": (EncoderError, "http_500", 3, "Internal Server Error"),
    "HTTP API, timed out": (EncoderError, "http_503", 3, "Service Unavailable"),
    "URL, not permitted": (Refused, "forbidden", 1, "Forbidden. For troubleshooting"),
    "URL, too many": (EncoderError, "too_many_requests", 3, "Rate Exceeded."),
    "URL, crashed": (EncoderError, "http_502", 3, "HTTP 502"),
}


def test_what_a_gateway_answers_itself_is_all_tried() -> None:
    assert GATEWAYS.keys() == OWN.keys()


@pytest.mark.parametrize(("name", "expected"), GATEWAYS.items())
def test_what_a_gateway_answers_itself(
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    expected: tuple[type[EncoderError], str, int, str],
) -> None:
    kind, code, count, said = expected
    monkeypatch.setattr("clip_encoder.retries.FIRST", 0.01)
    with (
        peer(lambda _: OWN[name]) as service,
        connect(service.address) as client,
        pytest.raises(EncoderError) as caught,
    ):
        client.encode_image(b"x")
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert said in caught.value.detail
    assert "session-token" not in caught.value.detail
    assert "\n" not in caught.value.detail
    assert len(service.requests) == count


def test_an_image_that_a_gateway_does_not_take_fails_alone(connect: Connect) -> None:
    def answer(request: Request) -> Reply:
        return OWN["too large"] if len(request.body) > 1000 else _served(request)

    with peer(answer) as service, connect(service.address) as client:
        results = list(client.encode_images([b"x", bytes(2000), b"y"]))
    assert [result.code for result in results] == [None, "body_too_large", None]


def test_a_quota_that_is_used_up_ends_a_run(connect: Connect) -> None:
    with (
        peer(lambda _: OWN["quota"]) as service,
        connect(service.address, concurrency=1) as client,
        pytest.raises(Refused, match="quota_exceeded"),
    ):
        list(client.encode_images([b"x"] * 32 * 9))
    assert len(service.requests) <= 2  # the second was begun before the first was answered


@pytest.mark.parametrize("body", [{}, [], 7, {"embeddings": [[1.0]], "errors": []}, {"errors": []}])
def test_an_answer_of_another_shape_is_a_failure(connect: Connect, body: Any) -> None:
    with peer(lambda _: Reply(body=body)) as service, connect(service.address) as client:
        results = list(client.encode_images([b"x", b"y"]))
    assert [result.code for result in results] == ["foreign_answer"] * 2


@pytest.mark.parametrize("body", [{}, [], 7, ["a"], [[1.0, 2.0]], [1.0, None]])
def test_a_vector_of_another_shape_is_a_failure(connect: Connect, body: Any) -> None:
    with (
        peer(lambda _: Reply(body=body)) as service,
        connect(service.address) as client,
        pytest.raises(EncoderError, match="foreign_answer"),
    ):
        client.encode_image(b"x")


def test_a_connection_that_ends_is_made_again(connect: Connect) -> None:
    replies = in_turn(Reply(0), Reply(body=vector(2)))
    with peer(replies) as service, connect(service.address) as client:
        np.testing.assert_array_equal(client.encode_image(b"x"), _float32(2))
    assert len(service.requests) == 2


def test_no_service_ends_a_run(connect: Connect) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with connect(address, retries=0) as client, pytest.raises(Unreachable, match=r"127\.0\.0\.1"):
        list(client.encode_images([b"x"]))


def test_a_service_that_does_not_answer_in_time(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with connect(address, retries=0, timeout=0.05) as client, pytest.raises(Unreachable):
            client.encode_image(b"x")


def test_a_batch_that_fails_as_a_whole_is_values(connect: Connect) -> None:
    overloaded = Reply(503, {"code": "overloaded", "detail": "busy"}, SOON)
    with peer(lambda _: overloaded) as service, connect(service.address) as client:
        results = list(client.encode_images([b"x", b"y"]))
    assert [result.code for result in results] == ["overloaded"] * 2
    assert len(service.requests) == 3


def test_images_whose_time_was_spent_are_sent_again_alone(connect: Connect) -> None:
    spent = [{"index": 1, "code": "out_of_time", "detail": ""}]
    spent += [{"index": 2, "code": "invalid_image", "detail": ""}]
    first = Reply(body={"embeddings": [vector(1), None, None], "errors": spent})
    second = Reply(body={"embeddings": [vector(2)], "errors": []})
    with peer(in_turn(first, second)) as service, connect(service.address) as client:
        results = list(client.encode_images([b"a", b"b", b"c"]))
    assert [result.code for result in results] == [None, None, "invalid_image"]
    np.testing.assert_array_equal(results[1].get(), _float32(2))
    assert service.requests[1].json() == {"images": ["Yg=="]}
    assert len(service.requests) == 2


def test_another_fingerprint_in_the_middle_of_a_run_raises(connect: Connect) -> None:
    def answer(request: Request) -> Reply:
        count = len(request.json()["images"])
        body = {"embeddings": [vector(0)] * count, "errors": []}
        return Reply(body=body, headers={"x-clip-fingerprint": f"of {count}"})

    with (
        peer(answer) as service,
        connect(service.address, concurrency=1) as client,
        pytest.raises(FingerprintChanged, match=r"of (32|1), and the service makes .* of (1|32):"),
    ):
        list(client.encode_images([b"x"] * 33))


def test_another_fingerprint_than_expected_raises(
    connect: Connect, url: str, photo: bytes, encoder: Encoder
) -> None:
    with connect(url, fingerprint=encoder.fingerprint) as client:
        client.encode_image(photo)
    with connect(url, fingerprint="another") as client, pytest.raises(FingerprintChanged):
        client.encode_image(photo)


def test_waits_grow_to_eight_seconds_and_vary() -> None:
    for attempt, longest in enumerate([0.5, 1, 2, 4, 8, 8, 8]):
        waits = {pause(attempt) for _ in range(50)}
        assert len(waits) > 1
        assert 0.75 * longest <= min(waits) <= max(waits) <= longest
    assert pause(0, asked=3) == 3
    assert pause(0, asked=3600) <= 0.5  # nobody waits an hour
    assert pause(0, asked=-1) <= 0.5


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after({"retry-after": "7"}) == 7
    seconds = retry_after({"retry-after": "Wed, 21 Oct 2065 07:28:00 GMT"})
    assert seconds is not None
    assert seconds > 1e8
    assert retry_after({"retry-after": "Wed, 21 Oct 2065 07:28:00 -0000"}) is None
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


# --- who asks -------------------------------------------------------------------------------------


def test_an_api_key_is_sent(connect: Connect) -> None:
    with (
        peer(lambda _: Reply(body=vector(0))) as service,
        connect(f"{service.address}/prod/", api_key="secret") as client,
    ):
        client.encode_image(b"x")
    (request,) = service.requests
    assert request.headers["x-api-key"] == "secret"
    assert request.path == "/prod/encode_image"


@pytest.mark.parametrize("token", ["", CREDENTIALS["AWS_SESSION_TOKEN"]])
def test_a_signature_that_aws_would_accept(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    _credentials(monkeypatch, token)

    def answer(request: Request) -> Reply:
        if not is_signed(request, token):
            return OWN["wrongly signed"]
        body = {"status": "healthy"} if request.method == "GET" else vector(3)
        return Reply(body=body)

    with peer(answer) as service, connect(service.address, sigv4=True) as client:
        np.testing.assert_array_equal(client.encode_image(b"x"), _float32(3))
        assert client.health() == {"status": "healthy"}


def _credentials(monkeypatch: pytest.MonkeyPatch, token: str = "") -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)


@pytest.mark.parametrize(
    ("host", "scope"),
    [
        ("abc.lambda-url.us-west-2.on.aws", "us-west-2/lambda"),
        ("abc.execute-api.us-west-2.amazonaws.com", "us-west-2/execute-api"),
        ("clip.example", "eu-north-1/execute-api"),
    ],
)
def test_the_region_and_service_of_a_signature(
    monkeypatch: pytest.MonkeyPatch, host: str, scope: str
) -> None:
    from clip_encoder.transports.sigv4 import Signature

    _credentials(monkeypatch)
    request = httpx.Request("POST", f"https://{host}/encode_image", content=b"{}")
    signed = next(Signature(host).auth_flow(request))
    assert f"/{scope}/aws4_request" in signed.headers["authorization"]


def test_no_credentials_to_sign_with(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    _credentials(monkeypatch)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with (
        connect("http://127.0.0.1:9", sigv4=True) as client,
        pytest.raises(Refused, match="no AWS credentials"),
    ):
        client.encode_image(b"x")


@pytest.mark.parametrize(
    ("address", "options", "reason"),
    [
        ("ftp://host", {}, "no address of the service"),
        ("localhost:3000", {}, "no address of the service"),
        ("lambda://name", {"api_key": "k"}, "for http"),
        ("local:model", {"sigv4": True}, "for http"),
        ("http://host", {"concurrency": 0}, "at least 1"),
        ("http://host", {"retries": -1}, "at least 0"),
    ],
)
def test_what_cannot_be_connected_to(address: str, options: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Client(address, **options)
    with pytest.raises(ValueError, match=r"at least|for http"):
        AsyncClient(address, **options)


# --- Lambda, and this process ---------------------------------------------------------------------


@pytest.fixture
def function(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call it with an address to make boto3 find Lambda there."""
    _credentials(monkeypatch)
    return partial(monkeypatch.setenv, "AWS_ENDPOINT_URL_LAMBDA")


def test_lambda_directly(
    lambda_client: httpx.Client,
    function: Callable[[str], None],
    encoder: Encoder,
    photo: bytes,
) -> None:
    """The real runtime, under AWS's emulator of it."""
    function(str(lambda_client.base_url))
    with Client("lambda://function", fingerprint=encoder.fingerprint) as client:
        np.testing.assert_allclose(client.encode_image(photo), encoder.encode(photo), atol=1e-6)
        results = list(client.encode_images([photo, b"no image", bytes(5_000_000), photo]))
        assert [r.code for r in results] == [None, "not_an_image", "body_too_large", None]
        np.testing.assert_allclose(results[3].get(), encoder.encode(photo), atol=1e-6)
        with pytest.raises(EncoderError, match="the data is not an image") as caught:
            client.encode_image(b"no image")
        assert caught.value.code == "not_an_image"
        assert client.health()["fingerprint"] == encoder.fingerprint
    with (
        Client("lambda://function", fingerprint="another") as client,
        pytest.raises(FingerprintChanged),
    ):
        client.encode_image(photo)


def _lambda(*versions: str) -> Callable[[Request], Reply]:
    """An alias that moves: answers come from each of `versions` in turn, health from all."""
    left = list(versions)
    current = versions[0]

    def answer(request: Request) -> Reply:
        nonlocal current
        event = request.json()
        if event != {"action": "health"} and left:
            current = left.pop(0)
        body: Any = {"embedding": vector(1)}
        if event == {"action": "health"}:
            body = {"fingerprint": f"fingerprint of {current[0]}"}
        return Reply(body=body, headers={"x-amz-executed-version": current})

    return answer


def test_a_new_version_of_the_same_fingerprint_is_taken(function: Callable[[str], None]) -> None:
    with peer(_lambda("1a", "1a", "1b", "1b")) as service:
        function(service.address)
        with Client("lambda://clip:live") as client:
            for _ in range(4):
                client.encode_image(b"x")
    asked = [r.json() == {"action": "health"} for r in service.requests]
    assert asked == [False, True, False, False, True, False]  # once for each version
    assert "/functions/clip%3Alive/invocations" in service.requests[0].path


def test_a_new_version_of_another_fingerprint_raises(function: Callable[[str], None]) -> None:
    with peer(_lambda("1", "2")) as service:
        function(service.address)
        with Client("lambda://clip:live") as client:
            client.encode_image(b"x")
            with pytest.raises(FingerprintChanged, match=r"fingerprint of 1, .* fingerprint of 2"):
                client.encode_image(b"x")


@pytest.mark.parametrize(
    ("reply", "code", "count"),
    [
        (Reply(429, {"Message": "slow"}, {"x-amzn-errortype": "TooManyRequestsException"}), "", 3),
        (Reply(500, {"Message": "oh"}, {"x-amzn-errortype": "ServiceException"}), "", 3),
        (Reply(409, {"Message": "wait"},
               {"x-amzn-errortype": "CodeArtifactUserPendingException"}), "function_error", 3),
        (Reply(413, {"Message": "big"}, {"x-amzn-errortype": "RequestEntityTooLargeException"}),
         "body_too_large", 1),
        (Reply(403, {"Message": "no"}, {"x-amzn-errortype": "AccessDeniedException"}),
         "forbidden", 1),
        (Reply(200, {"errorType": "Sandbox.Timedout", "errorMessage": "Task timed out"}),
         "function_error", 3),
        (Reply(200, {"errorType": "Overloaded", "errorMessage": "overloaded: busy"}),
         "overloaded", 3),
        (Reply(0), "unreachable", 3),
    ],
)  # fmt: skip
def test_lambdas_own_errors(
    function: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    reply: Reply,
    code: str,
    count: int,
) -> None:
    monkeypatch.setattr("clip_encoder.retries.FIRST", 0.01)
    with peer(lambda _: reply) as service:
        function(service.address)
        with Client("lambda://clip:live") as client, pytest.raises(EncoderError) as caught:
            client.encode_image(b"x")
    assert caught.value.code == code or not code
    assert len(service.requests) == count


def test_the_model_in_this_process(model_dir: Path, encoder: Encoder, photo: bytes) -> None:
    with Client(f"local:{model_dir}", fingerprint=encoder.fingerprint) as client:
        np.testing.assert_allclose(client.encode_image(photo), encoder.encode(photo), atol=1e-6)
        results = list(client.encode_images([photo, b"no image"] * 20))
        assert [result.code for result in results] == [None, "not_an_image"] * 20
        assert client.health()["fingerprint"] == encoder.fingerprint


def test_no_model_in_this_process(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="model_unusable"):
        Client(f"local:{tmp_path}")


# --- smaller images -------------------------------------------------------------------------------


def _large(kind: str = "JPEG", **options: Any) -> bytes:
    picture = images.photograph("coffee").resize((3000, 2000), Image.Resampling.BICUBIC)
    return images.encoded(picture, kind, **options)


def test_a_large_image_is_shrunk_before_it_is_sent(connect: Connect) -> None:
    large = _large(quality=95)
    with (
        peer(lambda _: Reply(body=vector(0))) as service,
        connect(service.address, shrink=True) as client,
    ):
        client.encode_image(large)
    assert len(service.requests[0].body) < len(large) / 2


def test_a_shrunk_image_is_cropped_where_the_whole_one_is(encoder: Encoder) -> None:
    """At this size, the same factor for both sides would move the crop by a pixel."""
    picture = images.photograph("chelsea").resize((1734, 1153), Image.Resampling.BICUBIC)
    for turned in (picture, picture.transpose(Image.Transpose.ROTATE_90)):
        whole = images.encoded(turned, "JPEG", quality=90)
        small = sent.shrunk(whole)
        assert len(small) < len(whole)
        assert encoder.encode(small) @ encoder.encode(whole) > 0.9999


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_shrunk_image_has_nearly_the_same_vector(kind: str, encoder: Encoder) -> None:
    """On weights that are sharper than the trained ones; see docs/client.md."""
    large = _large(kind)
    small = sent.shrunk(large)
    with Image.open(io.BytesIO(small)) as picture:
        assert picture.size == (1008, 672)
    assert encoder.encode(small) @ encoder.encode(large) > 0.9999


def test_a_shrunk_image_is_still_turned_by_its_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(sent.shrunk(_large(exif=exif)))) as picture:
        assert picture.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    "name", ["small", "alpha", "palette", "CMYK", "one colour transparent", "no image"]
)
def test_what_is_not_shrunk(name: str, photo: bytes) -> None:
    picture = images.photograph("coffee").resize((3000, 2000))
    data = {
        "small": photo,
        "alpha": images.encoded(picture.convert("RGBA"), "PNG"),
        "palette": images.encoded(picture.quantize(16), "PNG"),
        "CMYK": images.encoded(picture.convert("CMYK"), "JPEG"),
        "one colour transparent": images.encoded(picture, "PNG", transparency=(200, 150, 100)),
        "no image": b"no image",
    }[name]
    assert sent.shrunk(data) is data


def test_the_package_is_whole() -> None:
    """What `pip install` would install is what the tests import."""
    import tomllib

    from tests.conftest import ROOT

    settings = tomllib.loads((ROOT / "client/pyproject.toml").read_text())
    folder = ROOT / "client"
    packages = {
        str(path.parent.relative_to(folder)).replace("/", ".")
        for path in folder.glob("clip_encoder/**/__init__.py")
    }
    assert set(settings["tool"]["setuptools"]["packages"]) == packages
