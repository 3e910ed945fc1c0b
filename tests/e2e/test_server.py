"""The `server` target: uvicorn and the torch engine in a container."""

import time

import httpx

from events.generate import PHOTO
from handler.engines import Embedding
from tests.conftest import free_port
from tests.e2e.conftest import build, docker, started


def test_the_server_target(image: str, build_arguments: dict[str, str], vector: Embedding) -> None:
    """`image` first: the classic builder has made every layer of this target on the way."""
    port, tag = free_port(), f"{image}-server"
    build(build_arguments, "--target", "server", "--tag", tag)
    hardened = (
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
    )
    with (
        started(tag, *hardened, "--publish", f"127.0.0.1:{port}:3000") as container,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        while "Uvicorn running" not in (log := docker("logs", container).stderr):
            assert (
                docker("inspect", "--format", "{{.State.Running}}", container).stdout == "true\n"
            ), log
            time.sleep(0.2)
        health = client.get("/health").json()
        assert (health["engine"], health["device"], health["status"]) == (
            "torch",
            "cpu",
            "synthetic",
        )
        answer = client.post("/encode_image", files={"image": PHOTO}).json()
        assert float(vector @ answer) >= 0.9999
        assert docker("exec", container, "id", "-u").stdout == "993\n"
