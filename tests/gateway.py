"""API Gateway's REST API in front of the function under the emulator, and what it answers itself.

Like the real one it wants a key or a signature, serves under a stage, carries as base64 only what
the template calls binary, and answers errors of its own in a shape of its own.
"""

import base64
import fnmatch
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
from cfnlint.decode import cfn_yaml

from tests.answers import INVOKE
from tests.conftest import ROOT
from tests.peers import Peer, Reply, Request, peer

STAGE = "/prod"
MOST_BYTES = 10 * 2**20
"""Bytes of a request's body that API Gateway takes."""
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "a-session-token",
    "AWS_DEFAULT_REGION": "eu-north-1",
    "AWS_REGION": "eu-north-1",
}
"""The environment of a caller that the gateway lets in where it wants a signature."""


def _own(status: int, error: str, body: Any) -> Reply:
    """An answer of AWS's own, without the function."""
    headers = {
        "content-type": "application/json",
        "x-amzn-requestid": "7fda7b55-1713-4347-bd94-69133d82c5c0",
        "x-amzn-errortype": error,
    }
    return Reply(status, body, headers)


UNSIGNED = (
    "User: anonymous is not authorized to perform: execute-api:Invoke on resource: "
    "arn:aws:execute-api:eu-north-1:123456789012:a1b2c3d4e5/prod/POST/encode_image"
)
WRONGLY_SIGNED = """\
The request signature we calculated does not match the signature you provided. Check your AWS \
Secret Access Key and signing method. Consult the service documentation for details.

The Canonical String for this request should have been
'POST
/prod/encode_image

host:a1b2c3d4e5.execute-api.eu-north-1.amazonaws.com
x-amz-security-token:a-session-token
'
"""
FUNCTION_URL = "https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html"

OWN = {
    # API Gateway, the gateway responses of REST APIs:
    # https://docs.aws.amazon.com/apigateway/latest/developerguide/supported-gateway-response-types.html
    "no key": _own(403, "ForbiddenException", {"message": "Forbidden"}),
    "no such path": _own(
        403, "MissingAuthenticationTokenException", {"message": "Missing Authentication Token"}
    ),
    "not permitted": _own(403, "AccessDeniedException", {"Message": UNSIGNED}),
    "wrongly signed": _own(403, "InvalidSignatureException", {"message": WRONGLY_SIGNED}),
    "unauthorized": _own(401, "UnauthorizedException", {"message": "Unauthorized"}),
    "too large": _own(413, "RequestTooLargeException", {"message": "Request Too Long"}),
    "too many": _own(429, "TooManyRequestsException", {"message": "Too Many Requests"}),
    "quota": _own(429, "LimitExceededException", {"message": "Limit Exceeded"}),
    "not configured": _own(500, "AuthorizerConfigurationException", {"message": None}),
    "throttled function": _own(
        500, "InternalServerErrorException", {"message": "Internal server error"}
    ),
    "crashed function": _own(
        502, "InternalServerErrorException", {"message": "Internal server error"}
    ),
    "timed out": _own(
        504, "InternalServerErrorException", {"message": "Endpoint request timed out"}
    ),
    # HTTP APIs, which name no type.
    "HTTP API, crashed": Reply(500, {"message": "Internal Server Error"}),
    "HTTP API, timed out": Reply(503, {"message": "Service Unavailable"}),
    # Function URLs.
    "URL, not permitted": _own(
        403,
        "AccessDeniedException",
        {
            "Message": "Forbidden. For troubleshooting Function URL authorization issues, see: "
            + FUNCTION_URL
        },
    ),
    "URL, too many": _own(429, "TooManyRequestsException", {"Message": "Rate Exceeded."}),
    "URL, crashed": Reply(502, b"Internal Server Error", {"content-type": "text/plain"}),
}
"""What a gateway answers by itself: name -> answer."""


@functools.cache
def _binary_types() -> tuple[str, ...]:
    api = cfn_yaml.load(str(ROOT / "template.yaml"))["Resources"]["Api"]["Properties"]
    return tuple(name.replace("~1", "/") for name in api["BinaryMediaTypes"])


def _is_binary(media_type: str) -> bool:
    return any(fnmatch.fnmatch(media_type.strip(), pattern) for pattern in _binary_types())


@contextmanager
def gateway(function: httpx.Client, *, key: str = "", signed: bool = False) -> Iterator[Peer]:
    """A deployed API, whose address ends in the stage; `function` is the emulator.

    `key` is what callers must send as ``x-api-key``; `signed`: their requests must have the
    signature of `CREDENTIALS`. ``/health`` is open, as in the template.
    """
    one_at_a_time = threading.Lock()  # the emulator ends at a second call

    def answer(request: Request) -> Reply:
        refused = _refusal(request, key, signed)
        if refused is not None:
            return refused
        with one_at_a_time:
            answered = function.post(INVOKE, json=event(request)).json()
        return _reply(answered, request)

    with peer(answer) as served:
        yield Peer(served.address + STAGE, served.requests)


def _refusal(request: Request, key: str, signed: bool) -> Reply | None:
    """What the gateway answers itself; None where it asks the function."""
    if not request.path.startswith(f"{STAGE}/"):
        return OWN["no key"]
    if len(request.body) > MOST_BYTES:
        return OWN["too large"]
    if request.path == f"{STAGE}/health":
        return None
    if key and request.headers.get("x-api-key") != key:
        return OWN["no key"]
    if signed and "authorization" not in request.headers:
        return OWN["not permitted"]
    if signed and not is_signed(request):
        return OWN["wrongly signed"]
    return None


def is_signed(request: Request, token: str = CREDENTIALS["AWS_SESSION_TOKEN"]) -> bool:
    """Compute the signature again, of what arrived, by the headers that it says it covers."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    claimed = request.headers["authorization"]
    covered = claimed.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"host", "x-amz-date"} <= set(covered)
    url = f"http://{request.headers['host']}{request.path}"
    headers = {name: request.headers[name] for name in covered}
    as_sent = AWSRequest(request.method, url, headers, request.body)
    as_sent.context["timestamp"] = request.headers["x-amz-date"]
    known = Credentials(
        CREDENTIALS["AWS_ACCESS_KEY_ID"],
        CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        token or None,
    )
    auth = SigV4Auth(known, "execute-api", CREDENTIALS["AWS_REGION"])
    text = auth.string_to_sign(as_sent, auth.canonical_request(as_sent))
    expected = (
        f"AWS4-HMAC-SHA256 Credential={auth.scope(as_sent)}, SignedHeaders={';'.join(covered)}, "
        f"Signature={auth.signature(text, as_sent)}"
    )
    sent = request.headers.get("x-amz-security-token", "")
    return (
        claimed == expected and sent == token and (not token or "x-amz-security-token" in covered)
    )


def event(request: Request) -> dict[str, Any]:
    """A request as a REST API hands it over: payload 1.0."""
    url = urlsplit(request.path)
    path = url.path.removeprefix(STAGE)
    is_binary = _is_binary(request.headers.get("content-type", "").partition(";")[0])
    body = base64.b64encode(request.body) if is_binary else request.body
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": request.method,
        "headers": request.headers,
        "multiValueHeaders": {name: [value] for name, value in request.headers.items()},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": {"proxy": path.lstrip("/")},
        "stageVariables": None,
        "requestContext": {
            "resourcePath": "/{proxy+}",
            "httpMethod": request.method,
            "path": url.path,
            "stage": STAGE.lstrip("/"),
            "domainName": request.headers["host"],
            "apiId": "a1b2c3d4e5",
            "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
            "identity": {"sourceIp": "203.0.113.7"},
        },
        # What the template does not call binary is text to a REST API, whatever it holds.
        "body": body.decode("utf-8", "replace") if request.body else None,
        "isBase64Encoded": is_binary,
    }


def _reply(answered: Any, request: Request) -> Reply:
    """A function's answer as the gateway sends it on."""
    if not isinstance(answered, dict) or "statusCode" not in answered:
        return OWN["crashed function"]
    body = answered["body"].encode()
    # It decodes a body only where the first type that is asked for is binary.
    first = request.headers.get("accept", "").partition(",")[0]
    if answered["isBase64Encoded"] and _is_binary(first):
        body = base64.b64decode(body)
    headers = {
        name: value for name, value in answered["headers"].items() if name != "content-length"
    }
    return Reply(answered["statusCode"], body, headers)
