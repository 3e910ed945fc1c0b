"""Least privilege holds: what the batch function's role allows is what the function does, and no
more.

The role is the stack's (tests/stack.py), its policies are moto's to judge, by the keys of who
assumed the
role: moto rejects what no statement allows. It judges S3's actions on buckets and keys. It does
not judge SQS and S3 Vectors, whose resources it takes for ``*``, conditions, resource policies and
KMS, nor that a missing object is 403 to who may not list; those parts
of the role are compared with what they should say in tests/test_batch_rights.py.
"""

import ast
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError

from events.generate import in_s3, sqs
from tests import stack
from tests.answers import INVOKE
from tests.aws import aws
from tests.conftest import emulator

KEY, VECTORS = "shop/a.jpg", "vectors/0/a.npz"


@pytest.fixture(scope="module")
def deployed(photo: bytes) -> Iterator[SimpleNamespace]:
    """The stack, and ``keys`` of its batch role, in a moto that judges; objects in two buckets of
    images.
    """
    with aws() as cloud:
        made = stack.create("clip-batch", "batch.yaml")
        vectors = made.outputs["VectorsBucketName"]
        for bucket in ("photos", "secrets"):
            cloud.s3.create_bucket(Bucket=bucket)
            cloud.s3.put_object(Bucket=bucket, Key=KEY, Body=photo)
        for key in (VECTORS, "runs/1/manifest.json"):
            cloud.s3.put_object(Bucket=vectors, Key=key, Body=b"{}")
        keys = _assume(made)
        _judge(cloud.env["AWS_ENDPOINT_URL"])
        yield SimpleNamespace(
            template=made.template, vectors=vectors, keys=keys, s3=boto3.client("s3", **keys)
        )


def _assume(made: SimpleNamespace) -> dict[str, str]:
    """Keys of the batch role, as boto3 takes them."""
    iam, role = boto3.client("iam"), made.resources["BatchRole"]
    (name,) = iam.list_role_policies(RoleName=role)["PolicyNames"]
    # The same policy once more, as JSON: moto keeps what CloudFormation makes as Python writes it.
    document = ast.literal_eval(
        iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
    )
    # And without what CloudFormation leaves out: moto leaves a hole for it.
    document["Statement"] = list(filter(None, document["Statement"]))
    iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=json.dumps(document))
    arn = iam.get_role(RoleName=role)["Role"]["Arn"]
    given = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="function")["Credentials"]
    return {
        "aws_access_key_id": given["AccessKeyId"],
        "aws_secret_access_key": given["SecretAccessKey"],
        "aws_session_token": given["SessionToken"],
    }


def _judge(endpoint: str) -> None:
    """From now on moto asks who may do what."""
    plain = {"Content-Type": "text/plain"}
    urllib.request.urlopen(
        urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", plain)
    ).close()


Call = Callable[[SimpleNamespace], Any]
ALLOWED: dict[str, Call] = {
    "read an image": lambda it: it.s3.get_object(Bucket="photos", Key=KEY),
    "look at an image again": lambda it: it.s3.head_object(Bucket="photos", Key=KEY),
    "list the images": lambda it: it.s3.list_objects_v2(Bucket="photos"),
    "write vectors": lambda it: it.s3.put_object(
        Bucket=it.vectors, Key="vectors/0/b.npz", Body=b""
    ),
}
DENIED: dict[str, Call] = {
    "read another bucket": lambda it: it.s3.get_object(Bucket="secrets", Key=KEY),
    "look into another bucket": lambda it: it.s3.head_object(Bucket="secrets", Key=KEY),
    "list another bucket": lambda it: it.s3.list_objects_v2(Bucket="secrets"),
    "list the vectors": lambda it: it.s3.list_objects_v2(Bucket=it.vectors),
    "list all buckets": lambda it: it.s3.list_buckets(),
    "change an image": lambda it: it.s3.put_object(Bucket="photos", Key=KEY, Body=b""),
    "remove an image": lambda it: it.s3.delete_object(Bucket="photos", Key=KEY),
    "write to another bucket": lambda it: it.s3.put_object(Bucket="secrets", Key=VECTORS, Body=b""),
    "write a run's results": lambda it: it.s3.put_object(
        Bucket=it.vectors, Key="runs/1/x.json", Body=b""
    ),
    "write beside the vectors": lambda it: it.s3.put_object(
        Bucket=it.vectors, Key="vectors.npz", Body=b""
    ),
    "read vectors": lambda it: it.s3.get_object(Bucket=it.vectors, Key=VECTORS),
    "remove vectors": lambda it: it.s3.delete_object(Bucket=it.vectors, Key=VECTORS),
    "remove the vectors' bucket": lambda it: it.s3.delete_bucket(Bucket=it.vectors),
    "call another function": lambda it: boto3.client("lambda", **it.keys).invoke(
        FunctionName="clip"
    ),
    "give itself more": lambda it: boto3.client("iam", **it.keys).list_roles(),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_the_function_does_is_allowed(deployed: SimpleNamespace, what: str) -> None:
    ALLOWED[what](deployed)


@pytest.mark.parametrize("what", DENIED)
def test_everything_else_is_denied(deployed: SimpleNamespace, what: str) -> None:
    with pytest.raises(ClientError) as denied:
        DENIED[what](deployed)
    answer = denied.value.response
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 403
    # Other reasons for a 403 are keys that nobody has, or a signature of other keys.
    assert answer["Error"]["Code"] in ("AccessDenied", "AccessDeniedException", "403")


def test_the_function_works_with_those_rights(
    deployed: SimpleNamespace, model_dir: Path, tmp_path: Path
) -> None:
    """A Map's batch and a queue's messages, of which one names an object in a bucket that is not
    ours.
    """
    function = deployed.template["Resources"]["BatchFunction"]["Properties"]
    settings = {name.upper(): value for name, value in deployed.keys.items()}
    settings |= {"CLIP_S3_BUCKETS": "photos", "CLIP_OUTPUT": f"s3://{deployed.vectors}/vectors"}
    assert set(function["Environment"]["Variables"]) >= {
        name for name in settings if name.startswith("CLIP")
    }
    with emulator(
        model_dir, tmp_path / "log", function["ImageConfig"]["Command"][0], **settings
    ) as (
        client,
        _,
    ):
        items = [{"s3": {"bucket": "photos", "key": key}} for key in (KEY, "gone.jpg")]
        batch = {"Items": items, "BatchInput": {"run": "2026-01-01T00:00:00.000Z_1"}}
        assert _written(client, batch) == (1, ["source_not_found"])
        message = client.post(INVOKE, json=sqs(json.dumps(in_s3(KEY)))).json()
        assert message == {"batchItemFailures": []}, message
        refused = settings | {"CLIP_OUTPUT": f"s3://{deployed.vectors}/elsewhere"}
    with emulator(model_dir, tmp_path / "log2", "handler.worker.handler", **refused) as (client, _):
        answer = client.post(INVOKE, json={"Items": items[:1]}).json()
        assert answer["errorType"] in ("OutputRefused", "OutputUnavailable"), answer


def _written(client: httpx.Client, batch: Any) -> tuple[int, list[str]]:
    answer = client.post(INVOKE, json=batch).json()
    assert "written" in answer, answer
    return answer["written"], [error["code"] for error in answer["errors"]]
