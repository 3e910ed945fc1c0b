"""``/metrics``: what Prometheus is told."""

import dataclasses
import logging
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

from handler import telemetry
from handler.config import Config
from handler.encoder import Encoder
from handler.engines import Embeddings, Pixels, TokenIds
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.images import sandbox
from handler.model import Model
from tests.conftest import ROOT, image_tower, serve, with_engine, with_settings
from tests.test_server import slow_picture

JPEG = {"content-type": "image/jpeg"}


def samples(client: httpx.Client) -> dict[str, float]:
    """``name{label=value,...}`` -> value, of the service's own metrics."""
    return {
        sample.name + ",".join(f"{{{name}={value}}}" for name, value in sample.labels.items()): (
            sample.value
        )
        for family in parse(client.get("/metrics").text)
        for sample in family.samples
        if sample.name.startswith("clip_")
    }


def test_requests_are_counted_by_route_and_status(encoder: Encoder, photo: bytes) -> None:
    with serve(with_settings(encoder)) as client:
        for _ in range(2):
            client.post("/encode_image", content=photo, headers=JPEG)
        client.post("/encode_image", content=b"no image", headers=JPEG)
        client.post("/encode_images", files=[("images", photo), ("images", b"no image")])
        client.head("/health")
        for path in ("/nope", "/nope/again", "/encode_image"):
            client.get(path)
        found = samples(client)
    counted = {name: value for name, value in found.items() if "requests" in name}
    assert counted == {
        "clip_requests_total{route=/encode_image},{status=200}": 2,
        "clip_requests_total{route=/encode_image},{status=422}": 1,
        "clip_requests_total{route=/encode_image},{status=405}": 1,
        "clip_requests_total{route=/encode_images},{status=200}": 1,
        "clip_requests_total{route=/health},{status=200}": 1,
        "clip_requests_total{route=other},{status=404}": 2,
    }
    assert {name: value for name, value in found.items() if "errors" in name} == {
        "clip_errors_total{code=not_an_image}": 1,
        "clip_errors_total{code=not_found}": 2,
        "clip_errors_total{code=method_not_allowed}": 1,
    }
    assert (found["clip_images_total"], found["clip_failed_total"]) == (5, 2)


def test_texts_are_counted_beside_images(encoder: Encoder, photo: bytes) -> None:
    with serve(with_settings(encoder)) as client:
        client.post("/encode_texts", json={"texts": ["a cat", "very " * 100]})
        client.post("/encode_image", content=photo, headers=JPEG)
        found = samples(client)
    assert (found["clip_texts_total"], found["clip_images_total"]) == (2, 1)
    assert found["clip_failed_total"] == 1
    assert found["clip_stage_seconds_count{stage=engine}"] == 2


def test_stages_are_timed(encoder: Encoder, photo: bytes) -> None:
    with serve(with_settings(encoder)) as client:
        for _ in range(3):
            client.post("/encode_image", content=photo, headers=JPEG)
        client.get("/health")
        found = samples(client)
    counts = {stage: found[f"clip_stage_seconds_count{{stage={stage}}}"] for stage in STAGES}
    sums = {stage: found[f"clip_stage_seconds_sum{{stage={stage}}}"] for stage in STAGES}
    assert counts == {"decode": 3, "engine": 3, "request": 4}
    assert 0 < sums["decode"] < sums["engine"] < sums["request"] < 60
    assert found["clip_stage_seconds_bucket{le=+Inf},{stage=request}"] == 4
    assert found["clip_stage_seconds_bucket{le=0.001},{stage=request}"] < 4


STAGES = ("decode", "engine", "request")


def test_pending_is_how_many_are_in_progress(encoder: Encoder, model: Model, photo: bytes) -> None:
    busy, go_on = threading.Event(), threading.Event()

    class Slow(OnnxCpuEngine):
        def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
            busy.set()
            go_on.wait(timeout=60)
            return super().encode(inputs)

    slow = with_engine(encoder, Slow(model, threads=1))
    with serve(slow) as client, ThreadPoolExecutor(1) as other:
        before = samples(client)["clip_pending"]
        running = other.submit(client.post, "/encode_image", content=photo, headers=JPEG)
        assert busy.wait(timeout=60)
        meanwhile = samples(client)["clip_pending"]
        go_on.set()
        running.result()
        assert (before, meanwhile, samples(client)["clip_pending"]) == (0, 1, 0)


def test_killed_decoders_are_counted_and_in_the_log(
    encoder: Encoder, model: Model, config: Config, photo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    hasty = dataclasses.replace(config, decode_seconds=0.1)
    decoder = sandbox.start(hasty, model.architecture.resolution)
    with (
        serve(Encoder(image_tower(encoder).engine, model, hasty, decoder)) as client,
        caplog.at_level(logging.INFO, telemetry.log.name),
    ):
        assert client.post("/encode_image", content=photo, headers=JPEG).status_code == 200
        assert samples(client)["clip_decoders_killed_total"] == 0
        slow = client.post("/encode_image", content=slow_picture(), headers=JPEG)
        assert slow.json()["code"] == "image_too_costly"
        assert samples(client)["clip_decoders_killed_total"] == 1
    decoder.close()
    lines = [getattr(record, "fields", {}) for record in caplog.records]
    assert [line.get("decoders_killed") for line in lines if line.get("code")] == [1]


def test_both_of_prometheus_formats(client: httpx.Client) -> None:
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert {family.name for family in parse(plain.text)} >= NAMES
    asked = {"accept": "application/openmetrics-text; version=1.0.0"}
    newer = client.get("/metrics", headers=asked)
    assert newer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = parse_openmetrics(newer.text)  # type: ignore[no-untyped-call]
    assert {family.name for family in families} >= NAMES
    assert "_created" not in plain.text + newer.text


def test_the_page_names_every_metric_of_the_service(client: httpx.Client) -> None:
    named = re.findall(r"`(clip_[a-z_]+)", (ROOT / "docs/server.md").read_text())
    served = {family.name for family in parse(client.get("/metrics").text)}
    ours = {name for name in served if name.startswith("clip_")}
    assert {name.removesuffix("_total") for name in named} == ours


NAMES = {
    "clip_requests",
    "clip_errors",
    "clip_images",
    "clip_texts",
    "clip_failed",
    "clip_stage_seconds",
}
NAMES |= {"clip_pending", "clip_decoders_killed", "process_resident_memory_bytes"}


def test_there_are_none_where_the_library_is_not_installed(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with serve(with_settings(encoder)) as client:
        assert client.get("/metrics").status_code == 404
        assert client.get("/ready").status_code == 200


def test_there_are_none_on_lambda(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "clip")
    with serve(with_settings(encoder)) as client:
        assert client.get("/metrics").status_code == 404
