"""template.yaml: what a deployment of the function and its API makes, and what its role may do."""

import json
import re
from typing import Any

import pytest
from cfnlint.api import lint

from handler.config import Config
from tests.conftest import ROOT
from tests.templates import PSEUDO, SHARED, Stack, allowed_actions, read, refused

SERVICE = {"Function", "LogGroup", "Role", "Api", "ApiMayInvoke", "ApiKey", "UsagePlan"}
SERVICE |= {"UsagePlanKey", "FaultAlarm", "ErrorAlarm", "ThrottleAlarm"}
ORIGINS = "https://shop.example,https://b.example"
FOUR = "aaa,bbb,ccc,ddd"
TOO_LONG = ",".join(["b" * 25] * 4)
"""Four buckets whose names do not fit into a version's description."""


# --- both templates -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["template.yaml", "batch.yaml"])
def test_cfn_lint_finds_nothing(name: str) -> None:
    source = (ROOT / name).read_text()
    assert lint(source) == []  # it tries every combination of the conditions
    assert lint(source.replace("Timeout: ", "Timeouts: ")) != []


@pytest.mark.parametrize("name", ["template.yaml", "batch.yaml"])
def test_few_questions_are_asked_and_each_says_what_it_is(name: str) -> None:
    parameters = read(name)["Parameters"]
    assert len(parameters) <= 14  # `sam deploy --guided` asks for each
    for settings in parameters.values():
        assert len(settings["Description"]) > 20
        assert ("AllowedPattern" in settings) == ("ConstraintDescription" in settings)
        assert {"AllowedPattern", "AllowedValues", "MinValue"} & set(settings)


def test_what_both_templates_ask_means_the_same() -> None:
    service, batches = read("template.yaml")["Parameters"], read("batch.yaml")["Parameters"]
    for name in SHARED:
        without = [
            {key: value for key, value in dict(settings[name]).items() if key != "Description"}
            for settings in (service, batches)
        ]
        assert without[0] == without[1]


@pytest.mark.parametrize("name", ["template.yaml", "batch.yaml", "batch.asl.json"])
def test_no_partition_is_written_out(name: str) -> None:
    """China and GovCloud have partitions of their own."""
    arns = re.findall(r"arn:[^\s\"']*", re.sub(r"Pattern: .*", "", (ROOT / name).read_text()))
    assert arns
    assert all(arn.startswith(("arn:${AWS::Partition}:", "arn:${Partition}:")) for arn in arns)


# --- what is made ---------------------------------------------------------------------------------


def test_what_the_defaults_make() -> None:
    default = Stack()
    assert set(default.resources) == SERVICE
    assert set(default.outputs) == {"ApiUrl", "ApiKeyId", "FunctionName", "FunctionArn", "RoleArn"}
    assert default.outputs["RoleArn"] == "role.Arn"


def test_an_access_log_needs_a_group() -> None:
    assert set(Stack(AccessLogs="true").resources) - SERVICE == {"AccessLogGroup"}


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        (
            "ImageBuckets",
            ["", "photos", "my.photos-2", FOUR, ",".join(["b" * 24] * 4)],
            ["Photos", "photos/", "*", "photos/*", f"{FOUR},eee", "a-b, c-d", "b" * 64, TOO_LONG],
        ),
        (
            "CorsOrigins",
            ["", "*", "https://shop.example", "http://localhost:5173,https://shop.example"],
            [
                "shop.example",
                "https://shop.example/",
                "*,https://a.example",
                "https://a.example, https://b.c",
                f"https://{'a' * 100}.example",
            ],
        ),
        ("KeepWarm", ["0", "1", "250", "SnapStart"], ["", "-1", "01", "snapstart", "1.5", "None"]),
        (
            "AlarmTopicArn",
            ["", "arn:aws:sns:eu-west-1:123456789012:ops", "arn:aws-cn:sns:a-b-1:123456789012:x"],
            ["ops", "arn:aws:sqs:eu-west-1:123456789012:ops", "arn:aws:sns:eu-west-1:12:ops"],
        ),
        ("RateLimit", ["1", "20"], ["0", "-1"]),
        ("MemorySize", ["512", "10240"], ["128", "10241"]),
    ],
)
def test_parameters_that_cannot_work_are_refused(
    parameter: str, good: list[str], bad: list[str]
) -> None:
    taken = [value for value in good + bad if not refused("template.yaml", **{parameter: value})]
    assert taken == good


def test_parameters_that_contradict_each_other_are_refused() -> None:
    assert refused("template.yaml", DailyQuota="9") == set()
    assert refused("template.yaml", AuthMode="NONE") == set()
    assert refused("template.yaml", DailyQuota="9", AuthMode="NONE") == {"QuotaNeedsKey"}


# --- the API --------------------------------------------------------------------------------------

ANY = "x-amazon-apigateway-any-method"


def _api(**parameters: str) -> Any:
    return Stack(**parameters).properties("Api")


def _security(**parameters: str) -> dict[tuple[str, str], Any]:
    paths = _api(**parameters)["DefinitionBody"]["paths"]
    return {
        (path, method): operation.get("security")
        for path, operations in paths.items()
        for method, operation in operations.items()
    }


def test_every_path_leads_to_the_function_under_the_same_security() -> None:
    key: list[Any] = [{"api_key": []}]
    secured = {("/", ANY): key, ("/{proxy+}", ANY): key}
    health = {("/health", "get"): None, ("/health", "head"): None}
    assert _security() == secured | health
    assert _security(PublicHealth="false") == secured  # /health is under /{proxy+} then
    paths = _api()["DefinitionBody"]["paths"].values()
    integrations = [o["x-amazon-apigateway-integration"] for p in paths for o in p.values()]
    assert all(integration == integrations[0] for integration in integrations)
    assert integrations[0]["uri"].endswith("/function.Arn:live/invocations")


def test_an_open_health_leaves_the_instances_to_those_with_a_key() -> None:
    limits = {
        (setting["ResourcePath"], setting["HttpMethod"]): float(setting["ThrottlingRateLimit"])
        for setting in _api()["MethodSettings"]
    }
    every = {("/*", "*"): 20.0}
    assert limits == every | {("/~1health", "GET"): 2.0, ("/~1health", "HEAD"): 2.0}
    closed = _api(PublicHealth="false")["MethodSettings"]
    assert [setting["ResourcePath"] for setting in closed] == ["/*"]


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
        assert paths[path][ANY]["security"] == security


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


def test_an_access_log_is_one_line_of_json_a_request() -> None:
    assert "AccessLogSetting" not in _api()
    setting = _api(AccessLogs="true")["AccessLogSetting"]
    assert setting["DestinationArn"] == "arn:aws:logs:here:123456789012:log-group:accessloggroup"
    line = json.loads(setting["Format"])
    assert "\n" not in setting["Format"]
    assert {"request_id", "ip", "time", "method", "path", "status", "latency_ms"} <= line.keys()
    assert all(value.startswith("$context.") for value in line.values())


# --- the function ---------------------------------------------------------------------------------


def _function(**parameters: str) -> Any:
    return Stack(**parameters).properties("Function")


def test_the_image_is_told_what_it_holds_in_one_place() -> None:
    """By the build alone, so that no deployment can be told otherwise."""
    arguments = Stack().resources["Function"]["Metadata"]["DockerBuildArgs"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    defaults = dict(re.findall(r"^ARG (\w+)=?(\S*)$", dockerfile, re.MULTILINE))
    names = defaults.keys() - {"BASE_IMAGE", "EXPORT_IMAGE", "TORCH", "PIP_FIND_LINKS", "HF_TOKEN"}
    assert arguments == {name: defaults[name] for name in names}


def test_what_keeps_instances_warm() -> None:
    provisioned, snapshot = "ProvisionedConcurrencyConfig", "SnapStart"
    assert {provisioned, snapshot}.isdisjoint(_function())
    three = _function(KeepWarm="3")
    assert (three[provisioned], snapshot in three) == (
        {"ProvisionedConcurrentExecutions": "3"},
        False,
    )
    restored = _function(KeepWarm="SnapStart")
    assert (restored[snapshot], provisioned in restored) == (
        {"ApplyOn": "PublishedVersions"},
        False,
    )


def test_instances_are_set_aside_where_that_is_asked_for() -> None:
    assert "ReservedConcurrentExecutions" not in _function()
    assert _function(ReservedConcurrency="5")["ReservedConcurrentExecutions"] == "5"


def test_lambda_itself_logs_warnings_only() -> None:
    # Our lines have no timestamp, so all of them are INFO to Lambda: a higher level would drop
    # them.
    logging = {"LogFormat": "JSON", "ApplicationLogLevel": "INFO", "SystemLogLevel": "WARN"}
    assert _function()["LoggingConfig"] == logging | {"LogGroup": "loggroup"}
    batches = Stack("batch.yaml").properties("BatchFunction")
    assert batches["LoggingConfig"] == logging | {"LogGroup": "batchloggroup"}


def test_the_environment_is_what_the_handler_reads() -> None:
    def config(**parameters: str) -> Config:
        return Config.from_env(_function(**parameters)["Environment"]["Variables"])

    default = config()
    assert (default.s3_buckets, default.cors_origins) == ((), ())
    opened = config(ImageBuckets="photos,more.photos", CorsOrigins=ORIGINS)
    assert opened.s3_buckets == ("photos", "more.photos")
    assert opened.cors_origins == tuple(ORIGINS.split(","))


def test_what_the_role_may_do() -> None:
    logs = {"loggroup.Arn": {"logs:CreateLogStream", "logs:PutLogEvents"}}
    assert allowed_actions(Stack(), "Role") == logs
    read_them = {"s3:GetObject", "s3:GetObjectVersion", "s3:ListBucket"}
    for buckets in ("photos", "photos,more", "aaa,bbb,ccc", FOUR):
        assert allowed_actions(Stack(ImageBuckets=buckets), "Role") == logs | {
            f"arn:aws:s3:::{bucket}{objects}": read_them
            for bucket in buckets.split(",")
            for objects in ("", "/*")
        }


@pytest.mark.parametrize(
    ("template", "role"), [("template.yaml", "Role"), ("batch.yaml", "BatchRole")]
)
def test_traces_are_sent_by_all_or_none(template: str, role: str) -> None:
    """The role has the right from the start: a policy of its own could come after the function."""
    off, on = Stack(template), Stack(template, Tracing="true")
    xray = {"*": {"xray:PutTraceSegments", "xray:PutTelemetryRecords"}}
    assert allowed_actions(on, role) == allowed_actions(off, role) | xray
    assert not [r for r in read(template)["Resources"].values() if r["Type"] == "AWS::IAM::Policy"]
    api = (set(), set()) if template == "batch.yaml" else ({False}, {True})
    assert _modes(off) == {"PassThrough"} | api[0]
    assert _modes(on) == {"Active"} | api[1]


def _modes(stack: Stack) -> set[Any]:
    found = set()
    for resource in stack.resources.values():
        properties = resource.get("Properties", {})
        found |= {properties[name] for name in ("Tracing", "TracingEnabled") if name in properties}
        found |= set(properties.get("TracingConfig", {}).values())
    return found


def test_nothing_but_what_is_meant_outlives_the_stack() -> None:
    """The function goes with it, whose versions are kept only while it is there."""
    resources = Stack().resources
    assert "DeletionPolicy" not in resources["Function"]
    log = resources["LogGroup"]
    assert (log["DeletionPolicy"], log["UpdateReplacePolicy"]) == ("Delete", "Delete")
    assert PSEUDO["AWS::StackName"] == resources["Function"]["Properties"]["FunctionName"]
