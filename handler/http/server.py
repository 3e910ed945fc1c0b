"""What a web server has and a Lambda function has not: probes, metrics, a viewer of its own."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI

from handler.encoder import Encoder
from handler.http.admission import Admission
from handler.http.probes import Probes
from handler.http.viewer import add_viewer, viewer_files


class WebServer:
    """The additions to one app. Those whose packages are not installed are left out."""

    def __init__(self, encoder: Encoder, admission: Admission) -> None:
        self._probes = Probes(encoder)
        self._viewer = viewer_files()
        self._metrics = None
        if find_spec("prometheus_client"):
            from handler.http.metrics import Metrics

            self._metrics = Metrics(lambda: admission.pending)

    def settings(self) -> dict[str, Any]:
        """What FastAPI must be told when the app is made."""
        settings: dict[str, Any] = {"lifespan": self._probes.lifespan}
        if self._viewer:  # FastAPI's own pages would load theirs from another server
            settings |= {"docs_url": None, "redoc_url": None}
        return settings

    def add_routes(self, app: FastAPI) -> None:
        """Serve what this has."""
        self._probes.add_routes(app)
        if self._metrics:
            self._metrics.add_route(app)
        if self._viewer:
            add_viewer(app, self._viewer)

    def observe(self, record: Mapping[str, Any]) -> None:
        """Take in one request's record, once it is over."""
        if self._metrics:
            self._metrics.observe(record)
