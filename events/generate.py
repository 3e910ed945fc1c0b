"""``python -m events.generate``: one event file for every way in, from ``photo.jpg``.

Shapes are those AWS sends (``sam local generate-event`` and the developer guides). The tests, ``sam
local invoke -e`` and the documents use the same files. ``photo.jpg`` is scikit-image's ``chelsea``
(CC0, by Stefan van der Walt), 451 x 300, which is not square so that mistakes in cropping show.
"""

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from PIL import Image

Event = dict[str, Any]

HERE = Path(__file__).parent
PHOTO = (HERE / "photo.jpg").read_bytes()
BOUNDARY = "------------------------d74496d66958873e"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
JSON = "application/json"
AGENT, CALLER = "curl/8.5.0", "203.0.113.7"
REQUEST_ID, TRACE = (
    "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
    "Root=1-65f0c1f2-3d683b8b04734faae651f476",
)
TIME, EPOCH = "12/Mar/2024:21:00:00 +0000", 1710277200000
OWNER, SEQUENCER = "A3NL1KOZZKExample", "0065F0C1F2A1B2C3D4"
ETAG = hashlib.md5(PHOTO).hexdigest()  # noqa: S324  # what S3's is, of an object put in one piece
RUN = "2024-03-12T21:00:00.000Z_a6c2b6a5-8f5d-4b0e-9d5a-1f7f5c9b1a77"
TEXTS = ("a photo of a cat", "an ugly dog & its owner", "ein Foto einer Katze 🐈")
BUCKET, KEY, VERSION = "photos", "2024/red shoe.jpg", "L4kqtJlcpXroDTDmpUMLUbHrqQ1B_HrQ"


def events() -> dict[str, Event]:
    """File name -> event."""
    photo = base64.b64encode(PHOTO).decode()
    as_json = json.dumps({"image": photo}).encode()
    as_data_uri = json.dumps({"image": f"data:image/jpeg;base64,{photo}"}).encode()
    text = json.dumps({"text": TEXTS[0]}).encode()
    texts = json.dumps({"texts": [*TEXTS, 7]}).encode()
    both = json.dumps({"input": [f"data:image/jpeg;base64,{photo}", TEXTS[0]]}).encode()
    return {
        "rest_multipart.json": rest("POST", "/encode_image", MULTIPART, multipart("image", PHOTO)),
        "rest_base64_json.json": rest("POST", "/encode_image", JSON, as_json),
        "rest_health.json": rest("GET", "/health"),
        "http_api_multipart.json": http_api("/encode_image", MULTIPART, multipart("image", PHOTO)),
        "http_api_raw.json": http_api("/encode_image", "image/jpeg", PHOTO),
        "function_url.json": function_url("/encode_image", JSON, as_data_uri),
        "rest_text.json": rest("POST", "/encode_text", JSON, text),
        "http_api_texts.json": http_api("/encode_texts", JSON, texts),
        "http_api_openai.json": http_api("/v1/embeddings", JSON, both),
        "function_url_rank.json": function_url("/rank", JSON, json.dumps(ranking()).encode()),
        "alb.json": alb("/encode_image", "image/jpeg", PHOTO),
        "direct_image.json": {"image": photo},
        "direct_images.json": {"images": batch()},
        "direct_text.json": {"text": TEXTS[0]},
        "direct_texts.json": {"texts": [*TEXTS, 7]},
        "direct_rank.json": {"rank": ranking()},
        "direct_health.json": {"action": "health"},
        "scheduled_warmup.json": scheduled(),
        "direct_s3.json": {"image": f"s3://{BUCKET}/{KEY}"},
        "direct_s3_images.json": {"images": [f"s3://{BUCKET}/{KEY}", in_s3(), photo]},
        "s3_batch_1.json": s3_batch("1.0"),
        "s3_batch_2.json": s3_batch("2.0", version=VERSION),
        "s3_notification.json": s3_notification(),
        "s3_eventbridge.json": s3_eventbridge(),
        "sqs_s3.json": sqs(s3_notification(), sns(s3_notification()), s3_eventbridge(), in_s3()),
        "sqs_s3_malformed.json": sqs(in_s3(), s3_test_event(), "not JSON"),
        "map_batch.json": map_batch(in_s3(), {"image": f"s3://{BUCKET}/{KEY}"}),
        "bad_not_an_image.json": {
            "image": base64.b64encode(b"This is a text, not an image.").decode()
        },
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
    """Five different images in four formats, the photograph third and one of the others a data:
    URI.
    """

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


def ranking() -> Event:
    """The photograph and a text, each compared with labels; one of the candidates is no item."""
    return {
        "queries": [{"image": base64.b64encode(PHOTO).decode()}, {"text": TEXTS[0]}],
        "candidates": [{"text": "cat"}, {"text": "dog"}, {"label": "shoe"}],
        "templates": ["a photo of a {}.", "a drawing of a {}."],
    }


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
            "elb": {
                "targetGroupArn": f"arn:aws:elasticloadbalancing:us-east-1:123456789012:{target}"
            }
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


def in_s3(key: str = KEY) -> Event:
    """An image where it lies in S3, here and below the photograph: our own form."""
    return {"s3": {"bucket": BUCKET, "key": key}}


def s3_batch(schema: str, *keys: str, version: str | None = None) -> Event:
    """S3 Batch Operations: 1.0 names the bucket's ARN, 2.0 its name."""
    first = schema == "1.0"
    where = {"s3BucketArn": f"arn:aws:s3:::{BUCKET}"} if first else {"s3Bucket": BUCKET}
    job = {"id": "f3cc4f60-61f6-4a2b-8a21-d07600c373ce"}
    return {
        "invocationSchemaVersion": schema,
        "invocationId": "YXNkbGZqYWRmaiBhc2RmdW9hZHNmZGpmaGFzbGtkaGZza2RmaAo",
        "job": job if first else {**job, "userArguments": {"purpose": "vectors"}},
        "tasks": [
            {
                "taskId": f"dGFza2lkZ29lc2hlcmUK{n}",
                "s3Key": encoded(key),
                "s3VersionId": version,
                **where,
            }
            for n, key in enumerate(keys or [KEY])
        ],
    }


def map_batch(*items: Any, run: str = RUN) -> Event:
    """A batch of the template's Distributed Map, which names the run that it belongs to."""
    return {"BatchInput": {"run": run}, "Items": list(items)}


def encoded(key: str) -> str:
    """As S3 writes keys into notifications, manifests and inventories."""
    return quote_plus(key, safe="/")


def s3_notification(*keys: str, what: str = "ObjectCreated:Put") -> Event:
    """S3's own notification, to a function, a queue or a topic."""
    return {"Records": [_s3_record(key, what) for key in keys or [KEY]]}


def _s3_record(key: str, what: str) -> Event:
    stored = {"key": encoded(key), "size": len(PHOTO), "eTag": ETAG, "sequencer": SEQUENCER}
    bucket = {
        "name": BUCKET,
        "ownerIdentity": {"principalId": OWNER},
        "arn": f"arn:aws:s3:::{BUCKET}",
    }
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "us-east-1",
        "eventTime": "2024-03-12T21:00:00.000Z",
        "eventName": what,
        "userIdentity": {"principalId": OWNER},
        "requestParameters": {"sourceIPAddress": CALLER},
        "responseElements": {
            "x-amz-request-id": "C3D13FE58DE4C810",
            "x-amz-id-2": "FMyUVURIY8/IgAtTv8xRjsk",
        },
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "clip",
            "bucket": bucket,
            "object": stored,
        },
    }


def s3_eventbridge(key: str = KEY, what: str = "Object Created") -> Event:
    """The same by way of EventBridge, whose keys are as they are."""
    return {
        "version": "0",
        "id": "17793124-05d4-b198-2fde-7ededc63b103",
        "detail-type": what,
        "source": "aws.s3",
        "account": "123456789012",
        "time": "2024-03-12T21:00:00Z",
        "region": "us-east-1",
        "resources": [f"arn:aws:s3:::{BUCKET}"],
        "detail": {
            "version": "0",
            "bucket": {"name": BUCKET},
            "object": {"key": key, "size": len(PHOTO), "etag": ETAG, "sequencer": SEQUENCER},
            "request-id": "N4N7GDK58NMKJ12R",
            "requester": "123456789012",
            "source-ip-address": CALLER,
            "reason": "PutObject",
        },
    }


def sns(message: Event) -> Event:
    """What an SNS topic puts into a queue without raw delivery."""
    return {
        "Type": "Notification",
        "MessageId": "63a3f6b6-d533-4a47-aef9-fcf5cf758c76",
        "TopicArn": "arn:aws:sns:us-east-1:123456789012:uploads",
        "Subject": "Amazon S3 Notification",
        "Message": json.dumps(message),
        "Timestamp": "2024-03-12T21:00:00.000Z",
        "SignatureVersion": "1",
        "Signature": "EXAMPLEpH+DcEwjAPg8O9mY8dReBSwksfg2S7WKQcikcNK",
        "SigningCertURL": "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-EXAMPLE.pem",
        "UnsubscribeURL": "https://sns.us-east-1.amazonaws.com/?Action=Unsubscribe",
    }


def s3_test_event() -> Event:
    """What S3 sends once, when notifications are set up."""
    return {
        "Service": "Amazon S3",
        "Event": "s3:TestEvent",
        "Time": "2024-03-12T21:00:00.000Z",
        "Bucket": BUCKET,
        "RequestId": "5582815E1AEA5ADF",
        "HostId": "8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR+YstdA6Knx4Ip8EXAMPLE",
    }


def sqs(*bodies: Event | str) -> Event:
    """A batch of an SQS queue; a message's id ends in its number."""
    records = [
        {
            "messageId": f"059f36b4-87a3-44ab-83d2-66197505{number:04}",
            "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a",
            "body": body if isinstance(body, str) else json.dumps(body),
            "attributes": {
                "ApproximateReceiveCount": "1",
                "SentTimestamp": str(EPOCH),
                "SenderId": "AIDAIENQZJOLO23YVJ4VO",
                "ApproximateFirstReceiveTimestamp": str(EPOCH),
            },
            "messageAttributes": {},
            "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:clip",
            "awsRegion": "us-east-1",
        }
        for number, body in enumerate(bodies, start=1)
    ]
    return {"Records": records}


def text(event: Event) -> str:
    """The event as its file holds it."""
    return json.dumps(event, indent=2) + "\n"


if __name__ == "__main__":
    for name, event in events().items():
        (HERE / name).write_text(text(event))
