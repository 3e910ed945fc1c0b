"""The stack as a deployment makes it: the template, SAM's own transform, moto's CloudFormation."""

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import boto3
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from tests.conftest import ROOT

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/clip:tag"
"""What `sam package` would fill in."""

NOT_MADE = {
    "AWS::ApiGateway::Deployment": "moto makes it, but misses the methods that are OpenAPI 3.0.1",
    "AWS::ApiGateway::ApiKey": "moto does not know it",
    "AWS::ApiGateway::Stage": "moto does not know it",
    "AWS::ApiGateway::UsagePlan": "moto does not know it",
    "AWS::ApiGateway::UsagePlanKey": "moto does not know it",
    "AWS::CloudWatch::Alarm": "moto does not know it",
    "AWS::Lambda::Alias": "moto does not know it; what refers to it gets the function instead",
    "AWS::Lambda::EventInvokeConfig": "moto does not know it",
    "AWS::S3::BucketPolicy": "moto does not know it",
    "AWS::SQS::QueuePolicy": "moto does not know it",
    "AWS::WAFv2::WebACLAssociation": "moto does not know it",
}
"""The types of resources that moto's CloudFormation cannot make, which are taken out, and why.

What it does not know it would leave out by itself, and resolve what refers to it to nonsense.
"""


def transformed(**parameters: str) -> dict[str, Any]:
    """What CloudFormation is given for a deployment with `parameters`, all of it."""
    template = yaml_parse((ROOT / "template.yaml").read_text())
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["ImageUri"] = IMAGE
            del resource["Metadata"]  # says how the image is built
    managed_policies = SimpleNamespace(load=dict)  # of which the template names none
    plain: dict[str, Any] = transform(template, parameters, managed_policies)
    return plain


def create(name: str, **parameters: str) -> SimpleNamespace:
    """Make the stack in the moto that boto3 is led to.

    Gives its ``template``, ``outputs`` and ``resources``, which are physical ids by name.
    """
    template = what_moto_makes(transformed(**parameters))
    client = boto3.client("cloudformation")
    client.create_stack(
        StackName=name,
        TemplateBody=json.dumps(template, default=str),
        Parameters=[
            {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
        ],
        Capabilities=["CAPABILITY_IAM"],
    )
    (stack,) = client.describe_stacks(StackName=name)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE", stack.get("StackStatusReason")
    made = client.describe_stack_resources(StackName=name)["StackResources"]
    return SimpleNamespace(
        template=template,
        outputs={output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])},
        # moto lists those nameless whose condition does not hold.
        resources={
            r["LogicalResourceId"]: r.get("PhysicalResourceId")
            for r in made
            if "LogicalResourceId" in r
        },
    )


def holds(condition: Any, conditions: Mapping[str, Any], resolve: Callable[[Any], Any]) -> bool:
    """Whether `condition` holds: one of the template's `conditions`, or one written out.

    `resolve` gives the value of what a condition compares, such as ``{"Ref": "Weights"}``.
    """

    def inner(part: Any) -> bool:
        return holds(part, conditions, resolve)

    match condition:
        case {"Condition": name}:
            return inner(conditions[name])
        case {"Fn::Not": [part]}:
            return not inner(part)
        case {"Fn::And": parts}:
            return all(map(inner, parts))
        case {"Fn::Or": parts}:
            return any(map(inner, parts))
        case {"Fn::Equals": [left, right]}:
            return str(resolve(left)) == str(resolve(right))
    raise AssertionError(f"a condition of a kind that is not known here: {condition}")


def what_moto_makes(template: dict[str, Any]) -> dict[str, Any]:
    """Plain CloudFormation without the types of `NOT_MADE` and the outputs that tell of one."""
    resources = template["Resources"]
    left_out = {name for name, resource in resources.items() if resource["Type"] in NOT_MADE}
    aliases = {
        name: resource["Properties"]["FunctionName"]
        for name, resource in resources.items()
        if resource["Type"] == "AWS::Lambda::Alias"
    }
    outputs = template["Outputs"].items()
    made = template | {
        "Resources": {
            name: resource for name, resource in resources.items() if name not in left_out
        },
        "Outputs": {
            name: output
            for name, output in outputs
            if output["Value"].get("Ref") not in left_out - set(aliases)
        },
    }
    return _replace_refs(made, aliases)  # type: ignore[no-any-return]


def _replace_refs(node: Any, instead: dict[str, Any]) -> Any:
    match node:
        case {"Ref": str(name)} if name in instead:
            return instead[name]
        case dict():
            return {key: _replace_refs(value, instead) for key, value in node.items()}
        case list():
            return [_replace_refs(item, instead) for item in node]
    return node
