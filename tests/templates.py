"""The templates as a deployment resolves them: conditions, references, substitutions, mappings."""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from cfnlint.decode import cfn_yaml

from tests.conftest import ROOT

PSEUDO = {"AWS::Partition": "aws", "AWS::Region": "here", "AWS::AccountId": "123456789012"}
PSEUDO |= {"AWS::StackName": "clip", "AWS::URLSuffix": "amazonaws.com"}
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/clip:tag"
NEEDED = {"template.yaml": {}, "batch.yaml": {"ImageUri": IMAGE, "ImageBucket": "photos"}}
"""By template: values for the parameters that have no default."""
INDEX = {"VectorIndex": "clip-1"}
SHARED = ["LogRetentionDays", "Tracing", "AlarmTopicArn"]
"""Parameters that both templates have."""
QUEUES = {"Queue", "DeadLetterQueue", "FailureQueue"}
NO_VALUE = object()


@cache
def read(name: str) -> Any:
    """Read a template of the repository, with CloudFormation's short forms spelt out."""
    return cfn_yaml.load(str(ROOT / name))


def batches(**parameters: str) -> "Stack":
    """Resolve batch.yaml, with values for what has no default."""
    return Stack("batch.yaml", **parameters)


class Stack:
    """A template as a deployment with `parameters` resolves it.

    Resource ``Queue`` gets the name ``queue``, its attribute ``Arn`` the value ``queue.Arn``.
    """

    def __init__(self, template: str = "template.yaml", **parameters: str) -> None:
        self.template = read(template)
        defaults = {
            name: str(settings["Default"])
            for name, settings in self.template["Parameters"].items()
            if "Default" in settings
        }
        self.values: dict[str, Any] = PSEUDO | defaults | NEEDED[template] | parameters
        made = {name: r for name, r in self.template["Resources"].items() if self._wanted(r)}
        self.values |= {name: name.lower() for name in made}
        self.resources = {name: self.resolve(resource) for name, resource in made.items()}
        outputs = {name: o for name, o in self.template["Outputs"].items() if self._wanted(o)}
        self.outputs = {name: self.resolve(output["Value"]) for name, output in outputs.items()}

    def properties(self, name: str) -> Any:
        """Return the properties of a resource.

        Raises:
            KeyError: these parameters make no such resource.
        """
        return self.resources[name]["Properties"]

    def definition(self) -> Any:
        """Return the state machine's definition, with its substitutions made."""
        machine = self.properties("StateMachine")
        text = (ROOT / machine["DefinitionUri"]).read_text()
        return json.loads(substitute(text, machine["DefinitionSubstitutions"]))

    def resolve(self, node: Any) -> Any:
        """Return `node` with CloudFormation's functions applied."""
        match node:
            case {"Ref": "AWS::NoValue"}:
                return NO_VALUE
            case {"Ref": name}:
                return self._value(name)
            case {"Fn::GetAtt": [name, attribute]}:
                return self._value(f"{name}.{attribute}")
            case {"Fn::If": [name, yes, no]}:
                return self.resolve(yes if self.holds({"Condition": name}) else no)
            case {"Fn::FindInMap": [mapping, first, second]}:
                return self.template["Mappings"][mapping][self.resolve(first)][second]
            case {"Fn::Sub": [str(text), dict(values)]}:
                return self._substitute(text, values)
            case {"Fn::Sub": str(text)}:
                return self._substitute(text, {})
        return self._resolve_list(node)

    def _resolve_list(self, node: Any) -> Any:
        match node:
            case {"Fn::Join": [separator, items]}:
                return separator.join(self.resolve(items))
            case {"Fn::Split": [separator, text]}:
                return self.resolve(text).split(separator)
            case {"Fn::Select": [index, items]}:
                return self.resolve(items)[index]
        return self._resolve_all(node)

    def _resolve_all(self, node: Any) -> Any:
        match node:
            case dict():
                assert not any(key.startswith("Fn::") for key in node), node
                values = {key: self.resolve(value) for key, value in node.items()}
                return {key: value for key, value in values.items() if value is not NO_VALUE}
            case list():
                return [item for item in map(self.resolve, node) if item is not NO_VALUE]
        return node

    def _value(self, name: str) -> Any:
        resource, dot, attribute = name.partition(".")  # KeyError: refers to what is not made
        if attribute == "VectorBucketArn":  # whose end the template uses as the bucket's name
            return f"arn:aws:s3vectors:here:123456789012:bucket/{self.values[resource]}"
        return f"{self.values[resource]}.{attribute}" if dot else self.values[resource]

    def _substitute(self, text: str, values: dict[str, Any]) -> str:
        names = {name: self.resolve(value) for name, value in values.items()}
        return re.sub(
            r"\$\{([^}]+)\}",
            lambda found: names[found[1]] if found[1] in names else self._value(found[1]),
            text,
        )

    def _wanted(self, entry: Any) -> bool:
        return "Condition" not in entry or self.holds({"Condition": entry["Condition"]})

    def holds(self, condition: Any) -> bool:
        """Return True if `condition` holds for these parameters."""
        return holds(condition, self.template["Conditions"], self.resolve)


def substitute(text: str, values: Mapping[str, Any]) -> str:
    """Put `values` in the places of their names, as DefinitionSubstitutions does."""
    return re.sub(r"\$\{(\w+)\}", lambda found: str(values[found[1]]), text)


def holds(condition: Any, conditions: Mapping[str, Any], resolve: Callable[[Any], Any]) -> bool:
    """Return True if `condition` holds: one of the template's `conditions`, or one written out.

    `resolve` gives the value of what a condition compares, such as ``{"Ref": "AuthMode"}``.
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


def refused(template: str, **parameters: str) -> set[str]:
    """Name the parameters, and the rules, that keep a deployment with `parameters` from starting.

    CloudFormation checks both before it makes anything.
    """
    document = read(template)
    bad = {name for name, value in parameters.items() if not allows(document, name, value)}
    if bad:
        return bad
    stack = Stack(template, **parameters)
    for name, rule in document.get("Rules", {}).items():
        asserted = (stack.holds(assertion["Assert"]) for assertion in rule["Assertions"])
        if stack.holds(rule["RuleCondition"]) and not all(asserted):
            bad.add(name)
    return bad


def allows(document: Any, parameter: str, value: str) -> bool:
    """Return True if CloudFormation takes `value` for `parameter`."""
    settings = document["Parameters"][parameter]
    if len(value) > settings.get("MaxLength", len(value)):
        return False
    if "AllowedValues" in settings and value not in map(str, settings["AllowedValues"]):
        return False
    if settings["Type"] == "Number":
        least, most = settings.get("MinValue", 0), settings.get("MaxValue", 1e9)
        return bool(least <= float(value) <= most)
    return bool(re.fullmatch(settings.get("AllowedPattern", ".*"), value))


def allowed_actions(stack: Stack, role: str) -> dict[str, set[str]]:
    """Return what a role's own policies allow: resource -> actions."""
    allowed: dict[str, set[str]] = {}
    for policy in stack.properties(role)["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            assert set(statement) == {"Effect", "Action", "Resource"}
            assert statement["Effect"] == "Allow"
            for resource in listed(statement["Resource"]):
                allowed.setdefault(resource, set()).update(listed(statement["Action"]))
    return allowed


def listed(value: str | list[str]) -> list[str]:
    """Return `value` as a list, which IAM lets be left out around a single text."""
    return [value] if isinstance(value, str) else value


def senders(stack: Stack, policy: str) -> dict[str, Any]:
    """Return who may send, by service, and under which condition; checked on the way: nobody may
    do anything else.
    """
    properties = stack.properties(policy)
    (queue,) = properties["Queues"]
    senders = {}
    for statement in properties["PolicyDocument"]["Statement"]:
        assert statement["Resource"] == f"{queue}.Arn"
        if statement["Effect"] == "Allow":
            assert statement["Action"] == "sqs:SendMessage"
            senders[statement["Principal"]["Service"]] = statement["Condition"]
    return senders
