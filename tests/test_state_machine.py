"""The state machine: that its definition is right, and what comes of a bucket when it runs.

It runs in moto's interpreter, as the stack made it, with the real function under Lambda's emulator;
tests/stepfunctions.py says what of that is moto's and what is emulation of ours.
"""

import io
import json
import re
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import pytest
from cfnlint.api import lint

from handler import errors
from tests import stack as stacks
from tests.answers import INVOKE
from tests.aws import aws
from tests.conftest import emulator
from tests.proof import pictures
from tests.templates import INDEX, Stack, allowed_actions, batches


@pytest.fixture(params=[{}, INDEX], ids=["files", "index"])
def stack(request: pytest.FixtureRequest) -> Stack:
    return batches(**request.param)


def _lint_definition(definition: Any) -> list[str]:
    # In a template of its own: with SAM's transform cfn-lint leaves a definition that is text
    # alone.
    role = "arn:aws:iam::123456789012:role/clip"
    properties = {"RoleArn": role, "DefinitionString": json.dumps(definition)}
    machine = {"Type": "AWS::StepFunctions::StateMachine", "Properties": properties}
    return [match.rule.id for match in lint(json.dumps({"Resources": {"Machine": machine}}))]


def _waits(retry: Any) -> list[float]:
    """The longest that each further attempt waits, in seconds."""
    longest = [
        retry["IntervalSeconds"] * retry["BackoffRate"] ** n for n in range(retry["MaxAttempts"])
    ]
    return [min(seconds, retry["MaxDelaySeconds"]) for seconds in longest]


# --- its definition -------------------------------------------------------------------------------


def test_the_definition_is_valid(stack: Stack) -> None:
    definition = stack.definition()
    assert _lint_definition(definition) == []
    encode = definition["States"]["Encode"]
    assert encode["MaxConcurrency"] == 30  # a number
    assert encode["ItemProcessor"]["ProcessorConfig"] == {
        "Mode": "DISTRIBUTED",
        "ExecutionType": "EXPRESS",
    }
    assert encode["ResultWriter"]["Parameters"] == {"Bucket": "vectorsbucket", "Prefix": "runs"}
    encode["ItemProcessor"]["States"]["EncodeBatch"]["Retries"] = []
    assert _lint_definition(definition) == ["E3601"]


def test_a_failure_is_tried_again_if_and_only_if_it_may_pass(stack: Stack) -> None:
    task = stack.definition()["States"]["Encode"]["ItemProcessor"]["States"]["EncodeBatch"]
    faults, waking = task["Retry"]
    tried_again = set(faults["ErrorEquals"])
    assert {kind.__name__ for kind in _kinds(errors.ClipError) if kind.retryable} <= tried_again
    assert (
        not {kind.__name__ for kind in _kinds(errors.ClipError) if not kind.retryable} & tried_again
    )
    assert not {"States.ALL", "States.TaskFailed"} & (tried_again | set(waking["ErrorEquals"]))
    # An Express execution's five minutes hold both, and an invocation that times out.
    timeout = stack.properties("BatchFunction")["Timeout"]
    assert sum(_waits(faults)) + sum(_waits(waking)) + timeout < 300 - 10


def _kinds(base: type[errors.ClipError]) -> list[type[errors.ClipError]]:
    """The errors that the function raises, which are those with no kinds of their own."""
    below = base.__subclasses__()
    return [kind for sub in below for kind in _kinds(sub)] if below else [base]


def test_a_function_that_was_idle_for_weeks_has_two_minutes_to_wake(stack: Stack) -> None:
    task = stack.definition()["States"]["Encode"]["ItemProcessor"]["States"]["EncodeBatch"]
    waking = task["Retry"][1]
    assert set(waking["ErrorEquals"]) == {
        "Lambda.CodeArtifactUserPendingException",
        "Lambda.ResourceConflictException",
        "Lambda.ResourceNotReadyException",
    }
    assert 120 <= sum(_waits(waking)) <= 150
    assert "JitterStrategy" not in waking  # a jitter's wait may be none at all


def test_a_run_cannot_last_for_ever_and_its_failures_are_logged(stack: Stack) -> None:
    assert stack.definition()["TimeoutSeconds"] == 30 * 24 * 3600  # a billion images take weeks
    logging = stack.properties("StateMachine")["Logging"]
    assert logging["Level"] == "ERROR"
    (destination,) = logging["Destinations"]
    assert destination == {"CloudWatchLogsLogGroup": {"LogGroupArn": "statemachineloggroup.Arn"}}
    # Other names each take room in the account's resource policy, which holds ten or so.
    name = stack.properties("StateMachineLogGroup")["LogGroupName"]
    assert name == "/aws/vendedlogs/states/clip"


def test_a_failed_run_raises_an_alarm() -> None:
    alarm = batches(AlarmTopicArn="arn:aws:sns:here:123456789012:ops").properties(
        "StateMachineAlarm"
    )
    expression, *metrics = alarm["Metrics"]
    summed = {metric["MetricStat"]["Metric"]["MetricName"]: metric["Id"] for metric in metrics}
    assert set(summed) == {"ExecutionsFailed", "ExecutionsTimedOut"}
    for metric in metrics:
        (dimension,) = metric["MetricStat"]["Metric"]["Dimensions"]
        assert dimension == {"Name": "StateMachineArn", "Value": "statemachine"}
        assert (
            f"FILL({metric['Id']}, 0)" in expression["Expression"]
        )  # else one without data hides the other
    assert alarm["AlarmActions"] == ["arn:aws:sns:here:123456789012:ops"]


# --- what it may do -------------------------------------------------------------------------------


def test_its_role(stack: Stack) -> None:
    states = "arn:aws:states:here:123456789012"
    name = stack.properties("StateMachine")["Name"]
    multipart = {"s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"}
    assert allowed_actions(stack, "StateMachineRole") == {
        "arn:aws:s3:::photos": {"s3:ListBucket"},
        "batchfunction.Arn": {"lambda:InvokeFunction"},
        "vectorsbucket.Arn/runs/*": {"s3:PutObject", "s3:GetObject", *multipart},
        f"{states}:stateMachine:{name}": {"states:StartExecution"},
        f"{states}:execution:{name}:*": {"states:DescribeExecution", "states:StopExecution"},
        f"{states}:execution:{name}/*:*": {"states:RedriveExecution"},
        f"{states}:mapRun:{name}/*:*": {"states:DescribeMapRun"},
        "*": {f"logs:{action}" for action in LOG_DELIVERY},
    }


LOG_DELIVERY = ["CreateLogDelivery", "GetLogDelivery", "UpdateLogDelivery", "DeleteLogDelivery"]
LOG_DELIVERY += [
    "ListLogDeliveries",
    "PutResourcePolicy",
    "DescribeResourcePolicies",
    "DescribeLogGroups",
]


# --- its runs -------------------------------------------------------------------------------------

KEYS = [f"shop/ä b+{n:03}.jpg" for n in range(25)]
LOST, OTHERS = KEYS[:10], KEYS[10:]
"""The first batch, and the two that come after it."""
BAD = {KEYS[11]: b"no image", KEYS[24]: pictures()[0][:-2000]}


@pytest.fixture(scope="module")
def deployed(
    model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """The stack, its function and a bucket of 25 objects and one; ``how`` the function is to be
    called.
    """
    with aws() as cloud:
        made = stacks.create("clip", "batch.yaml")
        cloud.s3.create_bucket(Bucket="photos")
        images = pictures()
        for n, key in enumerate([*KEYS, "elsewhere/0.jpg"]):
            cloud.s3.put_object(
                Bucket="photos", Key=key, Body=BAD.get(key, images[n % len(images)])
            )
        function = made.template["Resources"]["BatchFunction"]["Properties"]
        name = made.resources["BatchFunction"]
        variables = boto3.client("lambda").get_function_configuration(FunctionName=name)[
            "Environment"
        ]["Variables"]
        log, command = (
            tmp_path_factory.mktemp("function") / "log",
            function["ImageConfig"]["Command"][0],
        )
        with emulator(model_dir, log, command, **variables) as (client, _):
            how = {"url": f"{client.base_url}{INVOKE}"}
            machine = _executable(made.outputs["StateMachineArn"])
            yield SimpleNamespace(
                cloud=cloud, how=how, function=name, machine=machine, outputs=made.outputs
            )


def _executable(machine: str) -> str:
    """The machine that the stack made, made again where moto executes what it is told."""
    client = boto3.client("stepfunctions")
    made = client.describe_state_machine(stateMachineArn=machine)
    settings = json.dumps({"stepfunctions": {"execute_state_machine": True}}).encode()
    json_type = {"Content-Type": "application/json"}
    url = f"{client.meta.endpoint_url}/moto-api/config"
    urllib.request.urlopen(urllib.request.Request(url, settings, json_type)).close()
    copied = {key: made[key] for key in ("name", "definition", "roleArn")}
    return str(client.create_state_machine(**copied)["stateMachineArn"])


def _run(deployed: SimpleNamespace, event: dict[str, str], **faults: str) -> Any:
    """Start the machine and see it end; `faults` are those of tests/stepfunctions.py."""
    how = json.dumps(deployed.how | faults)
    boto3.client("lambda").update_function_configuration(
        FunctionName=deployed.function, Description=how
    )
    client = boto3.client("stepfunctions")
    name = f"run-{uuid.uuid4()}"
    arn = client.start_execution(
        stateMachineArn=deployed.machine, name=name, input=json.dumps(event)
    )
    while (ended := client.describe_execution(executionArn=arn["executionArn"]))[
        "status"
    ] == "RUNNING":
        time.sleep(0.1)
    return ended


def _results(s3: Any, bucket: str, manifest: str) -> dict[str, list[Any]]:
    """What the run's files say of its batches, by how these ended."""

    def read(key: str) -> Any:
        return json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())

    files = read(manifest)["ResultFiles"].items()
    return {
        status: [result for file in some for result in read(file["Key"])] for status, some in files
    }


def _take_vectors(s3: Any, bucket: str) -> Counter[str]:
    """How often each key has a vector, in all files; then they are gone."""
    keys: Counter[str] = Counter()
    for item in s3.list_objects_v2(Bucket=bucket, Prefix="vectors/")["Contents"]:
        with np.load(
            io.BytesIO(s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
        ) as file:
            assert file["embedding"].shape == (len(file["key"]), 512)
            keys.update(file["key"].tolist())
        s3.delete_object(Bucket=bucket, Key=item["Key"])
    return keys


def _check_named(results: list[Any]) -> None:
    errors = [error for result in results for error in json.loads(result["Output"])["errors"]]
    codes = {error["source"]: error["code"] for error in errors}
    kinds = ("not_an_image", "truncated_image")
    assert codes == {f"s3://photos/{key}": code for key, code in zip(BAD, kinds, strict=True)}


def test_a_run_in_which_a_batch_is_lost_fails_and_says_where_the_results_are(
    deployed: SimpleNamespace,
) -> None:
    s3, bucket = deployed.cloud.s3, deployed.outputs["VectorsBucketName"]
    run = _run(deployed, {"prefix": "shop/"}, lost=LOST[0])
    assert (run["status"], run["error"]) == ("FAILED", "BatchesFailed"), run["cause"]
    assert run["cause"].startswith("2 of 3 batches succeeded.")
    (manifest,) = re.findall(rf"s3://{bucket}/(runs/\S+)", run["cause"])
    results = _results(s3, bucket, manifest)
    _check_named(results["SUCCEEDED"])
    (lost,) = results["FAILED"]
    assert [item["s3"] for item in json.loads(lost["Input"])["Items"]] == [
        {"bucket": "photos", "key": key} for key in LOST
    ]
    assert lost["Error"] == "InvalidEvent"  # which only the function raises
    assert _take_vectors(s3, bucket) == Counter(set(OTHERS) - BAD.keys())


def test_a_run_that_must_wait_for_its_function_succeeds(deployed: SimpleNamespace) -> None:
    s3, bucket = deployed.cloud.s3, deployed.outputs["VectorsBucketName"]
    run = _run(deployed, {"prefix": "shop/"}, waking=KEYS[10])
    assert run["status"] == "SUCCEEDED", run
    place = json.loads(run["output"])["ResultWriterDetails"]
    results = _results(s3, place["Bucket"], place["Key"])
    _check_named(results["SUCCEEDED"])
    assert results["FAILED"] == []
    assert (run["stopDate"] - run["startDate"]).total_seconds() > 5  # one batch was refused
    names = {json.loads(result["Input"])["BatchInput"]["run"] for result in results["SUCCEEDED"]}
    (name,) = names  # the run's, and no other run's
    assert re.fullmatch(rf"20\d\d-\d\d-\d\dT[\d:.]+Z_{run['name']}", name)
    assert _take_vectors(s3, bucket) == Counter(set(KEYS) - BAD.keys())


def test_a_run_without_a_prefix_says_what_is_missing(deployed: SimpleNamespace) -> None:
    for event in ({}, {"prefix": None}):
        run = _run(deployed, event)  # type: ignore[arg-type]  # which is the point
        assert (run["status"], run["error"]) == ("FAILED", "NoPrefix")
        assert '{"prefix": "photos/"}' in run["cause"]
