"""Vectors out, to S3 and to S3 Vectors, against a real HTTP stand-in for both."""

import copy
import hashlib
import random
import re
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from events.generate import RUN, in_s3, map_batch, s3_batch, s3_notification, sqs
from export import images
from handler import aws as calls
from handler.encoder import Encoder
from handler.errors import InvalidEvent, OutputRefused, OutputUnavailable
from handler.events import direct, output
from handler.events.output import Entry, location, run_file, vector_key
from handler.images.s3 import Source
from tests import stack
from tests.answers import assert_same
from tests.aws import UNWRITABLE, take_vectors
from tests.conftest import image_tower, with_settings

KEYS = ("a.jpg", "b c+.png", "ü/d.jpg")
BROKEN = (
    "s3://none-such/run",
    "s3://no-space/run",
    "s3vectors://vectors/none-such",
    "s3vectors://none-such/clip",
)
INDEX = {"vectorBucketName": "vectors", "indexName": "clip"}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before what may pass is tried again."""
    monkeypatch.setattr(calls, "PAUSES", (0.01, 0.01))


@pytest.fixture(scope="module")
def worker(encoder: Encoder, cloud: SimpleNamespace, photo: bytes) -> Encoder:
    other = images.encoded(images.photograph("rocket"), "PNG")
    for key, body in zip(KEYS, (photo, other, photo), strict=True):
        cloud.s3.put_object(Bucket="photos", Key=key, Body=body)
    cloud.s3.put_object(Bucket="photos", Key="denied/x", Body=photo)
    stack.create_index("vectors", "clip")
    return with_settings(encoder, s3_buckets=("photos",), output="s3://vectors/run")


def stored(cloud: SimpleNamespace) -> dict[str, dict[str, Any]]:
    """Every vector of the index, by its key."""
    pages = cloud.s3vectors.get_paginator("list_vectors").paginate(
        **INDEX, returnData=True, returnMetadata=True
    )
    return {vector["key"]: vector for page in pages for vector in page["vectors"]}


# --- objects --------------------------------------------------------------------------------------


def test_an_object_says_all_there_is_to_say_of_each_vector(
    worker: Encoder, cloud: SimpleNamespace, photo: bytes
) -> None:
    take_vectors(cloud.s3)
    version = cloud.s3.head_object(Bucket="photos", Key=KEYS[2])["VersionId"]
    wanted = [in_s3(KEYS[0]), in_s3(KEYS[1]), in_s3("missing"), in_s3(KEYS[2])]
    wanted[3]["s3"]["version_id"] = version
    answer = direct.invoke(map_batch(*wanted), None, worker)
    ((name, file),) = take_vectors(cloud.s3).items()  # numpy.load there allows no pickle
    assert name == answer["output"]
    assert name.startswith(f"s3://vectors/run/{worker.fingerprint}/")
    assert file["fingerprint"] == worker.fingerprint
    assert file["name"].tolist() == [f"s3://photos/{key}" for key in KEYS[:2]] + [
        f"{version}@s3://photos/{KEYS[2]}"
    ]
    assert file["bucket"].tolist() == ["photos"] * 3
    assert file["key"].tolist() == list(KEYS)
    assert file["version_id"].tolist() == ["", "", version]
    assert file["etag"][0] == hashlib.md5(photo).hexdigest()
    assert file["embedding"].dtype == np.float32
    assert_same(file["embedding"], np.stack([worker.encode(Source("photos", key)) for key in KEYS]))


def test_a_repeat_overwrites_in_whichever_order_and_company_and_by_whichever_engine(
    worker: Encoder, cloud: SimpleNamespace
) -> None:
    take_vectors(cloud.s3)
    for event in (
        sqs(*map(in_s3, KEYS)),
        sqs(*map(in_s3, reversed(KEYS))),
        sqs(s3_notification(*KEYS[:2])),
    ):
        assert direct.invoke(event, None, worker) == {"batchItemFailures": []}
    direct.invoke(s3_batch("1.0", KEYS[0]), None, worker)
    direct.invoke({"Items": [in_s3(KEYS[1])]}, None, worker)  # a Map that names no run
    written = take_vectors(cloud.s3)
    assert sorted(file["key"].item() for file in written.values()) == sorted(KEYS)
    assert set(written) == {location(Source("photos", key), worker) for key in KEYS}


def test_a_batch_of_a_run_is_one_file_in_the_run_s_folder(
    worker: Encoder, cloud: SimpleNamespace
) -> None:
    take_vectors(cloud.s3)
    items = [in_s3(key) for key in KEYS]
    names = {direct.invoke(map_batch(*items), None, worker)["output"] for _ in range(3)}
    (first,) = take_vectors(cloud.s3)
    assert names == {first}
    assert first.startswith(f"s3://vectors/run/{worker.fingerprint}/runs/{RUN}/")
    later = direct.invoke(map_batch(*items, run="later"), None, worker)["output"]
    assert later != first
    assert set(take_vectors(cloud.s3)) == {later}


def test_what_a_run_finds_gone_or_no_image_is_said_in_its_file(
    worker: Encoder, cloud: SimpleNamespace
) -> None:
    take_vectors(cloud.s3)
    cloud.s3.put_object(Bucket="photos", Key="text", Body=b"no image")
    before = time.time()
    items = [in_s3("text"), in_s3("missing"), in_s3("denied/x"), in_s3(KEYS[0])]
    answer = direct.invoke(map_batch(*items), None, worker)
    assert [error["code"] for error in answer["errors"]] == [
        "not_an_image",
        "source_not_found",
        "source_denied",
    ]
    (file,) = take_vectors(cloud.s3).values()
    assert file["removed"].tolist() == [
        "s3://photos/text",
        "s3://photos/missing",
    ]  # not what is only denied
    assert file["name"].tolist() == [f"s3://photos/{KEYS[0]}"]
    for times in (file["removed_at"], file["read_at"]):
        assert ((times >= before) & (times <= time.time())).all()


@pytest.mark.parametrize("run", ["", "a/b", "a b", "x" * 201, "\ud800"])
def test_a_run_whose_name_is_no_folder_s_is_refused(worker: Encoder, run: str) -> None:
    with pytest.raises(InvalidEvent, match=re.escape("BatchInput.run")):
        direct.invoke(map_batch(in_s3(KEYS[0]), run=run), None, worker)


def test_names_differ_where_what_is_in_them_differs(worker: Encoder) -> None:
    a, b = Source("photos", "a"), Source("photos", "b")
    lists = [[a], [b], [a, b], [Source("photos", "a", "1")], [Source("photos", f"a\n{b}")]]
    lists += [[Source("photos", 'a", "b')], [Source("photos", "a", "1"), b], [Source("other", "a")]]
    changed = copy.copy(worker)
    changed.images = copy.copy(image_tower(worker))
    changed.images.fingerprint = "another"
    encoders = (worker, changed)
    names = [
        run_file(run, sources, encoder) for sources in lists for encoder in encoders for run in "12"
    ]
    names += [
        location(sources[0], encoder)
        for sources in lists
        if len(sources) == 1
        for encoder in encoders
    ]
    assert len(set(names)) == len(names)
    for form in ("s3://vectors", "s3://vectors/"):
        bare = location(a, with_settings(worker, output=form))
        assert bare == location(a, worker).replace("/run/", "/")


# --- S3 Vectors -----------------------------------------------------------------------------------


def test_vectors_in_an_index(worker: Encoder, cloud: SimpleNamespace, photo: bytes) -> None:
    to_index = with_settings(worker, output="s3vectors://vectors/clip")
    version = cloud.s3.head_object(Bucket="photos", Key=KEYS[0])["VersionId"]
    before = set(stored(cloud))
    for _ in range(2):  # delivered twice, there once
        event = sqs(*map(in_s3, KEYS), in_s3("missing"))
        assert direct.invoke(event, None, to_index) == {"batchItemFailures": []}
    (result,) = direct.invoke(s3_batch("2.0", KEYS[0], version=version), None, to_index)["results"]
    assert (result["resultCode"], result["resultString"]) == (
        "Succeeded",
        "s3vectors://vectors/clip",
    )
    found = stored(cloud)
    assert set(found) == before | {
        *(f"s3://photos/{key}" for key in KEYS),
        f"{version}@s3://photos/{KEYS[0]}",
    }
    vector = found[f"{version}@s3://photos/{KEYS[0]}"]
    assert_same(vector["data"]["float32"], worker.encode(photo), atol=0)
    expected = {
        "bucket": "photos",
        "key": KEYS[0],
        "version_id": version,
        "fingerprint": worker.fingerprint,
    }
    assert vector["metadata"] == expected | {"etag": hashlib.md5(photo).hexdigest()}
    assert "version_id" not in found[f"s3://photos/{KEYS[1]}"]["metadata"]


def test_more_vectors_than_one_request_takes(worker: Encoder, cloud: SimpleNamespace) -> None:
    entries = _entries(2 * output.PER_REQUEST + 1)
    sizes = []
    events = calls.client("s3vectors").meta.events
    events.register(
        "provide-client-params.s3vectors", lambda params, **_: sizes.append(len(params["vectors"]))
    )
    to_index = with_settings(worker, output="s3vectors://vectors/clip")
    assert output.write(entries, to_index) == {}
    assert sum(sizes) == len(entries)
    assert max(sizes) <= output.PER_REQUEST
    assert len(sizes) <= 4
    found = stored(cloud)
    for entry in random.Random(0).sample(entries, 20):
        assert entry.embedding is not None
        assert_same(found[str(entry.source)]["data"]["float32"], entry.embedding, atol=0)
    assert {str(entry.source) for entry in entries} <= set(found)
    gone = [Entry(entry.source, None) for entry in entries[1:]]
    calls._make_client.cache_clear()  # and what was registered above
    assert output.write(gone, to_index) == {}
    assert {key for key in stored(cloud) if "/many/" in key} == {"s3://photos/many/0"}
    assert output.write(gone, to_index) == {}  # once more does no harm


def _entries(count: int) -> list[Entry]:
    vectors = np.random.default_rng(0).normal(size=(count, 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        Entry(Source("photos", f"many/{number}"), vector) for number, vector in enumerate(vectors)
    ]


@pytest.mark.parametrize("where", ["s3://vectors/run", "s3vectors://vectors/clip"])
def test_a_vector_that_is_refused_fails_alone(
    worker: Encoder, cloud: SimpleNamespace, where: str
) -> None:
    take_vectors(cloud.s3)
    entries = _entries(11)
    for place in (4, 9):  # the stand-in denies to write what is named so
        entries[place] = Entry(Source("photos", f"{UNWRITABLE}{place}"), entries[place].embedding)
    errors = output.write(entries, with_settings(worker, output=where))
    assert {(source.key, type(error)) for source, error in errors.items()} == {
        (f"{UNWRITABLE}4", OutputRefused),
        (f"{UNWRITABLE}9", OutputRefused),
    }
    names = {str(entry.source) for entry in entries} - {str(source) for source in errors}
    if where.startswith("s3://"):
        assert {file["name"].item() for file in take_vectors(cloud.s3).values()} == names
    else:
        assert names <= set(stored(cloud))


def test_a_refused_vector_is_each_engine_s_permanent_failure(
    worker: Encoder, cloud: SimpleNamespace, photo: bytes
) -> None:
    to_index = with_settings(worker, output="s3vectors://vectors/clip")
    key = f"{UNWRITABLE}x"
    cloud.s3.put_object(Bucket="photos", Key=key, Body=photo)
    for encoder in (worker, to_index):
        good, bad = direct.invoke(s3_batch("1.0", KEYS[0], key), None, encoder)["results"]
        assert (good["resultCode"], bad["resultCode"]) == ("Succeeded", "PermanentFailure")
        refused = "output_refused: the output refuses the vector: the log says why"
        assert bad["resultString"] == refused
        event = sqs(in_s3(KEYS[0]), in_s3(key))
        failures = direct.invoke(event, None, encoder)["batchItemFailures"]
        assert failures == [{"itemIdentifier": event["Records"][1]["messageId"]}]
        with pytest.raises(OutputRefused):
            direct.invoke(s3_notification(KEYS[0], key), None, encoder)
    answer = direct.invoke(map_batch(in_s3(KEYS[0]), in_s3(key)), None, to_index)
    assert (answer["written"], [error["code"] for error in answer["errors"]]) == (
        1,
        ["output_refused"],
    )
    # In a run's folder the batch is one file: where that is refused nothing is written, and the
    # batch fails.
    unwritable = map_batch(in_s3(KEYS[0]), in_s3(KEYS[1]), run=UNWRITABLE.rstrip("/"))
    for encoder, event in ((worker, unwritable), (to_index, map_batch(in_s3(key)))):
        with pytest.raises(OutputRefused, match="every vector of the batch"):
            direct.invoke(event, None, encoder)


@pytest.mark.parametrize("where", ["s3://vectors/run", "s3vectors://vectors/clip"])
def test_a_vector_that_is_none_fails_alone(
    worker: Encoder, cloud: SimpleNamespace, where: str
) -> None:
    take_vectors(cloud.s3)
    entries = _entries(5)
    for place, value in ((1, np.nan), (3, np.inf)):
        entries[place] = Entry(entries[place].source, np.full(512, value, np.float32))
    errors = output.write(entries, with_settings(worker, output=where))
    assert {source.key: type(error) for source, error in errors.items()} == {
        "many/1": OutputRefused,
        "many/3": OutputRefused,
    }
    if where.startswith("s3://"):
        assert len(take_vectors(cloud.s3)) == 3


def test_a_key_that_an_index_cannot_hold_is_hashed() -> None:
    longest = Source("photos", "k" * (1024 - len("s3://photos/")))
    assert vector_key(longest) == str(longest)
    hashed = {vector_key(Source("photos", longest.key + end)) for end in "ab"}
    assert len(hashed) == 2
    assert {len(key) for key in hashed} == {len("sha256:") + 64}


# --- an output that takes nothing -----------------------------------------------------------------


@pytest.mark.parametrize("where", BROKEN)
def test_an_output_that_fails_is_every_engine_s_to_try_again(
    worker: Encoder, cloud: SimpleNamespace, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = with_settings(worker, output=where)
    event = sqs(in_s3(KEYS[0]), in_s3("missing"))
    again = [{"itemIdentifier": record["messageId"]} for record in event["Records"]]
    assert direct.invoke(event, None, broken) == {"batchItemFailures": again}
    for event in (s3_notification(KEYS[0]), {"Items": [in_s3(KEYS[0])]}, map_batch(in_s3(KEYS[0]))):
        with pytest.raises(OutputUnavailable) as caught:
            direct.invoke(event, None, broken)
        assert caught.value.retryable
        assert "none-such" not in caught.value.detail
    assert f"{where} cannot be written" in caplog.text
    results = direct.invoke(s3_batch("1.0", KEYS[0], "denied/x"), None, broken)["results"]
    assert [
        (result["resultCode"], result["resultString"].partition(":")[0]) for result in results
    ] == [
        ("TemporaryFailure", "output_unavailable"),
        ("PermanentFailure", "source_denied"),
    ]


@pytest.mark.parametrize("where", BROKEN)
def test_with_nothing_to_write_nothing_is_asked_of_the_output(worker: Encoder, where: str) -> None:
    broken = with_settings(worker, output=where)
    for event in ({"Items": [in_s3("denied/x")]}, map_batch(in_s3("denied/x"))):
        assert direct.invoke(event, None, broken)["written"] == 0
    assert len(direct.invoke(sqs(in_s3("denied/x")), None, broken)["batchItemFailures"]) == 1
