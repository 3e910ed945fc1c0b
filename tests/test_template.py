"""The template: what a deployment makes, what its roles may do, and what its engines hand to the
function.
"""

import json
import re
from typing import Any

import pytest
from cfnlint.api import lint
from cfnlint.decode import cfn_yaml

from handler.config import Config
from tests.conftest import ROOT
from tests.stack import holds

TEMPLATE = cfn_yaml.load(str(ROOT / "template.yaml"))
PSEUDO = {"AWS::Partition": "aws", "AWS::Region": "here", "AWS::AccountId": "123456789012"}
PSEUDO |= {"AWS::StackName": "clip", "AWS::URLSuffix": "amazonaws.com"}
INDEX = {"BatchBucket": "photos", "VectorIndex": "shop/clip"}
NO_VALUE = object()


class Stack:
    """The template as a deployment with `parameters` resolves it.

    Resource ``Queue`` gets the name ``queue``, its attribute ``Arn`` the value ``queue.Arn``.
    """

    def __init__(self, **parameters: str) -> None:
        defaults = {
            name: str(settings.get("Default")) for name, settings in TEMPLATE["Parameters"].items()
        }
        self.values: dict[str, Any] = PSEUDO | defaults | parameters
        for name, settings in TEMPLATE["Parameters"].items():
            if settings["Type"] == "CommaDelimitedList":
                self.values[name] = self.values[name].split(",")
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
                return NO_VALUE
            case {"Ref": name}:
                return self._value(name)
            case {"Fn::GetAtt": [name, attribute]}:
                return self._value(f"{name}.{attribute}")
            case {"Fn::If": [name, yes, no]}:
                return self.resolve(yes if self.holds({"Condition": name}) else no)
            case {"Fn::Sub": value}:
                return (
                    self._substitute(*value)
                    if isinstance(value, list)
                    else self._substitute(value, {})
                )
            case {"Fn::Join": [separator, items]}:
                return separator.join(self.resolve(items))
            case {"Fn::Split": [separator, text]}:
                return self.resolve(text).split(separator)
            case {"Fn::Select": [index, items]}:
                return self.resolve(items)[index]
        return self._resolve_all(node)

    def _resolve_all(self, node: Any) -> Any:
        match node:
            case dict():
                assert not any(key.startswith("Fn::") for key in node), node
                values = {key: self.resolve(value) for key, value in node.items()}
                return {key: value for key, value in values.items() if value is not NO_VALUE}
            case list():
                return [item for item in map(self.resolve, node) if item is not NO_VALUE]
        return node

    def _value(self, name: str) -> Any:
        resource, dot, attribute = name.partition(".")  # KeyError: refers to what is not made
        return f"{self.values[resource]}.{attribute}" if dot else self.values[resource]

    def _substitute(self, text: str, values: dict[str, Any]) -> str:
        names = {name: self.resolve(value) for name, value in values.items()}
        return re.sub(
            r"\$\{([^}]+)\}",
            lambda found: names[found[1]] if found[1] in names else self._value(found[1]),
            text,
        )

    def _wanted(self, entry: Any) -> bool:
        return "Condition" not in entry or self.holds({"Condition": entry["Condition"]})

    def holds(self, condition: Any) -> bool:
        return holds(condition, TEMPLATE["Conditions"], self.resolve)


SERVICE = {
    "Function",
    "LogGroup",
    "Role",
    "Api",
    "ApiMayInvoke",
    "ApiKey",
    "UsagePlan",
    "UsagePlanKey",
}
SERVICE |= {"FaultAlarm", "ErrorAlarm", "ThrottleAlarm"}
BATCHES = {
    "BatchFunction",
    "BatchLogGroup",
    "BatchRole",
    "VectorsBucket",
    "Queue",
    "DeadLetterQueue",
}
BATCHES |= {
    "QueuePolicy",
    "QueueMapping",
    "S3MayInvoke",
    "DeadLetterAlarm",
    "S3BatchRole",
    "StateMachine",
}
BATCHES |= {"StateMachineRole", "StateMachineLogGroup", "StateMachineAlarm", "FailureQueue"}
BATCHES |= {"DeadLetterQueuePolicy", "FailureQueuePolicy"}
BATCHES |= {
    "VectorsBucketPolicy",
    "FailureAlarm",
    "BacklogAlarm",
    "BatchErrorAlarm",
    "BatchThrottleAlarm",
}
OUTPUTS = {"BatchFunctionArn", "BatchRoleArn", "QueueUrl", "QueueArn", "DeadLetterQueueUrl"}
OUTPUTS |= {
    "DeadLetterQueueArn",
    "FailureQueueUrl",
    "StateMachineArn",
    "S3BatchRoleArn",
    "VectorsBucketName",
}
KEPT = {"VectorsBucket", "VectorsBucketPolicy", "Queue", "DeadLetterQueue", "FailureQueue"}
KEPT |= {"QueuePolicy", "DeadLetterQueuePolicy", "FailureQueuePolicy"}
# Each makes one resource of its own.
OPTIONS = [
    ({"AccessLogs": "true"}, "AccessLogGroup"),
    ({"Tracing": "true"}, "SendTraces"),
    ({"ImageBuckets": "photos,more"}, "ReadImages"),
    ({"WebAclArn": "arn:aws:wafv2:here:123456789012:regional/webacl/mine/1"}, "WebAcl"),
    ({"BatchBucket": "photos", "FollowBucket": "true"}, "BucketRule"),
]


@pytest.fixture(params=[{"BatchBucket": "photos"}, INDEX], ids=["files", "index"])
def stack(request: pytest.FixtureRequest) -> Stack:
    return Stack(**request.param)


# --- what is made ---------------------------------------------------------------------------------


def test_by_default_nothing_of_the_batch_engines_is_made() -> None:
    default = Stack()
    assert set(default.resources) == SERVICE
    assert set(default.outputs) == {"ApiUrl", "ApiKeyId", "FunctionName", "FunctionArn"}


def test_one_parameter_makes_all_of_it_and_leaves_the_service_as_it_is(stack: Stack) -> None:
    default = Stack()
    assert set(stack.resources) == SERVICE | BATCHES
    assert {name: stack.resources[name] for name in SERVICE} == default.resources
    assert set(stack.outputs) == set(default.outputs) | OUTPUTS


@pytest.mark.parametrize(("parameters", "resource"), OPTIONS)
def test_an_option_makes_what_it_needs(parameters: dict[str, str], resource: str) -> None:
    without = Stack(**{name: value for name, value in parameters.items() if name == "BatchBucket"})
    assert set(Stack(**parameters).resources) - set(without.resources) == {resource}


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
        (
            "ImageBuckets",
            ["", "photos", "my.photos-2"],
            ["Photos", "photos/", "*", "photos/*"],
        ),  # each item
        (
            "CorsOrigins",
            ["", "*", "https://shop.example", "http://localhost:5173,https://shop.example"],
            [
                "shop.example",
                "https://shop.example/",
                "*,https://a.example",
                "https://a.example, https://b.c",
            ],
        ),
        (
            "InventoryLocation",
            ["", "reports/", "reports/photos/daily"],
            [
                "reports",
                "/photos",
                "reports/*",
                "s3://reports/photos",
                "reports/a?",
                "reports/${aws:userid}",
            ],
        ),
        (
            "WebAclArn",
            ["", "arn:aws:wafv2:here:1:regional/webacl/mine/1"],
            ["mine", "arn:aws:wafv2:us-east-1:1:global/webacl/mine/1"],  # which is CloudFront's
        ),
    ],
)
def test_parameters_that_cannot_work_are_refused(
    parameter: str, good: list[str], bad: list[str]
) -> None:
    pattern = TEMPLATE["Parameters"][parameter]["AllowedPattern"]
    assert [text for text in good + bad if re.fullmatch(pattern, text)] == good


def test_parameters_that_contradict_each_other_are_refused() -> None:
    def refused(**parameters: str) -> set[str]:
        stack, rules = Stack(**parameters), TEMPLATE["Rules"].items()
        return {
            name
            for name, rule in rules
            if stack.holds(rule["RuleCondition"])
            and not all(stack.holds(assertion["Assert"]) for assertion in rule["Assertions"])
        }

    assert refused() == refused(DailyQuota="9", FollowBucket="true", **INDEX) == set()
    assert refused(AuthMode="NONE") == set()
    assert refused(DailyQuota="9", AuthMode="NONE") == {"QuotaNeedsKey"}
    assert refused(FollowBucket="true") == {"FollowsABucket"}
    assert refused(SnapStart="PublishedVersions", ProvisionedConcurrency="1") == {
        "SnapStartOrProvisionedConcurrency"
    }


# --- the API --------------------------------------------------------------------------------------

ORIGINS = "https://shop.example,https://b.example"


def _api(**parameters: str) -> Any:
    return Stack(**parameters).properties("Api")


def test_every_path_leads_to_the_function_under_the_same_security() -> None:
    key: list[Any] = [{"api_key": []}]
    paths = _api()["DefinitionBody"]["paths"]
    secured = {
        (path, method): operation.get("security")
        for path, operations in paths.items()
        for method, operation in operations.items()
    }
    any_method = "x-amazon-apigateway-any-method"
    assert secured == {
        ("/", any_method): key,
        ("/{proxy+}", any_method): key,
        ("/health", "get"): None,
        ("/health", "head"): None,
    }
    integrations = [
        o["x-amazon-apigateway-integration"] for p in paths.values() for o in p.values()
    ]
    assert all(integration == integrations[0] for integration in integrations)
    assert integrations[0]["uri"].endswith("/function.Arn:live/invocations")


@pytest.mark.parametrize(
    ("mode", "security"),
    [("API_KEY", [{"api_key": []}]), ("AWS_IAM", [{"sigv4": []}]), ("NONE", [])],
)
def test_a_browser_asks_for_leave_without_a_key(mode: str, security: list[Any]) -> None:
    paths = _api(CorsOrigins=ORIGINS, AuthMode=mode)["DefinitionBody"]["paths"]
    for operations in paths.values():
        assert "security" not in operations["options"]
        assert operations["options"]["x-amazon-apigateway-integration"]["type"] == "aws_proxy"
    for path in ("/", "/{proxy+}"):
        assert paths[path]["x-amazon-apigateway-any-method"]["security"] == security


def test_the_gateways_own_errors_can_be_read_by_pages_of_one_origin() -> None:
    responses = "x-amazon-apigateway-gateway-responses"
    assert responses not in _api()["DefinitionBody"]
    assert (
        responses not in _api(CorsOrigins=ORIGINS)["DefinitionBody"]
    )  # the header can name but one
    body = _api(CorsOrigins="https://shop.example")["DefinitionBody"]
    header = {"gatewayresponse.header.Access-Control-Allow-Origin": "'https://shop.example'"}
    assert body[responses] == {
        kind: {"responseParameters": header} for kind in ("DEFAULT_4XX", "DEFAULT_5XX")
    }


def test_images_are_binary_for_api_gateway_and_for_sam_local() -> None:
    kinds = {kind.replace("~1", "/") for kind in _api()["BinaryMediaTypes"]}
    assert {"image/*", "multipart/form-data", "application/octet-stream"} <= kinds  # API Gateway's
    names = ("jpeg", "jpg", "pjpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heic")
    assert {f"image/{name}" for name in names} <= kinds  # `sam local` matches no wildcard


def test_a_quota_is_the_keys() -> None:
    assert "Quota" not in Stack().properties("UsagePlan")
    assert Stack(DailyQuota="1000").properties("UsagePlan")["Quota"] == {
        "Limit": "1000",
        "Period": "DAY",
    }


def test_a_web_acl_stands_before_the_stage() -> None:
    acl = "arn:aws:wafv2:here:123456789012:regional/webacl/mine/1"
    assert Stack(WebAclArn=acl).properties("WebAcl") == {
        "WebACLArn": acl,
        "ResourceArn": "arn:aws:apigateway:here::/restapis/api/stages/api.Stage",
    }


def test_an_access_log_is_one_line_of_json_a_request() -> None:
    assert "AccessLogSetting" not in _api()
    setting = _api(AccessLogs="true")["AccessLogSetting"]
    assert setting["DestinationArn"] == "arn:aws:logs:here:123456789012:log-group:accessloggroup"
    line = json.loads(setting["Format"])
    assert "\n" not in setting["Format"]
    assert {"request_id", "ip", "time", "method", "path", "status", "latency_ms"} <= line.keys()
    assert all(value.startswith("$context.") for value in line.values())


def test_traces_are_sent_by_all_three_or_none() -> None:
    functions = ("Function", "BatchFunction")
    off, on = Stack(**INDEX), Stack(**INDEX, Tracing="true")
    assert [off.properties(name)["Tracing"] for name in functions] == ["PassThrough", "PassThrough"]
    assert [on.properties(name)["Tracing"] for name in functions] == ["Active", "Active"]
    assert (off.properties("Api")["TracingEnabled"], on.properties("Api")["TracingEnabled"]) == (
        False,
        True,
    )
    xray = {"*": {"xray:PutTraceSegments", "xray:PutTelemetryRecords"}}
    for role in ("Role", "BatchRole"):
        assert _allowed(on, role) == _allowed(off, role) | xray


def test_a_changed_parameter_publishes_a_version() -> None:
    """Those that change the function: its description, which names them, is what CloudFormation
    compares.
    """
    changes = {
        "MemorySize": "2048",
        "Architecture": "arm64",
        "LogLevel": "DEBUG",
        "SnapStart": "PublishedVersions",
        "Tracing": "true",
        "ImageBuckets": "photos,more",
        "CorsOrigins": ORIGINS,
    }
    descriptions = [Stack().properties("Function")["VersionDescription"]]
    descriptions += [
        Stack(**{name: value}).properties("Function")["VersionDescription"]
        for name, value in changes.items()
    ]
    assert len(set(descriptions)) == 1 + len(changes)
    assert (
        max(map(len, descriptions)) + 150 <= 256
    )  # Lambda's limit, and what ImageBuckets promises


# --- the function ---------------------------------------------------------------------------------


def test_the_batch_function_is_the_same_image_with_the_workers_command(stack: Stack) -> None:
    assert stack.resources["BatchFunction"]["Metadata"] == stack.resources["Function"]["Metadata"]
    batch, service = stack.properties("BatchFunction"), stack.properties("Function")
    assert batch["ImageConfig"] == {"Command": ["handler.worker.handler"]}
    assert (batch["Architectures"], batch["MemorySize"]) == (service["Architectures"], "1769")
    # Not the dead-letter queue: start-message-move-task takes none that holds Lambda's records.
    assert batch["EventInvokeConfig"]["DestinationConfig"] == {
        "OnFailure": {"Type": "SQS", "Destination": "failurequeue.Arn"}
    }


def test_no_engine_takes_the_apis_instances() -> None:
    reserved = "ReservedConcurrentExecutions"
    assert Stack(**INDEX, BatchConcurrency="7").properties("BatchFunction")[reserved] == "7"
    small_account = Stack(**INDEX, ReserveBatchConcurrency="false").properties("BatchFunction")
    assert reserved not in small_account
    assert reserved not in Stack().properties("Function")


def test_lambda_itself_logs_warnings_only(stack: Stack) -> None:
    for name in ("Function", "BatchFunction"):
        logging = stack.properties(name)["LoggingConfig"]
        # Our lines have no timestamp, so all of them are INFO to Lambda: a higher level would drop
        # them.
        assert (logging["LogFormat"], logging["ApplicationLogLevel"]) == ("JSON", "INFO")
        assert logging["SystemLogLevel"] == "WARN"
    assert stack.properties("BatchFunction")["LoggingConfig"]["LogGroup"] == "batchloggroup"


def test_the_apis_environment_is_what_the_handler_reads() -> None:
    def config(**parameters: str) -> Config:
        variables = Stack(**parameters).properties("Function")["Environment"]["Variables"]
        assert set(variables) <= {f"CLIP_{name.upper()}" for name in Config.__dataclass_fields__}
        return Config.from_env(variables)

    default = config()
    assert (default.s3_buckets, default.cors_origins) == ((), ())
    opened = config(ImageBuckets="photos,more.photos", CorsOrigins=ORIGINS)
    assert opened.s3_buckets == ("photos", "more.photos")
    assert opened.cors_origins == tuple(ORIGINS.split(","))


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


# --- who may do what ------------------------------------------------------------------------------


def _allowed(stack: Stack, role: str) -> dict[str, set[str]]:
    """Resource -> actions."""
    allowed: dict[str, set[str]] = {}
    policies = list(stack.properties(role)["Policies"])
    for resource in stack.resources.values():
        if resource["Type"] == "AWS::IAM::Policy" and resource["Properties"]["Roles"] == [
            role.lower()
        ]:
            policies.append(resource["Properties"])
    statements = [
        statement for policy in policies for statement in policy["PolicyDocument"]["Statement"]
    ]
    for statement in statements:
        assert set(statement) == {"Effect", "Action", "Resource"}
        assert statement["Effect"] == "Allow"
        for resource in _listed(statement["Resource"]):
            allowed.setdefault(resource, set()).update(_listed(statement["Action"]))
    return allowed


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_the_apis_role() -> None:
    logs = {"loggroup.Arn": {"logs:CreateLogStream", "logs:PutLogEvents"}}
    assert _allowed(Stack(), "Role") == logs
    read = {"s3:GetObject", "s3:GetObjectVersion"}
    assert _allowed(Stack(ImageBuckets="photos"), "Role") == logs | {
        "arn:aws:s3:::photos/*": read,
        "arn:aws:s3:::photos": {"s3:ListBucket"},
    }
    assert _allowed(Stack(ImageBuckets="a,b,c"), "Role") == logs | {
        f"arn:aws:s3:::{bucket}{objects}": actions
        for bucket in "abc"
        for objects, actions in (("/*", read), ("", {"s3:ListBucket"}))
    }


def test_the_batch_functions_role(stack: Stack) -> None:
    files = {"vectorsbucket.Arn/vectors/*": {"s3:PutObject"}}
    actions = {"s3vectors:PutVectors", "s3vectors:DeleteVectors"}
    index = {"arn:aws:s3vectors:here:123456789012:bucket/shop/index/clip": actions}
    assert _allowed(stack, "BatchRole") == {
        "batchloggroup.Arn": {"logs:CreateLogStream", "logs:PutLogEvents"},
        "arn:aws:s3:::photos/*": {"s3:GetObject", "s3:GetObjectVersion"},
        "arn:aws:s3:::photos": {"s3:ListBucket"},
        "queue.Arn": {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"},
        "failurequeue.Arn": {"sqs:SendMessage"},
    } | (index if stack.values["VectorIndex"] else files)


def test_the_role_of_s3_batch_operations(stack: Stack) -> None:
    read = {"s3:GetObject", "s3:GetObjectVersion"}
    allowed = {
        "batchfunction.Arn": {"lambda:InvokeFunction"},
        "vectorsbucket.Arn/jobs/*": {*read, "s3:PutObject"},
    }
    assert _allowed(stack, "S3BatchRole") == allowed
    reads_inventory = Stack(**INDEX, InventoryLocation="reports/photos/daily")
    assert _allowed(reads_inventory, "S3BatchRole") == allowed | {
        "arn:aws:s3:::reports/photos/daily*": read
    }


OWN = {"aws:SourceAccount": "123456789012"}


@pytest.mark.parametrize(
    ("role", "service", "condition"),
    [
        ("BatchRole", "lambda.amazonaws.com", None),
        ("S3BatchRole", "batchoperations.s3.amazonaws.com", {"StringEqualsIfExists": OWN}),
        ("StateMachineRole", "states.amazonaws.com", {"StringEquals": OWN}),
    ],
)
def test_who_may_take_a_role(stack: Stack, role: str, service: str, condition: Any) -> None:
    (statement,) = stack.properties(role)["AssumeRolePolicyDocument"]["Statement"]
    assert statement.get("Condition") == condition
    assert (statement["Principal"], statement["Action"]) == ({"Service": service}, "sts:AssumeRole")


def _senders(stack: Stack, policy: str) -> dict[str, Any]:
    """Service -> the condition under which it may send; checked on the way: nobody may do anything
    else.
    """
    properties = stack.properties(policy)
    (queue,) = properties["Queues"]
    senders = {}
    for statement in properties["PolicyDocument"]["Statement"]:
        assert statement["Resource"] == f"{queue}.Arn"
        if statement["Effect"] == "Allow":
            assert statement["Action"] == "sqs:SendMessage"
            senders[statement["Principal"]["Service"]] = statement["Condition"]
    return senders


def test_who_may_send_to_the_queue(stack: Stack) -> None:
    """That bucket, and the topics and rules of the account: those have it in their ARN."""
    from_bucket = {"ArnEquals": {"aws:SourceArn": "arn:aws:s3:::photos"}, "StringEquals": OWN}
    assert _senders(stack, "QueuePolicy") == {
        "s3.amazonaws.com": from_bucket,
        "sns.amazonaws.com": {"ArnLike": {"aws:SourceArn": "arn:aws:sns:*:123456789012:*"}},
        "events.amazonaws.com": {
            "ArnLike": {"aws:SourceArn": "arn:aws:events:here:123456789012:rule/*"}
        },
    }
    assert _senders(stack, "DeadLetterQueuePolicy") == _senders(stack, "FailureQueuePolicy") == {}


def test_only_that_bucket_may_invoke(stack: Stack) -> None:
    permission = stack.properties("S3MayInvoke")
    assert permission["Principal"] == "s3.amazonaws.com"
    assert (permission["SourceArn"], permission["SourceAccount"]) == (
        "arn:aws:s3:::photos",
        "123456789012",
    )


def test_what_is_stored_is_kept_when_it_leaves_the_stack(stack: Stack) -> None:
    """All that holds data or leads to it; logs, whose retention says how long, are not."""
    policies = {
        name: (r.get("DeletionPolicy"), r.get("UpdateReplacePolicy"))
        for name, r in stack.resources.items()
    }
    kept = {
        name for name, policy in policies.items() if policy == ("RetainExceptOnCreate", "Retain")
    }
    assert kept == KEPT
    assert {policies[name] for name in ("LogGroup", "BatchLogGroup")} == {("Delete", "Delete")}


@pytest.mark.parametrize(
    ("policy", "action", "resources"),
    [
        ("VectorsBucketPolicy", "s3:*", ["vectorsbucket.Arn", "vectorsbucket.Arn/*"]),
        ("QueuePolicy", "sqs:*", ["queue.Arn"]),
        ("DeadLetterQueuePolicy", "sqs:*", ["deadletterqueue.Arn"]),
        ("FailureQueuePolicy", "sqs:*", ["failurequeue.Arn"]),
    ],
)
def test_what_is_stored_answers_over_https_only(
    stack: Stack, policy: str, action: str, resources: list[str]
) -> None:
    statements = stack.properties(policy)["PolicyDocument"]["Statement"]
    (denied,) = [statement for statement in statements if statement["Effect"] == "Deny"]
    assert (denied["Principal"], denied["Action"]) == ("*", action)
    assert _listed(denied["Resource"]) == resources
    assert denied["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_what_is_stored_is_encrypted_and_private(stack: Stack) -> None:
    bucket = stack.properties("VectorsBucket")
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert "AES256" in json.dumps(bucket["BucketEncryption"])
    queue, *dead = (stack.properties(name) for name in ("Queue", "DeadLetterQueue", "FailureQueue"))
    assert (
        queue["SqsManagedSseEnabled"]
        is dead[0]["SqsManagedSseEnabled"]
        is dead[1]["SqsManagedSseEnabled"]
        is True
    )
    # A message's age counts from when it was first sent.
    assert all(
        letters["MessageRetentionPeriod"] >= 2 * queue["MessageRetentionPeriod"] for letters in dead
    )


def test_reports_expire_and_vectors_do_not(stack: Stack) -> None:
    rules = stack.properties("VectorsBucket")["LifecycleConfiguration"]["Rules"]
    assert {rule["Prefix"] for rule in rules if "ExpirationInDays" in rule} == {"runs/", "jobs/"}
    assert [
        rule for rule in rules if "AbortIncompleteMultipartUpload" in rule and "Prefix" not in rule
    ]
    assert {rule["Status"] for rule in rules} == {"Enabled"}


# --- SQS ------------------------------------------------------------------------------------------


def test_the_queue_fits_the_function(stack: Stack) -> None:
    queue, mapping = stack.properties("Queue"), stack.properties("QueueMapping")
    timeout = stack.properties("BatchFunction")["Timeout"]
    assert queue["VisibilityTimeout"] == 6 * timeout
    assert queue["RedrivePolicy"] == {
        "deadLetterTargetArn": "deadletterqueue.Arn",
        "maxReceiveCount": 5,
    }
    assert mapping["EventSourceArn"] == "queue.Arn"
    assert mapping["FunctionName"] == "batchfunction.Arn"
    assert mapping["FunctionResponseTypes"] == [
        "ReportBatchItemFailures"
    ]  # else one bad image fails 32
    assert mapping["MaximumBatchingWindowInSeconds"] >= 1  # which Lambda wants for more than 10
    assert mapping["ScalingConfig"] == {"MaximumConcurrency": "50"}


def test_a_rule_sends_what_is_created_and_deleted_in_the_bucket() -> None:
    stack = Stack(**INDEX, FollowBucket="true")
    rule = stack.properties("BucketRule")
    assert rule["EventPattern"] == {
        "source": ["aws.s3"],
        "detail-type": ["Object Created", "Object Deleted"],
        "detail": {"bucket": {"name": ["photos"]}},
    }
    (target,) = rule["Targets"]
    assert (target["Arn"], target["DeadLetterConfig"]) == ("queue.Arn", {"Arn": "failurequeue.Arn"})
    # It may also send there: what it could not hand over.
    from_rule = {"events.amazonaws.com": {"ArnEquals": {"aws:SourceArn": "bucketrule.Arn"}}}
    assert _senders(stack, "FailureQueuePolicy") == from_rule


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
    alarm = Stack(**INDEX, AlarmTopicArn=topic).properties(name)
    kind = "FunctionName" if metric in ("Errors", "Throttles") else "QueueName"
    assert (alarm["MetricName"], alarm["Threshold"]) == (metric, threshold)
    assert alarm["Namespace"] == ("AWS/Lambda" if kind == "FunctionName" else "AWS/SQS")
    assert alarm["Dimensions"] == [{"Name": kind, "Value": dimension}]
    assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    assert alarm["AlarmActions"] == [topic]
    assert "AlarmActions" not in Stack(**INDEX).properties(name)
