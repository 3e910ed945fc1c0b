"""The function's versions: each deployment publishes one, and keeps the one to go back to."""

import json
import re
from typing import Any

import pytest
from cfnlint.schema import PROVIDER_SCHEMA_MANAGER

from tests import stack as stacks
from tests.templates import Stack, read

ORIGINS = "https://shop.example,https://b.example"


@pytest.fixture(autouse=True)
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")  # which SAM's transform asks for


CHANGES = {"MemorySize": "2048", "KeepWarm": "SnapStart", "Tracing": "true"}
CHANGES |= {"ImageBuckets": "photos,more", "CorsOrigins": ORIGINS}
"""By parameter that changes the function: another value."""


def _version(**parameters: str) -> tuple[str, Any, Any]:
    """Return the version's logical name and what SAM makes of it, and the function's properties
    as these parameters resolve them.
    """
    made = stacks.transformed(**parameters)["Resources"]
    ((name, version),) = [
        (name, resource)
        for name, resource in made.items()
        if resource["Type"] == "AWS::Lambda::Version"
    ]
    stack = Stack(**parameters)
    function = stack.resolve(json.loads(json.dumps(made["Function"]["Properties"])))
    description = stack.resolve(json.loads(json.dumps(version["Properties"]["Description"])))
    return name, version | {"Description": description}, function


@pytest.mark.parametrize("parameter", CHANGES)
def test_a_changed_parameter_publishes_a_version_and_keeps_the_former(parameter: str) -> None:
    """The version keeps its logical name, so CloudFormation replaces it for its description, which
    it cannot change, and would delete the former one unless told to retain it.
    """
    name, before, old = _version()
    same, after, new = _version(**{parameter: CHANGES[parameter]})
    assert new != old
    assert after["Description"] != before["Description"]
    assert (same, after["UpdateReplacePolicy"]) == (name, "Retain")
    schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", "AWS::Lambda::Version").schema
    assert "/properties/Description" in schema["createOnlyProperties"]


def test_every_parameter_of_the_function_is_in_its_versions_description() -> None:
    text = json.dumps(read("template.yaml")["Resources"]["Function"]["Properties"])
    used = set(re.findall(r'"Ref": "(\w+)"', text)) & set(read("template.yaml")["Parameters"])
    conditions = {"UsesSnapStart": "KeepWarm", "Traces": "Tracing"}
    used |= {parameter for name, parameter in conditions.items() if name in text}
    not_the_versions = {"DeploymentPreference", "ReservedConcurrency"}  # nor kept in one
    assert used - not_the_versions == set(CHANGES)


def test_a_new_image_publishes_a_version_and_keeps_the_former() -> None:
    made = [stacks.transformed(image=f"{image}:1")["Resources"] for image in ("one", "two")]
    first, second = (
        {name: r for name, r in resources.items() if r["Type"] == "AWS::Lambda::Version"}
        for resources in made
    )
    assert set(first).isdisjoint(second)  # so the first one leaves the stack
    assert {version["DeletionPolicy"] for version in first.values()} == {"Retain"}


def test_the_longest_description_fits() -> None:
    longest = {"MemorySize": "10240", "KeepWarm": "SnapStart", "Tracing": "false"}
    longest |= dict.fromkeys(("ImageBuckets", "CorsOrigins"), "x" * 100)  # their MaxLength
    assert len(Stack(**longest).properties("Function")["VersionDescription"]) <= 256


@pytest.mark.parametrize(
    ("preference", "in_steps"), [("AllAtOnce", False), ("Canary10Percent5Minutes", True)]
)
def test_a_deployment_in_steps_needs_codedeploy_and_looks_at_the_alarms(
    preference: str, in_steps: bool
) -> None:
    made = stacks.transformed(DeploymentPreference=preference)["Resources"]
    groups = [r for r in made.values() if r["Type"] == "AWS::CodeDeploy::DeploymentGroup"]
    assert bool(groups) == in_steps == ("CodeDeployServiceRole" in made)
    for group in groups:
        config = group["Properties"]["DeploymentConfigName"]["Fn::Sub"]
        assert config[0].replace("${ConfigName}", config[1]["ConfigName"]) == (
            f"CodeDeployDefault.Lambda{preference}"
        )
        alarms = group["Properties"]["AlarmConfiguration"]["Alarms"]
        assert alarms == [{"Name": {"Ref": "FaultAlarm"}}, {"Name": {"Ref": "ErrorAlarm"}}]
