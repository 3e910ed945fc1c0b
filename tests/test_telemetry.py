"""One JSON line per request, the request id echoed, metrics on Lambda."""

import base64
import io
import json
import logging
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from events.generate import PHOTO
from handler import telemetry, usage
from handler.aws import Calls
from handler.errors import ClipError
from tests.answers import INVOKE
from tests.conftest import emulator
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


def test_texts_are_counted_and_none_of_them_is_logged(main: types.ModuleType, lines: Any) -> None:
    secret = "c2VjcmV0"
    main.handler({"texts": [secret, f"{secret} " * 80, 7], "truncate": True}, Context())
    request = {"queries": [{"text": secret}, 7], "candidates": [{"text": secret}, {"text": "a"}]}
    main.handler({"rank": request | {"templates": [f"{secret} {{}}", "{}"]}}, Context())
    with pytest.raises(ClipError):
        main.handler({"text": f"{secret} " * 80}, Context())
    texts, ranking, refused = lines()
    assert (texts["event"], texts["status"]) == ("direct", 200)
    assert (texts["texts"], texts["failed"], texts["truncated"]) == (3, 1, 1)
    # A query, and two candidates in two sentences each; the item that is no text failed.
    assert (ranking["texts"], ranking["failed"], ranking["truncated"]) == (5, 1, 0)
    assert "images" not in ranking
    assert (refused["status"], refused["code"]) == (422, "text_too_long")
    assert secret not in json.dumps([texts, ranking, refused])


# --- metrics: CloudWatch takes them from the line, on Lambda -----------------------------------


def metrics(line: dict[str, Any]) -> dict[tuple[str, ...], dict[str, str]]:
    """Dimensions -> the unit of each metric, as CloudWatch reads `line`."""
    found = {}
    for directive in line["_aws"]["CloudWatchMetrics"]:
        assert directive["Namespace"] == "ClipImageEncoder"
        (dimensions,) = directive["Dimensions"]
        # Every name that a directive gives must be a field of the line, or CloudWatch drops it.
        assert all(isinstance(line[name], str) for name in dimensions)
        assert all(type(line[metric["Name"]]) in (int, float) for metric in directive["Metrics"])
        found[tuple(dimensions)] = {m["Name"]: m["Unit"] for m in directive["Metrics"]}
    return found


ALWAYS = {"requests": "Count", "latency_ms": "Milliseconds", "cold_starts": "Count"}
OF_IMAGES = {"images": "Count", "failed": "Count"}
OF_ERRORS = {"errors": "Count"}


@pytest.fixture
def on_lambda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "clip")


def test_elsewhere_the_line_holds_no_metrics(lines: Any) -> None:
    with telemetry.request("direct", "1"):
        pass
    assert "_aws" not in lines()[0]


@pytest.mark.usefixtures("on_lambda")
def test_every_request_is_counted_and_timed(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_cold", True)
    before = time.time() * 1000
    for _ in range(2):
        with telemetry.request("direct", "1"):
            pass
    for line, cold in zip(lines(), (1, 0), strict=True):
        assert metrics(line) == {("function",): ALWAYS}
        assert (line["function"], line["requests"], line["cold_starts"]) == ("clip", 1, cold)
        assert before - 1 <= line["_aws"]["Timestamp"] <= time.time() * 1000


@pytest.mark.usefixtures("on_lambda")
def test_images_are_counted_and_those_that_failed(main: types.ModuleType, lines: Any) -> None:
    text = base64.b64encode(PHOTO).decode()
    main.handler({"images": [text, "c2VjcmV0", text]}, Context())
    (line,) = lines()
    assert metrics(line) == {("function",): ALWAYS | OF_IMAGES}
    assert (line["images"], line["failed"]) == (3, 1)


@pytest.mark.usefixtures("on_lambda")
def test_texts_are_counted_and_those_that_failed(main: types.ModuleType, lines: Any) -> None:
    main.handler({"texts": ["a", 7]}, Context())
    (line,) = lines()
    assert metrics(line) == {("function",): ALWAYS | {"texts": "Count", "failed": "Count"}}
    assert (line["texts"], line["failed"]) == (2, 1)


@pytest.mark.usefixtures("on_lambda")
def test_errors_are_counted_by_their_code(main: types.ModuleType, lines: Any) -> None:
    with pytest.raises(ClipError):
        main.handler({}, Context())
    (line,) = lines()
    assert metrics(line) == {("function",): ALWAYS, ("function", "code"): OF_ERRORS}
    assert (line["code"], line["errors"], line["requests"]) == ("invalid_event", 1, 1)


# --- what Lambda's own lines would say, and Powertools' keys --------------------------------------

TRACE = "1-5759e988-bd862e3fe1be46a994272793"
ARN = "arn:aws:lambda:us-east-1:123456789012:function:clip:live"
POWERTOOLS = {
    "service": "clip-image-encoder",
    "function_name": "clip",
    "function_memory_size": 3008,
    "function_arn": ARN,
    "function_request_id": "invocation-1",
    "xray_trace_id": TRACE,
}
"""The keys of aws_lambda_powertools' Logger, but for those that each line has its own of."""


class LambdaContext(Context):
    """As Lambda's runtime client makes it, whose numbers are texts."""

    memory_limit_in_mb = "3008"
    invoked_function_arn = ARN


@pytest.fixture
def traced(on_lambda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    value = f"Root={TRACE};Parent=53995c3f42cd8ad8;Sampled=0;Lineage=a:b"
    monkeypatch.setenv("_X_AMZN_TRACE_ID", value)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", ["rest_multipart", "alb", "direct_image"])
def test_the_line_has_the_keys_of_powertools_and_what_a_report_would_say(
    main: types.ModuleType, lines: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(telemetry, "_cold", True)
    for _ in range(2):
        main.handler(event(name), LambdaContext())
    cold, warm = lines()
    for line, is_cold in ((cold, True), (warm, False)):
        assert POWERTOOLS.items() <= line.items()
        assert (line["cold_start"], line["cold"]) == (is_cold, is_cold)
        assert line["location"].startswith("request:")
        assert "timestamp" not in line  # Lambda's own
        assert (line["level"], line["message"], line["function"]) == ("INFO", "request", "clip")
        assert metrics(line)[("function",)] == ALWAYS | OF_IMAGES
    assert cold["init_ms"] > 0
    assert "init_ms" not in warm
    # More than this process alone: its decoders are counted, too.
    alone = usage.Memory(list).peak_mb()
    assert alone
    assert cold["memory_mb"] > 0
    assert warm["memory_mb"] > alone


@pytest.mark.usefixtures("traced")
def test_every_line_of_an_invocation_has_the_keys_in_whichever_thread(lines: Any) -> None:
    warn = partial(telemetry.log.warning, "odd")
    telemetry.log.warning("before")
    with telemetry.request("direct", "1", LambdaContext()), Calls() as calls:
        warn()
        calls.begin(warn, late=warn)()
        logging.getLogger("botocore").warning("odd")
    before, *during, _ = lines()
    assert "function_name" not in before
    assert before["location"].startswith("test_every_line")
    assert len(during) == 3
    assert all(POWERTOOLS.items() <= line.items() for line in during)


@pytest.mark.usefixtures("on_lambda")
def test_what_is_not_known_of_an_invocation_is_left_out(
    lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "shop")
    monkeypatch.delenv("_X_AMZN_TRACE_ID", raising=False)
    monkeypatch.setattr(telemetry, "_memory", None)
    with telemetry.request("direct", "1", None):
        pass
    (line,) = lines()
    assert (line["service"], line["function_name"]) == ("shop", "clip")
    absent = {"xray_trace_id", "function_arn", "function_request_id", "memory_mb"}
    assert not absent & line.keys()


def test_through_the_real_runtime_client(model_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with emulator(model_dir, log) as (client, _):
        for name in ("direct_image", "direct_text"):
            client.post(INVOKE, json=event(name))
    written = [line[line.index("{") :] for line in log.read_text().splitlines() if "{" in line]
    found = [json.loads(line) for line in written if '"message": "request"' in line]
    assert [line["cold_start"] for line in found] == [True, False]
    assert ["init_ms" in line for line in found] == [True, False]
    for line in found:
        assert line["function_memory_size"] == 1769
        assert line["function_request_id"] == line["request_id"]
        assert line["memory_mb"] > 100
    assert found[0]["init_ms"] > 100  # a model was loaded


# --- the line itself ------------------------------------------------------------------------------


def test_what_takes_several_turns_is_added_up(lines: Any) -> None:
    with telemetry.request("direct", "1"):
        for _ in range(3):
            with telemetry.timed("engine_ms"):
                time.sleep(0.01)
        with telemetry.timed("decode_ms"):
            time.sleep(0.01)
    (line,) = lines()
    times = [line["latency_ms"], line["engine_ms"], line["decode_ms"]]
    assert times == [round(time, 2) for time in times]
    assert line["latency_ms"] >= line["engine_ms"] + line["decode_ms"] >= 40
    assert line["engine_ms"] >= 30
    assert line["decode_ms"] >= 10


def test_what_is_counted_twice_is_added_up(lines: Any) -> None:
    with telemetry.request("direct", "1"):
        telemetry.count(images=2, failed=1)
        telemetry.count(images=3, decoders_killed=1)
    (line,) = lines()
    assert (line["images"], line["failed"], line["decoders_killed"]) == (5, 1, 1)


def test_outside_a_request_there_is_nothing_to_note_to(lines: Any) -> None:
    with telemetry.timed("engine_ms"):
        telemetry.note(format="JPEG")
    with telemetry.request("direct", "1"):
        pass
    assert not {"format", "engine_ms"} & lines()[0].keys()
    with pytest.raises(AssertionError, match=r"^not inside a request"):
        telemetry.current()


def test_a_request_within_a_request_is_over_when_it_is_over(lines: Any) -> None:
    with telemetry.request("outer", "1") as outer:
        with telemetry.request("inner", "2"):
            telemetry.note(format="JPEG")
        assert telemetry.current() is outer
    inner, last = lines()
    assert (inner["event"], inner["format"], last["event"]) == ("inner", "JPEG", "outer")
    assert "format" not in last


def test_every_line_says_how_grave_it_is_and_what_went_wrong(lines: Any) -> None:
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError:
        telemetry.log.exception("a %s", "fault", extra={"fields": {"path": Path("/x")}})
    telemetry.log.debug("not worth a line at INFO")
    telemetry.log.warning("careful")
    fault, warning = lines()
    exception = fault.pop("exception")
    assert exception.startswith("Traceback")
    assert exception.endswith("ZeroDivisionError: by nothing")
    assert fault == {"level": "ERROR", "message": "a fault", "path": "/x"}
    assert warning == {"level": "WARNING", "message": "careful"}


def test_the_log_goes_to_stdout_once_and_nowhere_else(capsys: pytest.CaptureFixture[str]) -> None:
    botocore, root = logging.getLogger("botocore"), logging.getLogger()
    levels = botocore.level, root.level
    root.setLevel("INFO")  # as Lambda does where its log's format is JSON
    try:
        for _ in range(2):  # a service that cannot start configures it a second time
            telemetry.configure("WARNING")
        telemetry.log.info("below the level")
        telemetry.log.warning("seen")
        assert not telemetry.log.propagate
        assert not telemetry.log.isEnabledFor(logging.INFO)
        # At INFO botocore tells where it found its credentials.
        assert not botocore.isEnabledFor(logging.INFO)
        assert botocore.isEnabledFor(logging.WARNING)
    finally:
        telemetry.log.handlers.clear()
        telemetry.log.propagate = True
        botocore.setLevel(levels[0])
        root.setLevel(levels[1])
    written = capsys.readouterr()
    assert [json.loads(line)["message"] for line in written.out.splitlines()] == ["seen"]
    assert written.err == ""


def test_what_libraries_say_is_json_too() -> None:
    code = """
import logging, warnings
logging.basicConfig(level="INFO")  # as Lambda does
from handler import telemetry, usage
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
    warn = partial(logging.getLogger("botocore").warning, "odd")
    for name in "ab":
        with telemetry.request("direct", name), Calls() as calls:
            for _ in range(20):
                calls.begin(warn, late=warn)()
    found = [line.get("library", line.get("library_lines")) for line in lines()]
    assert found == [*["botocore"] * 3, 20, *["botocore"] * 3, 20]


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
def test_a_hostile_form_writes_few_lines(main: types.ModuleType, lines: Any, body: bytes) -> None:
    request = event("rest_multipart")
    request["headers"]["Content-Type"] = "multipart/form-data; boundary=b"
    request["multiValueHeaders"] = None
    request["body"] = base64.b64encode(body).decode()
    assert main.handler(request, Context())["statusCode"] == 400
    *of_the_parser, line = lines()
    assert line["code"] in ("invalid_multipart", "missing_field")
    assert len(of_the_parser) <= 1
    assert len(json.dumps([of_the_parser, line])) < 1000


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
    (line,) = lines()
    assert (line["status"], line["code"], line["message"]) == (500, "internal_error", "request")
    assert line["latency_ms"] >= 0


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
