"""The documents' ``aws`` and ``sam`` commands: as a shell hands them over, and held to AWS's own
models.

All its shell blocks are run by bash, one after the other, with recorders in the place of every
program that would reach out. So quoting, variables and functions are the shell's own, and what is
checked is what would have been executed.
"""

import contextlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import botocore.session
from botocore import xform_name
from botocore.model import ListShape, MapShape, OperationModel, Shape, StructureShape
from botocore.validate import ParamValidator

from tests import documents, templates
from tests.conftest import ROOT

RECORDED = ("aws", "sam", "curl", "docker", "make", "pip", "clip-encoder", "kubectl")

GLOBAL = {"--query": 1, "--output": 1, "--region": 1, "--profile": 1, "--cli-binary-format": 1}
"""The AWS CLI's own options for every command, and how many values they take."""
SERVICES = {"s3api": "s3"}
"""Services that the CLI calls by another name than botocore."""
S3 = {"cp": {"--recursive"}, "sync": set(), "presign": {"--expires-in"}, "rb": {"--force"}}
"""Sub-commands of `aws s3` and `aws configure`, which are the CLI's own, and the options used here.
"""
CONFIGURE: dict[str, set[str]] = {"list": set(), "sso": set()}
RENAMED = {("sns", "subscribe"): {"--notification-endpoint": "--endpoint"}}
"""Options that the CLI gives another name than the API (its customizations/argrename.py)."""
POSITIONAL = {("lambda", "invoke"): 1}
"""Commands that also take a file to write to."""

RECORDER = """\
import json, re, sys
name, arguments = {name!r}, sys.argv[1:]
# A file's name may be taken again: what is in it now is what the command is given.
arguments = [open(a[7:]).read() if a.startswith("file://") else a for a in arguments]
with open({log!r}, "a") as log:
    print(json.dumps([name, *arguments]), file=log)
text = " ".join(arguments)
if wanted := re.search("OutputKey=='([^']*)'", text):
    print(f"arn:aws:service:us-east-1:123456789012:{{wanted[1]}}")
elif "get-bucket-notification-configuration" in text:
    print(json.dumps({notifications!r}))
elif "Code.ImageUri" in text:
    print({image!r})
elif name == "aws":
    print('"etag"' if "--query ETag" in text else "answer")
"""
NOTIFICATIONS = {
    "TopicConfigurations": [{"TopicArn": "arn:theirs", "Events": ["s3:ObjectRestore:*"]}]
}
"""What the bucket had before."""


def run(directory: Path) -> list[list[str]]:
    """Every command of the documents' shell blocks that would reach out, run in `directory`."""
    log, programs = directory / "log", directory / "bin"
    programs.mkdir()
    for name in RECORDED:
        code = RECORDER.format(
            name=name, log=str(log), notifications=NOTIFICATIONS, image=templates.IMAGE
        )
        (programs / name).write_text(f"#!{sys.executable}\n{code}")
        (programs / name).chmod(0o755)
    (directory / "photo.jpg").write_bytes(b"a photograph of the reader's")
    blocks = [code for _, code in documents.blocks("sh")]
    script = "\n".join(["set -eu -o pipefail", *blocks])
    environment = {"PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "HOME": str(directory)}
    done = subprocess.run(
        ["bash"],
        input=script,
        text=True,
        capture_output=True,
        cwd=directory,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


def inline() -> list[list[str]]:
    """Those that stand in a sentence."""
    prose = documents.without_blocks(documents.text())
    found = re.findall(r"`((?:aws|sam) [^`]+)`", prose)
    return [command.split() for code in found for command in code.split("&&")]


def outputs_named(commands: Iterable[Sequence[str]]) -> set[str]:
    """The stack's outputs that the commands ask for, and those that a sentence names."""
    asked = {
        name
        for command in commands
        for name in re.findall("OutputKey=='([^']*)'", " ".join(command))
    }
    return asked | set(re.findall(r"\boutput\s`([A-Z]\w+)`", documents.text()))


# --- aws ------------------------------------------------------------------------------------------


def check_aws(command: Sequence[str], *, whole: bool = True) -> None:
    """Hold ``aws ...`` to botocore's model of the operation; `whole`: all that must be given is.

    Raises:
        AssertionError: no such service, operation, option or value; the text says which.
    """
    arguments = _without_global_options(command[1:])
    service, operation, *rest = arguments
    if service in ("s3", "configure"):
        _check_high_level({"s3": S3, "configure": CONFIGURE}[service], operation, rest)
        return
    model = _model(service, operation)
    allowed = POSITIONAL.get((service, operation), 0)
    given, positional = _options(rest)
    assert len(positional) <= allowed, f"{positional} belong to no option"
    shape = model.input_shape
    members = {f"--{xform_name(name, '-')}": name for name in (shape.members if shape else {})}
    parameters = {}
    for word, values in given.items():
        option = RENAMED.get((service, operation), {}).get(word, word)
        positive = option.replace("--no-", "--", 1)
        known = positive in members if _is_flag(shape, members.get(positive)) else option in members
        assert known, f"aws {service} {operation} has no {option}"
        name = members[positive] if positive in members else members[option]
        parameters[name] = _value(shape.members[name], values, option)
    if shape and whole:
        for name in shape.required_members:
            if shape.members[name].metadata.get("idempotencyToken"):
                parameters.setdefault(name, "made by the CLI")
        report = ParamValidator().validate(parameters, shape)
        assert not report.has_errors(), report.generate_report()
        _check_enums(shape, parameters)


def _is_flag(shape: Shape, member: str | None) -> bool:
    return member is not None and shape.members[member].type_name == "boolean"


def _without_global_options(arguments: Sequence[str]) -> list[str]:
    kept, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in GLOBAL:
            del rest[: GLOBAL[argument]]
        else:
            kept.append(argument)
    return kept


def _check_high_level(table: Mapping[str, set[str]], command: str, rest: Sequence[str]) -> None:
    assert command in table, f"no such sub-command: {command}"
    unknown = {word for word in rest if word.startswith("--")} - table[command]
    assert not unknown, f"{command} has no {unknown}"


def _model(service: str, operation: str) -> OperationModel:
    session = botocore.session.get_session()
    name = SERVICES.get(service, service)
    assert name in session.get_available_services(), f"aws has no service {service}"
    model = session.get_service_model(name)
    operations = {xform_name(known, "-"): known for known in model.operation_names}
    assert operation in operations, f"aws {service} has no {operation}"
    return model.operation_model(operations[operation])


def _options(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Options with their values, and what comes before the first or after a value that ends a
    command.
    """
    given: dict[str, list[str]] = {}
    positional: list[str] = []
    values = positional
    for argument in arguments:
        if argument.startswith("--"):
            option = argument
            values = given[option] = []
        else:
            values.append(argument)
    for option, words in given.items():
        if len(words) > 1 and option in ("--payload", "--qualifier", "--function-name"):
            positional += words[1:]
            del words[1:]
    return given, positional


def _value(shape: Shape, values: Sequence[str], option: str) -> Any:
    """What the CLI makes of an option's values: JSON, its shorthand, or a scalar."""
    if shape.type_name == "boolean":
        assert list(values) in ([], ["true"], ["false"]), f"{option} takes no value"
        return not option.startswith("--no-") and list(values) != ["false"]
    assert values, f"{option} wants a value"
    if isinstance(shape, ListShape):
        if values[0].startswith("["):
            return _json(values, option)
        return [_value(shape.member, [value], option) for value in values]
    assert len(values) == 1, f"{option} takes one value, not {values}"
    (value,) = values
    if isinstance(shape, StructureShape | MapShape):
        return _json(values, option) if value.startswith("{") else _shorthand(shape, value, option)
    return _scalar(shape, value, option)


def _json(values: Sequence[str], option: str) -> Any:
    try:
        return json.loads("".join(values))
    except ValueError as error:
        raise AssertionError(f"{option} is not JSON: {error}: {values}") from None


def _shorthand(shape: Shape, value: str, option: str) -> dict[str, Any]:
    """``Key=value,Key=value``."""
    pairs = [part.partition("=") for part in re.split(r",(?=\w+=)", value)]
    assert all(equals for _, equals, _ in pairs), f"{option} is neither JSON nor Key=value: {value}"
    members = shape.members if isinstance(shape, StructureShape) else {}
    return {
        name: _value(members[name], text.split(","), option) if name in members else text
        for name, _, text in pairs
    }


def _scalar(shape: Shape, value: str, option: str) -> Any:
    kinds: dict[str, Any] = {"integer": int, "long": int, "float": float, "double": float}
    if shape.type_name in kinds:
        with contextlib.suppress(ValueError):
            return kinds[shape.type_name](value)
        raise AssertionError(f"{option} wants a number, not {value!r}")
    if shape.type_name == "timestamp":
        assert re.fullmatch(r"\d+|\d{4}-\d\d-\d\dT.*", value), (
            f"{option} wants a time, not {value!r}"
        )
    return value


def _check_enums(shape: Shape, value: Any) -> None:
    """botocore's validator leaves a value that must be one of a few to the service."""
    if isinstance(shape, StructureShape):
        for name, inner in value.items():
            _check_enums(shape.members[name], inner)
    elif isinstance(shape, ListShape):
        for inner in value:
            _check_enums(shape.member, inner)
    elif isinstance(shape, MapShape):
        for inner in value.values():
            _check_enums(shape.value, inner)
    elif getattr(shape, "enum", None):
        assert value in shape.enum, f"{value!r} is none of {shape.enum}"


# --- sam ------------------------------------------------------------------------------------------


def sam_options(command: Sequence[str]) -> tuple[list[str], list[str]]:
    """``sam ...`` -> its sub-commands and its options."""
    words = list(command[1:])
    end = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    nested = 2 if words[0] == "local" else 1
    return words[: min(end, nested)], [word for word in words if word.startswith("-")]


def overrides(command: Sequence[str]) -> dict[str, str]:
    """The values of ``--parameter-overrides``."""
    given: dict[str, str] = {}
    if "--parameter-overrides" not in command:
        return given
    for word in command[command.index("--parameter-overrides") + 1 :]:
        if word.startswith("--"):
            break
        name, equals, value = word.partition("=")
        assert equals, f"{word} gives no parameter a value"
        given[name] = value
    return given


def check_overrides(command: Sequence[str]) -> None:
    """Hold the parameters of ``sam ...`` to the template that it deploys: they exist, and may have
    that value.
    """
    document = templates.read(template_of(command))
    for name, value in overrides(command).items():
        assert name in document["Parameters"], f"the template has no parameter {name}"
        assert templates.allows(document, name, value), f"{name} cannot be {value!r}"


def template_of(command: Sequence[str]) -> str:
    """Name the template that ``sam ...`` is about: what samconfig.toml has for its --config-env."""
    environment = "default"
    if "--config-env" in command:
        environment = command[command.index("--config-env") + 1]
    settings = tomllib.loads((ROOT / "samconfig.toml").read_text())[environment]["global"]
    return str(settings["parameters"].get("template_file", "template.yaml"))
