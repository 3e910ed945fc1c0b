"""Every batch engine's events: what is asked once is answered once, and each failure is named."""

import contextlib
import copy
import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import generate
from events.generate import in_s3, s3_batch, s3_eventbridge, s3_notification, sns, sqs
from handler import direct
from handler.encoder import Embedding, Encoder
from handler.errors import ClipError, InvalidEvent, ModelUnhealthy, SourceNotFound, SourceUnavailable
from tests.answers import assert_same
from tests.aws import take_vectors
from tests.conftest import with_settings
from tests.fuzz.mutate import mutate_event
from tests.test_requests import relaxed, values

GOOD = ("a.jpg", "2024/b+c d.jpg")


@pytest.fixture(scope="module")
def worker(encoder: Encoder, cloud: SimpleNamespace, photo: bytes) -> Encoder:
    """The encoder beside S3, whose objects are those of `GOOD` and some that are not."""
    keys = (*GOOD, "denied/x", "throttled/x", "broken/x")
    for key, body in {**dict.fromkeys(keys, photo), "text": b"no image", "cut": photo[:5000]}.items():
        cloud.s3.put_object(Bucket="photos", Key=key, Body=body)
    return with_settings(encoder, s3_buckets=("photos",), output="s3://vectors/run")


@pytest.fixture(scope="module")
def vector(encoder: Encoder, photo: bytes) -> Embedding:
    return encoder.encode(photo)


@pytest.fixture(autouse=True)
def nothing_written(cloud: SimpleNamespace) -> None:
    take_vectors(cloud.s3)


def check_written(cloud: SimpleNamespace, vector: Embedding, *objects: list[str]) -> None:
    """So many objects of vectors, each of these keys."""
    written = take_vectors(cloud.s3).values()
    assert sorted(file["key"].tolist() for file in written) == sorted(objects)
    for file in written:
        assert_same(file["embedding"], np.stack([vector] * len(file["key"])))


# --- S3 Batch Operations ------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", ["1.0", "2.0"])
def test_s3_batch_answers_each_task(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding, schema: str
) -> None:
    event = s3_batch(schema, *GOOD, "missing", "denied/x", "text", "cut", "throttled/x", GOOD[0])
    event["tasks"] += [{"taskId": "no bucket", "s3Key": "a.jpg"}, {"taskId": "no key", "s3Bucket": "photos"}]
    event["tasks"].append({"taskId": "secret", "s3Key": "a.jpg", "s3Bucket": "secret", "s3VersionId": ""})
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
    name = results[0]["resultString"]
    assert name.startswith("s3://vectors/run/")
    assert [(result["resultCode"], result["resultString"].partition(": ")[0]) for result in results] == [
        *[("Succeeded", name)] * 2,
        *[("PermanentFailure", code) for code in permanent],
        ("TemporaryFailure", "source_unavailable"),
        ("Succeeded", name),
        *[("PermanentFailure", code) for code in refused],
    ]
    check_written(cloud, vector, list(GOOD))


def test_s3_batch_takes_the_version_that_the_task_names(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding, photo: bytes
) -> None:
    version = cloud.s3.put_object(Bucket="photos", Key="v", Body=photo)["VersionId"]
    cloud.s3.put_object(Bucket="photos", Key="v", Body=b"no image any more")
    (result,) = direct.invoke(s3_batch("2.0", "v", version=version), None, worker)["results"]
    assert result["resultCode"] == "Succeeded"
    check_written(cloud, vector, ["v"])


# --- SQS ----------------------------------------------------------------------------------------------


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
        {"Records": []},
    ]
    bad: list[Any] = [
        *("not JSON", "", "[]", "null", "1", "[" * 100_000, "9" * 5000, '{"s3": {}}', '{"Records": [7]}'),
        *(in_s3("missing"), in_s3("throttled/x"), s3_notification(one, "missing"), in_s3("\ud800")),
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
    check_written(cloud, vector, [one], [two])
    assert len(caplog.messages) >= len(bad)
    assert "no vector" in caplog.messages
    (request,) = [record for record in caplog.records if record.message == "request"]
    assert vars(request)["fields"]["images"] == 5  # however often each is named


@pytest.mark.parametrize("body", [None, 7, {"s3": {}}])
def test_sqs_messages_without_a_text_fail_alone(worker: Encoder, body: object) -> None:
    event = sqs(generate.s3_test_event(), "")
    event["Records"][1]["body"] = body
    answer = direct.invoke(event, None, worker)
    assert answer == {"batchItemFailures": [{"itemIdentifier": event["Records"][1]["messageId"]}]}


# --- S3 and EventBridge, without a queue --------------------------------------------------------------


def test_a_notification_raises_what_failed_after_the_good_are_written(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding
) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        direct.invoke(s3_notification("missing", GOOD[0], "throttled/x", GOOD[1]), None, worker)
    assert caught.value.detail.startswith("2 of 4 failed: s3://photos/throttled/x: source_unavailable: ")
    assert "s3://photos/missing: source_not_found: " in caught.value.detail
    check_written(cloud, vector, [GOOD[0]], [GOOD[1]])
    with pytest.raises(SourceNotFound):
        direct.invoke(s3_eventbridge("missing"), None, worker)
    assert direct.invoke(s3_notification(*GOOD), None, worker) == {"written": 2}
    assert direct.invoke(s3_eventbridge(GOOD[0]), None, worker) == {"written": 1}
    assert direct.invoke(s3_eventbridge(GOOD[0], what="Object Deleted"), None, worker) == {"written": 0}
    check_written(cloud, vector, [GOOD[0]], [GOOD[1]])


# --- Distributed Map ----------------------------------------------------------------------------------


BAD_ITEMS: tuple[Any, ...] = (
    {"image": "aGk="},
    {"s3": {}},
    {"S3": {}},
    7,
    "s3://",
    in_s3("missing"),
    in_s3("text"),
)
CODES = ["invalid_field", "missing_field", *["invalid_field"] * 3, "source_not_found", "not_an_image"]


def test_a_map_names_what_failed_for_good_and_raises_what_may_pass(
    worker: Encoder, cloud: SimpleNamespace, vector: Embedding
) -> None:
    items = [in_s3(GOOD[0]), *BAD_ITEMS, f"s3://photos/{GOOD[1]}"]
    answer = direct.invoke({"Items": items, "BatchInput": {}}, None, worker)
    assert answer["written"] == 2
    assert [(error["index"], error["code"]) for error in answer["errors"]] == list(enumerate(CODES, start=1))
    sources = [error["source"] for error in answer["errors"]]
    assert sources == [None] * 5 + ["s3://photos/missing", "s3://photos/text"]
    assert list(take_vectors(cloud.s3)) == [answer["output"]]
    with pytest.raises(SourceUnavailable, match="3 of 5 failed: s3://photos/throttled/x: "):
        direct.invoke({"Items": [in_s3("throttled/x"), *items]}, None, worker)
    check_written(cloud, vector, list(GOOD))


def test_a_map_may_have_its_vectors_back(worker: Encoder, cloud: SimpleNamespace, vector: Embedding) -> None:
    caller = with_settings(worker, output="caller")
    answer = direct.invoke({"Items": [*BAD_ITEMS, in_s3(GOOD[0])]}, None, caller)
    assert answer["embeddings"][:-1] == [None] * len(BAD_ITEMS)
    assert_same(answer["embeddings"][-1], vector)
    assert len(answer["errors"]) == len(BAD_ITEMS)
    with pytest.raises(SourceUnavailable):
        direct.invoke({"Items": [in_s3(GOOD[0]), in_s3("broken/x")]}, None, caller)
    assert take_vectors(cloud.s3) == {}


# --- all of them --------------------------------------------------------------------------------------

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
    sick.fault = "another model"
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
    with contextlib.suppress(ClipError):
        json.dumps(direct.invoke(event, None, worker))
