"""A plain server under load, as ``make run`` starts it: a process of its own and many clients at
once.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import pytest
from PIL import Image

from handler.encoder import Encoder
from handler.engines import Embedding
from tests.bombs import encoded
from tests.conftest import ROOT, free_port, wait_for
from tests.measure import peak_megabytes

JPEG = {"content-type": "image/jpeg"}


class Server:
    """A running ``uvicorn handler.main:app``."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port, self.process, self._log = port, process, log
        self.url = f"http://127.0.0.1:{port}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        """By a client and a connection of its own."""
        return httpx.post(
            f"{self.url}{path}", content=body, headers=headers, timeout=60, trust_env=False
        )

    def encode(self, data: bytes) -> httpx.Response:
        """By a client and a connection of its own."""
        return httpx.post(
            f"{self.url}/encode_image", content=data, headers=JPEG, timeout=60, trust_env=False
        )

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.url}/health", timeout=60, trust_env=False)


@contextmanager
def server(model_dir: Path, folder: Path, **settings: str) -> Iterator[Server]:
    port, log = free_port(), folder / "log"
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "handler.main:app",
        "--no-access-log",
        "--port",
        str(port),
    ]
    environment = os.environ | {"CLIP_MODEL_DIR": str(model_dir)} | settings
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            wait_for(port, process)
            yield Server(port, process, log)
        finally:
            process.kill()
            process.wait()


def picture(number: int, size: tuple[int, int] = (400, 300)) -> bytes:
    """A JPEG that no other number gives."""
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise).resize(size), "JPEG")


def is_of(answer: httpx.Response, vector: Embedding) -> bool:
    return answer.status_code == 200 and np.array_equal(np.array(answer.json(), np.float32), vector)


def test_32_clients_at_once_get_each_its_own(
    model_dir: Path, tmp_path: Path, encoder: Encoder
) -> None:
    pictures = [picture(number) for number in range(32)]
    vectors = [encoder.encode(data) for data in pictures]
    assert len({vector.tobytes() for vector in vectors}) == 32
    with server(model_dir, tmp_path) as service, ThreadPoolExecutor(32) as clients:
        together = threading.Barrier(32)

        def client(number: int) -> list[bool]:
            together.wait()
            order = [(number + turn) % 32 for turn in range(4)]
            return [is_of(service.encode(pictures[i]), vectors[i]) for i in order]

        running = [clients.submit(client, number) for number in range(32)]
        waits = []
        while not all(future.done() for future in running):
            start = time.perf_counter()
            assert service.health().status_code == 200
            waits.append(time.perf_counter() - start)
            time.sleep(0.02)
        assert all(all(future.result()) for future in running)
        print(
            f"health: {len(waits)} times, median {median(waits):.3f} s, at most {max(waits):.3f} s"
        )
        # A health check behind the encodes would wait for all 128 of them, several seconds.
        assert len(waits) > 5
        assert median(waits) < 0.2


def test_overload_is_shed_and_what_is_taken_is_served(
    model_dir: Path, tmp_path: Path, encoder: Encoder
) -> None:
    data = picture(1, (2000, 1500))
    vector = encoder.encode(data)
    with (
        server(model_dir, tmp_path, CLIP_MAX_PENDING="4") as service,
        ThreadPoolExecutor(24) as clients,
    ):
        answers = list(clients.map(service.encode, [data] * 48))
        served = [answer for answer in answers if answer.status_code == 200]
        shed = [answer for answer in answers if answer.status_code == 503]
        assert len(served) >= 4
        assert shed
        assert len(served) + len(shed) == 48
        assert all(is_of(answer, vector) for answer in served)
        for answer in shed:
            assert answer.json()["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
        assert is_of(service.encode(data), vector)  # and then it is as before


def _begin(service: Server, length: int, body: bytes) -> socket.socket:
    """A request of `length` bytes, of which `body` has come."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    head = "POST /encode_image HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    head += f"Content-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_clients_that_leave_harm_nobody(model_dir: Path, tmp_path: Path, encoder: Encoder) -> None:
    data = picture(2)
    vector = encoder.encode(data)
    with server(model_dir, tmp_path, CLIP_MAX_PENDING="4") as service:
        for length in (0, 100, len(data) // 2, len(data)):  # the last of them before the answer
            for _ in range(8):  # twice as many as may be pending
                _begin(service, len(data), data[:length]).close()
                time.sleep(0.02)
            deadline = time.monotonic() + 20
            while (
                answer := service.encode(data)
            ).status_code == 503 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert is_of(answer, vector)
        assert '"level": "ERROR"' not in service.log
        assert "Traceback" not in service.log
        assert "client_disconnected" in service.log


def test_large_bodies_in_memory_are_bounded_together(model_dir: Path, tmp_path: Path) -> None:
    mega = 2**20
    with server(model_dir, tmp_path, CLIP_MAX_BODY_BYTES=str(8 * mega)) as service:
        idle = peak_megabytes(service.process.pid)
        waiting = [_begin(service, 8 * mega, b"")]
        for _ in range(20):
            connection = _begin(service, 8 * mega, b"")
            waiting.append(connection)
            try:
                connection.sendall(bytes(7 * mega))
            except OSError:  # answered, and closed, before it had sent all
                continue
        time.sleep(0.5)
        refused = service.log.count('"code": "overloaded"')
        grown = peak_megabytes(service.process.pid) - idle
        assert service.health().status_code == 200
        print(f"{refused} of 20 refused; {grown:.0f} MB")
        assert 14 <= refused <= 17  # 32 MB hold four, and a half
        assert grown < 100
        for connection in waiting:
            connection.close()


def test_a_stop_finishes_what_it_began(model_dir: Path, tmp_path: Path, encoder: Encoder) -> None:
    data = encoded(
        Image.radial_gradient("L").resize((5000, 4000)).convert("RGB"), "PNG", compress_level=1
    )
    vector = encoder.encode(data)
    with server(model_dir, tmp_path) as service, ThreadPoolExecutor(6) as clients:
        running = [clients.submit(service.encode, data) for _ in range(6)]
        deadline = time.monotonic() + 20
        while not any(future.done() for future in running) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sum(future.done() for future in running) < 6  # some are still under way
        service.process.send_signal(signal.SIGTERM)
        assert all(is_of(future.result(), vector) for future in running)
        assert service.process.wait(timeout=20) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            service.health()
