"""What AWS's refusals mean to a caller, and which of them are worth another attempt."""

import math

import pytest

from events.generate import s3_notification, sqs
from handler import aws
from handler.encoder import Encoder
from handler.errors import (
    ClipError,
    OutputRefused,
    OutputUnavailable,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from handler.events import direct, output
from handler.events.output import Entry
from handler.images import s3
from handler.images.s3 import Source
from tests.aws import environment
from tests.conftest import free_port, with_settings
from tests.slow import Slow


@pytest.fixture(scope="module")
def worker(encoder: Encoder, server: Slow) -> Encoder:
    return with_settings(encoder, s3_buckets=("photos", "no bucket!"), output="s3://vectors")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "PAUSES", (0.001, 0.001))


def problem(encoder: Encoder, key: str, bucket: str = "photos") -> ClipError:
    with pytest.raises(ClipError) as caught:
        encoder.encode(Source(bucket, key))
    return caught.value


GONE = [
    "404-NoSuchKey",
    "404-NoSuchVersion",
    "404-NoSuchBucket",
    "405-MethodNotAllowed",
    "400-KeyTooLongError",
    "400-InvalidURI",
    "400-InvalidBucketName",
    "400-InvalidArgument",
]
UNDERSTOOD = ["403-AccessDenied", "401-Unauthorized", "400-KMS.DisabledException"]
UNDERSTOOD += ["400-InvalidRequest", "403-"]
NOT_UNDERSTOOD = ["400-IllegalLocationConstraintException", "409-Unheard", "499-Of", "400-"]
PASSING = [
    "400-RequestTimeout",
    "400-SlowDown",
    "403-RequestTimeTooSkewed",
    "409-OperationAborted",
    "400-ExpiredToken",
    "400-InvalidToken",
    "403-InvalidAccessKeyId",
    "403-SignatureDoesNotMatch",
    "400-ThrottlingException",
    "400-Throttled",
    "429-Unheard",
    "500-InternalError",
    "503-SlowDown",
    "599-Unheard",
]


@pytest.mark.parametrize("refusal", GONE)
def test_what_is_certainly_not_there(worker: Encoder, server: Slow, refusal: str) -> None:
    before = server.refused
    error = problem(worker, f"refuse-{refusal}/x")
    assert isinstance(error, SourceNotFound)
    assert error.detail == "there is no such object, or no such version of it"
    assert server.refused == before + 1


@pytest.mark.parametrize("refusal", [*UNDERSTOOD, *NOT_UNDERSTOOD])
def test_what_may_not_be_read_for_a_reason_known_or_not(
    worker: Encoder, server: Slow, refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = server.refused
    error = problem(worker, f"refuse-{refusal}/x")
    assert isinstance(error, SourceDenied)
    denied = "S3 denies the object to this service: its role lacks s3:GetObject, or its key"
    assert error.detail == denied
    assert server.refused == before + 1
    # A denial is understood; of anything else only the log can say what it was.
    assert ("cannot be read: ClientError: " in caplog.text) == (refusal in NOT_UNDERSTOOD)


@pytest.mark.parametrize("refusal", ["403-InvalidObjectState", "400-InvalidObjectState"])
def test_an_archived_object(worker: Encoder, refusal: str) -> None:
    error = problem(worker, f"refuse-{refusal}/x")
    assert isinstance(error, SourceDenied)
    assert error.detail == "the object is archived: restore it first"


@pytest.mark.parametrize("refusal", PASSING)
def test_what_may_pass_is_tried_three_times(
    worker: Encoder, server: Slow, refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = server.refused
    error = problem(worker, f"refuse-{refusal}/x")
    assert str(error) == "source_unavailable: S3 did not deliver the object: try again"
    assert server.refused == before + 3
    assert "s3://photos/refuse-" in caplog.text


@pytest.mark.parametrize("key", ["garbled/x", "corrupted/x"])
def test_an_answer_that_is_none(worker: Encoder, key: str) -> None:
    assert isinstance(problem(worker, key), SourceUnavailable)


def test_an_aws_that_cannot_be_reached(worker: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    with environment({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}):
        assert isinstance(problem(worker, "x"), SourceUnavailable)
    assert "EndpointConnectionError" in caplog.text


def test_a_name_that_boto3_does_not_even_send(
    worker: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(problem(worker, "x", bucket="no bucket!"), SourceDenied)
    assert "ParamValidationError" in caplog.text


# --- the second look: a HEAD has no body, and so no code but its status ---------------------------


@pytest.mark.parametrize("status", ["400", "403", "404", "500"])
def test_what_the_second_look_is_refused_with(worker: Encoder, status: str) -> None:
    event = sqs(s3_notification(f"HEAD-refuse-{status}-/x"), s3_notification("good"))
    failures = direct.invoke(event, None, worker)["batchItemFailures"]
    assert failures == [{"itemIdentifier": event["Records"][0]["messageId"]}]


def test_what_an_object_that_changed_meanwhile_is_answered_with(worker: Encoder) -> None:
    (error,) = s3.changed([Source("photos", "good", etag="another")], math.inf).values()
    assert str(error) == "source_changed: the object changed meanwhile: try again"
    assert s3.changed([Source("photos", "good", etag="1")], math.inf) == {}


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "error", "attempts"),
    [
        ("404-NoSuchBucket", OutputUnavailable, 1),
        ("404-NotFoundException", OutputUnavailable, 1),
        ("503-SlowDown", OutputUnavailable, 3),
        ("429-TooManyRequestsException", OutputUnavailable, 3),
        ("403-AccessDenied", OutputRefused, 1),
        ("400-ValidationException", OutputRefused, 1),
        ("404-Unheard", OutputRefused, 1),
    ],
)
@pytest.mark.parametrize("form", ["s3://vectors/refuse-{}", "s3vectors://vectors/clip"])
def test_what_an_output_s_refusals_mean(
    worker: Encoder,
    server: Slow,
    photo: bytes,
    form: str,
    refusal: str,
    error: type[ClipError],
    attempts: int,
) -> None:
    refusing = with_settings(worker, output=form.format(refusal))
    source, before = Source("photos", f"refuse-{refusal}/x"), server.refused
    errors = output.write([Entry(source, worker.encode(photo))], refusing)
    assert [type(each) for each in errors.values()] == [error]
    assert server.refused == before + attempts
    assert "the log says why" in errors[source].detail
