"""``/live`` and ``/ready``: what an orchestrator is told."""

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI

from handler.config import Config
from handler.encoder import Encoder
from handler.engines import Embeddings, Pixels, TokenIds
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.http import probes
from handler.http.app import create_app
from handler.model import Model
from tests.conftest import image_tower, in_a_loop, serve, with_engine, with_golden, with_settings

JPEG = {"content-type": "image/jpeg"}
Answer = tuple[int, str]


def ask(client: httpx.Client, path: str) -> Answer:
    answer = client.get(path)
    return answer.status_code, answer.json()["status"]


async def ask_app(app: FastAPI, path: str) -> Answer:
    """Without a server, which would have started the app."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        answer = await client.get(path)
    return answer.status_code, answer.json()["status"]


def test_a_server_that_is_well_lives_and_is_ready(client: httpx.Client) -> None:
    assert ask(client, "/live") == (200, "alive")
    assert ask(client, "/ready") == (200, "ready")


def test_a_stuck_inference_is_noticed_and_its_end_too(
    encoder: Encoder, model: Model, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, go_on = threading.Event(), threading.Event()

    class Stuck(OnnxCpuEngine):
        def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
            busy.set()
            go_on.wait(timeout=60)
            return super().encode(inputs)

    monkeypatch.setattr(probes, "STUCK_SECONDS", 0.5)
    stuck = with_engine(encoder, Stuck(model, threads=1))
    with serve(stuck) as client, ThreadPoolExecutor(1) as other:
        running = other.submit(client.post, "/encode_image", content=photo, headers=JPEG)
        assert busy.wait(timeout=60)
        assert ask(client, "/live") == (200, "alive")  # it has only begun
        time.sleep(0.6)
        assert ask(client, "/live") == (503, "stuck")
        go_on.set()
        assert running.result().status_code == 200
        assert ask(client, "/live") == (200, "alive")


def test_an_inference_that_failed_is_over(encoder: Encoder, model: Model, photo: bytes) -> None:
    class Failing(OnnxCpuEngine):
        def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
            raise RuntimeError

    failing = with_engine(encoder, Failing(model, threads=1))
    with pytest.raises(RuntimeError):
        failing.encode(photo)
    assert failing.inference_seconds() == 0


def test_a_model_that_failed_its_self_check_lives_but_is_not_ready(
    encoder: Encoder, model: Model, config: Config
) -> None:
    tower = image_tower(encoder)
    other = with_golden(model, "image", -model.towers["image"].golden.embedding)
    with serve(Encoder(tower.engine, other, config, tower.decoder)) as client:
        assert ask(client, "/live") == (200, "alive")
        assert ask(client, "/ready") == (503, "unhealthy")


def test_it_is_not_ready_before_it_serves_nor_after(encoder: Encoder) -> None:
    app = create_app(encoder)

    async def scenario() -> list[Answer]:
        before = await ask_app(app, "/ready")
        async with app.router.lifespan_context(app):
            meanwhile = await ask_app(app, "/ready")
        return [before, meanwhile, await ask_app(app, "/ready")]

    assert in_a_loop(scenario()) == [(503, "starting"), (200, "ready"), (503, "draining")]


def test_it_is_not_ready_from_the_moment_it_is_asked_to_end(encoder: Encoder) -> None:
    """As by a server that handles the signal itself, which it still does."""
    app, told = create_app(encoder), []

    def end(number: int, _: object) -> None:
        told.append(number)

    async def scenario() -> Answer:
        async with app.router.lifespan_context(app):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.01)
            return await ask_app(app, "/ready")

    before = signal.signal(signal.SIGTERM, end)
    try:
        assert in_a_loop(scenario()) == (503, "draining")
        assert told == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)


def test_there_are_none_on_lambda(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "clip")
    with serve(with_settings(encoder)) as client:
        assert client.get("/live").status_code == client.get("/ready").status_code == 404
