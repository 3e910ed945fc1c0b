"""The state machine: that its definition is right, and what comes of a bucket when it runs.

It runs in moto's interpreter, as the stack made it, with the real function under Lambda's emulator;
tests/stepfunctions.py says what of that is moto's and what is emulation of ours.
"""

import json
from typing import Any

import pytest
from cfnlint.api import lint

from handler import errors
from tests.test_template import INDEX, Stack


@pytest.fixture(params=[{"BatchBucket": "photos"}, INDEX], ids=["files", "index"])
def stack(request: pytest.FixtureRequest) -> Stack:
    return Stack(**request.param)


def _definition(stack: Stack) -> Any:
    return json.loads(stack.properties("StateMachine")["DefinitionString"])


def _lint_definition(definition: Any) -> list[str]:
    # In a template of its own: with SAM's transform cfn-lint leaves a definition that is text alone.
    role = "arn:aws:iam::123456789012:role/clip"
    properties = {"RoleArn": role, "DefinitionString": json.dumps(definition)}
    machine = {"Type": "AWS::StepFunctions::StateMachine", "Properties": properties}
    return [match.rule.id for match in lint(json.dumps({"Resources": {"Machine": machine}}))]


def _waits(retry: Any) -> list[float]:
    """The longest that each further attempt waits, in seconds."""
    longest = [retry["IntervalSeconds"] * retry["BackoffRate"] ** n for n in range(retry["MaxAttempts"])]
    return [min(seconds, retry["MaxDelaySeconds"]) for seconds in longest]


# --- its definition ----------------------------------------------------------------------------------


def test_the_definition_is_valid(stack: Stack) -> None:
    definition = _definition(stack)
    assert _lint_definition(definition) == []
    encode = definition["States"]["Encode"]
    assert encode["MaxConcurrency"] == 50  # a number
    assert encode["ItemProcessor"]["ProcessorConfig"] == {"Mode": "DISTRIBUTED", "ExecutionType": "EXPRESS"}
    assert encode["ResultWriter"]["Parameters"] == {"Bucket": "vectorsbucket", "Prefix": "runs"}
    encode["ItemProcessor"]["States"]["EncodeBatch"]["Retries"] = []
    assert _lint_definition(definition) == ["E3601"]


def test_a_failure_is_tried_again_if_and_only_if_it_may_pass(stack: Stack) -> None:
    task = _definition(stack)["States"]["Encode"]["ItemProcessor"]["States"]["EncodeBatch"]
    faults, waking = task["Retry"]
    tried_again = set(faults["ErrorEquals"])
    assert {kind.__name__ for kind in _kinds(errors.ClipError) if kind.retryable} <= tried_again
    assert not {kind.__name__ for kind in _kinds(errors.ClipError) if not kind.retryable} & tried_again
    assert not {"States.ALL", "States.TaskFailed"} & (tried_again | set(waking["ErrorEquals"]))
    # An Express execution's five minutes hold both, and an invocation that times out.
    timeout = stack.properties("BatchFunction")["Timeout"]
    assert sum(_waits(faults)) + sum(_waits(waking)) + timeout < 300 - 10


def _kinds(base: type[errors.ClipError]) -> list[type[errors.ClipError]]:
    """The errors that the function raises, which are those with no kinds of their own."""
    below = base.__subclasses__()
    return [kind for sub in below for kind in _kinds(sub)] if below else [base]


def test_a_function_that_was_idle_for_weeks_has_two_minutes_to_wake(stack: Stack) -> None:
    task = _definition(stack)["States"]["Encode"]["ItemProcessor"]["States"]["EncodeBatch"]
    waking = task["Retry"][1]
    assert set(waking["ErrorEquals"]) == {
        "Lambda.CodeArtifactUserPendingException",
        "Lambda.ResourceConflictException",
        "Lambda.ResourceNotReadyException",
    }
    assert 120 <= sum(_waits(waking)) <= 150
    assert "JitterStrategy" not in waking  # a jitter's wait may be none at all


def test_a_run_cannot_last_for_ever_and_its_failures_are_logged(stack: Stack) -> None:
    assert _definition(stack)["TimeoutSeconds"] == 30 * 24 * 3600  # a billion images take weeks
    logging = stack.properties("StateMachine")["LoggingConfiguration"]
    assert logging["Level"] == "ERROR"
    (destination,) = logging["Destinations"]
    assert destination == {"CloudWatchLogsLogGroup": {"LogGroupArn": "statemachineloggroup.Arn"}}
    # Other names each take room in the account's resource policy, which holds ten or so.
    name = stack.properties("StateMachineLogGroup")["LogGroupName"]
    assert name == "/aws/vendedlogs/states/clip-batch"


def test_a_failed_run_raises_an_alarm() -> None:
    alarm = Stack(**INDEX, AlarmTopicArn="arn:aws:sns:here:123456789012:ops").properties("StateMachineAlarm")
    expression, *metrics = alarm["Metrics"]
    summed = {metric["MetricStat"]["Metric"]["MetricName"]: metric["Id"] for metric in metrics}
    assert set(summed) == {"ExecutionsFailed", "ExecutionsTimedOut"}
    for metric in metrics:
        (dimension,) = metric["MetricStat"]["Metric"]["Dimensions"]
        assert dimension == {"Name": "StateMachineArn", "Value": "statemachine"}
        assert f"FILL({metric['Id']}, 0)" in expression["Expression"]  # else one without data hides the other
    assert alarm["AlarmActions"] == ["arn:aws:sns:here:123456789012:ops"]


# --- what it may do ------------------------------------------------------------------------------------


def test_its_role(stack: Stack) -> None:
    states = "arn:aws:states:here:123456789012"
    name = stack.properties("StateMachine")["StateMachineName"]
    multipart = {"s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"}
    assert _allowed(stack) == {
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
LOG_DELIVERY += ["ListLogDeliveries", "PutResourcePolicy", "DescribeResourcePolicies", "DescribeLogGroups"]


def _allowed(stack: Stack) -> dict[str, set[str]]:
    """Resource -> actions."""
    (policy,) = stack.properties("StateMachineRole")["Policies"]
    allowed: dict[str, set[str]] = {}
    for statement in policy["PolicyDocument"]["Statement"]:
        actions = statement["Action"]
        some = [actions] if isinstance(actions, str) else actions
        allowed.setdefault(statement["Resource"], set()).update(some)
    return allowed
