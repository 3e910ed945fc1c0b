"""The documents' aws and sam commands exist as written: services, options, JSON, parameters and
outputs.
"""

import json
import re
from pathlib import Path

import pytest

from tests import commands, documents, templates

PAGES = {"template.yaml": "docs/deploy.md", "batch.yaml": "docs/batch.md"}
"""By template: the page that lists its parameters."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The commands of every shell block, as bash gave them to the programs."""
    return commands.run(tmp_path_factory.mktemp("shell"))


def test_every_aws_command_is_one(run: list[list[str]]) -> None:
    found = [command for command in run if command[0] == "aws"]
    assert len(found) > 20
    for command in found:
        try:
            commands.check_aws(command)
        except AssertionError as error:
            raise AssertionError(f"{' '.join(command)}\n{error}") from None


def test_every_aws_command_in_a_sentence_is_one() -> None:
    for command in commands.inline():
        if command[0] == "aws":
            commands.check_aws(command, whole=any(word.startswith("--") for word in command))


def test_every_command_of_the_command_line_is_one(run: list[list[str]]) -> None:
    cli = pytest.importorskip("clip_encoder.cli")
    found = [command[1:] for command in run if command[0] == "clip-encoder"]
    assert {words[0] for words in found} >= {"encode", "similar", "check"}
    for words in found:
        cli.parser().parse_args(words)  # which ends the test where it does not understand


def test_what_is_put_back_holds_what_the_bucket_had(run: list[list[str]]) -> None:
    """S3 replaces the whole configuration: each put keeps the topic that was there."""
    puts = [command for command in run if "put-bucket-notification-configuration" in command]
    assert len(puts) == 2
    eventbridge, queue = (json.loads(command[-1]) for command in puts)
    assert eventbridge == commands.NOTIFICATIONS | {"EventBridgeConfiguration": {}}
    assert queue["TopicConfigurations"] == commands.NOTIFICATIONS["TopicConfigurations"]
    assert queue["QueueConfigurations"][0]["QueueArn"].endswith(":QueueArn")


def test_every_parameter_is_the_templates(run: list[list[str]]) -> None:
    found = [command for command in [*run, *commands.inline()] if commands.overrides(command)]
    assert len(found) > 6
    for command in found:
        commands.check_overrides(command)


def test_every_parameter_that_is_deployed_is_saved(run: list[list[str]]) -> None:
    """See tests/e2e/test_deploy.py for what happens otherwise."""
    for command in [*run, *commands.inline()]:
        if command[:2] == ["sam", "deploy"] and "--parameter-overrides" in command:
            assert "--save-params" in command, command


def test_every_output_is_the_templates(run: list[list[str]]) -> None:
    named = commands.outputs_named(run)
    assert {"ApiUrl", "QueueArn", "BatchRoleArn"} <= named
    assert named <= {output for name in PAGES for output in templates.read(name)["Outputs"]}


@pytest.mark.parametrize("template", PAGES)
def test_every_parameter_of_the_templates_is_in_the_table(template: str) -> None:
    page = documents.read(PAGES[template])
    table = page[page.index("| parameter | default |") :].partition("\n\n")[0]
    shown = {}
    for row in re.findall(r"^\| `.*", table, re.MULTILINE):
        _, name, default, *_ = (cell.strip().replace("`", "") for cell in row.split("|"))
        shown[name] = default
    assert shown == {
        name: str(settings.get("Default", ""))
        for name, settings in templates.read(template)["Parameters"].items()
    }


def test_no_command_needs_gnus_tools() -> None:
    """macOS has others: its date knows no -d, its base64 no -w, its sed another -i."""
    text = documents.text()
    for command in (r"\bdate -d", r"\bbase64 -w", r"\bsed -i", r"\breadlink -f", r"\bgrep -P"):
        assert not re.search(command, text), command


def test_the_sum_of_the_costs_is_their_sum() -> None:
    text = documents.read("docs/operations.md")
    table = text[text.index("## What it costs") : text.index("**sum**")]
    lines = [float(cell) for cell in re.findall(r"\| (\d+\.\d\d) \|$", table, re.MULTILINE)]
    assert len(lines) == 8
    assert f"| **{sum(lines):.2f}** |" in text


ALARM = "aws cloudwatch put-metric-alarm --alarm-name a"


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("aws sqz send-message", "no service sqz"),
        ("aws sqs send-massage", "no send-massage"),
        ("aws sqs send-message --queue-urn u --message-body b", "no --queue-urn"),
        ("aws sqs send-message --queue-url u", "MessageBody"),
        ("aws sqs send-message --queue-url u --delay-seconds soon", "wants a number"),
        ("aws s3api head-object --bucket b --key k extra", "takes one value"),
        ("aws s3api head-object stray --bucket b --key k", "belong to no option"),
        ("aws s3 mv a s3://b", "no such sub-command"),
        ("aws s3 cp a s3://b --recursively", "has no"),
        (f"{ALARM} --evaluation-periods 1 --comparison-operator M", "none of"),
        (f"{ALARM} --dimensions Name:a", "neither JSON nor"),
        ("aws s3control create-job --manifest {", "is not JSON"),
    ],
)
def test_a_wrong_aws_command_is_refused(command: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        commands.check_aws(command.split())


@pytest.mark.parametrize(
    ("notifications", "complaint"),
    [
        (
            '{"QueueConfiguration": []}',
            'Unknown parameter in NotificationConfiguration: "QueueConfiguration"',
        ),
        ('{"QueueConfigurations": [{"QueueArn": "q"}]}', "Events"),
        ('{"QueueConfigurations": [{"QueueArn": "q", "Events": ["s3:ObjectMade:*"]}]}', "none of"),
    ],
)
def test_wrong_json_is_refused(notifications: str, complaint: str) -> None:
    name = "put-bucket-notification-configuration"
    command = ["aws", "s3api", name, "--bucket", "b", "--notification-configuration", notifications]
    with pytest.raises(AssertionError, match=complaint):
        commands.check_aws(command)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("ImageBucket=photos", "no parameter ImageBucket"),  # which is the other template's
        ("AuthMode=KEY", "cannot be"),
        ("ImageBuckets=s3://photos", "cannot be"),
        ("ImageBuckets", "gives no parameter a value"),
    ],
)
def test_a_wrong_parameter_is_refused(override: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        commands.check_overrides(
            ["sam", "deploy", "--parameter-overrides", override, "--save-params"]
        )


def test_an_undefined_variable_of_a_shell_block_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong.md"
    wrong.write_text('```sh\naws sts get-caller-identity --profile "$nobody"\n```\n')
    monkeypatch.setattr(documents, "PAGES", {"wrong.md": wrong})
    with pytest.raises(AssertionError, match="nobody: unbound variable"):
        commands.run(tmp_path)
