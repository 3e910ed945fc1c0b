"""An AWS that hangs or drips, and a function whose time is short: all is answered, and in time."""

import base64
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from events.generate import in_s3, map_batch, s3_batch, s3_notification, sqs
from handler import aws, budget
from handler.budget import BATCH, REQUEST, Budget, Phases
from handler.config import Config
from handler.encoder import Encoder
from handler.errors import OutOfTime, OutputUnavailable, SourceUnavailable
from handler.events import direct
from handler.images import s3
from handler.images.s3 import File, Image, Source
from handler.outcome import Outcome
from tests import bombs
from tests.answers import INVOKE, assert_same
from tests.aws import environment
from tests.conftest import emulator, with_settings
from tests.slow import WAYS, Slow

SCALE = 20
"""How many times shorter than in the service calls are here, so that tests do not wait for long."""
GATEWAY = 29 / SCALE
"""When API Gateway gives up, at that scale."""
OVER_HTTP = [way for way in WAYS if way != "drip-handshake"]


@pytest.fixture(scope="module")
def worker(encoder: Encoder, server: Slow) -> Encoder:
    return with_settings(encoder, s3_buckets=("photos",), output="s3://vectors")


class Context:
    """Lambda's, as far as it tells the time that is left."""

    def __init__(self, seconds: float) -> None:
        self.aws_request_id = "1"
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int(1000 * (self._end - time.monotonic())))


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> Context:
    """For reading, and as much as in a long time-out for all that comes after it."""
    monkeypatch.setattr(budget, "MOST", 1)
    return Context(BATCH.read + 2)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LONGEST", "IN_VAIN", "LEAST"):
        monkeypatch.setattr(aws, name, getattr(aws, name) / SCALE)
    monkeypatch.setattr(aws, "PAUSES", (0.01, 0.01))


def fetch(*keys: str, config: Config, limits: Budget | None = None) -> list[Outcome[File]]:
    images: list[Outcome[Image]] = [Outcome(Source("photos", key)) for key in keys]
    return list(s3.fetch(images, config, limits or Budget()))


def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens soon, but in another thread. (boto3 itself stops reading after 5 s.)"""
    end = time.monotonic() + 2
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("way", OVER_HTTP)
def test_32_objects_that_never_come_are_answered_before_api_gateway_gives_up(
    worker: Encoder, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    start = time.monotonic()
    outcomes = fetch(*(f"{way}/{number}" for number in range(32)), config=worker.config)
    assert time.monotonic() - start < GATEWAY
    late = "source_unavailable: S3 did not deliver the object in time: try again"
    assert [str(outcome.error) for outcome in outcomes] == [late] * 32
    until(no_call_goes_on)
    assert len(caplog.messages) == 32  # one line each, and none of what ended their threads


def no_call_goes_on() -> bool:
    return all(thread.name != "aws" for thread in threading.enumerate())


def test_an_aws_that_hung_long_enough_is_still_asked_for_what_it_may_have(
    worker: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "LONGEST", 0.1)
    monkeypatch.setattr(aws, "IN_VAIN", 0.05)
    *_, late = fetch(*["hang"] * 9, "late/x", config=worker.config)
    assert late.error is None


@pytest.mark.usefixtures("hasty")
def test_a_handshake_that_drips(worker: Encoder, server: Slow) -> None:
    before = server.connections
    with environment({"AWS_ENDPOINT_URL": f"https://127.0.0.1:{server.port}"}):
        (outcome,) = fetch("x", config=worker.config)
    assert isinstance(outcome.error, SourceUnavailable)
    until(lambda: server.connections <= before)


@pytest.mark.usefixtures("hasty")
def test_good_objects_keep_their_vectors_wherever_the_others_stand(
    worker: Encoder, photo: bytes
) -> None:
    keys = [f"{way}/{number}" for way in OVER_HTTP for number in range(9)]
    for place in (0, 7, 20, len(keys)):
        keys.insert(place, "good")
    answer = direct.invoke(
        {"images": [in_s3(key) for key in keys]}, None, with_settings(worker, max_images=99)
    )
    errors = {error["index"]: error["code"] for error in answer["errors"]}
    assert errors == {
        index: "source_unavailable" for index, key in enumerate(keys) if key != "good"
    }
    for index, key in enumerate(keys):
        if key == "good":
            assert_same(answer["embeddings"][index], worker.encode(photo))


def test_what_lambdas_clock_ends_is_said_to_be_out_of_time(worker: Encoder) -> None:
    keys = ["good/1", *(f"{way}/1" for way in OVER_HTTP), "good/2"]
    context = Context(3)
    answer = direct.invoke({"images": [in_s3(key) for key in keys]}, context, worker)
    assert context.get_remaining_time_in_millis() > 0
    codes = {error["index"]: error["code"] for error in answer["errors"]}
    assert codes == dict.fromkeys([1, 2, 3], "out_of_time")


def test_nothing_is_asked_of_s3_when_the_time_is_over(worker: Encoder, server: Slow) -> None:
    before = server.accepted
    over = Budget(until=Phases(read=time.monotonic()))
    spent = Budget(cpu_seconds=0)
    for limits in (over, spent):
        for outcome in fetch(*["hang"] * 20, config=worker.config, limits=limits):
            assert isinstance(outcome.error, OutOfTime)
            assert outcome.error.detail == (
                "what came before took all of the request's time: send this one again"
                if limits is spent
                else "the function's time ended before S3's answer: send this image again"
            )
    until(no_call_goes_on)
    assert server.accepted == before


def test_objects_that_hang_hold_up_no_other_request(
    worker: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "LONGEST", 1)
    hanging = threading.Thread(target=fetch, args=["hang"] * 9, kwargs={"config": worker.config})
    hanging.start()
    try:
        good = fetch(*["good"] * 20, config=worker.config)
        assert all(outcome.error is None for outcome in good)
        assert hanging.is_alive()
    finally:
        hanging.join()


def test_100_batches_that_hang_leave_nothing_behind(
    worker: Encoder, server: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LONGEST", "LEAST"):
        monkeypatch.setattr(aws, name, 0.02)
    fetch("good", config=worker.config)  # and its connection stays open
    before = files(), threading.active_count()
    for number in range(100):
        way = OVER_HTTP[number % len(OVER_HTTP)]
        fetch(*[way] * 8, config=worker.config)
    until(lambda: (files(), threading.active_count()) <= before)
    monkeypatch.undo()
    (good,) = fetch("good", config=worker.config)
    assert good.error is None


def test_a_connection_that_has_served_before_and_now_hangs(
    worker: Encoder,
    server: Slow,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fetch("good", config=worker.config)
    before = server.accepted
    monkeypatch.setattr(aws, "LONGEST", 0.1)
    (outcome,) = fetch("hang", config=worker.config)
    late = "source_unavailable: S3 did not deliver the object in time: try again"
    assert str(outcome.error) == late
    said = "s3://photos/hang cannot be read: S3 does not answer, or too slowly"
    assert caplog.messages == [said]
    assert server.accepted == before
    until(no_call_goes_on)


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_nobody_waits_for_any_more_ends(worker: Encoder, server: Slow) -> None:
    images: list[Outcome[Image]] = [Outcome(Source("photos", key)) for key in ("good", "hang/1")]
    fetched = s3.fetch(images, worker.config, Budget())
    assert next(fetched).error is None
    del fetched
    until(no_call_goes_on)


# --- writing, and the second look -----------------------------------------------------------------

OUTPUTS = ("s3://hang", "s3://drip-head/run", "s3vectors://hang/clip", "s3vectors://drip-head/clip")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_that_hangs_is_answered_for_each_object(worker: Encoder, output: str) -> None:
    hanging = with_settings(worker, output=output)
    results = direct.invoke(s3_batch("1.0", *"abc"), None, hanging)["results"]
    assert [result["resultCode"] for result in results] == ["TemporaryFailure"] * 3
    assert {result["resultString"].partition(":")[0] for result in results} == {
        "output_unavailable"
    }
    with pytest.raises(OutputUnavailable, match="3 of 3 failed"):
        direct.invoke(map_batch(*map(in_s3, "abc")), None, hanging)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("way", ["hang", "drip-head"])
def test_an_object_that_cannot_be_looked_at_again_is_handed_back_alone(
    worker: Encoder, server: Slow, way: str
) -> None:
    event = sqs(s3_notification(f"HEAD-{way}/1"), s3_notification("good"))
    failed = direct.invoke(event, None, worker)["batchItemFailures"]
    assert failed == [{"itemIdentifier": event["Records"][0]["messageId"]}]


@pytest.mark.parametrize(
    ("output", "keys"),
    [
        ("s3://hang", ("good",) * 2),
        ("s3vectors://hang/clip", ("good",) * 2),
        ("s3://vectors", ("good", *(f"HEAD-hang/{number}" for number in range(9)))),
    ],
    ids=["writing", "index", "looking"],
)
def test_lambda_never_ends_a_batch_whatever_phase_hangs(
    worker: Encoder, output: str, keys: tuple[str, ...]
) -> None:
    hanging = with_settings(worker, output=output)
    context = Context(2)
    event = sqs(*map(s3_notification, keys))
    failed = direct.invoke(event, context, hanging)["batchItemFailures"]
    assert context.get_remaining_time_in_millis() > 0
    bad = [
        record["messageId"]
        for record, key in zip(event["Records"], keys, strict=True)
        if "hang" in key + output
    ]
    assert failed == [{"itemIdentifier": message} for message in bad]


def test_lambda_never_ends_a_batch_whose_objects_hang(
    worker: Encoder, two_seconds: Context
) -> None:
    event = sqs(in_s3("good"), *(in_s3(f"hang/{number}") for number in range(40)))
    failed = direct.invoke(event, two_seconds, worker)["batchItemFailures"]
    assert two_seconds.get_remaining_time_in_millis() > 1000 * BATCH.write
    hanging = [record["messageId"] for record in event["Records"][1:]]
    assert failed == [{"itemIdentifier": name} for name in hanging]


# --- the budget -----------------------------------------------------------------------------------


@pytest.mark.parametrize("before_end", [BATCH, REQUEST])
@pytest.mark.parametrize("seconds", [0.5, 3, 29, 120, 900])
def test_each_phase_ends_before_the_next_and_all_before_lambda_does(
    before_end: Phases, seconds: float
) -> None:
    now, context = time.monotonic(), Context(seconds)
    is_batch = before_end == BATCH
    made = Budget.of_batch(context) if is_batch else Budget.of_request(Config(), context)
    left = [now + seconds - end for end in made.until]
    assert left == sorted(left, reverse=True)
    if seconds >= 3 * before_end.read:
        assert left == pytest.approx(before_end, abs=0.1)
    assert left[0] <= seconds / 3 + 0.1
    assert left[-1] >= -0.1


def test_without_lambda_there_is_no_clock() -> None:
    for context in (None, object()):
        assert Budget.of_batch(context).until == Phases()
        assert Budget.of_request(Config(), context).until == Phases()


def test_the_cpu_seconds_of_a_request(encoder: Encoder, photo: bytes) -> None:
    """Images that come when they are spent fail, and those before keep their vectors."""
    slow = with_settings(encoder, request_seconds=0.05, s3_buckets=())
    costly = bombs.png(3000, 2000)
    answer = direct.invoke({"images": [_base64(costly)] * 12 + [_base64(photo)]}, None, slow)
    done = [embedding is not None for embedding in answer["embeddings"]]
    assert done == sorted(done, reverse=True)
    assert done[0]
    assert not done[-1]
    assert {error["code"] for error in answer["errors"]} == {"out_of_time"}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


COSTLY = bombs.png(4000, 2500)
"""0.1 s of CPU."""


def test_a_function_with_little_time_answers_what_it_could_encode(
    model_dir: Path, tmp_path: Path, worker: Encoder
) -> None:
    """Through the real runtime client: 100 images that take 10 s to decode, of a function's 5."""
    settings = {
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "5",
        "CLIP_REQUEST_SECONDS": "100",
        "CLIP_MAX_IMAGES": "100",
    }
    event = json.dumps({"images": [_base64(COSTLY)] * 100})
    with emulator(model_dir, tmp_path / "log", **settings) as (client, _):
        client.post(INVOKE, content=json.dumps({"action": "health"}))  # loads the model
        start = time.monotonic()
        answer = client.post(INVOKE, content=event).json()
        assert time.monotonic() - start < 5
    assert "errors" in answer, answer
    done = [embedding is not None for embedding in answer["embeddings"]]
    assert done[0]
    assert not done[-1]
    assert {error["code"] for error in answer["errors"]} == {"out_of_time"}


def test_a_batch_with_little_time_hands_back_what_it_did_not_encode(
    worker: Encoder, server: Slow, two_seconds: Context
) -> None:
    server.written.clear()
    keys = [str(number) for number in range(200)]
    event = sqs(*map(in_s3, keys))
    failed = direct.invoke(event, two_seconds, worker)["batchItemFailures"]
    assert two_seconds.get_remaining_time_in_millis() > 1000 * BATCH.write
    ids = [{"itemIdentifier": record["messageId"]} for record in event["Records"]]
    assert 0 < len(failed) < len(ids)
    assert failed == [name for name in ids if name in failed]
    assert len(server.written) == len(ids) - len(failed)


def test_a_batch_that_no_time_is_left_for(
    worker: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    """Each engine is told to send all of it again; a Map's owner is told what to change."""
    with pytest.raises(OutOfTime, match="2 of 2 failed: s3://photos/"):
        direct.invoke(map_batch(in_s3("a"), in_s3("b")), Context(0), worker)
    assert "a Map's batch of 2 objects" in caplog.text
    assert "lower Objects in batch.yaml" in caplog.text
    results = direct.invoke(s3_batch("2.0", "a", "b"), Context(0), worker)["results"]
    assert [result["resultCode"] for result in results] == ["TemporaryFailure"] * 2
    with pytest.raises(OutOfTime):
        direct.invoke(s3_notification("a"), Context(0), worker)
    with pytest.raises(OutOfTime):
        direct.invoke(in_s3("a"), Context(0), worker)


def test_the_batch_function_answers_in_time_though_s3_hangs(
    model_dir: Path, tmp_path: Path, server: Slow
) -> None:
    """Through the real runtime client: what is good is written, and the rest handed back."""
    settings = {
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "6",
        "CLIP_S3_BUCKETS": "photos",
        "CLIP_OUTPUT": "s3://vectors",
    }
    event = sqs(in_s3("good"), *(in_s3(f"hang/{number}") for number in range(20)))
    before = len(server.written)
    log = tmp_path / "log"
    with emulator(model_dir, log, "handler.worker.handler", **settings) as (client, _):
        client.post(INVOKE, content=json.dumps({"action": "health"}))  # loads the model
        start = time.monotonic()
        answer = client.post(INVOKE, content=json.dumps(event)).json()
        assert time.monotonic() - start < 6
    hanging = [record["messageId"] for record in event["Records"][1:]]
    assert answer == {"batchItemFailures": [{"itemIdentifier": name} for name in hanging]}
    assert len(server.written) == before + 1
    assert "out_of_time" in log.read_text()
