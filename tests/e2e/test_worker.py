"""The batch engines' function in its container: the worker's command, S3 and S3 Vectors the
stand-in's.
"""

import io
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from events.generate import PHOTO, map_batch
from handler.engines import Embedding
from tests import stack
from tests.answers import assert_same
from tests.aws import aws
from tests.e2e.conftest import FIGURES, Function, docker, running

WORKER = ("handler.worker.handler",)
GOOD = ("a.jpg", "ü b+c.jpg", "throttled-once/d.jpg")
PERMANENT = {
    "missing.jpg": "source_not_found",
    "denied/x.jpg": "source_denied",
    "text.jpg": "not_an_image",
}
PASSING = "throttled/x.jpg"


@pytest.fixture(scope="module")
def standin() -> Iterator[SimpleNamespace]:
    """Buckets ``photos`` and ``vectors``, index ``shop/clip``."""
    with aws(host="0.0.0.0") as standin:  # a container's way to it is the bridge
        for bucket in ("photos", "vectors"):
            standin.s3.create_bucket(Bucket=bucket)
        for key in (*GOOD, *PERMANENT, PASSING):
            if key != "missing.jpg":
                body = b"no image" if key == "text.jpg" else PHOTO
                standin.s3.put_object(Bucket="photos", Key=key, Body=body)
        stack.create_index("shop", "clip")
        yield standin


@pytest.fixture(scope="module", params=["s3://vectors/out", "s3vectors://shop/clip"])
def worker(
    request: pytest.FixtureRequest, image: str, standin: SimpleNamespace
) -> Iterator[Function]:
    """The function that writes files, then the one that writes to an index."""
    hosts = docker(
        "run", "--rm", "--add-host=host:host-gateway", "--entrypoint", "cat", image, "/etc/hosts"
    )
    (host,) = (
        line.split()[0] for line in hosts.stdout.splitlines() if line.split()[1:] == ["host"]
    )
    endpoint = standin.env["AWS_ENDPOINT_URL"].replace("127.0.0.1", host)
    variables = standin.env | {"AWS_ENDPOINT_URL": endpoint}
    variables |= {"CLIP_S3_BUCKETS": "photos", "CLIP_OUTPUT": request.param}
    options = [f"--env={name}={value}" for name, value in variables.items()]
    with running(image, 1769, *options, command=WORKER) as function:
        yield function
        name = "the batch function, " + request.param.partition(":")[0]
        FIGURES[f"{name}: peak memory"] = f"{function.peak_memory():.0f} MB"


def _invoke(worker: Function, event: Any) -> Any:
    return worker.invoke(json.dumps(event).encode())


def _item(key: str) -> dict[str, Any]:
    return {"s3": {"bucket": "photos", "key": key}}


def _written(worker: Function, standin: SimpleNamespace, answer: Any) -> dict[str, list[float]]:
    """Key -> vector, of what `answer` says was written."""
    if answer["output"].startswith("s3vectors:"):
        listed = standin.s3vectors.list_vectors(
            vectorBucketName="shop", indexName="clip", returnData=True, returnMetadata=True
        )
        return {v["metadata"]["key"]: v["data"]["float32"] for v in listed["vectors"]}
    key = answer["output"].removeprefix("s3://vectors/")
    file = np.load(io.BytesIO(standin.s3.get_object(Bucket="vectors", Key=key)["Body"].read()))
    return dict(zip(file["key"].tolist(), file["embedding"].tolist(), strict=True))


def test_a_batch_of_a_distributed_map(
    worker: Function, standin: SimpleNamespace, vector: Embedding
) -> None:
    answer = _invoke(worker, map_batch(*map(_item, (*GOOD, *PERMANENT))))
    assert answer["written"] == len(GOOD)
    failed = {error["source"]: error["code"] for error in answer["errors"]}
    assert failed == {f"s3://photos/{key}": code for key, code in PERMANENT.items()}
    written = _written(worker, standin, answer)
    assert set(written) == set(GOOD)
    for embedding in written.values():
        assert_same(embedding, vector)


def test_what_may_pass_is_raised_by_the_name_that_the_state_machine_retries(
    worker: Function,
) -> None:
    answer = _invoke(worker, map_batch(_item("a.jpg"), _item(PASSING)))
    assert answer["errorType"] == "SourceUnavailable"
    assert f"s3://photos/{PASSING}" in answer["errorMessage"]


def test_messages_of_a_queue(worker: Function) -> None:
    bodies = {key: json.dumps(_item(key)) for key in (*GOOD, *PERMANENT, PASSING)} | {
        "malformed": "{"
    }
    records = [
        {"messageId": key, "eventSource": "aws:sqs", "body": body, "attributes": {}}
        for key, body in bodies.items()
    ]
    failed = _invoke(worker, {"Records": records})["batchItemFailures"]
    # What is not there, and what is no image, is named in the log and done.
    assert {item["itemIdentifier"] for item in failed} == {"denied/x.jpg", PASSING, "malformed"}
    for key, code in PERMANENT.items():
        lines = [line for line in worker.log().splitlines() if f"s3://photos/{key}" in line]
        assert code in lines[-1]


@pytest.mark.parametrize("name", ["rest_multipart.json", "http_api_raw.json", "alb.json"])
def test_it_serves_no_http(worker: Function, name: str) -> None:
    assert worker.invoke(name)["errorType"] == "InvalidEvent"


def test_a_batch_of_100(worker: Function, standin: SimpleNamespace) -> None:
    """What a state machine hands over at once, within the function's 120 seconds."""
    keys = [f"many/{n}.jpg" for n in range(100)]
    for key in keys:
        standin.s3.put_object(Bucket="photos", Key=key, Body=PHOTO)
    start = time.perf_counter()
    answer = _invoke(worker, map_batch(*map(_item, keys)))
    seconds = time.perf_counter() - start
    assert (answer["written"], answer["errors"]) == (100, [])
    FIGURES[f"100 photographs to {answer['output'].partition(':')[0]}"] = f"{seconds:.1f} s"


def test_it_writes_no_file_and_warns_of_what_failed_only(worker: Function) -> None:
    _invoke(worker, map_batch(_item("a.jpg")))
    assert docker("diff", worker.container).stdout == ""
    warnings = [json.loads(line) for line in worker.log().splitlines() if '"WARNING"' in line]
    assert all(
        "SYNTHETIC" in line["message"]
        or line["message"].startswith("decoders are confined, but not in")  # as on Lambda
        or line["message"] == "no vector"
        or line["message"].startswith(f"s3://photos/{PASSING} cannot be read: ClientError")
        for line in warnings
    ), warnings


CALLS = """
import boto3
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError

print(boto3.__file__)
config = Config(retries={"total_max_attempts": 1})
keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "config": config}
for region in ("eu-central-1", "cn-north-1"):
    for service, call, arguments in (
        ("s3", "get_object", {"Bucket": "photos", "Key": "x"}),
        ("s3vectors", "list_vectors", {"vectorBucketName": "shop", "indexName": "clip"}),
    ):
        try:
            getattr(boto3.client(service, region_name=region, **keys), call)(**arguments)
        except EndpointConnectionError as error:
            print(error.kwargs["endpoint_url"])
"""


def test_boto3_is_the_images_own_and_knows_where_both_services_are(image: str) -> None:
    """Without a network a call ends where it would have gone; no other service is described."""
    python = ("run", "--rm", "--network", "none", "--entrypoint", "python", image, "-c")
    file, *endpoints = docker(*python, CALLS).stdout.split()
    assert file.startswith("/var/task/")
    assert endpoints == [
        "https://photos.s3.eu-central-1.amazonaws.com/x",
        "https://s3vectors.eu-central-1.api.aws/ListVectors",
        "https://photos.s3.cn-north-1.amazonaws.com.cn/x",
        "https://s3vectors.cn-north-1.api.amazonwebservices.com.cn/ListVectors",
    ]
    unknown = docker(
        *python, "import boto3; boto3.client('ec2', region_name='eu-central-1')", check=False
    )
    assert "UnknownServiceError" in unknown.stderr
