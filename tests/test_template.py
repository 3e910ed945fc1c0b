"""The template: what a deployment makes, what its roles may do, and what its engines hand to the function."""

import json
import re
from typing import Any

import pytest
from cfnlint.api import lint
from cfnlint.decode import cfn_yaml

from handler.config import Config
from tests.conftest import ROOT

TEMPLATE = cfn_yaml.load(str(ROOT / "template.yaml"))
PSEUDO = {"AWS::Partition": "aws", "AWS::Region": "here", "AWS::AccountId": "123456789012"}
PSEUDO |= {"AWS::StackName": "clip", "AWS::URLSuffix": "amazonaws.com"}
INDEX = {"BatchBucket": "photos", "VectorIndex": "shop/clip"}


class Stack:
    """The template as a deployment with `parameters` resolves it.

    Resource ``Queue`` gets the name ``queue``, its attribute ``Arn`` the value ``queue.Arn``.
    """

    def __init__(self, **parameters: str) -> None:
        defaults = {name: str(settings.get("Default")) for name, settings in TEMPLATE["Parameters"].items()}
        self.values = PSEUDO | defaults | parameters
        made = {name: r for name, r in TEMPLATE["Resources"].items() if self._wanted(r)}
        self.values |= {name: name.lower() for name in made}
        self.resources = {name: self.resolve(resource) for name, resource in made.items()}
        outputs = {name: o for name, o in TEMPLATE["Outputs"].items() if self._wanted(o)}
        self.outputs = {name: self.resolve(output["Value"]) for name, output in outputs.items()}

    def properties(self, name: str) -> Any:
        return self.resources[name]["Properties"]

    def resolve(self, node: Any) -> Any:
        match node:
            case {"Ref": "AWS::NoValue"}:
                return None
            case {"Ref": name}:
                return self._value(name)
            case {"Fn::GetAtt": [name, attribute]}:
                return self._value(f"{name}.{attribute}")
            case {"Fn::If": [name, yes, no]}:
                return self.resolve(yes if self._holds(TEMPLATE["Conditions"][name]) else no)
            case {"Fn::Sub": value}:
                return self._substitute(*value) if isinstance(value, list) else self._substitute(value, {})
            case {"Fn::Join": [separator, items]}:
                return separator.join(self.resolve(items))
            case {"Fn::Split": [separator, text]}:
                return self.resolve(text).split(separator)
            case dict():
                assert not any(key.startswith("Fn::") for key in node), node
                return {key: self.resolve(value) for key, value in node.items()}
            case list():
                return [self.resolve(item) for item in node]
        return node

    def _value(self, name: str) -> str:
        resource, dot, attribute = name.partition(".")  # KeyError: refers to what is not made
        return f"{self.values[resource]}{dot}{attribute}"

    def _substitute(self, text: str, values: dict[str, Any]) -> str:
        names = {name: self.resolve(value) for name, value in values.items()}
        return re.sub(r"\$\{([^}]+)\}", lambda found: names.get(found[1]) or self._value(found[1]), text)

    def _wanted(self, entry: Any) -> bool:
        return "Condition" not in entry or self._holds(TEMPLATE["Conditions"][entry["Condition"]])

    def _holds(self, condition: Any) -> bool:
        match condition:
            case {"Fn::Not": [inner]}:
                return not self._holds(inner)
            case {"Fn::Equals": [left, right]}:
                return str(self.resolve(left)) == str(self.resolve(right))
        raise AssertionError(condition)


SERVICE = {"Function", "LogGroup", "Role", "Api", "ApiMayInvoke", "ApiKey", "UsagePlan", "UsagePlanKey"}
SERVICE |= {"FaultAlarm", "ErrorAlarm", "ThrottleAlarm"}
BATCHES = {"BatchFunction", "BatchLogGroup", "BatchRole", "VectorsBucket", "Queue", "DeadLetterQueue"}
BATCHES |= {"QueuePolicy", "QueueMapping", "S3MayInvoke", "DeadLetterAlarm", "S3BatchRole", "StateMachine"}
BATCHES |= {"StateMachineRole", "StateMachineLogGroup", "StateMachineAlarm"}
OUTPUTS = {"BatchFunctionArn", "QueueUrl", "QueueArn", "DeadLetterQueueUrl", "StateMachineArn"}
OUTPUTS |= {"S3BatchRoleArn", "VectorsBucketName"}


@pytest.fixture(params=[{"BatchBucket": "photos"}, INDEX], ids=["files", "index"])
def stack(request: pytest.FixtureRequest) -> Stack:
    return Stack(**request.param)


# --- what is made -----------------------------------------------------------------------------------


def test_by_default_nothing_of_the_batch_engines_is_made() -> None:
    default = Stack()
    assert set(default.resources) == SERVICE
    assert set(default.outputs) == {"ApiUrl", "ApiKeyId", "FunctionName", "FunctionArn"}


def test_one_parameter_makes_all_of_it_and_leaves_the_service_as_it_is(stack: Stack) -> None:
    default = Stack()
    assert set(stack.resources) == SERVICE | BATCHES
    assert {name: stack.resources[name] for name in SERVICE} == default.resources
    assert set(stack.outputs) == set(default.outputs) | OUTPUTS


def test_cfn_lint_finds_nothing_with_the_batch_engines_on_or_off() -> None:
    source = (ROOT / "template.yaml").read_text()
    assert lint(source) == []  # it tries every combination of the conditions
    queue = "Type: AWS::SQS::Queue\n"
    assert lint(source.replace(f"{queue}    Condition: EncodesBatches\n", queue, 1)) != []


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        (
            "BatchBucket",
            ["", "photos", "my.photos-2"],
            ["Photos", "s3://photos", "photos/", "ab", "a,b", "*"],
        ),
        (
            "VectorIndex",
            ["", "shop/clip", "a.b/c-d"],
            ["shop", "shop/", "/clip", "shop/clip/x", "s3vectors://a/b"],
        ),
    ],
)
def test_parameters_that_cannot_work_are_refused(parameter: str, good: list[str], bad: list[str]) -> None:
    pattern = TEMPLATE["Parameters"][parameter]["AllowedPattern"]
    assert [text for text in good + bad if re.fullmatch(pattern, text)] == good


# --- the function ------------------------------------------------------------------------------------


def test_the_batch_function_is_the_same_image_with_the_workers_command(stack: Stack) -> None:
    assert stack.resources["BatchFunction"]["Metadata"] == stack.resources["Function"]["Metadata"]
    batch, service = stack.properties("BatchFunction"), stack.properties("Function")
    assert batch["ImageConfig"] == {"Command": ["handler.worker.handler"]}
    assert (batch["Architectures"], batch["MemorySize"]) == (service["Architectures"], "1769")
    assert batch["EventInvokeConfig"]["DestinationConfig"] == {
        "OnFailure": {"Type": "SQS", "Destination": "deadletterqueue.Arn"}
    }


@pytest.mark.parametrize(
    ("parameters", "output"),
    [({"BatchBucket": "photos"}, "s3://vectorsbucket/vectors"), (INDEX, "s3vectors://shop/clip")],
)
def test_its_environment_is_what_the_handler_reads(parameters: dict[str, str], output: str) -> None:
    variables = Stack(**parameters).properties("BatchFunction")["Environment"]["Variables"]
    config = Config.from_env(variables)
    assert (config.s3_buckets, config.output, config.log_level) == (("photos",), output, "INFO")
    fields = {f"CLIP_{name.upper()}" for name in Config.__dataclass_fields__}
    assert set(variables) <= fields


# --- who may do what ----------------------------------------------------------------------------------


def _allowed(stack: Stack, role: str) -> dict[str, set[str]]:
    """Resource -> actions."""
    (policy,) = stack.properties(role)["Policies"]
    allowed: dict[str, set[str]] = {}
    for statement in policy["PolicyDocument"]["Statement"]:
        assert set(statement) == {"Effect", "Action", "Resource"}
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        allowed.setdefault(statement["Resource"], set()).update(
            [actions] if isinstance(actions, str) else actions
        )
    return allowed


def test_the_batch_functions_role(stack: Stack) -> None:
    files = {"vectorsbucket.Arn/vectors/*": {"s3:PutObject"}}
    index = {"arn:aws:s3vectors:here:123456789012:bucket/shop/index/clip": {"s3vectors:PutVectors"}}
    assert _allowed(stack, "BatchRole") == {
        "batchloggroup.Arn": {"logs:CreateLogStream", "logs:PutLogEvents"},
        "arn:aws:s3:::photos/*": {"s3:GetObject", "s3:GetObjectVersion"},
        "arn:aws:s3:::photos": {"s3:ListBucket"},
        "queue.Arn": {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"},
        "deadletterqueue.Arn": {"sqs:SendMessage"},
    } | (index if stack.values["VectorIndex"] else files)


def test_the_role_of_s3_batch_jobs(stack: Stack) -> None:
    assert _allowed(stack, "S3BatchRole") == {
        "batchfunction.Arn": {"lambda:InvokeFunction"},
        "vectorsbucket.Arn/jobs/*": {"s3:GetObject", "s3:GetObjectVersion", "s3:PutObject"},
    }


@pytest.mark.parametrize(
    ("role", "service", "condition"),
    [
        ("BatchRole", "lambda.amazonaws.com", None),
        ("S3BatchRole", "batchoperations.s3.amazonaws.com", {"aws:SourceAccount": "123456789012"}),
        ("StateMachineRole", "states.amazonaws.com", {"aws:SourceAccount": "123456789012"}),
    ],
)
def test_who_may_take_a_role(stack: Stack, role: str, service: str, condition: Any) -> None:
    (statement,) = stack.properties(role)["AssumeRolePolicyDocument"]["Statement"]
    assert statement.get("Condition", {}).get("StringEquals") == condition
    assert (statement["Principal"], statement["Action"]) == ({"Service": service}, "sts:AssumeRole")


def test_only_that_bucket_may_send_and_invoke(stack: Stack) -> None:
    (statement,) = stack.properties("QueuePolicy")["PolicyDocument"]["Statement"]
    assert statement == {
        "Effect": "Allow",
        "Principal": {"Service": "s3.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": "queue.Arn",
        "Condition": {
            "ArnEquals": {"aws:SourceArn": "arn:aws:s3:::photos"},
            "StringEquals": {"aws:SourceAccount": "123456789012"},
        },
    }
    permission = stack.properties("S3MayInvoke")
    assert permission["Principal"] == "s3.amazonaws.com"
    assert (permission["SourceArn"], permission["SourceAccount"]) == ("arn:aws:s3:::photos", "123456789012")


def test_what_is_stored_is_encrypted_private_and_kept(stack: Stack) -> None:
    bucket = stack.properties("VectorsBucket")
    assert stack.resources["VectorsBucket"]["DeletionPolicy"] == "Retain"
    assert stack.resources["VectorsBucket"]["UpdateReplacePolicy"] == "Retain"
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert "AES256" in json.dumps(bucket["BucketEncryption"])
    queue, dead_letters = stack.properties("Queue"), stack.properties("DeadLetterQueue")
    assert queue["SqsManagedSseEnabled"] is dead_letters["SqsManagedSseEnabled"] is True
    # A message's age counts from when it was first sent.
    assert dead_letters["MessageRetentionPeriod"] >= 2 * queue["MessageRetentionPeriod"]


# --- SQS -----------------------------------------------------------------------------------------------


def test_the_queue_fits_the_function(stack: Stack) -> None:
    queue, mapping = stack.properties("Queue"), stack.properties("QueueMapping")
    timeout = stack.properties("BatchFunction")["Timeout"]
    assert queue["VisibilityTimeout"] == 6 * timeout
    assert queue["RedrivePolicy"] == {"deadLetterTargetArn": "deadletterqueue.Arn", "maxReceiveCount": 4}
    assert mapping["EventSourceArn"] == "queue.Arn"
    assert mapping["FunctionName"] == "batchfunction.Arn"
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]  # else one bad image fails 32
    assert mapping["MaximumBatchingWindowInSeconds"] >= 1  # which Lambda wants for more than 10
    assert mapping["ScalingConfig"] == {"MaximumConcurrency": "50"}


def test_a_dead_letter_raises_an_alarm() -> None:
    alarm = Stack(**INDEX, AlarmTopicArn="arn:aws:sns:here:123456789012:ops").properties("DeadLetterAlarm")
    assert alarm["Dimensions"] == [{"Name": "QueueName", "Value": "deadletterqueue.QueueName"}]
    assert alarm["AlarmActions"] == ["arn:aws:sns:here:123456789012:ops"]
