"""Vectors out, to S3 and to S3 Vectors, against a real HTTP stand-in for both."""

import copy
import hashlib
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from events.generate import in_s3, s3_batch, s3_notification, sqs
from export import images, index
from handler import direct, output, s3
from handler.encoder import Encoder
from handler.errors import OutputUnavailable
from handler.output import Group, Row, location, vector_key
from handler.s3 import Source
from tests.answers import assert_same
from tests.aws import take_vectors
from tests.conftest import with_settings

KEYS = ("a.jpg", "b c+.png", "ü/d.jpg")
BROKEN = (
    "s3://none-such/run",
    "s3://no-space/run",
    "s3vectors://vectors/none-such",
    "s3vectors://none-such/x",
)
INDEX = {"vectorBucketName": "vectors", "indexName": "clip"}


@pytest.fixture(scope="module")
def worker(encoder: Encoder, cloud: SimpleNamespace, photo: bytes) -> Encoder:
    other = images.encoded(images.photograph("rocket"), "PNG")
    for key, body in zip(KEYS, (photo, other, photo), strict=True):
        cloud.s3.put_object(Bucket="photos", Key=key, Body=body)
    index.create("vectors", "clip", 512)
    return with_settings(encoder, s3_buckets=("photos",), output="s3://vectors/run")


def stored(cloud: SimpleNamespace) -> dict[str, dict[str, Any]]:
    """Every vector of the index, by its key."""
    pages = cloud.s3vectors.get_paginator("list_vectors").paginate(
        **INDEX, returnData=True, returnMetadata=True
    )
    return {vector["key"]: vector for page in pages for vector in page["vectors"]}


# --- objects ------------------------------------------------------------------------------------------


def test_an_object_says_all_there_is_to_say_of_each_vector(
    worker: Encoder, cloud: SimpleNamespace, photo: bytes
) -> None:
    take_vectors(cloud.s3)
    version = cloud.s3.head_object(Bucket="photos", Key=KEYS[2])["VersionId"]
    wanted = [in_s3(KEYS[0]), in_s3(KEYS[1]), in_s3("missing"), in_s3(KEYS[2])]
    wanted[3]["s3"]["version_id"] = version
    answer = direct.invoke({"Items": wanted}, None, worker)
    ((name, file),) = take_vectors(cloud.s3).items()  # numpy.load there allows no pickle
    assert name == answer["output"]
    assert name.startswith(f"s3://vectors/run/{worker.fingerprint}/")
    assert file["fingerprint"] == worker.fingerprint
    assert file["bucket"].tolist() == ["photos"] * 3
    assert file["key"].tolist() == list(KEYS)
    assert file["version_id"].tolist() == ["", "", version]
    assert file["etag"][0] == hashlib.md5(photo).hexdigest()
    assert file["embedding"].dtype == np.float32
    assert_same(file["embedding"], np.stack([worker.encode(Source("photos", key)) for key in KEYS]))


def test_a_retry_overwrites_in_whichever_order_and_company(worker: Encoder, cloud: SimpleNamespace) -> None:
    take_vectors(cloud.s3)
    for event in (sqs(*map(in_s3, KEYS)), sqs(*map(in_s3, reversed(KEYS))), sqs(s3_notification(*KEYS[:2]))):
        assert direct.invoke(event, None, worker) == {"batchItemFailures": []}
    direct.invoke(s3_batch("1.0", KEYS[0]), None, worker)  # another engine, the same object
    assert sorted(file["key"].item() for file in take_vectors(cloud.s3).values()) == sorted(KEYS)
    names = {direct.invoke({"Items": [in_s3(key) for key in KEYS]}, None, worker)["output"] for _ in range(3)}
    assert set(take_vectors(cloud.s3)) == names
    assert len(names) == 1


def test_names_differ_where_what_is_in_them_differs(worker: Encoder) -> None:
    a, b = Source("photos", "a"), Source("photos", "b")
    lists = [[a], [b], [a, b], [Source("photos", "a", "1")], [Source("photos", f"a\n{b}")]]
    lists += [[Source("photos", 'a", "b')], [Source("photos", "a", "1"), b], [Source("other", "a")]]
    changed = copy.copy(worker)
    changed.fingerprint = "another"
    names = [location(sources, encoder) for sources in lists for encoder in (worker, changed)]
    assert len(set(names)) == len(names)
    for form in ("s3://vectors", "s3://vectors/"):
        bare = location([a], with_settings(worker, output=form))
        assert bare == location([a], worker).replace("/run/", "/")


# --- S3 Vectors ---------------------------------------------------------------------------------------


def test_vectors_in_an_index(worker: Encoder, cloud: SimpleNamespace, photo: bytes) -> None:
    to_index = with_settings(worker, output="s3vectors://vectors/clip")
    version = cloud.s3.head_object(Bucket="photos", Key=KEYS[0])["VersionId"]
    for _ in range(2):  # delivered twice, there once
        event = sqs(*map(in_s3, KEYS), in_s3("missing"))
        assert len(direct.invoke(event, None, to_index)["batchItemFailures"]) == 1
    (result,) = direct.invoke(s3_batch("2.0", KEYS[0], version=version), None, to_index)["results"]
    assert (result["resultCode"], result["resultString"]) == ("Succeeded", "s3vectors://vectors/clip")
    found = stored(cloud)
    assert set(found) == {*(f"s3://photos/{key}" for key in KEYS), f"{version}@s3://photos/{KEYS[0]}"}
    vector = found[f"{version}@s3://photos/{KEYS[0]}"]
    assert_same(vector["data"]["float32"], worker.encode(photo), atol=0)
    expected = {"bucket": "photos", "key": KEYS[0], "version_id": version, "fingerprint": worker.fingerprint}
    assert vector["metadata"] == expected | {"etag": hashlib.md5(photo).hexdigest()}
    assert "version_id" not in found[f"s3://photos/{KEYS[1]}"]["metadata"]


def test_more_vectors_than_one_request_takes(worker: Encoder, cloud: SimpleNamespace) -> None:
    rows = _rows(2 * output.PER_PUT + 1)
    sizes = []
    events = s3.client("s3vectors").meta.events
    events.register(
        "provide-client-params.s3vectors", lambda params, **_: sizes.append(len(params["vectors"]))
    )
    to_index = with_settings(worker, output="s3vectors://vectors/clip")
    output.write([Group([row.source], [row]) for row in rows], to_index)
    assert sizes == [output.PER_PUT, output.PER_PUT, 1]
    found = stored(cloud)
    for row in random.Random(0).sample(rows, 20):
        assert_same(found[str(row.source)]["data"]["float32"], row.embedding, atol=0)
    assert {str(row.source) for row in rows} <= set(found)


def _rows(count: int) -> list[Row]:
    vectors = np.random.default_rng(0).normal(size=(count, 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [Row(Source("photos", f"many/{number}"), vector) for number, vector in enumerate(vectors)]


def test_a_key_that_an_index_cannot_hold_is_hashed() -> None:
    longest = Source("photos", "k" * (1024 - len("s3://photos/")))
    assert vector_key(longest) == str(longest)
    hashed = {vector_key(Source("photos", longest.key + end)) for end in "ab"}
    assert len(hashed) == 2
    assert {len(key) for key in hashed} == {len("sha256:") + 64}


# --- an output that takes nothing ---------------------------------------------------------------------


@pytest.mark.parametrize("where", BROKEN)
def test_an_output_that_fails_is_every_engine_s_to_try_again(
    worker: Encoder, cloud: SimpleNamespace, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = with_settings(worker, output=where)
    for event in (sqs(in_s3(KEYS[0])), s3_notification(KEYS[0]), {"Items": [in_s3(KEYS[0])]}):
        with pytest.raises(OutputUnavailable) as caught:  # of SQS: every message comes again
            direct.invoke(event, None, broken)
        assert caught.value.retryable
        assert "none-such" not in caught.value.detail
    assert f"{where} cannot be written" in caplog.text
    results = direct.invoke(s3_batch("1.0", KEYS[0], "missing"), None, broken)["results"]
    assert [(result["resultCode"], result["resultString"].partition(":")[0]) for result in results] == [
        ("TemporaryFailure", "output_unavailable"),
        ("PermanentFailure", "source_not_found"),
    ]


@pytest.mark.parametrize("where", BROKEN)
def test_with_nothing_to_write_nothing_is_asked_of_the_output(worker: Encoder, where: str) -> None:
    broken = with_settings(worker, output=where)
    assert direct.invoke({"Items": [in_s3("missing")]}, None, broken)["written"] == 0
    assert len(direct.invoke(sqs(in_s3("missing")), None, broken)["batchItemFailures"]) == 1
