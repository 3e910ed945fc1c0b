"""One JSON line per request, the request id echoed, metrics on Lambda."""

import io
import json
import types
from collections.abc import Callable, Iterator
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
    """The log lines written so far, decoded."""
    telemetry.configure("INFO")
    written = io.StringIO()
    telemetry.log.handlers[0].setStream(written)  # type: ignore[attr-defined]
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
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
