"""Images in S3, by direct invoke and over HTTP, against a real HTTP stand-in for S3."""

import base64
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import boto3
import httpx
import numpy as np
import pytest

from export import images
from handler import aws as calls
from handler import telemetry
from handler.aws import AHEAD
from handler.budget import Budget
from handler.encoder import Encoder
from handler.errors import ClipError, SourceUnavailable
from handler.events import direct
from handler.images import s3
from handler.images.s3 import Image, Source
from handler.outcome import Outcome
from tests.answers import assert_same
from tests.aws import aws
from tests.conftest import ROOT, serve, with_settings


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before what may pass is tried again."""
    monkeypatch.setattr(calls, "PAUSES", (0.01, 0.01))


@pytest.fixture(scope="module")
def here(encoder: Encoder, cloud: SimpleNamespace) -> Encoder:
    """The encoder, beside S3 and allowed to read ``photos``."""
    return with_settings(encoder, s3_buckets=("photos", "none-such"))


@pytest.fixture(scope="module")
def server(here: Encoder) -> Iterator[httpx.Client]:
    with serve(here) as client:
        yield client


@pytest.fixture(scope="module")
def other() -> bytes:
    return images.encoded(images.photograph("rocket"), "PNG")


def put(cloud: SimpleNamespace, key: str, body: bytes) -> str:
    """Store an object in ``photos``; its version."""
    version: str = cloud.s3.put_object(Bucket="photos", Key=key, Body=body)["VersionId"]
    return version


def in_s3(key: str, **more: Any) -> dict[str, Any]:
    return {"s3": {"bucket": "photos", "key": key, **more}}


def both(event: dict[str, Any], encoder: Encoder, server: httpx.Client) -> Iterator[Any]:
    """The vector or vectors, by direct invoke and then over HTTP."""
    answer = direct.invoke(event, None, encoder)
    yield answer["embeddings"] if "images" in event else answer["embedding"]
    response = server.post("/encode_images" if "images" in event else "/encode_image", json=event)
    assert response.status_code == 200, response.text
    yield response.json()["embeddings"] if "images" in event else response.json()


def test_every_form_gives_the_vector_of_the_same_bytes_sent_inline(
    here: Encoder, server: httpx.Client, cloud: SimpleNamespace, photo: bytes
) -> None:
    key, vector = "2024/red shoe.jpg", here.encode(photo)
    version = put(cloud, key, photo)
    forms: list[dict[str, Any]] = [
        {"image": f"s3://photos/{key}"},
        in_s3(key),
        in_s3(key, version_id=None),
        in_s3(key, version_id=version),
        {"image": "", **in_s3(key)},
        {"image": f"s3://photos/{key}", "s3": None},
    ]
    for form in forms:
        for answer in both(form, here, server):
            assert_same(answer, vector, atol=0)


def test_in_a_batch_with_inline_images_each_keeps_its_place(
    here: Encoder, server: httpx.Client, cloud: SimpleNamespace, photo: bytes, other: bytes
) -> None:
    put(cloud, "a.jpg", photo)
    put(cloud, "b.png", other)
    text = base64.b64encode(other).decode()
    bad = [
        "s3://photos/missing",
        "s3://",
        {"s3": {}},
        "s3://secret/a.jpg",
        7,
        in_s3("a.jpg") | {"image": "x"},
    ]
    codes = [
        "source_not_found",
        "invalid_field",
        "missing_field",
        "source_not_allowed",
        *["invalid_field"] * 2,
    ]
    good = [
        "s3://photos/a.jpg",
        in_s3("b.png"),
        text,
        {"image": "s3://photos/b.png"},
        {"image": text},
    ]
    event = {"images": [good[0], *bad, *good[1:]]}
    vectors = np.stack([here.encode(photo)] + [here.encode(other)] * 4)
    for answer in both(event, here, server):
        assert answer[1:7] == [None] * 6
        assert_same([answer[0], *answer[7:]], vectors)
    errors = direct.invoke(event, None, here)["errors"]
    assert [(error["index"], error["code"]) for error in errors] == list(enumerate(codes, start=1))


def test_each_version_has_its_own_vector(
    here: Encoder, cloud: SimpleNamespace, photo: bytes, other: bytes
) -> None:
    first, second = put(cloud, "versions", photo), put(cloud, "versions", other)
    marker = cloud.s3.delete_object(Bucket="photos", Key="versions")["VersionId"]
    assert_same(here.encode(Source("photos", "versions", first)), here.encode(photo), atol=0)
    assert_same(here.encode(Source("photos", "versions", second)), here.encode(other), atol=0)
    for version in ("", marker, "none-such"):
        with pytest.raises(ClipError, match="source_not_found: "):
            here.encode(Source("photos", "versions", version))


LONGEST = "ü" * 512
KEYS = [
    "a b",
    "a+b",
    "100%",
    "%20",
    "a?b=c",
    "a#b",
    "Schuh-é-靴-👟",
    "a//b",
    "/a",
    "a/../b",
    "./a",
    "a&b;c='\"",
    "~",
]


@pytest.mark.parametrize("key", [*KEYS, LONGEST])
def test_any_key_is_taken_as_it_is(
    here: Encoder, server: httpx.Client, cloud: SimpleNamespace, photo: bytes, key: str
) -> None:
    put(cloud, key, photo)
    for answer in both({"images": [f"s3://photos/{key}", in_s3(key)]}, here, server):
        assert_same(answer, np.stack([here.encode(photo)] * 2))


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        ("missing", 404, "source_not_found"),
        (LONGEST + "x", 404, "source_not_found"),
        ("empty", 400, "missing_field"),
        ("denied/x", 403, "source_denied"),
        ("archived/x", 403, "source_denied"),
        ("undecryptable/x", 403, "source_denied"),
        (
            "elsewhere/x",
            403,
            "source_denied",
        ),  # a refusal that is not understood is no proof of absence
        ("huge/x", 413, "image_too_large"),  # by its head alone: no byte of it ever comes
        ("throttled/x", 503, "source_unavailable"),
        (
            "expired/x",
            503,
            "source_unavailable",
        ),  # our credentials, which is no fault of the object's
        ("broken/x", 503, "source_unavailable"),
        ("cut/x", 503, "source_unavailable"),
        ("throttled-once/x", 200, ""),
        ("slow/x", 200, ""),
    ],
)
def test_what_s3_answers_decides(
    here: Encoder,
    server: httpx.Client,
    cloud: SimpleNamespace,
    photo: bytes,
    key: str,
    status: int,
    code: str,
) -> None:
    if key not in ("missing", LONGEST + "x"):
        put(cloud, key, b"" if key == "empty" else photo)
    start = time.monotonic()
    response = server.post("/encode_image", json={"image": f"s3://photos/{key}"})
    assert time.monotonic() - start < 10
    assert response.status_code == status
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)
    if status == 200:
        assert_same(response.json(), here.encode(photo), atol=0)
    else:
        assert response.json()["code"] == code
        _check_detail(response.json()["detail"])


def _check_detail(detail: str) -> None:
    """Said to whoever asks: nothing of S3's own text, of who we are to S3, or of where it is."""
    for secret in ("testing", "127.0.0.1", "http", "AccessDenied", "SlowDown", "Error"):
        assert secret not in detail


def test_a_bucket_that_does_not_exist(here: Encoder) -> None:
    with pytest.raises(ClipError, match="source_not_found: "):
        here.encode(Source("none-such", "x"))


def test_a_time_out_is_ours_and_passes(
    here: Encoder, cloud: SimpleNamespace, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cloud, "slow/y", photo)
    monkeypatch.setattr(calls, "READ_TIMEOUT", 0.2)
    calls._make_client.cache_clear()
    with pytest.raises(SourceUnavailable) as caught:
        here.encode(Source("photos", "slow/y"))
    _check_detail(caught.value.detail)
    calls._make_client.cache_clear()


def test_without_credentials(
    here: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    calls._make_client.cache_clear()
    with pytest.raises(SourceUnavailable, match="try again"):
        here.encode(Source("photos", "x"))
    calls._make_client.cache_clear()
    assert "NoCredentialsError" in caplog.text  # the log says why


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"image": "s3://"}, "invalid_field"),
        ({"image": "s3://photos"}, "invalid_field"),
        ({"image": "s3://photos/"}, "invalid_field"),
        ({"image": "s3:///key"}, "invalid_field"),
        ({"image": "S3://photos/key"}, "invalid_field"),
        ({"image": "s3://photos/\ud800"}, "invalid_field"),
        (in_s3("\ud800"), "invalid_field"),
        (in_s3(""), "invalid_field"),
        (in_s3("x", bucket=""), "invalid_field"),
        (in_s3("x", version_id=1), "invalid_field"),
        (in_s3("x", region="eu"), "invalid_field"),
        ({"s3": "s3://photos/x"}, "invalid_field"),
        ({"s3": None}, "missing_field"),
        ({"s3": {"bucket": "photos"}}, "missing_field"),
        (in_s3("x") | {"image": "s3://photos/x"}, "invalid_field"),
        ({"image": "s3://photos.evil/x"}, "source_not_allowed"),
        ({"image": "s3://Photos/x"}, "source_not_allowed"),
        (in_s3("x", bucket="photos/../secret"), "source_not_allowed"),
        (
            in_s3("x", bucket="arn:aws:s3:us-east-1:123456789012:accesspoint/photos"),
            "source_not_allowed",
        ),
    ],
)
def test_what_names_no_object_that_may_be_read(
    here: Encoder, server: httpx.Client, event: dict[str, Any], code: str
) -> None:
    with pytest.raises(ClipError) as caught:
        direct.invoke(event, None, here)
    assert caught.value.code == code
    body = json.dumps(event).encode()
    response = server.post(
        "/encode_image", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == caught.value.status
    assert len(response.json()["detail"]) < 400


NO_KEY = "an image in S3 needs a bucket and a key: s3://bucket/key"
NO_TEXT = "the name of an image in S3 is not valid Unicode"
NOT_LISTED = "images are not read from that bucket: CLIP_S3_BUCKETS does not list it"


@pytest.mark.parametrize(
    ("uri", "detail"),
    [("s3://photos", NO_KEY), ("s3://photos/\ud800", NO_TEXT), ("s3://secret/x", NOT_LISTED)],
)
def test_what_is_said_of_a_name(here: Encoder, uri: str, detail: str) -> None:
    with pytest.raises(ClipError) as caught:
        direct.invoke({"image": uri}, None, here)
    assert caught.value.detail == detail


def test_a_source_s_name_says_its_version_first() -> None:
    assert str(Source("photos", "a@b")) == "s3://photos/a@b"
    assert str(Source("photos", "a@b", "v1")) == "v1@s3://photos/a@b"


def test_an_image_may_be_as_large_as_the_limit(
    here: Encoder, cloud: SimpleNamespace, photo: bytes
) -> None:
    put(cloud, "limit", photo)
    just_so = with_settings(here, max_image_bytes=len(photo))
    assert_same(just_so.encode(Source("photos", "limit")), here.encode(photo), atol=0)
    too_small = with_settings(here, max_image_bytes=len(photo) - 1)
    with pytest.raises(ClipError, match=f"has {len(photo):,} bytes, the limit is"):
        too_small.encode(Source("photos", "limit"))


def test_a_source_knows_when_it_was_read(
    here: Encoder, cloud: SimpleNamespace, photo: bytes
) -> None:
    put(cloud, "when", photo)
    source, before = Source("photos", "when"), time.time()
    here.encode(source)
    assert before <= source.read_at <= time.time()


def test_looking_once_more_is_waiting_for_s3(cloud: SimpleNamespace, photo: bytes) -> None:
    put(cloud, "again", photo)
    with telemetry.request("test", "1") as record:
        (error,) = s3.changed([Source("photos", "again", etag="another")], math.inf).values()
    assert error.code == "source_changed"
    assert record["s3_wait_ms"] > 0


SCRIPT = """
import sys
from handler import worker

images = {
    "aGk=": "NotAnImage",
    "s3://others/x": "SourceNotAllowed",
    "s3://photos/x": "SourceNotFound",
}
for image, expected in images.items():
    assert "boto3" not in sys.modules
    try:
        worker.handler({"image": image}, None)
    except Exception as error:
        assert type(error).__name__ == expected, error
assert "boto3" in sys.modules
"""


def test_boto3_is_imported_to_read_an_object_and_for_nothing_else(
    here: Encoder, cloud: SimpleNamespace
) -> None:
    """So nothing at all is asked of AWS about a bucket that may not be read."""
    env = os.environ | {"CLIP_MODEL_DIR": str(here.config.model_dir), "CLIP_S3_BUCKETS": "photos"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=False, cwd=ROOT, env=env, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_downloads_run_side_by_side_and_while_images_are_encoded(
    here: Encoder, photo: bytes
) -> None:
    sources = [Source("photos", str(number)) for number in range(3 * AHEAD)]
    wanted: list[Outcome[Image]] = [Outcome(source) for source in sources]
    with aws(delay=0.1) as far, telemetry.request("test", "1") as record:
        far.s3.create_bucket(Bucket="photos")
        for source in sources:
            far.s3.put_object(Bucket="photos", Key=source.key, Body=photo)
        list(s3.fetch(wanted[:1], here.config, Budget()))  # imports boto3 and connects
        seconds = []
        for some in (wanted[:1], wanted):
            start = time.monotonic()
            fetched = s3.fetch(some, here.config, Budget())
            assert [outcome.get() for outcome in fetched] == [photo] * len(some)
            seconds.append(time.monotonic() - start)
        record["s3_wait_ms"] = 0
        here.encode_images(wanted)
    assert seconds[1] < 12 * seconds[0]  # three rounds, and the stand-in's own time; not 24
    waited = record["s3_wait_ms"] / 1000  # for about the first round only
    assert 0 < waited < 0.7 * seconds[1]


def test_no_more_is_read_ahead_than_stated(
    here: Encoder, cloud: SimpleNamespace, photo: bytes
) -> None:
    put(cloud, "a.jpg", photo)
    asked = 0

    def sources() -> Iterator[Outcome[Image]]:
        nonlocal asked
        for asked in range(1, 4 * AHEAD + 1):  # noqa: B007  # it is looked at below
            yield Outcome(Source("photos", "a.jpg"))

    fetched = s3.fetch(sources(), here.config, Budget())
    for done, outcome in enumerate(fetched, start=1):
        assert outcome.get() == photo
        assert asked == min(done + AHEAD, 4 * AHEAD)


@pytest.mark.parametrize(
    ("failure", "is_logged"),
    [
        (calls.Failure("SlowDown", 503, True, "An error occurred: slow down"), True),
        (calls.Failure("Odd", 400, False, "An error occurred: odd"), True),
        (calls.Failure("InvalidRequest", 400, False, "An error occurred: its key"), False),
        (calls.Failure("KMS.DisabledException", 400, False, "An error occurred: off"), False),
        (calls.Failure("AccessDenied", 403, False, "An error occurred: no"), False),
    ],
)
def test_the_log_says_what_s3_said_where_the_answer_does_not(
    failure: calls.Failure, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it is clear what would help, the answer says so, and the log stays quiet."""
    s3._as_clip_error(Source("photos", "a.jpg"), failure)
    line = f"s3://photos/a.jpg cannot be read: {failure}"
    assert caplog.messages == ([line] if is_logged else [])
