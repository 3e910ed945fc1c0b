"""The stack is created: what SAM makes of the template, made by moto's CloudFormation.

moto resolves every Ref, GetAtt, Sub, condition and parameter, and makes the resources whose types
it knows; the others are in `tests.stack.NOT_MADE`. It reads few of their properties, and none of
the template's Rules and AllowedPatterns.
"""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from moto.cloudformation.parsing import resource_class_from_type

from tests import stack
from tests.test_template import TEMPLATE, Stack

BATCHES = {"BatchBucket": "photos"}
OTHERS: dict[str, dict[str, str]] = {
    "Weights": {"Weights": "synthetic"},
    "Profile": {"Profile": "fast"},
    "Towers": {"Towers": "image"},
    "Model": {"Model": "ViT-B/16"},
    "AuthMode": {"AuthMode": "AWS_IAM"},
    "RateLimit": {"RateLimit": "5"},
    "BurstLimit": {"BurstLimit": "10"},
    "DailyQuota": {"DailyQuota": "1000"},
    "ImageBuckets": {"ImageBuckets": "photos,other-photos"},
    "CorsOrigins": {"CorsOrigins": "https://shop.example,https://www.shop.example"},
    "WebAclArn": {"WebAclArn": "arn:aws:wafv2:us-east-1:123456789012:regional/webacl/shop/1"},
    "MemorySize": {"MemorySize": "1769"},
    "Architecture": BATCHES | {"Architecture": "arm64"},
    "ReservedConcurrency": {"ReservedConcurrency": "5"},
    "ProvisionedConcurrency": {"ProvisionedConcurrency": "1"},
    "SnapStart": {"SnapStart": "PublishedVersions"},
    "LogLevel": BATCHES | {"LogLevel": "DEBUG"},
    "LogRetentionDays": BATCHES | {"LogRetentionDays": "7"},
    "AccessLogs": {"AccessLogs": "true"},
    "Tracing": BATCHES | {"Tracing": "true"},
    "AlarmTopicArn": BATCHES | {"AlarmTopicArn": "arn:aws:sns:us-east-1:123456789012:ops"},
    "BatchBucket": BATCHES,
    "VectorIndex": BATCHES | {"VectorIndex": "shop/clip"},
    "BatchMemorySize": BATCHES | {"BatchMemorySize": "3008"},
    "BatchConcurrency": BATCHES | {"BatchConcurrency": "2"},
    "ReserveBatchConcurrency": BATCHES | {"ReserveBatchConcurrency": "false"},
    "FollowBucket": BATCHES | {"FollowBucket": "true"},
    "InventoryLocation": BATCHES | {"InventoryLocation": "reports/photos"},
}
"""By parameter: a value that is not its default, and the parameters without which it would change
nothing.
"""


def _create(name: str, **parameters: str) -> Any:
    """Make it, and check that nothing is missing, too much, or left unresolved."""
    made, expected = stack.create(name, **parameters), Stack(**parameters)
    ours = {name: resource["Type"] for name, resource in expected.resources.items()}
    assert {name for name in made.resources if name in TEMPLATE["Resources"]} == {
        name for name, kind in ours.items() if kind not in stack.NOT_MADE
    }
    # An output whose resource is not made is left out; there is one.
    assert set(made.outputs) == set(expected.outputs) - {"ApiKeyId"}
    for value in made.outputs.values():
        assert re.fullmatch(r"[A-Za-z0-9:/._-]+", value), value
    return made


def test_with_its_defaults(cloud: SimpleNamespace) -> None:
    made = _create("defaults")
    assert made.outputs["FunctionName"] == "defaults"
    assert not {"Queue", "StateMachine", "VectorsBucket"} & set(made.resources)


def test_with_the_batch_engines(cloud: SimpleNamespace) -> None:
    made = _create("batches", **BATCHES)
    assert made.outputs["StateMachineArn"].endswith(":stateMachine:batches-batch")
    assert made.outputs["VectorsBucketName"] == made.resources["VectorsBucket"]
    assert made.outputs["QueueUrl"] == made.resources["Queue"]


@pytest.mark.parametrize("parameter", TEMPLATE["Parameters"])
def test_with_each_parameters_other_value(cloud: SimpleNamespace, parameter: str) -> None:
    assert parameter in OTHERS, f"add a value of {parameter} that is not its default to OTHERS"
    values = OTHERS[parameter]
    assert values[parameter] != str(TEMPLATE["Parameters"][parameter].get("Default"))
    _create(f"other-{parameter}", **values)


def test_no_more_is_left_out_than_must_be() -> None:
    unknown = {
        kind for kind, why in stack.NOT_MADE.items() if why.startswith("moto does not know it")
    }
    assert {kind for kind in stack.NOT_MADE if resource_class_from_type(kind) is None} == unknown
    assert stack.NOT_MADE.keys() - unknown == {"AWS::ApiGateway::Deployment"}
    types = {resource["Type"] for resource in stack.transformed()["Resources"].values()}
    assert {kind for kind in types if resource_class_from_type(kind) is None} <= unknown
