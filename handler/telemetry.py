"""One JSON line per request: what came, what was answered, how long it took; never image data.

On Lambda the line is also CloudWatch metrics (embedded metric format: CloudWatch reads them out of
the log, so nothing is sent): ``requests``, ``latency_ms``, ``cold_starts``, ``images`` and how
many of them ``failed``, and ``errors`` by code.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from handler.errors import ClipError

NAMESPACE = "ClipImageEncoder"

log = logging.getLogger("clip")

_record: ContextVar[dict[str, Any] | None] = ContextVar("record", default=None)
_adding = threading.Lock()  # several threads may work for one request
_cold = True  # until the first request of this process


def configure(level: str) -> None:
    """Send the service's log to stdout as JSON lines. Lambda's own handler would break them up."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines())
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False
    # With LogFormat: JSON Lambda sets the root logger to INFO, at which botocore tells of its
    # credentials.
    logging.getLogger("botocore").setLevel("WARNING")


@contextmanager
def request(event: str, request_id: str) -> Iterator[dict[str, Any]]:
    """Around one request: yields its record and logs it at the end."""
    global _cold  # noqa: PLW0603  # one process, one cold start
    record: dict[str, Any] = {
        "event": event,
        "request_id": request_id,
        "cold": _cold,
        "status": 200,
    }
    _cold = False
    token, start = _record.set(record), time.perf_counter()
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
        log.info("request", extra={"fields": record | _metrics(record)})


def current() -> dict[str, Any]:
    """The record of the request around this."""
    record = _record.get()
    assert record is not None, "not inside a request"
    return record


def note(**fields: Any) -> None:
    """Add fields to the current request's line; outside a request, nothing."""
    if (record := _record.get()) is not None:
        record.update(fields)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Note how long the block took, in milliseconds; blocks of one name add up."""
    start = time.perf_counter()
    try:
        yield
    finally:
        with _adding:
            record = _record.get() or {}
            note(**{name: round(record.get(name, 0) + _milliseconds_since(start), 2)})


def _milliseconds_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 2)


def _metrics(record: dict[str, Any]) -> dict[str, Any]:
    """Embedded metric format, on Lambda only. Source: CloudWatch's EMF specification."""
    if not (function := os.environ.get("AWS_LAMBDA_FUNCTION_NAME")):
        return {}
    kinds = [("requests", "Count"), ("latency_ms", "Milliseconds"), ("cold_starts", "Count")]
    if "images" in record:
        kinds += [("images", "Count"), ("failed", "Count")]
    directives = [_directive(["function"], kinds)]
    if "code" in record:
        directives.append(_directive(["function", "code"], [("errors", "Count")]))
    values = {"function": function, "requests": 1, "cold_starts": int(record["cold"]), "errors": 1}
    return values | {
        "_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": directives}
    }


def _directive(dimensions: list[str], metrics: list[tuple[str, str]]) -> dict[str, Any]:
    named = [{"Name": name, "Unit": unit} for name, unit in metrics]
    return {"Namespace": NAMESPACE, "Dimensions": [dimensions], "Metrics": named}


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "fields", {}), default=str)
