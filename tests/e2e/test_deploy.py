"""The real ``sam deploy``, again and again, against a CloudFormation of this machine: nothing is
lost.

The SAM CLI is as it was installed: it asks, reads and writes samconfig.toml, packages the
template, and makes and executes change sets. Not exercised is the push of an image, which the
template names as pushed.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests import templates
from tests.conftest import ROOT, free_port, require, wait_for
from tests.e2e.conftest import SAM, SAM_ENVIRONMENT, run

SERVICE, BATCH = "clip-image-encoder", "clip-image-encoder-batch"
REPOSITORY = "123456789012.dkr.ecr.us-east-1.amazonaws.com/clip"
BATCH_PARAMETERS = [f"ImageUri={REPOSITORY}:build-1", "ImageBucket=shop-photos"]
NEEDED = {"Queue", "DeadLetterQueue", "VectorsBucket", "BatchFunction", "StateMachine"}


class Project:
    """A folder with the template and samconfig.toml, and a CloudFormation of its own."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.environment = SAM_ENVIRONMENT | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "SAM_CLI_POLL_DELAY": "0.1",
        }
        self.client = boto3.client(
            "cloudformation",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        self.builds = 0
        # Where there is an image to push, --guided asks for its repositories too, and saves the
        # answer.
        settings = (ROOT / "samconfig.toml").read_text()
        head = "[default.deploy.parameters]\n"
        assert head in settings
        settings = settings.replace(head, f'{head}image_repository = "{REPOSITORY}"\n')
        (directory / "samconfig.toml").write_text(settings)
        for name in ("batch.yaml", "batch.asl.json"):
            shutil.copy(ROOT / name, directory)

    def build(self) -> None:
        """Leave what ``sam build`` would, with an image that is in its registry already."""
        self.builds += 1
        image = f"{REPOSITORY}:build-{self.builds}"
        text = (ROOT / "template.yaml").read_text()
        text = re.sub(r"^    Metadata:\n(      .*\n)+", "", text, flags=re.MULTILINE)
        text = text.replace(
            "PackageType: Image\n", f"PackageType: Image\n      ImageUri: {image}\n"
        )
        (self.directory / "template.yaml").write_text(text)

    def deploy(self, *arguments: str, answers: str = "y\n") -> None:
        """A new build is deployed; `answers` are typed."""
        self.build()
        command = [SAM, "deploy", *arguments]
        done = run(command, cwd=self.directory, env=self.environment, input=answers)
        assert "Successfully created/updated stack" in done.stdout, done.stdout[-2000:]

    def refused(self, *arguments: str) -> str:
        """Try a deployment that CloudFormation refuses; what the SAM CLI says then."""
        done = run([SAM, "deploy", *arguments], False, cwd=self.directory, env=self.environment)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def guided(self, *arguments: str) -> None:
        """Every question is answered with what it proposes, but the last: "Deploy this changeset?
        [y/N]".
        """
        questions = 8 + len(templates.read("template.yaml")["Parameters"])
        self.deploy("--guided", *arguments, answers="\n" * questions + "y\n")

    def batch(self, *parameters: str) -> None:
        """Deploy the batch engines as docs/batch.md says it."""
        overrides = ["--parameter-overrides", *parameters, "--save-params"] if parameters else []
        self.deploy("--config-env", "batch", *overrides)

    def resources(self, stack: str = SERVICE) -> set[str]:
        """Names of what the stack has; versions come and go with each build, and are kept when they
        go.
        """
        wanted = self.template(stack)["Resources"]
        made = self.client.describe_stack_resources(StackName=stack)["StackResources"]
        names = {
            r["LogicalResourceId"] for r in made if "LogicalResourceId" in r
        }  # one that moto cannot make has no name
        return {name for name in names if wanted[name]["Type"] != "AWS::Lambda::Version"}

    def uploads(self) -> list[bytes]:
        """The files that the SAM CLI put into its bucket."""
        s3 = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        buckets = [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
        return [
            s3.get_object(Bucket=bucket, Key=file["Key"])["Body"].read()
            for bucket in buckets
            for file in s3.list_objects_v2(Bucket=bucket).get("Contents", [])
        ]

    def parameters(self, stack: str = SERVICE) -> dict[str, str]:
        """What the stack has; see `cloudformation.SamTransform`."""
        values: dict[str, str] = self.template(stack)["Metadata"]["Values"]
        return values

    def template(self, stack: str) -> Any:
        return self.client.get_template(StackName=stack)["TemplateBody"]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    require("docker", shutil.which(SAM), f"there is no SAM CLI at {SAM!r}")
    port = free_port()
    command = [sys.executable, "-m", "tests.e2e.cloudformation", str(port)]
    environment = SAM_ENVIRONMENT | {"MOTO_PORT": str(port)}
    with (tmp_path / "cloudformation.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        wait_for(port, process)
        project = Project(tmp_path, port)
        _make_the_cli_a_bucket(project)
        yield project
    finally:
        process.kill()
        process.wait()


def _make_the_cli_a_bucket(project: Project) -> None:
    """The stack that SAM keeps templates in: moto would forget the outputs of SAM's own."""
    bucket = {
        "Resources": {"Bucket": {"Type": "AWS::S3::Bucket"}},
        "Outputs": {"SourceBucket": {"Value": {"Ref": "Bucket"}}},
    }
    tags = [{"Key": "ManagedStackSource", "Value": "AwsSamCli"}]
    name = "aws-sam-cli-managed-default"
    project.client.create_stack(StackName=name, TemplateBody=json.dumps(bucket), Tags=tags)


def test_deployments_as_the_documents_say_lose_nothing(project: Project) -> None:
    project.guided()
    service = project.resources()
    assert "Function" in service
    project.batch(*BATCH_PARAMETERS)
    batches = project.resources(BATCH)
    assert batches > NEEDED
    project.deploy()
    project.deploy("--parameter-overrides", "MemorySize=1769", "--save-params")
    project.deploy()
    project.batch("Concurrency=20")
    project.batch()
    assert (project.resources(), project.resources(BATCH)) == (service, batches)
    kept = project.parameters()
    assert (kept["MemorySize"], kept["AuthMode"]) == ("1769", "API_KEY")
    kept = project.parameters(BATCH)
    assert (kept["ImageBucket"], kept["Concurrency"]) == ("shop-photos", "20")


def test_the_state_machines_definition_is_uploaded(project: Project) -> None:
    project.batch(*BATCH_PARAMETERS)
    uploaded = project.uploads()
    assert (ROOT / "batch.asl.json").read_bytes() in uploaded


def test_the_batch_engines_need_to_be_told_their_bucket(project: Project) -> None:
    """No deployment can leave it empty by mistake, and so remove them."""
    assert "must have values" in project.refused("--config-env", "batch")
    project.batch(*BATCH_PARAMETERS)
    command = ("--config-env", "batch", "--parameter-overrides", "ImageBucket=")
    assert "ImageBucket" in project.refused(*command)
    assert project.parameters(BATCH)["ImageBucket"] == "shop-photos"


def test_without_saving_the_next_plain_deployment_takes_a_change_back(project: Project) -> None:
    """Why docs/deploy.md says ``--save-params``: all answers to ``--guided`` are sent again."""
    project.guided()
    project.deploy("--parameter-overrides", "AccessLogs=true")
    assert "AccessLogGroup" in project.resources()
    project.deploy()
    assert project.parameters()["AccessLogs"] == "false"
    assert "AccessLogGroup" not in project.resources()


def test_a_second_guided_deployment_proposes_the_defaults_for_what_was_not_saved_last(
    project: Project,
) -> None:
    """Why docs/deploy.md says to run ``--guided`` once: it does not ask the stack what it has."""
    project.guided()
    project.deploy("--parameter-overrides", "AccessLogs=true", "--save-params")
    project.deploy("--parameter-overrides", "MemorySize=1769", "--save-params")
    project.guided()
    assert project.parameters()["MemorySize"] == "1769"
    assert project.parameters()["AccessLogs"] == "false"
