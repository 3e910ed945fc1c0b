"""One JSON line per request, the request id echoed, metrics on Lambda."""

import base64
import io
import json
import logging
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import httpx
import pytest

from events.generate import PHOTO
from handler import telemetry
from handler.errors import ClipError
from tests.test_every_way_in import event, main

__all__ = ["main"]  # the fixture


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The log lines written so far, decoded: the service's and those of libraries."""
    root = logging.root.handlers[:], logging.root.level
    telemetry.configure("INFO")
    written = io.StringIO()
    for handler in (telemetry.log.handlers[0], logging.root.handlers[0]):
        handler.setStream(written)  # type: ignore[attr-defined]
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logging.root.handlers[:], level = root
    logging.root.setLevel(level)
    telemetry.log.handlers.clear()
    telemetry.log.propagate = True


class Context:
    aws_request_id = "invocation-1"


def test_an_http_event(main: types.ModuleType, lines: Any) -> None:
    response = main.handler(event("rest_multipart"), Context())
    (line,) = lines()
    gateway = event("rest_multipart")["requestContext"]["requestId"]
    assert response["headers"]["x-request-id"] == gateway
    assert line.pop("latency_ms") > line.pop("engine_ms") > 0 < line.pop("decode_ms")
    assert line.pop("cold") in (True, False)
    assert line == {
        "level": "INFO",
        "message": "request",
        "event": "rest_api",
        "request_id": gateway,
        "lambda_request_id": "invocation-1",
        "method": "POST",
        "path": "/encode_image",
        "status": 200,
        "images": 1,
        "failed": 0,
        "format": "JPEG",
        "size": [451, 300],
        "bytes": len(PHOTO),
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("http_api_raw", "http_api"),
        ("function_url", "function_url"),
        ("alb", "alb"),
        ("direct_images", "direct"),
        ("scheduled_warmup", "scheduled"),
    ],
)
def test_the_kind_of_event_is_named(
    main: types.ModuleType, lines: Any, name: str, kind: str
) -> None:
    main.handler(event(name), Context())
    (line,) = lines()
    assert (line["event"], line["status"]) == (kind, 200)


def test_a_bad_event_is_logged_with_its_code_and_none_of_its_data(
    main: types.ModuleType, lines: Any
) -> None:
    with pytest.raises(ClipError):
        main.handler({"image": "c2VjcmV0"}, Context())
    (line,) = lines()
    assert (line["status"], line["code"], line["request_id"]) == (
        422,
        "not_an_image",
        "invocation-1",
    )
    assert "c2VjcmV0" not in json.dumps(line)


def test_metrics_on_lambda_only(
    main: types.ModuleType, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    main.handler(event("direct_health"), Context())
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "clip")
    main.handler(event("direct_health"), Context())
    with pytest.raises(ClipError):
        main.handler({}, Context())
    elsewhere, good, bad = lines()
    assert "_aws" not in elsewhere
    (directive,) = good["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "ClipImageEncoder"
    assert directive["Dimensions"] == [["function"]]
    # Every name a directive gives must be a field of the line, or CloudWatch drops it.
    for directive in bad["_aws"]["CloudWatchMetrics"]:
        for metric in directive["Metrics"]:
            assert isinstance(bad[metric["Name"]], int | float)
        for name in directive["Dimensions"][0]:
            assert isinstance(bad[name], str)
    assert bad["_aws"]["CloudWatchMetrics"][1]["Dimensions"] == [["function", "code"]]
    assert (bad["code"], bad["errors"], bad["requests"]) == ("invalid_event", 1, 1)
    assert "errors" not in good
    assert [len(line["_aws"]["CloudWatchMetrics"]) for line in (good, bad)] == [1, 2]


def test_every_metric_has_its_unit(
    main: types.ModuleType, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "clip")
    main.handler(
        event("direct_images") | {"images": ["!", *event("direct_images")["images"]]}, None
    )
    with pytest.raises(ClipError):
        main.handler({}, Context())
    batch, bad = lines()
    units = {
        metric["Name"]: metric["Unit"]
        for line in (batch, bad)
        for directive in line["_aws"]["CloudWatchMetrics"]
        for metric in directive["Metrics"]
    }
    counts = ("requests", "cold_starts", "images", "failed", "errors")
    assert units == {"latency_ms": "Milliseconds", **dict.fromkeys(counts, "Count")}
    assert (batch["images"], batch["failed"]) == (6, 1)
    assert "images" not in bad


def test_what_libraries_say_is_json_too() -> None:
    code = """
import logging, warnings
logging.basicConfig(level="INFO")  # as Lambda does
from handler import telemetry
telemetry.configure("INFO")
logging.getLogger("botocore.hooks").warning("two\\nlines")
logging.getLogger("botocore.hooks").info("credentials")
warnings.warn("odd", UserWarning)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    said, warned = (json.loads(line) for line in run.stdout.splitlines())
    expected = {"level": "WARNING", "message": "two\nlines", "library": "botocore.hooks"}
    assert said == expected
    assert (warned["level"], warned["library"]) == ("WARNING", "py.warnings")
    assert "UserWarning: odd" in warned["message"]


def test_a_library_says_little_of_one_request(lines: Any) -> None:
    """In whichever thread; and the next request's first words are heard again."""
    for name in "ab":
        with telemetry.request("direct", name), ThreadPoolExecutor(1) as thread:
            for _ in range(20):
                thread.submit(copy_context().run, logging.getLogger("PIL").warning, "odd").result()
    found = [line.get("library", line.get("library_lines")) for line in lines()]
    assert found == [*["PIL"] * 3, 20, *["PIL"] * 3, 20]


HOSTILE = [
    b"\r\n" * 5000,
    b"--b" * 5000,
    b"--b\r\n" + b"\xff\r\n" * 5000,
    b"--b\r\n" + b": \r\n" * 5000 + b"\r\n",
    b"--b\r\n\r\n" + b"\r\n--b-" * 5000,
    b"--b\r\n\r\n\r\n--b--\r\n" + b"after the end" * 5000,
    b'--b\r\nContent-Disposition: form-data; name="\xff\r' + b"\0" * 5000,
]


@pytest.mark.parametrize("body", HOSTILE)
def test_a_hostile_form_writes_one_line(main: types.ModuleType, lines: Any, body: bytes) -> None:
    request = event("rest_multipart")
    request["headers"]["Content-Type"] = "multipart/form-data; boundary=b"
    request["multiValueHeaders"] = None
    request["body"] = base64.b64encode(body).decode()
    assert main.handler(request, Context())["statusCode"] == 400
    (line,) = lines()
    assert line["code"] in ("invalid_multipart", "missing_field")
    assert len(json.dumps(line)) < 1000


def test_a_long_path_is_cut(main: types.ModuleType, lines: Any) -> None:
    request = event("http_api_raw")
    request["requestContext"]["http"]["path"] = "/" + "x" * 50_000
    assert main.handler(request, Context())["statusCode"] == 404
    (line,) = lines()
    assert len(line["path"]) == 256


def test_only_the_first_request_is_cold(monkeypatch: pytest.MonkeyPatch, lines: Any) -> None:
    monkeypatch.setattr(telemetry, "_cold", True)
    for _ in range(2):
        with telemetry.request("direct", "1"):
            pass
    assert [line["cold"] for line in lines()] == [True, False]


def test_a_jump_of_the_clock_changes_no_latency(
    monkeypatch: pytest.MonkeyPatch, lines: Any
) -> None:
    with telemetry.request("direct", "1"):
        monkeypatch.setattr("time.time", lambda: 0.0)
    assert 0 <= lines()[0]["latency_ms"] < 1000


def test_a_fault_is_a_500_in_the_log(lines: Any) -> None:
    with pytest.raises(ZeroDivisionError), telemetry.request("direct", "1"):
        raise ZeroDivisionError
    assert [(line["status"], line["code"]) for line in lines()] == [(500, "internal_error")]


def test_the_callers_request_id_is_echoed_unless_it_is_none(client: httpx.Client) -> None:
    headers = {"x-request-id": "order-1/a"}
    assert client.get("/health", headers=headers).headers["x-request-id"] == "order-1/a"
    # On the same connection, whose context the server hands on from one request to the next.
    assert (
        client.get("/health", headers={"x-request-id": "order-2"}).headers["x-request-id"]
        == "order-2"
    )
    made = client.get("/health", headers={"x-request-id": "a b\t{}"}).headers["x-request-id"]
    assert len(made) == 36
