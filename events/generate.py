"""``python -m events.generate``: one event file for every way in, from ``photo.jpg``.

Shapes are those AWS sends (``sam local generate-event`` and the developer guides). The tests, ``sam
local invoke -e`` and the README use the same files. ``photo.jpg`` is scikit-image's ``chelsea``
(CC0, by Stefan van der Walt), 451 x 300, which is not square so that mistakes in cropping show.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

Event = dict[str, Any]

HERE = Path(__file__).parent
PHOTO = (HERE / "photo.jpg").read_bytes()
BOUNDARY = "------------------------d74496d66958873e"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
JSON = "application/json"
AGENT, CALLER = "curl/8.5.0", "203.0.113.7"
REQUEST_ID, TRACE = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef", "Root=1-65f0c1f2-3d683b8b04734faae651f476"
TIME, EPOCH = "12/Mar/2024:21:00:00 +0000", 1710277200000


def events() -> dict[str, Event]:
    """File name -> event."""
    photo = base64.b64encode(PHOTO).decode()
    as_json = json.dumps({"image": photo}).encode()
    as_data_uri = json.dumps({"image": f"data:image/jpeg;base64,{photo}"}).encode()
    return {
        "rest_multipart.json": rest("POST", "/encode_image", MULTIPART, multipart("image", PHOTO)),
        "rest_base64_json.json": rest("POST", "/encode_image", JSON, as_json),
        "rest_health.json": rest("GET", "/health"),
        "http_api_multipart.json": http_api("/encode_image", MULTIPART, multipart("image", PHOTO)),
        "http_api_raw.json": http_api("/encode_image", "image/jpeg", PHOTO),
        "function_url.json": function_url("/encode_image", JSON, as_data_uri),
        "alb.json": alb("/encode_image", "image/jpeg", PHOTO),
        "direct_image.json": {"image": photo},
        "direct_images.json": {"images": batch()},
        "direct_health.json": {"action": "health"},
        "scheduled_warmup.json": scheduled(),
        "bad_not_an_image.json": {"image": base64.b64encode(b"This is a text, not an image.").decode()},
        "bad_base64.json": {"image": "this is not base64!"},
        "bad_unknown_keys.json": {"picture": "c2VjcmV0", "size": 512},
    }


def multipart(field: str, file: bytes) -> bytes:
    """What ``curl -F image=@photo.jpg`` sends."""
    head = (
        f"--{BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="{field}"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return head.encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()


def batch() -> list[str]:
    """Five different images in four formats, the photograph third and one of the others a data: URI."""

    def encoded(image: Image.Image, kind: str) -> str:
        file = io.BytesIO()
        image.save(file, kind)  # uncompressed formats: the same bytes from every version of Pillow
        return base64.b64encode(file.getvalue()).decode()

    ramp, disc = Image.linear_gradient("L").crop((0, 0, 40, 60)), Image.radial_gradient("L")
    return [
        encoded(ramp, "BMP"),
        f"data:image/tiff;base64,{encoded(disc.crop((100, 110, 160, 150)), 'TIFF')}",
        base64.b64encode(PHOTO).decode(),
        encoded(Image.merge("RGB", (ramp, ramp.rotate(180), ramp)), "BMP"),
        encoded(Image.new("RGB", (24, 16), "teal"), "BMP"),
    ]


def rest(method: str, path: str, content_type: str = "", body: bytes = b"") -> Event:
    """API Gateway REST API, payload 1.0, with an API key."""
    context = _rest_context(method, path)
    headers = {
        "Accept": "*/*",
        **({"Content-Type": content_type} if content_type else {}),
        "Host": context["domainName"],
        "User-Agent": AGENT,
        "X-Amzn-Trace-Id": TRACE,
        "x-api-key": context["identity"]["apiKey"],
        "X-Forwarded-For": CALLER,
        "X-Forwarded-Port": "443",
        "X-Forwarded-Proto": "https",
    }
    return {
        "resource": path,
        "path": path,
        "httpMethod": method,
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": context,
        **(_body(content_type, body) if body else {"body": None, "isBase64Encoded": False}),
    }


def _rest_context(method: str, path: str) -> Event:
    return {
        "resourceId": "r1s2t3",
        "resourcePath": path,
        "httpMethod": method,
        "extendedRequestId": "UhQdWFPdoAMF3kw=",
        "requestTime": TIME,
        "path": f"/prod{path}",
        "accountId": "123456789012",
        "protocol": "HTTP/1.1",
        "stage": "prod",
        "domainPrefix": "a1b2c3d4e5",
        "requestTimeEpoch": EPOCH,
        "requestId": REQUEST_ID,
        "identity": {
            "cognitoIdentityPoolId": None,
            "cognitoIdentityId": None,
            "apiKey": "example-api-key",
            "apiKeyId": "k1l2m3n4o5",
            "principalOrgId": None,
            "cognitoAuthenticationType": None,
            "cognitoAuthenticationProvider": None,
            "userArn": None,
            "userAgent": AGENT,
            "accountId": None,
            "caller": None,
            "sourceIp": CALLER,
            "accessKey": None,
            "user": None,
        },
        "domainName": "a1b2c3d4e5.execute-api.us-east-1.amazonaws.com",
        "deploymentId": "d1e2p3",
        "apiId": "a1b2c3d4e5",
    }


def http_api(path: str, content_type: str, body: bytes) -> Event:
    """API Gateway HTTP API, payload 2.0."""
    domain = "f6g7h8i9j0.execute-api.us-east-1.amazonaws.com"
    event = _version_2(f"POST {path}", path, domain, content_type, body)
    event["requestContext"] |= {"accountId": "123456789012", "apiId": "f6g7h8i9j0"}
    return {**event, "cookies": ["visit=1", "theme=dark"]}


def function_url(path: str, content_type: str, body: bytes) -> Event:
    """Lambda Function URL: payload 2.0 too, told apart by its domain and account."""
    prefix = "abcdefghij0123456789klmnopqrstuv"
    domain = f"{prefix}.lambda-url.us-east-1.on.aws"
    event = _version_2("$default", path, domain, content_type, body)
    event["requestContext"] |= {"accountId": "anonymous", "apiId": prefix}
    return event


def _version_2(route: str, path: str, domain: str, content_type: str, body: bytes) -> Event:
    return {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "rawQueryString": "",
        "headers": {
            "accept": "*/*",
            "content-length": str(len(body)),
            "content-type": content_type,
            "host": domain,
            "user-agent": AGENT,
            "x-amzn-trace-id": TRACE,
            "x-forwarded-for": CALLER,
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
        },
        "requestContext": {
            "domainName": domain,
            "domainPrefix": domain.partition(".")[0],
            "http": {
                "method": "POST",
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": CALLER,
                "userAgent": AGENT,
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": route,
            "stage": "$default",
            "time": TIME,
            "timeEpoch": EPOCH,
        },
        **_body(content_type, body),
    }


def alb(path: str, content_type: str, body: bytes) -> Event:
    """Application Load Balancer with a Lambda target group."""
    target = "targetgroup/clip/49e9d65c45c6791a"
    return {
        "requestContext": {
            "elb": {"targetGroupArn": f"arn:aws:elasticloadbalancing:us-east-1:123456789012:{target}"}
        },
        "httpMethod": "POST",
        "path": path,
        "queryStringParameters": {},
        "headers": {
            "accept": "*/*",
            "content-length": str(len(body)),
            "content-type": content_type,
            "host": "clip-alb-123578498.us-east-1.elb.amazonaws.com",
            "user-agent": AGENT,
            "x-amzn-trace-id": TRACE,
            "x-forwarded-for": CALLER,
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
        },
        **_body(content_type, body),
    }


def _body(content_type: str, body: bytes) -> Event:
    """Text passes as it is; everything else is base64, and says so."""
    if content_type == JSON:
        return {"body": body.decode(), "isBase64Encoded": False}
    return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}


def scheduled() -> Event:
    """EventBridge rule on a schedule."""
    return {
        "version": "0",
        "id": "cdc73f9d-aea9-11e3-9d5a-835b769c0d9c",
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "123456789012",
        "time": "2024-03-12T21:00:00Z",
        "region": "us-east-1",
        "resources": ["arn:aws:events:us-east-1:123456789012:rule/clip-warm-up"],
        "detail": {},
    }


def text(event: Event) -> str:
    """The event as its file holds it."""
    return json.dumps(event, indent=2) + "\n"


if __name__ == "__main__":
    for name, event in events().items():
        (HERE / name).write_text(text(event))
