"""Prometheus metrics of a web server, counted from the record that telemetry keeps of each request.

On Lambda CloudWatch reads the same facts out of the log; see `handler.telemetry`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import prometheus_client
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.routing import Route

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The histogram's upper bounds: from decoding a small file to a full batch on a share of a CPU."""
OTHER = "other"
"""The route of all requests for paths that are none of ours, lest callers add rows at will."""

COUNTED = {
    "images": ("clip_images", "Images that were asked for"),
    "texts": ("clip_texts", "Texts that were asked for"),
    "failed": ("clip_failed", "Images and texts that got no vector"),
    "decoders_killed": (
        "clip_decoders_killed",
        "Decoder processes lost to an image, or ended for it",
    ),
}
"""What a record counts -> the name of the metric, and what it says of itself."""


class Metrics:
    """The metrics of one server process."""

    def __init__(self, pending: Callable[[], int]) -> None:
        """Begin at zero. `pending` says how many requests are in progress."""
        # Otherwise each counter would be accompanied by the time when it was made.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, CPU time and open files
        self._registry = registry
        self._requests = Counter(
            "clip_requests",
            "Requests, by route and HTTP status",
            ["route", "status"],
            registry=registry,
        )
        self._errors = Counter(
            "clip_errors", "Requests that failed, by code", ["code"], registry=registry
        )
        self._stages = Histogram(
            "clip_stage_seconds",
            "Seconds that each request spent in each stage; a batch's images add up",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._counted = {
            field: Counter(name, text, registry=registry) for field, (name, text) in COUNTED.items()
        }
        in_progress = Gauge("clip_pending", "Requests in progress or waiting", registry=registry)
        in_progress.set_function(pending)

    def add_route(self, app: FastAPI) -> None:
        """Serve ``/metrics``; from then on the names of `app`'s routes are known."""
        self._app = app

        @app.get("/metrics", include_in_schema=False)
        async def metrics(request: Request) -> Response:
            """The metrics, in the newest of Prometheus' formats that the caller takes."""
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
            return Response(encode(self._registry), headers={"Content-Type": content_type})

    def observe(self, record: Mapping[str, Any]) -> None:
        """Count one request that is over, by its record."""
        self._requests.labels(self._route_of(record["path"]), record["status"]).inc()
        if "code" in record:
            self._errors.labels(record["code"]).inc()
        for field, counter in self._counted.items():
            counter.inc(record.get(field, 0))
        for name, value in record.items():
            if name.endswith("_ms"):
                self._stages.labels(_stage(name)).observe(value / 1000)

    def _route_of(self, path: str) -> str:
        routes = (route for route in self._app.routes if isinstance(route, Route))
        return next((route.path_format for route in routes if route.path_regex.match(path)), OTHER)


def _stage(field: str) -> str:
    """``engine_ms`` -> ``engine``; the whole of a request is a stage of its own."""
    return "request" if field == "latency_ms" else field.removesuffix("_ms")
