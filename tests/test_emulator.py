"""The real Lambda runtime client under the real Runtime Interface Emulator, without a container."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from events.generate import BUCKET, HERE, KEY, PHOTO, VERSION
from handler.encoder import Encoder
from tests.answers import ENGINES, ERRORS, EVENTS, IN_S3, INVOKE, check_answer, check_answer_from_s3
from tests.aws import take_vectors
from tests.conftest import emulator


def _invoke(client: httpx.Client, name: str) -> Any:
    return client.post(INVOKE, content=(HERE / name).read_bytes()).json()


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_file(lambda_client: httpx.Client, name: str, encoder: Encoder) -> None:
    check_answer(name, _invoke(lambda_client, name), encoder.encode(PHOTO), atol=0)


def test_a_bad_event_costs_the_next_one_nothing(lambda_client: httpx.Client) -> None:
    before = _invoke(lambda_client, "direct_image.json")
    for name in ERRORS:
        _invoke(lambda_client, name)
    assert lambda_client.post(INVOKE, content=b"[]").json()["errorType"] == "InvalidEvent"
    assert _invoke(lambda_client, "direct_image.json") == before


@pytest.fixture(scope="module")
def worker(
    cloud: SimpleNamespace, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """The batch function, beside S3."""
    settings = {"CLIP_S3_BUCKETS": BUCKET, "CLIP_OUTPUT": "s3://vectors"}
    log = tmp_path_factory.mktemp("worker") / "log"
    with emulator(model_dir, log, "handler.worker.handler", **settings) as (client, _):
        yield client


@pytest.mark.parametrize("name", [*IN_S3, *ENGINES])
def test_every_event_file_that_names_s3(
    worker: httpx.Client, cloud: SimpleNamespace, name: str, encoder: Encoder
) -> None:
    take_vectors(cloud.s3)
    version = cloud.s3.put_object(Bucket=BUCKET, Key=KEY, Body=PHOTO)["VersionId"]
    event = (HERE / name).read_text().replace(VERSION, version)
    check_answer_from_s3(
        name, worker.post(INVOKE, content=event).json(), encoder.encode(PHOTO), cloud.s3
    )


def test_lambdas_json_log_format_leaves_our_lines_as_they_are(
    model_dir: Path, tmp_path: Path
) -> None:
    """As the template sets it: one line a request, its metrics in it, none doubled and none
    wrapped.
    """
    log_format = {"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "INFO"}
    log = tmp_path / "log"
    with emulator(model_dir, log, **log_format) as (client, _):
        for name in ("direct_image.json", "bad_not_an_image.json"):
            _invoke(client, name)
    # The emulator's own lines are text whatever the format.
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    walls, synthetic, good, bad, raised = lines
    assert walls["message"].startswith("decoders are confined")
    assert synthetic["level"] == "WARNING"
    for line, status in ((good, 200), (bad, 422)):
        assert (line["level"], line["message"], line["status"]) == ("INFO", "request", status)
        assert line["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "ClipImageEncoder"
        assert (
            "timestamp" not in line
        )  # with one, Lambda's ApplicationLogLevel would go by the line's level
    assert (raised["level"], raised["errorType"]) == ("ERROR", "NotAnImage")  # the runtime's own
