"""batch.yaml: who may do what, and what is kept, private and encrypted."""

import json
from typing import Any

import pytest

from tests.templates import INDEX, QUEUES, Stack, allowed_actions, batches, listed, senders

KEPT = {"VectorsBucket", "VectorsBucketPolicy", *QUEUES, *(f"{name}Policy" for name in QUEUES)}


@pytest.fixture(params=[{}, INDEX], ids=["files", "index"])
def stack(request: pytest.FixtureRequest) -> Stack:
    return batches(**request.param)


# --- who may do what ------------------------------------------------------------------------------


def test_the_batch_functions_role(stack: Stack) -> None:
    files = {"vectorsbucket.Arn/vectors/*": {"s3:PutObject"}}
    index = {"index.IndexArn": {"s3vectors:PutVectors", "s3vectors:DeleteVectors"}}
    assert allowed_actions(stack, "BatchRole") == {
        "batchloggroup.Arn": {"logs:CreateLogStream", "logs:PutLogEvents"},
        "arn:aws:s3:::photos/*": {"s3:GetObject", "s3:GetObjectVersion"},
        "arn:aws:s3:::photos": {"s3:ListBucket"},
        "queue.Arn": {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"},
        "failurequeue.Arn": {"sqs:SendMessage"},
    } | (index if stack.values["VectorIndex"] else files)


def test_the_role_of_s3_batch_operations(stack: Stack) -> None:
    read_them = {"s3:GetObject", "s3:GetObjectVersion"}
    allowed = {
        "batchfunction.Arn": {"lambda:InvokeFunction"},
        "vectorsbucket.Arn/jobs/*": {*read_them, "s3:PutObject"},
    }
    assert allowed_actions(stack, "S3BatchRole") == allowed
    reads_inventory = batches(InventoryLocation="reports/photos/daily")
    assert allowed_actions(reads_inventory, "S3BatchRole") == allowed | {
        "arn:aws:s3:::reports/photos/daily*": read_them
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


def test_who_may_send_to_the_queue(stack: Stack) -> None:
    """That bucket, and the topics and rules of the account: those have it in their ARN."""
    from_bucket = {"ArnEquals": {"aws:SourceArn": "arn:aws:s3:::photos"}, "StringEquals": OWN}
    assert senders(stack, "QueuePolicy") == {
        "s3.amazonaws.com": from_bucket,
        "sns.amazonaws.com": {"ArnLike": {"aws:SourceArn": "arn:aws:sns:*:123456789012:*"}},
        "events.amazonaws.com": {
            "ArnLike": {"aws:SourceArn": "arn:aws:events:here:123456789012:rule/*"}
        },
    }
    assert senders(stack, "DeadLetterQueuePolicy") == senders(stack, "FailureQueuePolicy") == {}


def test_only_that_bucket_may_invoke(stack: Stack) -> None:
    permission = stack.properties("S3MayInvoke")
    assert permission["Principal"] == "s3.amazonaws.com"
    assert (permission["SourceArn"], permission["SourceAccount"]) == (
        "arn:aws:s3:::photos",
        "123456789012",
    )


# --- what is stored -------------------------------------------------------------------------------


def test_what_is_stored_is_kept_when_it_leaves_the_stack(stack: Stack) -> None:
    """All that holds data or leads to it; logs, whose retention says how long, are not."""
    policies = {
        name: (r.get("DeletionPolicy"), r.get("UpdateReplacePolicy"))
        for name, r in stack.resources.items()
    }
    kept = {
        name for name, policy in policies.items() if policy == ("RetainExceptOnCreate", "Retain")
    }
    assert kept == KEPT | ({"IndexBucket", "Index"} & set(stack.resources))
    assert {policies[name] for name in ("BatchLogGroup", "StateMachineLogGroup")} == {
        ("Delete", "Delete")
    }


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
    assert listed(denied["Resource"]) == resources
    assert denied["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_what_is_stored_is_encrypted_and_private(stack: Stack) -> None:
    bucket = stack.properties("VectorsBucket")
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert "AES256" in json.dumps(bucket["BucketEncryption"])
    assert all(stack.properties(name)["SqsManagedSseEnabled"] is True for name in QUEUES)
    # A message's age counts from when it was first sent.
    keeps = {name: stack.properties(name)["MessageRetentionPeriod"] for name in QUEUES}
    assert keeps["DeadLetterQueue"] == keeps["FailureQueue"] >= 2 * keeps["Queue"]


def test_reports_expire_and_vectors_do_not(stack: Stack) -> None:
    rules = stack.properties("VectorsBucket")["LifecycleConfiguration"]["Rules"]
    assert {rule["Prefix"] for rule in rules if "ExpirationInDays" in rule} == {"runs/", "jobs/"}
    assert [
        rule for rule in rules if "AbortIncompleteMultipartUpload" in rule and "Prefix" not in rule
    ]
    assert {rule["Status"] for rule in rules} == {"Enabled"}
