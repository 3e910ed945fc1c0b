"""The workflow and the Terraform example, held to the Makefile, the template, AWS and the settings.

Neither can be run here: there is no GitHub and no Terraform. What they name has to exist.
"""

import re
from typing import Any

import botocore.session
import pytest
import yaml
from botocore import xform_name
from cfnlint.decode import cfn_yaml

from handler.config import Config
from tests import commands, documents
from tests.conftest import ROOT

WORKFLOW = ROOT / "examples" / "github-actions-deploy.yml"
MAIN = (ROOT / "examples" / "terraform" / "main.tf").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TEMPLATE = cfn_yaml.load(str(ROOT / "template.yaml"))


# --- the workflow ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workflow() -> Any:
    return yaml.safe_load(WORKFLOW.read_text())


@pytest.fixture(scope="module")
def ran(workflow: Any, tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Every command of its steps, as bash hands it over, with recorders in the programs' places."""
    script = []
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            environment = workflow["env"] | step.get("env", {})
            script += [f"export {name}='{value}'" for name, value in environment.items()]
            script.append(step.get("run", ""))
    directory = tmp_path_factory.mktemp("workflow")
    page = directory / "page.md"
    page.write_text("```sh\n" + "\n".join(script) + "\n```\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PAGES", {"page.md": page})
        return commands.run(directory)


def test_the_workflow_tests_before_it_deploys(workflow: Any) -> None:
    jobs = workflow["jobs"]
    assert jobs["deploy"]["needs"] == "test"
    runs = [step.get("run", "").split(" ")[:2] for step in jobs["deploy"]["steps"]]
    assert runs.index(["sam", "build"]) < runs.index(["sam", "deploy"])


def test_only_the_deployment_may_ask_for_a_role(workflow: Any) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in workflow["jobs"]["test"]
    assert workflow["jobs"]["deploy"]["permissions"]["id-token"] == "write"
    # Only the environment's own branches are given its role.
    assert workflow["jobs"]["deploy"]["environment"] == "production"


def test_every_action_is_pinned(workflow: Any) -> None:
    used = [
        step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step
    ]
    assert len(used) == 5
    for action in used:
        assert re.fullmatch(r"(actions|aws-actions)/[\w-]+@(v\d+|[0-9a-f]{40})", action)


def test_every_verb_of_make_is_one(ran: list[list[str]]) -> None:
    verbs = re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)[0].split()
    found = [command for command in ran if command[0] == "make"]
    assert [command[1] for command in found] == ["check", "test", "smoke"]
    assert {command[1] for command in found} <= set(verbs)
    for variable in (word.partition("=")[0] for word in found[-1][2:]):
        assert f"$({variable})" in MAKEFILE


def test_the_deployment_is_tried_with_what_the_stack_says(ran: list[list[str]]) -> None:
    smoke = next(command for command in ran if command[:2] == ["make", "smoke"])
    assert smoke[2].startswith("URL=")
    assert smoke[2].endswith(":ApiUrl")
    assert smoke[3] == "KEY=answer"
    asked = {name for c in ran for name in re.findall("OutputKey=='([^']*)'", " ".join(c))}
    assert asked == {"ApiUrl", "ApiKeyId"}
    assert asked <= set(TEMPLATE["Outputs"])


def test_every_aws_command_is_one(ran: list[list[str]]) -> None:
    found = [command for command in ran if command[0] == "aws"]
    assert len(found) == 3
    for command in found:
        commands.check_aws(command)


def test_it_deploys_in_steps_by_a_parameter_of_the_template(ran: list[list[str]]) -> None:
    (deploy,) = (command for command in ran if command[:2] == ["sam", "deploy"])
    assert commands.overrides(deploy)["DeploymentPreference"].startswith("Canary")
    commands.check_overrides(deploy)


def test_its_sam_is_the_one_that_the_tests_know(ran: list[list[str]]) -> None:
    (pip,) = (command for command in ran if command[0] == "pip")
    version = re.findall(r"^SAM_CLI := (.*)", MAKEFILE, re.MULTILINE)[0]
    assert pip[1:] == ["install", f"aws-sam-cli=={version}"]


def test_every_variable_is_explained() -> None:
    text = WORKFLOW.read_text()
    explained = set(re.findall(r"^#     ([A-Z_]+) ", text, re.MULTILINE))
    assert set(re.findall(r"\bvars\.(\w+)", text)) == explained


# --- Terraform ------------------------------------------------------------------------------------


def _block(kind: str, name: str = "clip") -> str:
    """What is between the braces of one resource."""
    pattern = rf'^resource "{kind}" "{name}" {{\n(.*?)^}}'
    return str(re.findall(pattern, MAIN, re.DOTALL | re.MULTILINE)[0])


def _arguments(block: str) -> dict[str, str]:
    """The arguments of a block itself, without those of the blocks in it."""
    return dict(re.findall(r"^  (\w+) += (.*?)(?: +#.*)?$", block, re.MULTILINE))


def _shape(service: str, operation: str) -> Any:
    model = botocore.session.get_session().get_service_model(service)
    return model.operation_model(operation).input_shape


def test_the_settings_are_settings() -> None:
    inner = re.findall(r"variables = {\n(.*?)\n    }", _block("aws_lambda_function"), re.DOTALL)[0]
    settings = dict(re.findall(r"^ +(\w+) += ([^#\n]*?) *(?:#.*)?$", inner, re.MULTILINE))
    assert settings.keys() == {"CLIP_LOG_LEVEL", "CLIP_S3_BUCKETS"}
    assert settings["CLIP_S3_BUCKETS"] == 'join(",", var.image_buckets)'
    literal = {name: value.strip('"') for name, value in settings.items() if value[0] == '"'}
    for buckets in ("", "one", "one,two"):  # what `join` makes of the list
        assert Config.from_env({**literal, "CLIP_S3_BUCKETS": buckets})


@pytest.mark.parametrize(
    ("resource", "name", "service", "operation", "renamed"),
    [
        ("aws_lambda_function", "clip", "lambda", "CreateFunction", {"image_uri": "code"}),
        ("aws_lambda_alias", "live", "lambda", "CreateAlias", {}),
        (
            "aws_lambda_function_url",
            "clip",
            "lambda",
            "CreateFunctionUrlConfig",
            {"authorization_type": "auth_type"},
        ),
    ],
)
def test_the_arguments_are_aws_own(
    resource: str, name: str, service: str, operation: str, renamed: dict[str, str]
) -> None:
    """Terraform's names are those of the calls that it makes, but for a few."""
    arguments = _arguments(_block(resource, name))
    members = {
        xform_name(member): shape for member, shape in _shape(service, operation).members.items()
    }
    for argument, value in arguments.items():
        shape = members[renamed.get(argument, argument)]
        if value.startswith('"') and getattr(shape, "enum", None):
            assert value.strip('"') in shape.enum


def test_logs_go_to_the_group_that_is_made_as_json() -> None:
    inner = re.findall(r"logging_config {\n(.*?)\n  }", _block("aws_lambda_function"), re.DOTALL)[0]
    given = dict(re.findall(r"^ +(\w+) += (.*)$", inner, re.MULTILINE))
    shape = _shape("lambda", "CreateFunction").members["LoggingConfig"]
    members = {xform_name(member): inner for member, inner in shape.members.items()}
    for argument, value in given.items():
        enum = getattr(members[argument], "enum", None)
        assert not (value.startswith('"') and enum) or value.strip('"') in enum
    template = TEMPLATE["Resources"]["Function"]["Properties"]["LoggingConfig"]
    for ours, theirs in (("log_format", "LogFormat"), ("system_log_level", "SystemLogLevel")):
        assert given[ours].strip('"') == template[theirs]
    group = _arguments(_block("aws_cloudwatch_log_group"))
    assert group["retention_in_days"] == "var.log_retention_days"


def test_its_memory_is_the_templates() -> None:
    default = re.findall(r'variable "memory_size" {.*?default += (\d+)', MAIN, re.DOTALL)[0]
    assert int(default) == TEMPLATE["Parameters"]["MemorySize"]["Default"]


def test_only_signed_requests_are_let_in() -> None:
    url = _arguments(_block("aws_lambda_function_url"))
    assert url["authorization_type"] == '"AWS_IAM"'
    assert url["qualifier"] == "aws_lambda_alias.live.name"
    assert "aws_lambda_permission" not in MAIN  # which would let others in
    caller = MAIN.partition('"aws_iam_policy_document" "caller"')[2].partition("\noutput")[0]
    assert set(re.findall(r'"(lambda:Invoke\w+)"\]', caller)) == {
        "lambda:InvokeFunctionUrl",
        "lambda:InvokeFunction",
    }


def test_every_name_is_declared() -> None:
    code = re.sub(r"#.*", "", MAIN)
    declared = {
        f"{kind}.{name}" for kind, name in re.findall(r'^resource "(\w+)" "(\w+)"', code, re.M)
    }
    declared |= {
        f"data.{kind}.{name}" for kind, name in re.findall(r'^data "(\w+)" "(\w+)"', code, re.M)
    }
    declared |= {f"var.{name}" for name in re.findall(r'^variable "(\w+)"', code, re.M)}
    used = set(re.findall(r"\b(data\.aws_\w+\.\w+|(?<!data\.)aws_\w+\.\w+|var\.\w+)", code))
    assert used == declared - {"aws_iam_role_policy.clip"}  # which nothing else needs
    assert code.count("{") == code.count("}")


def test_the_files_are_named_in_the_documents() -> None:
    text = documents.read("docs/deploy.md")
    for name in ("github-actions-deploy.yml", "terraform/main.tf"):
        assert f"(../examples/{name})" in text
