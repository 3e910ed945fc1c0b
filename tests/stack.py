"""The stacks as deployments make them: a template, SAM's own transform, moto's CloudFormation."""

import json
import re
from types import SimpleNamespace
from typing import Any

import boto3
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from tests.conftest import ROOT
from tests.templates import IMAGE, NEEDED, batches

NOT_MADE = {
    "AWS::ApiGateway::Deployment": "moto makes it, but misses the methods that are OpenAPI 3.0.1",
    "AWS::ApiGateway::ApiKey": "moto does not know it",
    "AWS::ApiGateway::Stage": "moto does not know it",
    "AWS::ApiGateway::UsagePlan": "moto does not know it",
    "AWS::ApiGateway::UsagePlanKey": "moto does not know it",
    "AWS::CloudWatch::Alarm": "moto does not know it",
    "AWS::CodeDeploy::Application": "moto does not know it",
    "AWS::CodeDeploy::DeploymentGroup": "moto does not know it",
    "AWS::Lambda::Alias": "moto does not know it; what refers to it gets the function instead",
    "AWS::Lambda::EventInvokeConfig": "moto does not know it",
    "AWS::S3::BucketPolicy": "moto does not know it",
    "AWS::S3Vectors::Index": "moto does not know it; what refers to it gets a name of its form",
    "AWS::S3Vectors::VectorBucket": "moto does not know it; the same",
    "AWS::SQS::QueuePolicy": "moto does not know it",
}
"""The types of resources that moto's CloudFormation cannot make, which are taken out, and why.

What it does not know it would leave out by itself, and resolve what refers to it to nonsense.
"""
INDEX_BUCKET = "arn:aws:s3vectors:us-east-1:123456789012:bucket/indexes"
ATTRIBUTES = {
    ("IndexBucket", "VectorBucketArn"): INDEX_BUCKET,
    ("Index", "IndexArn"): f"{INDEX_BUCKET}/index/clip-1",
}
"""What AWS would answer for resources that moto does not make."""


def transformed(
    template: str = "template.yaml", image: str = IMAGE, **parameters: str
) -> dict[str, Any]:
    """Return what CloudFormation is given for a deployment with `parameters`, all of it."""
    document = yaml_parse((ROOT / template).read_text())
    for resource in document["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["ImageUri"] = image
            del resource["Metadata"]  # says how the image is built
        if resource["Type"] == "AWS::Serverless::StateMachine":  # `sam package` uploads it
            resource["Properties"]["DefinitionUri"] = "s3://uploads/batch.asl.json"
    managed_policies = SimpleNamespace(load=dict)  # of which the templates name none
    plain: dict[str, Any] = transform(document, parameters, managed_policies)
    return plain


def create(name: str, template: str = "template.yaml", **parameters: str) -> SimpleNamespace:
    """Make the stack in the moto that boto3 is led to.

    Gives its ``template``, ``outputs`` and ``resources``, which are physical ids by name.
    """
    parameters = NEEDED[template] | parameters
    plain = what_moto_makes(transformed(template, **parameters))
    client = boto3.client("cloudformation")
    client.create_stack(
        StackName=name,
        TemplateBody=json.dumps(plain, default=str),
        Parameters=[
            {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
        ],
        Capabilities=["CAPABILITY_IAM"],
    )
    (stack,) = client.describe_stacks(StackName=name)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE", stack.get("StackStatusReason")
    made = client.describe_stack_resources(StackName=name)["StackResources"]
    return SimpleNamespace(
        template=plain,
        outputs={output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])},
        # moto lists those nameless whose condition does not hold.
        resources={
            r["LogicalResourceId"]: r.get("PhysicalResourceId")
            for r in made
            if "LogicalResourceId" in r
        },
    )


def what_moto_makes(template: dict[str, Any]) -> dict[str, Any]:
    """Return `template` without the types of `NOT_MADE` and the outputs that tell of one.

    The state machine's definition, which SAM would have uploaded, is put into the template.
    """
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
            name: _with_definition(resource)
            for name, resource in resources.items()
            if name not in left_out
        },
        "Outputs": {
            name: output
            for name, output in outputs
            if output["Value"].get("Ref") not in left_out - set(aliases)
        },
    }
    return _replace_references(made, aliases)  # type: ignore[no-any-return]


def _with_definition(resource: dict[str, Any]) -> dict[str, Any]:
    if resource["Type"] != "AWS::StepFunctions::StateMachine":
        return resource
    properties = dict(resource["Properties"])
    values = properties.pop("DefinitionSubstitutions")
    del properties["DefinitionS3Location"]
    # Not by Fn::Sub, in which moto makes one dollar of two.
    parts = re.split(r"\$\{(\w+)\}", (ROOT / "batch.asl.json").read_text())
    joined = [values[part] if place % 2 else part for place, part in enumerate(parts)]
    return resource | {"Properties": properties | {"DefinitionString": {"Fn::Join": ["", joined]}}}


def _replace_references(node: Any, instead: dict[str, Any]) -> Any:
    match node:
        case {"Ref": str(name)} if name in instead:
            return instead[name]
        case {"Fn::GetAtt": [name, attribute]} if (name, attribute) in ATTRIBUTES:
            return ATTRIBUTES[name, attribute]
        case dict():
            return {key: _replace_references(value, instead) for key, value in node.items()}
        case list():
            return [_replace_references(item, instead) for item in node]
    return node


def create_index(bucket: str, name: str) -> None:
    """Make an index of S3 Vectors, and the bucket that it is in, with the template's properties.

    CloudFormation's are the API's own, but for the letter that their names begin with.
    """
    client = boto3.client("s3vectors")
    client.create_vector_bucket(vectorBucketName=bucket)
    properties = batches(VectorIndex=name).properties("Index")
    del properties["VectorBucketArn"]
    client.create_index(vectorBucketName=bucket, **_in_lower_case(properties))


def _in_lower_case(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        name[0].lower() + name[1:]: _in_lower_case(value) if isinstance(value, dict) else value
        for name, value in properties.items()
    }
