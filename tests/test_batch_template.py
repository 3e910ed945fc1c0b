"""batch.yaml: what a deployment of the batch engines makes, who may do what, and what they hand to
the function.
"""

import re

import pytest

from handler.budget import BATCH
from handler.config import Config
from tests import documents
from tests.templates import IMAGE, INDEX, QUEUES, Stack, batches, refused, senders

BUCKET = {"VectorsBucket", "VectorsBucketPolicy"}
ALARMS = {"DeadLetterAlarm", "FailureAlarm", "BacklogAlarm", "BatchErrorAlarm"}
ALARMS |= {"BatchThrottleAlarm", "StateMachineAlarm"}
KEPT = QUEUES | BUCKET | {f"{name}Policy" for name in QUEUES}
MADE = KEPT | ALARMS | {"BatchFunction", "BatchLogGroup", "BatchRole", "EventInvokes"}
MADE |= {"QueueMapping", "S3MayInvoke", "S3BatchRole"}
MADE |= {"StateMachine", "StateMachineRole", "StateMachineLogGroup"}
MODELS = ["ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"]
CONCURRENCIES = ["5", "20", "50", "100", "200", "500", "1000"]


@pytest.fixture(params=[{}, INDEX], ids=["files", "index"])
def stack(request: pytest.FixtureRequest) -> Stack:
    return batches(**request.param)


# --- what is made ---------------------------------------------------------------------------------


def test_what_the_defaults_make() -> None:
    assert set(batches().resources) == MADE


@pytest.mark.parametrize(
    ("parameters", "resources"),
    [({"FollowKeys": "*"}, {"BucketRule"}), (INDEX, {"IndexBucket", "Index"})],
)
def test_an_option_makes_what_it_needs(parameters: dict[str, str], resources: set[str]) -> None:
    assert set(batches(**parameters).resources) - MADE == resources


def test_the_roles_that_keys_must_name_are_outputs(stack: Stack) -> None:
    roles = {name for name, r in stack.resources.items() if r["Type"] == "AWS::IAM::Role"}
    assert {f"{name.lower()}.Arn" for name in roles} <= set(stack.outputs.values())


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        (
            "ImageBucket",
            ["photos", "my.photos-2"],
            ["", "Photos", "s3://photos", "photos/", "ab", "a,b", "*", "b" * 64],
        ),
        ("VectorIndex", ["", "clip", "a.b-c"], ["ab", "shop/clip", "Clip", "-clip", "c" * 64]),
        (
            "InventoryLocation",
            ["", "reports/", "reports/photos/daily"],
            ["reports", "/photos", "reports/*", "s3://reports/p", "reports/a?", "reports/${aws:x}"],
        ),
        ("FollowKeys", ["", "*", "photos/*.jpg", "ä b/*"], ["**", "a\\b", "x" * 501]),
        (
            "ImageUri",
            [
                IMAGE,
                f"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/a/b@sha256:{'0' * 64}",
            ],
            ["", "clip-image-encoder", "public.ecr.aws/lambda/python:3.13", IMAGE[:-4]],
        ),
        ("Concurrency", ["5", "50", "1000"], ["1", "51"]),
        ("Model", ["ViT-B-32", "ViT-L-14-336px"], ["ViT-B/32", "RN50"]),
    ],
)
def test_parameters_that_cannot_work_are_refused(
    parameter: str, good: list[str], bad: list[str]
) -> None:
    taken = [value for value in good + bad if not refused("batch.yaml", **{parameter: value})]
    assert taken == good


# --- the function, which follows the model --------------------------------------------------------


def test_the_function_is_the_workers_in_the_image_that_was_deployed(stack: Stack) -> None:
    function = stack.properties("BatchFunction")
    assert (function["PackageType"], function["Code"]) == ("Image", {"ImageUri": IMAGE})
    assert function["ImageConfig"] == {"Command": ["handler.worker.handler"]}
    assert function["Role"] == "batchrole.Arn"
    # Not the dead-letter queue: start-message-move-task takes none that holds Lambda's records.
    invokes = stack.properties("EventInvokes")
    assert invokes["DestinationConfig"] == {"OnFailure": {"Destination": "failurequeue.Arn"}}
    assert (invokes["FunctionName"], invokes["Qualifier"]) == ("batchfunction", "$LATEST")


@pytest.mark.parametrize("model", MODELS)
def test_memory_and_batches_follow_the_model(model: str) -> None:
    """A full batch is encoded within half of the time that reading and encoding have, by the
    seconds that docs/models.md measured of `exact` on one thread.
    """
    table = documents.read("docs/models.md")
    row = re.findall(
        rf"^\| `{re.escape(model)}` \| (\d+) \| .*? \| ([\d,]+) ms", table, re.MULTILINE
    )
    ((dimension, milliseconds),) = row
    stack = batches(Model=model.replace("/", "-").replace("@", "-"), **INDEX)
    function = stack.properties("BatchFunction")
    seconds = float(milliseconds.replace(",", "")) / 1000
    time = (function["Timeout"] - BATCH.encode) / 2
    batch = stack.definition()["States"]["Encode"]["ItemBatcher"]["MaxItemsPerBatch"]
    assert batch * seconds <= time
    assert stack.properties("QueueMapping")["BatchSize"] * seconds <= 1.1 * time
    assert stack.properties("Index")["Dimension"] == int(dimension)
    named = re.findall(
        r"about ([\d,]+) MB for\s+`ViT-L/14`.* and ([\d,]+) for `ViT-L/14@336px`", table
    )
    needs = dict(zip(MODELS[2:], named[0], strict=True))
    least = int(needs.get(model, "1,769").replace(",", ""))
    assert function["MemorySize"] == least
    assert Config.from_env(function["Environment"]["Variables"]).model == stack.values["Model"]


@pytest.mark.parametrize(
    ("parameters", "output"),
    [({}, "s3://vectorsbucket/vectors"), (INDEX, "s3vectors://indexbucket/clip-1")],
)
def test_its_environment_is_what_the_handler_reads(parameters: dict[str, str], output: str) -> None:
    variables = batches(**parameters).properties("BatchFunction")["Environment"]["Variables"]
    config = Config.from_env(variables)
    assert (config.s3_buckets, config.output) == (("photos",), output)


def test_the_index_is_what_vectors_are_compared_by() -> None:
    index = batches(**INDEX).properties("Index")
    assert (index["IndexName"], index["DataType"]) == ("clip-1", "float32")
    assert index["DistanceMetric"] == "cosine"
    assert index["MetadataConfiguration"] == {"NonFilterableMetadataKeys": ["etag"]}


# --- instances ------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", CONCURRENCIES)
def test_a_full_run_leaves_the_queue_its_instances(concurrency: str) -> None:
    """Else messages that no instance took would become dead letters, untouched."""
    stack = batches(Concurrency=concurrency)
    map_share = stack.definition()["States"]["Encode"]["MaxConcurrency"]
    queue_share = stack.properties("QueueMapping")["ScalingConfig"]["MaximumConcurrency"]
    assert queue_share >= 2  # Lambda's least
    assert map_share >= 2
    assert map_share + queue_share < int(concurrency)  # the rest: S3 and its Batch Operations
    reserved = stack.properties("BatchFunction").get("ReservedConcurrentExecutions")
    assert reserved == (None if concurrency == "5" else concurrency)


# --- SQS ------------------------------------------------------------------------------------------


def test_the_queue_fits_the_function(stack: Stack) -> None:
    queue, mapping = stack.properties("Queue"), stack.properties("QueueMapping")
    timeout = stack.properties("BatchFunction")["Timeout"]
    assert queue["VisibilityTimeout"] == 6 * timeout
    redrive = queue["RedrivePolicy"]
    assert redrive["deadLetterTargetArn"] == "deadletterqueue.Arn"
    # The alarm's and the documents' "two hours".
    assert redrive["maxReceiveCount"] * queue["VisibilityTimeout"] == 2 * 3600
    advice = stack.properties("DeadLetterAlarm")["AlarmDescription"]
    assert "after ten attempts in two hours" in advice
    assert mapping["EventSourceArn"] == "queue.Arn"
    assert mapping["FunctionName"] == "batchfunction.Arn"
    assert mapping["FunctionResponseTypes"] == [
        "ReportBatchItemFailures"
    ]  # else one bad image fails 32
    assert mapping["MaximumBatchingWindowInSeconds"] >= 1  # which Lambda wants for more than 10


def test_a_rule_sends_what_is_created_and_deleted_in_the_bucket() -> None:
    stack = batches(FollowKeys="photos/*.jpg")
    rule = stack.properties("BucketRule")
    assert rule["EventPattern"] == {
        "source": ["aws.s3"],
        "detail-type": ["Object Created", "Object Deleted"],
        "detail": {
            "bucket": {"name": ["photos"]},
            "object": {"key": [{"wildcard": "photos/*.jpg"}]},
        },
    }
    (target,) = rule["Targets"]
    assert (target["Arn"], target["DeadLetterConfig"]) == ("queue.Arn", {"Arn": "failurequeue.Arn"})
    # It may also send there: what it could not hand over.
    from_rule = {"events.amazonaws.com": {"ArnEquals": {"aws:SourceArn": "bucketrule.Arn"}}}
    assert senders(stack, "FailureQueuePolicy") == from_rule


@pytest.mark.parametrize(
    ("name", "metric", "dimension", "threshold"),
    [
        ("DeadLetterAlarm", "ApproximateNumberOfMessagesVisible", "deadletterqueue.QueueName", 1),
        ("FailureAlarm", "ApproximateNumberOfMessagesVisible", "failurequeue.QueueName", 1),
        ("BacklogAlarm", "ApproximateAgeOfOldestMessage", "queue.QueueName", 6 * 60 * 60),
        ("BatchErrorAlarm", "Errors", "batchfunction", 1),
        ("BatchThrottleAlarm", "Throttles", "batchfunction", 1),
    ],
)
def test_what_raises_an_alarm(name: str, metric: str, dimension: str, threshold: int) -> None:
    topic = "arn:aws:sns:here:123456789012:ops"
    alarm = batches(AlarmTopicArn=topic).properties(name)
    kind = "FunctionName" if metric in ("Errors", "Throttles") else "QueueName"
    assert (alarm["MetricName"], alarm["Threshold"]) == (metric, threshold)
    assert alarm["Namespace"] == ("AWS/Lambda" if kind == "FunctionName" else "AWS/SQS")
    assert alarm["Dimensions"] == [{"Name": kind, "Value": dimension}]
    assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    assert alarm["AlarmActions"] == [topic]
    assert "AlarmActions" not in batches().properties(name)
