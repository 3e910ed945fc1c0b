"""CloudFormation on this machine, for ``sam deploy``: moto's, and before it what moto's lacks.

``python -m tests.e2e.cloudformation PORT`` serves it. A change set's template is fetched from S3,
goes through the SAM transform, loses what its parameters' conditions switch off, and what moto
cannot make; then moto adds, changes and deletes the resources of the stack that differ.
"""

import io
import json
import sys
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import boto3
from cfnlint.decode import cfn_yaml

from tests import stack, templates


class SamTransform:
    """A WSGI application around moto's, which knows no SAM.

    A stack's parameters are found in its template, as ``Metadata.Values``.
    """

    def __init__(self, moto: Any, port: int) -> None:
        self.moto = moto
        self.s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        self.values: dict[str, dict[str, str]] = {}
        """The parameters of each stack, which moto would forget where they are empty."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if body.startswith(b"Action=CreateChangeSet&"):
            try:
                body = self._transformed(dict(parse_qsl(body.decode(), keep_blank_values=True)))
            except ValueError as refusal:
                return _refuse(start_response, str(refusal))
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        return self.moto(environ, start_response)  # type: ignore[no-any-return]

    def _transformed(self, request: dict[str, str]) -> bytes:
        """Return the request for a change set, with a template and parameters that moto
        understands.

        Raises:
            ValueError: CloudFormation would refuse the parameters; moto takes any.
        """
        bucket, _, key = urlsplit(request.pop("TemplateURL")).path.lstrip("/").partition("/")
        text = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode()
        template = json.loads(json.dumps(cfn_yaml.loads(text)))
        values = {
            name: str(p["Default"]) for name, p in template["Parameters"].items() if "Default" in p
        }
        values |= self.values.get(request["StackName"], {}) | _given(request)
        if missing := template["Parameters"].keys() - values:
            raise ValueError(f"Parameters: {sorted(missing)} must have values")
        if refused := templates.refused(_name(template), **values):
            raise ValueError(f"Parameters failed to satisfy constraint: {sorted(refused)}")
        self.values[request["StackName"]] = values
        template = resolve(template, values) | {"Metadata": {"Values": values}}
        request["TemplateBody"] = json.dumps(template)
        request = {
            name: value for name, value in request.items() if not name.startswith("Parameters.")
        }
        for number, (name, value) in enumerate(values.items(), 1):
            request[f"Parameters.member.{number}.ParameterKey"] = name
            request[f"Parameters.member.{number}.ParameterValue"] = value
        return urlencode(request).encode()


def _refuse(start_response: Any, why: str) -> list[bytes]:
    error = (
        f"<Error><Type>Sender</Type><Code>ValidationError</Code><Message>{why}</Message></Error>"
    )
    body = f"<ErrorResponse>{error}</ErrorResponse>".encode()
    start_response("400 Bad Request", [("Content-Type", "text/xml")])
    return [body]


def _name(template: Any) -> str:
    """Tell which of the two templates it is."""
    return "batch.yaml" if "ImageUri" in template["Parameters"] else "template.yaml"


def _given(request: dict[str, str]) -> dict[str, str]:
    values = {}
    for field, name in request.items():
        if field.startswith("Parameters.") and field.endswith(".ParameterKey"):
            value = request.get(field.replace("ParameterKey", "ParameterValue"))
            if value is not None:  # else UsePreviousValue
                values[name] = value
    return values


def resolve(template: Any, values: dict[str, str]) -> Any:
    """A SAM template -> plain CloudFormation with just the resources that a stack with `values`
    has.
    """
    from samtranslator.translator.transform import transform

    policies = SimpleNamespace(load=dict)  # AWS's managed policies: the template names none
    template = transform(template, values, policies)
    deployed = templates.Stack(_name(template), **values)
    holds = {name: deployed.holds({"Condition": name}) for name in template["Conditions"]}
    for kind in ("Resources", "Outputs"):
        entries = template[kind].items()
        made = {name: entry for name, entry in entries if holds.get(entry.get("Condition"), True)}
        template[kind] = _chosen(made, holds)
    return stack.what_moto_makes(json.loads(json.dumps(template, default=str)))


def _chosen(node: Any, holds: dict[str, bool]) -> Any:
    """`node` with each ``Fn::If`` decided, and without what then has no value, at which moto
    stumbles.
    """
    no_value = {"Ref": "AWS::NoValue"}
    match node:
        case {"Fn::If": [condition, yes, no]}:
            return _chosen(yes if holds[condition] else no, holds)
        case dict():
            decided = {key: _chosen(value, holds) for key, value in node.items()}
            return {key: value for key, value in decided.items() if value != no_value}
        case list():
            items = [_chosen(item, holds) for item in node]
            return [item for item in items if item != no_value]
    return node


def serve(port: int) -> None:
    """Serve until killed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    make_server("127.0.0.1", port, SamTransform(moto, port), threaded=True).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
