"""Every batch engine's events: what is asked once is answered once, and each failure is named."""

import contextlib
import copy
import json
import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from events import generate
from events.generate import in_s3, map_batch, s3_batch, s3_eventbridge, s3_notification, sns, sqs
from export import images
from handler import aws as calls
from handler.encoder import Encoder
from handler.engines import Embedding
from handler.errors import (
    ClipError,
    InvalidEvent,
    ModelUnhealthy,
    SourceChanged,
    SourceUnavailable,
)
from handler.events import direct
from tests.answers import assert_same
from tests.aws import UNWRITABLE, take_vectors
from tests.conftest import image_tower, with_settings
from tests.fuzz.judge import unaccounted
from tests.fuzz.mutate import mutate_event
from tests.test_requests import relaxed, values

GOOD = ("a.jpg", "2024/b+c d.jpg")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before what may pass is tried again."""
    monkeypatch.setattr(calls, "PAUSES", (0.01, 0.01))


@pytest.fixture(scope="module")
def worker(encoder: Encoder, cloud: SimpleNamespace, photo: bytes) -> Encoder:
    """The encoder beside S3, whose objects are those of `GOOD` and some that are not."""
    keys = (*GOOD, "denied/x", "throttled/x", "broken/x")
    for key, body in {
        **dict.fromkeys(keys, photo),
        "text": b"no image",
        "cut": photo[:5000],
    }.items():
        cloud.s3.put_object(Bucket="photos", Key=key, Body=body)
    return with_settings(encoder, s3_buckets=("photos",), output="s3://vectors/run")


@pytest.fixture(scope="module")
def vector(encoder: Encoder, photo: bytes) -> Embedding:
    return encoder.encode(photo)


@pytest.fixture(autouse=True)
def nothing_written(cloud: SimpleNamespace) -> None:
    take_vectors(cloud.s3)


def check_written(
    cloud: SimpleNamespace, vector: Embedding, *keys: str, removed: tuple[str, ...] = ()
) -> None:
    """A file for each of `keys` with this vector, and one for each of `removed` that says so."""
    written = take_vectors(cloud.s3).values()
    assert sorted(key for file in written for key in file["key"].tolist()) == sorted(keys)
    names = sorted(name for file in written for name in file["removed"].tolist())
    assert names == sorted(f"s3://photos/{key}" for key in removed)
    assert len(written) == len(keys) + len(removed)
    for file in written:
        assert_same(file["embedding"], np.tile(vector, (len(file["key"]), 1)))


# --- S3 Batch Operations --------------------------------------------------------------------------


@pytest.mark.parametrize("schema", ["1.0", "2.0"])
def test_s3_batch_answers_each_task(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding, schema: str
) -> None:
    event = s3_batch(schema, *GOOD, "missing", "denied/x", "text", "cut", "throttled/x", GOOD[0])
    event["tasks"] += [
        {"taskId": "no bucket", "s3Key": "a.jpg"},
        {"taskId": "no key", "s3Bucket": "photos"},
    ]
    event["tasks"].append(
        {"taskId": "secret", "s3Key": "a.jpg", "s3Bucket": "secret", "s3VersionId": ""}
    )
    answer = direct.invoke(event, None, worker)
    results = answer.pop("results")
    assert answer == {
        "invocationSchemaVersion": schema,
        "invocationId": event["invocationId"],
        "treatMissingKeysAs": "PermanentFailure",
    }
    assert [result["taskId"] for result in results] == [task["taskId"] for task in event["tasks"]]
    permanent = ["source_not_found", "source_denied", "not_an_image", "truncated_image"]
    refused = ["invalid_event", "invalid_event", "source_not_allowed"]
    name, other = results[0]["resultString"], results[1]["resultString"]
    assert name.startswith(f"s3://vectors/run/{worker.fingerprint}/objects/")
    assert [
        (result["resultCode"], result["resultString"].partition(": ")[0]) for result in results
    ] == [
        *[("Succeeded", name), ("Succeeded", other)],
        *[("PermanentFailure", code) for code in permanent],
        ("TemporaryFailure", "source_unavailable"),
        ("Succeeded", name),
        *[("PermanentFailure", code) for code in refused],
    ]
    check_written(cloud, vector, *GOOD, removed=("missing", "text", "cut"))


def test_s3_batch_takes_the_version_that_the_task_names(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding, photo: bytes
) -> None:
    version = cloud.s3.put_object(Bucket="photos", Key="v", Body=photo)["VersionId"]
    cloud.s3.put_object(Bucket="photos", Key="v", Body=b"no image any more")
    (result,) = direct.invoke(s3_batch("2.0", "v", version=version), None, worker)["results"]
    assert result["resultCode"] == "Succeeded"
    check_written(cloud, vector, "v")


# --- SQS ------------------------------------------------------------------------------------------


def test_sqs_hands_back_the_messages_that_failed_and_no_others(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = GOOD
    good: list[Any] = [
        s3_notification(one, two),
        sns(s3_notification(one)),
        s3_eventbridge(two),
        sns(s3_eventbridge(one)),
        in_s3(two),
        generate.s3_test_event(),
        sns(generate.s3_test_event()),
        s3_notification("gone", what="ObjectRemoved:Delete"),
        s3_notification("gone", what="LifecycleExpiration:Delete"),
        s3_eventbridge("gone", what="Object Deleted"),
        s3_notification(one, "never-there"),  # made and removed before this was read
        {"Records": []},
    ]
    bad: list[Any] = [
        *(
            "not JSON",
            "",
            "[]",
            "null",
            "1",
            "[" * 100_000,
            "9" * 5000,
            '{"s3": {}}',
            '{"Records": [7]}',
        ),
        *(in_s3("throttled/x"), s3_notification(one, "denied/x"), in_s3("\ud800")),
        *(
            sns(s3_notification()) | {"Message": "not JSON"},
            {**in_s3(one), "image": "x"},
            {"Records": "none"},
        ),
        *(s3_eventbridge(""), {"s3": {"bucket": "secret", "key": "a.jpg"}}),
    ]
    event = sqs(*bad[:5], *good, *bad[5:])
    caplog.set_level("INFO", "clip")
    answer = direct.invoke(event, None, worker)
    failed = [record["messageId"] for record in event["Records"]]
    del failed[5 : 5 + len(good)]
    assert answer == {"batchItemFailures": [{"itemIdentifier": message} for message in failed]}
    check_written(cloud, vector, one, two, removed=("gone", "never-there"))
    assert len(caplog.messages) >= len(bad)
    assert "no vector" in caplog.messages
    (request,) = [record for record in caplog.records if record.message == "request"]
    assert vars(request)["fields"]["images"] == 7  # however often each is named
    assert (
        vars(request)["fields"]["failed"] == 3
    )  # not what is only said to have changed, and is gone


NO_IMAGES = {
    "2024/": (b"", "missing_field", "the image is empty"),  # as S3's console makes a folder
    "notes.txt": (b"no image", "not_an_image", "the data is not an image"),
    "film.mp4": (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "unsupported_format", "a video"),
    "page.pdf": (b"%PDF-1.7", "unsupported_format", "PDF"),
    "broken.jpg": (
        images.encoded(images.photograph("rocket"), "JPEG")[:5000],
        "truncated_image",
        "",
    ),
    "wide.png": (images.encoded(Image.new("L", (900, 1)), "PNG"), "extreme_shape", "100"),
}
"""Key -> the object, the code that the log names it with, and what its reason says."""


@pytest.mark.parametrize(
    "told", [s3_notification, s3_eventbridge, in_s3, lambda key: sns(s3_notification(key))]
)
@pytest.mark.parametrize("key", NO_IMAGES)
def test_an_object_that_can_have_no_vector_is_named_once_and_done(
    worker: Encoder,
    cloud: SimpleNamespace,
    log_lines: list[dict[str, Any]],
    key: str,
    told: Callable[[str], Any],
) -> None:
    """SQS would deliver it five times, and then set it aside and ring, for a folder or a text."""
    body, code, reason = NO_IMAGES[key]
    cloud.s3.put_object(Bucket="photos", Key=key, Body=body)
    event = sqs(told(key), told(key), in_s3("throttled/x"))
    again = [{"itemIdentifier": event["Records"][2]["messageId"]}]
    assert direct.invoke(event, None, worker) == {"batchItemFailures": again}
    named, passing = log_lines
    assert named["request_id"]
    assert reason in named["detail"]
    assert (named["source"], named["code"], named["retryable"]) == (
        f"s3://photos/{key}",
        code,
        False,
    )
    assert (passing["source"], passing["retryable"]) == ("s3://photos/throttled/x", True)
    (file,) = take_vectors(cloud.s3).values()
    assert file["removed"].tolist() == [f"s3://photos/{key}"]  # a vector that it had is gone


def test_an_object_that_is_asked_for_by_name_and_gone_is_named_once_and_done(
    worker: Encoder, log_lines: list[dict[str, Any]]
) -> None:
    assert direct.invoke(sqs(in_s3("missing")), None, worker) == {"batchItemFailures": []}
    (named,) = log_lines
    assert (named["source"], named["code"]) == ("s3://photos/missing", "source_not_found")
    assert named["retryable"] is False


@pytest.mark.parametrize("told", [s3_notification, s3_eventbridge])
@pytest.mark.parametrize("key", NO_IMAGES)
def test_nor_does_lambda_retry_a_notification_of_it(
    worker: Encoder,
    cloud: SimpleNamespace,
    log_lines: list[dict[str, Any]],
    key: str,
    told: Callable[[str], Any],
) -> None:
    cloud.s3.put_object(Bucket="photos", Key=key, Body=NO_IMAGES[key][0])
    assert direct.invoke(told(key), None, worker) == {"written": 0, "removed": 1}
    assert [line["code"] for line in log_lines] == [NO_IMAGES[key][1]]


@pytest.mark.parametrize(
    ("key", "settings"),
    [("denied/x", {}), (GOOD[0], {"s3_buckets": ()}), (f"{UNWRITABLE}x", {})],
    ids=["a role", "a bucket's list", "an output"],
)
def test_what_an_operator_can_mend_is_handed_back(
    worker: Encoder, cloud: SimpleNamespace, photo: bytes, key: str, settings: dict[str, Any]
) -> None:
    """In the dead-letter queue it waits until that is done, and can be sent round again."""
    cloud.s3.put_object(Bucket="photos", Key=key, Body=photo)
    worker = with_settings(worker, **settings)
    assert len(direct.invoke(sqs(s3_notification(key)), None, worker)["batchItemFailures"]) == 1
    with pytest.raises(ClipError):
        direct.invoke(s3_notification(key), None, worker)


def test_a_service_without_an_image_tower_takes_no_vector_away(
    worker: Encoder, cloud: SimpleNamespace
) -> None:
    texts_only = with_settings(worker)
    texts_only.images = None
    event = sqs(s3_notification(GOOD[0]))
    assert len(direct.invoke(event, None, texts_only)["batchItemFailures"]) == 1
    assert take_vectors(cloud.s3) == {}


@pytest.mark.parametrize("body", [None, 7, {"s3": {}}])
def test_sqs_messages_without_a_text_fail_alone(worker: Encoder, body: object) -> None:
    event = sqs(generate.s3_test_event(), "")
    event["Records"][1]["body"] = body
    answer = direct.invoke(event, None, worker)
    assert answer == {"batchItemFailures": [{"itemIdentifier": event["Records"][1]["messageId"]}]}


# --- S3 and EventBridge, without a queue ----------------------------------------------------------


def test_a_notification_raises_what_failed_after_the_good_are_written(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding
) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        direct.invoke(s3_notification("text", GOOD[0], "throttled/x", GOOD[1]), None, worker)
    assert caught.value.detail.startswith(
        "1 of 4 failed: s3://photos/throttled/x: source_unavailable: "
    )
    check_written(cloud, vector, *GOOD, removed=("text",))
    assert direct.invoke(s3_notification(*GOOD), None, worker) == {"written": 2, "removed": 0}
    assert direct.invoke(s3_eventbridge("missing"), None, worker) == {"written": 0, "removed": 1}
    check_written(cloud, vector, *GOOD, removed=("missing",))


# --- a notification means: this key changed -------------------------------------------------------


@pytest.mark.parametrize(
    "told", [s3_notification, s3_eventbridge, partial(s3_notification, what="ObjectRemoved:Delete")]
)
def test_the_object_as_it_is_now_is_what_counts_and_not_what_is_said_of_it(
    worker: Encoder,
    cloud: SimpleNamespace,
    vector: Embedding,
    photo: bytes,
    told: Callable[[str], Any],
) -> None:
    first = cloud.s3.put_object(Bucket="photos", Key="changing", Body=b"no image yet")["VersionId"]
    cloud.s3.put_object(Bucket="photos", Key="changing", Body=photo)
    event = told("changing")
    if "Records" in event:
        event["Records"][0]["s3"]["object"]["versionId"] = first
    else:
        event["detail"]["object"]["version-id"] = first
    assert direct.invoke(sqs(event), None, worker) == {"batchItemFailures": []}
    check_written(cloud, vector, "changing")
    cloud.s3.put_object(Bucket="photos", Key="changing", Body=b"no image any more")
    assert direct.invoke(sqs(event), None, worker) == {"batchItemFailures": []}
    check_written(cloud, vector, removed=("changing",))
    cloud.s3.delete_object(Bucket="photos", Key="changing")
    assert direct.invoke(sqs(event), None, worker) == {"batchItemFailures": []}
    check_written(cloud, vector, removed=("changing",))


@contextlib.contextmanager
def before_writing(act: Callable[[], object]) -> Iterator[None]:
    """Do `act` once, when the vector is made and its file not yet written."""
    events = calls.client("s3").meta.events
    done: list[bool] = []

    def once(**_: object) -> None:
        if not done:
            done.append(True)
            act()

    events.register("before-call.s3.PutObject", once)
    try:
        yield
    finally:
        events.unregister("before-call.s3.PutObject", once)
    assert done


def _remade(cloud: SimpleNamespace, key: str, body: bytes | None) -> Callable[[], object]:
    if body is None:
        return lambda: cloud.s3.delete_object(Bucket="photos", Key=key)
    return lambda: cloud.s3.put_object(Bucket="photos", Key=key, Body=body)


@pytest.mark.parametrize("start", [b"photo", b"no image", None], ids=["image", "text", "nothing"])
@pytest.mark.parametrize("end", [b"another text", None, b"photo"], ids=["text", "nothing", "image"])
def test_an_object_that_changes_meanwhile_is_handed_back(
    worker: Encoder, cloud: SimpleNamespace, photo: bytes, start: bytes | None, end: bytes | None
) -> None:
    start, end = (photo if body == b"photo" else body for body in (start, end))
    event = sqs(s3_notification("racing"), s3_notification(GOOD[0]))
    racing = [{"itemIdentifier": event["Records"][0]["messageId"]}]
    _remade(cloud, "racing", start)()
    with before_writing(_remade(cloud, "racing", end)):
        answer = direct.invoke(event, None, worker)
    changed = start != end
    assert answer["batchItemFailures"] == (racing if changed else [])
    for told in (s3_notification("racing"), {"Items": [in_s3("racing")]}):
        _remade(cloud, "racing", start)()
        with (
            pytest.raises(SourceChanged) if changed else contextlib.nullcontext(),
            before_writing(_remade(cloud, "racing", end)),
        ):
            direct.invoke(told, None, worker)


def test_two_deliveries_that_end_in_the_wrong_order(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding, photo: bytes
) -> None:
    """The one that read the old image writes last; its message comes again, and all is well."""
    old = images.encoded(images.photograph("rocket"), "PNG")
    cloud.s3.put_object(Bucket="photos", Key="twice", Body=old)
    event = sqs(s3_notification("twice"))

    def overtaken() -> None:
        cloud.s3.put_object(Bucket="photos", Key="twice", Body=photo)
        assert direct.invoke(event, None, worker) == {"batchItemFailures": []}

    with before_writing(overtaken):
        answer = direct.invoke(event, None, worker)
    (file,) = take_vectors(cloud.s3).values()
    assert_same(file["embedding"][0], worker.encode(old))  # wrong, for now
    assert len(answer["batchItemFailures"]) == 1
    assert direct.invoke(event, None, worker) == {"batchItemFailures": []}
    check_written(cloud, vector, "twice")


def test_a_version_that_is_named_is_an_object_of_its_own(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding, photo: bytes
) -> None:
    version = cloud.s3.put_object(Bucket="photos", Key="versions", Body=photo)["VersionId"]
    message = in_s3("versions")
    message["s3"]["version_id"] = version
    cloud.s3.put_object(Bucket="photos", Key="versions", Body=b"no image")
    event = sqs(message, s3_notification("versions"))
    assert direct.invoke(event, None, worker) == {"batchItemFailures": []}
    check_written(cloud, vector, "versions", removed=("versions",))
    cloud.s3.delete_object(Bucket="photos", Key="versions", VersionId=version)
    assert direct.invoke(sqs(message), None, worker) == {"batchItemFailures": []}
    (file,) = take_vectors(cloud.s3).values()
    assert file["removed"].tolist() == [f"{version}@s3://photos/versions"]


def test_what_cannot_be_looked_at_keeps_its_vector(worker: Encoder, cloud: SimpleNamespace) -> None:
    event = sqs(*map(s3_notification, ("denied/x", "throttled/x", "broken/x", "elsewhere/x")))
    assert len(direct.invoke(event, None, worker)["batchItemFailures"]) == 4
    assert take_vectors(cloud.s3) == {}


# --- Distributed Map ------------------------------------------------------------------------------


BAD_ITEMS: tuple[Any, ...] = (
    {"image": "aGk="},
    {"s3": {}},
    {"S3": {}},
    7,
    "s3://",
    in_s3("missing"),
    in_s3("text"),
)
CODES = [
    "invalid_field",
    "missing_field",
    *["invalid_field"] * 3,
    "source_not_found",
    "not_an_image",
]


def test_a_map_names_what_failed_for_good_and_raises_what_may_pass(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding
) -> None:
    items = [in_s3(GOOD[0]), *BAD_ITEMS, f"s3://photos/{GOOD[1]}"]
    answer = direct.invoke(map_batch(*items), None, worker)
    assert answer["written"] == 2
    assert [(error["index"], error["code"]) for error in answer["errors"]] == list(
        enumerate(CODES, start=1)
    )
    sources = [error["source"] for error in answer["errors"]]
    assert sources == [None] * 5 + ["s3://photos/missing", "s3://photos/text"]
    ((name, file),) = take_vectors(cloud.s3).items()
    assert (name, file["key"].tolist()) == (answer["output"], list(GOOD))
    for event in (
        {"Items": [in_s3("throttled/x"), *items]},
        map_batch(in_s3("throttled/x"), *items),
    ):
        with pytest.raises(SourceUnavailable, match="3 of 5 failed: s3://photos/throttled/x: "):
            direct.invoke(event | {"BatchInput": {}}, None, worker)
    check_written(cloud, vector, *GOOD, removed=("missing", "text"))


def test_a_map_may_have_its_vectors_back(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding
) -> None:
    caller = with_settings(worker, output="caller")
    answer = direct.invoke({"Items": [*BAD_ITEMS, in_s3(GOOD[0])]}, None, caller)
    assert answer["embeddings"][:-1] == [None] * len(BAD_ITEMS)
    assert_same(answer["embeddings"][-1], vector)
    assert len(answer["errors"]) == len(BAD_ITEMS)
    with pytest.raises(SourceUnavailable):
        direct.invoke({"Items": [in_s3(GOOD[0]), in_s3("broken/x")]}, None, caller)
    assert take_vectors(cloud.s3) == {}


# --- all of them ----------------------------------------------------------------------------------

ENGINES = {
    "s3_batch": s3_batch("1.0", *GOOD),
    "sqs": sqs(in_s3(GOOD[0]), in_s3(GOOD[1])),
    "s3_event": s3_notification(*GOOD),
    "map": {"Items": [in_s3(key) for key in GOOD]},
}


@pytest.mark.parametrize("name", ["s3_batch", "sqs", "s3_event"])
def test_who_has_no_caller_needs_an_output(worker: Encoder, name: str) -> None:
    with pytest.raises(InvalidEvent, match="set CLIP_OUTPUT"):
        direct.invoke(ENGINES[name], None, with_settings(worker, output="caller"))


@pytest.mark.parametrize("name", ENGINES)
def test_no_vector_of_a_model_that_is_not_what_it_says(worker: Encoder, name: str) -> None:
    sick = copy.copy(worker)
    sick.images = copy.copy(image_tower(worker))
    sick.images.fault = "another model"
    if name == "s3_batch":
        results = direct.invoke(ENGINES[name], None, sick)["results"]
        assert [result["resultCode"] for result in results] == ["TemporaryFailure"] * 2
        return
    with pytest.raises(ModelUnhealthy):
        direct.invoke(ENGINES[name], None, sick)


@pytest.mark.parametrize(
    "event",
    [
        {"invocationSchemaVersion": "1.0"},
        {"invocationSchemaVersion": "1.0", "tasks": None},
        {"invocationSchemaVersion": "1.0", "tasks": ["x"]},
        {"Items": None},
        {"Items": {"s3": {}}},
        {"Records": None},
        {"Records": [None]},
        {"Records": [{"eventSource": "aws:sqs"}, 7]},
        {"Records": [{"eventSource": "aws:kinesis", "kinesis": {}}]},
        {"Records": [{"EventSource": "aws:sns", "Sns": {}}]},
        {"Records": 7, "Type": "Notification", "Message": "not JSON"},
        {"detail-type": "Object Created", "source": "aws.s3"},
        {"detail-type": 7, "source": "aws.s3", "detail": None},
        s3_eventbridge("\ud800"),
        {"Records": [{"s3": {"bucket": {"name": "photos"}, "object": {"key": "\ud800"}}}]},
    ],
)
def test_a_malformed_event_is_refused(worker: Encoder, event: dict[str, Any]) -> None:
    with pytest.raises(ClipError) as caught:
        direct.invoke(event, None, worker)
    assert caught.value.code in ("invalid_event", "invalid_field")


MUTABLE = [event for name, event in generate.events().items() if "s3" in name or "map" in name]


@relaxed
@given(seed=st.integers(0, 2**64))
def test_any_damaged_event_is_answered_or_refused(worker: Encoder, seed: int) -> None:
    rng = random.Random(seed)
    event, other = rng.choices([*MUTABLE, *ENGINES.values()], k=2)
    check_any(mutate_event(rng, event, other), worker)


@relaxed
@given(value=values)
def test_any_json_is_answered_or_refused_wherever_it_stands(worker: Encoder, value: Any) -> None:
    check_any(value, worker)
    check_any(sqs(json.dumps(value), json.dumps(sns(value))), worker)
    check_any({"Items": [value], "image": value}, worker)
    check_any({"Records": [value]}, worker)
    check_any({"Records": [{"s3": value}]}, worker)
    check_any({"detail-type": "", "source": "aws.s3", "detail": value}, worker)
    task = {"taskId": value, "s3Key": value, "s3Bucket": value, "s3VersionId": value}
    check_any({"invocationSchemaVersion": value, "tasks": [task, {"s3BucketArn": value}]}, worker)


def check_any(event: Any, worker: Encoder) -> None:
    """Answered in JSON or refused; and where no bucket may be read, nothing is left untold."""
    with contextlib.suppress(ClipError):
        json.dumps(direct.invoke(event, None, worker))
    with contextlib.suppress(ClipError):
        answer = direct.invoke(copy.deepcopy(event), None, with_settings(worker, s3_buckets=()))
        assert not unaccounted(event, answer)


# --- word for word --------------------------------------------------------------------------------

NO_NAME = "invalid_event: a task of S3 Batch Operations names no bucket or no key"
NO_TEXT = "invalid_event: a bucket, a key or a version is not a text"
NO_MESSAGE = (
    "invalid_event: expected an S3 notification (as it is, or by SNS or EventBridge) or "
    '{"s3": {...}}'
)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({"s3Key": "a.jpg"}, NO_NAME),
        ({"s3Bucket": "photos"}, NO_NAME),
        ({"s3Key": 1, "s3Bucket": "photos"}, NO_NAME),
        ({"s3Key": "a.jpg", "s3Bucket": "photos", "s3VersionId": 1}, NO_TEXT),
        (
            {"s3Key": "missing", "s3BucketArn": "arn:aws:s3:::photos"},
            "source_not_found: there is no such object, or no such version of it",
        ),
        (
            {"s3Key": "a.jpg", "s3Bucket": "others"},
            "source_not_allowed: images are not read from that bucket: CLIP_S3_BUCKETS does not "
            "list it",
        ),
    ],
)
def test_what_the_report_says_of_a_task(worker: Encoder, task: dict[str, Any], text: str) -> None:
    event = s3_batch("1.0", "a.jpg")
    event["tasks"] = [{"taskId": "1"} | task]
    (result,) = direct.invoke(event, None, worker)["results"]
    assert result == {"taskId": "1", "resultCode": "PermanentFailure", "resultString": text}


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"Items": {}}, "invalid_event: 'Items' must be a list"),
        ({"invocationSchemaVersion": "1.0"}, "invalid_event: 'tasks' must be a list"),
        (
            {"invocationSchemaVersion": "1.0", "tasks": [{}, 1]},
            "invalid_event: 'tasks' must be a list of objects",
        ),
        ({"Records": 1}, NO_MESSAGE),
        ({"Records": [{}]}, "invalid_event: a record of an S3 notification names no object"),
        (
            {"Records": [{"s3": {"bucket": {"name": 1}, "object": {"key": "a"}}}]},
            NO_TEXT,
        ),
        ({"detail-type": "x", "source": "aws.s3"}, NO_MESSAGE),
    ],
)
def test_what_is_raised_for_an_event_that_is_malformed(
    worker: Encoder, event: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidEvent) as caught:
        direct.invoke(event, None, worker)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("{", "the message is not JSON (JSONDecodeError)"),
        (None, "the message is not JSON (TypeError)"),
        ('{"s3": 1, "other": 2}', NO_MESSAGE.partition(": ")[2]),
        ('{"Type": "Notification", "Message": "{}"}', NO_MESSAGE.partition(": ")[2]),
    ],
)
def test_what_the_log_says_of_a_message(
    worker: Encoder, body: str | None, detail: str, log_lines: list[dict[str, Any]]
) -> None:
    event = sqs(in_s3("a.jpg"))
    event["Records"][0]["body"] = body
    assert len(direct.invoke(event, None, worker)["batchItemFailures"]) == 1
    (line,) = log_lines
    assert line.pop("request_id")
    assert line == {
        "source": f"message {event['Records'][0]['messageId']}",
        "code": "invalid_event",
        "detail": detail,
        "retryable": False,
    }


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The fields of each line about something that got no vector."""
    lines: list[dict[str, Any]] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "no vector":
                lines.append(dict(record.__dict__["fields"]))

    monkeypatch.setattr(logging.getLogger("clip"), "handlers", [Keeping()])
    return lines


def test_a_maps_batch_of_nothing_good_has_no_place(worker: Encoder) -> None:
    answer = direct.invoke(map_batch(in_s3("text"), {"image": "aGk="}, run="x"), None, worker)
    first, second = answer.pop("errors")
    assert answer == {"written": 0, "output": None}
    assert (first["code"], first["source"]) == ("not_an_image", "s3://photos/text")
    assert second == {
        "index": 1,
        "code": "invalid_field",
        "detail": 'an image of a batch must be in S3: {"s3": {"bucket": ..., "key": ...}}',
        "source": None,
    }


@pytest.mark.parametrize("turn", [1, -1])
def test_what_one_message_names_and_another_says_to_have_changed_is_missed(
    worker: Encoder, turn: int, log_lines: list[dict[str, Any]]
) -> None:
    """A message that names an object wants its vector, whatever others in the batch say of it."""
    event = sqs(*[in_s3("gone"), s3_notification("gone")][::turn], s3_notification("gone too"))
    assert direct.invoke(event, None, worker) == {"batchItemFailures": []}
    assert [line["source"] for line in log_lines] == ["s3://photos/gone"]
