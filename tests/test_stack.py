"""The stacks are created: what SAM makes of the templates, made by moto's CloudFormation.

moto resolves every Ref, GetAtt, Sub, mapping, condition and parameter, and makes the resources
whose types it knows; the others are in `tests.stack.NOT_MADE`. It reads few of their properties,
and none of the templates' Rules and AllowedPatterns.
"""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from moto.cloudformation.parsing import resource_class_from_type

from tests import stack
from tests.templates import IMAGE, NEEDED, Stack, read

OTHERS = {
    "template.yaml": {
        "AuthMode": "AWS_IAM",
        "PublicHealth": "false",
        "RateLimit": "5",
        "DailyQuota": "1000",
        "ImageBuckets": "photos,other-photos",
        "CorsOrigins": "https://shop.example,https://www.shop.example",
        "MemorySize": "1769",
        "ReservedConcurrency": "5",
        "KeepWarm": "SnapStart",
        "DeploymentPreference": "Canary10Percent5Minutes",
        "LogRetentionDays": "7",
        "AccessLogs": "true",
        "Tracing": "true",
        "AlarmTopicArn": "arn:aws:sns:us-east-1:123456789012:ops",
    },
    "batch.yaml": {
        "ImageUri": IMAGE.replace("tag", "other"),
        "Model": "ViT-L-14",
        "Architecture": "arm64",
        "ImageBucket": "pictures",
        "FollowKeys": "photos/*.jpg",
        "VectorIndex": "clip-1",
        "InventoryLocation": "reports/photos",
        "Concurrency": "5",
        "LogRetentionDays": "7",
        "Tracing": "true",
        "AlarmTopicArn": "arn:aws:sns:us-east-1:123456789012:ops",
    },
}
"""By parameter: a value that is not its default."""
PAIRS = [(name, parameter) for name in OTHERS for parameter in read(name)["Parameters"]]


def _create(name: str, template: str, **parameters: str) -> Any:
    """Make it, and check that nothing is missing, too much, or left unresolved."""
    made, expected = stack.create(name, template, **parameters), Stack(template, **parameters)
    ours = {
        name: resource["Type"].replace("Serverless::StateMachine", "StepFunctions::StateMachine")
        for name, resource in expected.resources.items()
    }
    assert {name for name in made.resources if name in read(template)["Resources"]} == {
        name for name, kind in ours.items() if kind not in stack.NOT_MADE
    }
    # An output whose resource is not made is left out; there is one.
    assert set(made.outputs) == set(expected.outputs) - {"ApiKeyId"}
    for value in made.outputs.values():
        assert re.fullmatch(r"[A-Za-z0-9:/._-]+", value), value
    return made


def test_the_service_with_its_defaults(cloud: SimpleNamespace) -> None:
    made = _create("defaults", "template.yaml")
    assert made.outputs["FunctionName"] == "defaults"


def test_the_batch_engines_with_their_defaults(cloud: SimpleNamespace) -> None:
    made = _create("batches", "batch.yaml")
    assert made.outputs["StateMachineArn"].endswith(":stateMachine:batches")
    assert made.outputs["VectorsBucketName"] == made.resources["VectorsBucket"]
    assert made.outputs["QueueUrl"] == made.resources["Queue"]


@pytest.mark.parametrize(("template", "parameter"), PAIRS)
def test_with_each_parameters_other_value(
    cloud: SimpleNamespace, template: str, parameter: str
) -> None:
    assert parameter in OTHERS[template], f"add another value of {parameter} to OTHERS"
    value = OTHERS[template][parameter]
    default = read(template)["Parameters"][parameter].get("Default")
    assert value != str(NEEDED[template].get(parameter, default))
    _create(f"{template.partition('.')[0]}-{parameter}", template, **{parameter: value})


def test_no_more_is_left_out_than_must_be() -> None:
    unknown = {
        kind for kind, why in stack.NOT_MADE.items() if why.startswith("moto does not know it")
    }
    assert {kind for kind in stack.NOT_MADE if resource_class_from_type(kind) is None} == unknown
    assert stack.NOT_MADE.keys() - unknown == {"AWS::ApiGateway::Deployment"}
    types = {
        resource["Type"]
        for name in OTHERS
        for resource in stack.transformed(name, **OTHERS[name])["Resources"].values()
    }
    assert types > stack.NOT_MADE.keys()
    assert {kind for kind in types if resource_class_from_type(kind) is None} <= unknown
