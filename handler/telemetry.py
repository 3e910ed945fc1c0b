"""One JSON line per request: what came, what was answered, how long it took; never what it held.

On Lambda the line is also CloudWatch metrics (embedded metric format: CloudWatch reads them out of
the log, so nothing is sent): ``requests``, ``latency_ms``, ``cold_starts``, ``images``, ``texts``
and how many of both ``failed``, and ``errors`` by code. And it says what Lambda's own REPORT line
would: ``memory_mb``, and ``init_ms`` at the first request.

Every line of Lambda's has the keys of AWS Lambda Powertools for Python's Logger beside ours, so
that queries written for those find it. Only ``timestamp`` is left to Lambda, which adds it to each
line of JSON: a line that brings its own is filtered by its level too, and in other words for levels
than Python's.
Source: https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-log-level.html
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from handler import usage
from handler.config import on_lambda
from handler.errors import ClipError

NAMESPACE = "ClipImageEncoder"
SERVICE = "clip-image-encoder"
"""What Powertools' ``service`` is, where ``POWERTOOLS_SERVICE_NAME`` does not say it."""
MOST_LIBRARY_LINES = 3
"""That libraries may log during one request; its own line says how many they were."""

log = logging.getLogger("clip")

_record: ContextVar[dict[str, Any] | None] = ContextVar("record", default=None)
_invocation: ContextVar[dict[str, Any] | None] = ContextVar("invocation", default=None)
_memory: usage.Memory | None = None
_init_ms: float | None = None
_adding = threading.Lock()  # several threads may work for one request
_cold = True  # until the first request of this process


def ready(decoders: Callable[[], Iterable[int]]) -> None:
    """Note how long the start took, now that all is loaded.

    `decoders` returns the ids of the processes that decode images.
    """
    global _memory, _init_ms
    _memory, _init_ms = usage.Memory(decoders), usage.age_ms()


def configure(level: str) -> None:
    """Send the service's log, and the warnings of libraries, to stdout as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines())
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False
    # All that libraries log comes to the root. Lambda's own handler there would make text of it, or
    # break up what is JSON already. With LogFormat: JSON Lambda sets the root to INFO, at which
    # botocore tells of its credentials.
    of_libraries = logging.StreamHandler(sys.stdout)
    of_libraries.setFormatter(_JsonLines())
    of_libraries.addFilter(_is_among_the_first)
    logging.root.handlers[:] = [of_libraries]
    logging.root.setLevel("WARNING")
    logging.captureWarnings(True)


def _is_among_the_first(record: logging.LogRecord) -> bool:
    """Whether a library's line is one of the first of its request.

    Whatever a caller sends, a library must not fill the log with what it thinks of it.
    """
    request = _record.get()
    if request is None:
        return True
    with _adding:
        lines = int(request.get("library_lines", 0)) + 1
        request["library_lines"] = lines
    return lines <= MOST_LIBRARY_LINES


@contextmanager
def request(event: str, request_id: str, context: Any = None) -> Iterator[dict[str, Any]]:
    """Around one request: yields its record and logs it at the end; `context` is Lambda's."""
    global _cold  # noqa: PLW0603  # one process, one cold start
    record: dict[str, Any] = {
        "event": event,
        "request_id": request_id,
        "cold": _cold,
        "status": 200,
    }
    _cold = False
    token, start = _record.set(record), time.perf_counter()
    outer = _invocation.set(_powertools_keys(context, record["cold"]))
    try:
        yield record
    except ClipError as error:
        record |= {"status": error.status, "code": error.code}
        raise
    except Exception:
        record |= {"status": 500, "code": "internal_error"}
        raise
    finally:
        record["latency_ms"] = _milliseconds_since(start)
        _record.reset(token)
        log.info("request", extra={"fields": record | _report(record) | _metrics(record)})
        _invocation.reset(outer)


def current() -> dict[str, Any]:
    """The record of the request around this."""
    record = _record.get()
    assert record is not None, "not inside a request"
    return record


def note(**fields: Any) -> None:
    """Add fields to the current request's line; outside a request, nothing."""
    record = _record.get()
    if record is not None:
        record.update(fields)


def count(**numbers: int) -> None:
    """Add numbers to those that are in the current request's line; outside a request, nothing."""
    with _adding:
        record = _record.get() or {}
        note(**{name: int(record.get(name, 0)) + number for name, number in numbers.items()})


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Note how long the block took, in milliseconds; blocks of one name add up."""
    start = time.perf_counter()
    try:
        yield
    finally:
        with _adding:
            before = (_record.get() or {}).get(name, 0)
            note(**{name: round(before + _milliseconds_since(start), 2)})


def _milliseconds_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 2)


def _powertools_keys(context: Any, is_cold: bool) -> dict[str, Any]:
    """Return what Powertools' Logger says of an invocation, as far as it is known; on Lambda only.

    Source: LambdaContextModel and LambdaPowertoolsFormatter of aws_lambda_powertools.logging.
    """
    if not on_lambda():
        return {}
    memory = str(getattr(context, "memory_limit_in_mb", ""))
    keys = {
        "service": os.environ.get("POWERTOOLS_SERVICE_NAME") or SERVICE,
        "cold_start": is_cold,
        "function_name": os.environ["AWS_LAMBDA_FUNCTION_NAME"],
        "function_memory_size": int(memory) if memory.isdecimal() else None,
        "function_arn": getattr(context, "invoked_function_arn", None),
        "function_request_id": getattr(context, "aws_request_id", None),
        # Root=1-5759e988-bd862e3fe1be46a994272793;Parent=...;Sampled=1, anew at each invocation
        "xray_trace_id": os.environ.get("_X_AMZN_TRACE_ID", "").partition(";")[0][len("Root=") :],
    }
    return {key: value for key, value in keys.items() if value not in (None, "")}


def _report(record: dict[str, Any]) -> dict[str, Any]:
    """Return what Lambda's REPORT line would say of memory and of the start; on Lambda only."""
    if not on_lambda():
        return {}
    values = {
        "memory_mb": _memory and _memory.peak_mb(),
        "init_ms": _init_ms if record["cold"] else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _metrics(record: dict[str, Any]) -> dict[str, Any]:
    """Embedded metric format, on Lambda only. Source: CloudWatch's EMF specification."""
    function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
    if not function:
        return {}
    kinds = [("requests", "Count"), ("latency_ms", "Milliseconds"), ("cold_starts", "Count")]
    kinds += [(name, "Count") for name in ("images", "texts", "failed") if name in record]
    directives = [_directive(["function"], kinds)]
    values = {"function": function, "requests": 1, "cold_starts": int(record["cold"])}
    if "code" in record:
        directives.append(_directive(["function", "code"], [("errors", "Count")]))
        values["errors"] = 1
    return values | {
        "_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": directives}
    }


def _directive(dimensions: list[str], metrics: list[tuple[str, str]]) -> dict[str, Any]:
    named = [{"Name": name, "Unit": unit} for name, unit in metrics]
    return {"Namespace": NAMESPACE, "Dimensions": [dimensions], "Metrics": named}


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"level": record.levelname}
        if on_lambda():
            line["location"] = f"{record.funcName}:{record.lineno}"
        line["message"] = record.getMessage()
        if record.name != log.name:
            line["library"] = record.name
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= _invocation.get() or {}
        return json.dumps(line | getattr(record, "fields", {}), default=str)
