"""A plain server under load, as ``make run`` starts it: a process of its own and many clients at
once.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from statistics import median
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image

from handler import __version__
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
        self.connections = contextlib.ExitStack()
        """Those that a test opens itself; closed at the end."""
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
        return self.post("/encode_image", data, JPEG)

    def reset_peak(self) -> float:
        """Let `peak_megabytes` begin anew; what the process has now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return peak_megabytes(self.process.pid)

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
            service = Server(port, process, log)
            with service.connections:
                yield service
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
            order = [(number + turn) % 32 for turn in range(2)]
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
        # A health check behind the encodes would wait for all 64 of them, some seconds.
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


MEGA = 2**20
SILENT = "Content-Length: 1000"


def _begin(service: Server, length: int, body: bytes, *more: str) -> socket.socket:
    """A request of `length` bytes, of which `body` has come."""
    return _open(service, body, f"Content-Length: {length}", *more)


def _open(service: Server, body: bytes, *headers: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    service.connections.enter_context(connection)
    lines = ["POST /encode_image HTTP/1.1", "Host: x", "Content-Type: image/jpeg", *headers]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


class Answer(NamedTuple):
    status: int
    headers: Message
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


def _answer(connection: socket.socket) -> Answer:
    response = HTTPResponse(connection)
    response.begin()
    return Answer(response.status, response.headers, response.read())


def test_clients_that_leave_harm_nobody(model_dir: Path, tmp_path: Path, encoder: Encoder) -> None:
    data = picture(2)
    vector = encoder.encode(data)
    with server(model_dir, tmp_path, CLIP_MAX_PENDING="4") as service:
        for length in (0, 100, len(data) // 2, len(data)):  # the last of them before the answer
            for _ in range(8):  # twice as many as may be pending
                _begin(service, len(data), data[:length]).close()
                time.sleep(0.02)
            deadline = time.monotonic() + 20
            answer = service.encode(data)
            while answer.status_code == 503 and time.monotonic() < deadline:
                time.sleep(0.1)
                answer = service.encode(data)
            assert is_of(answer, vector)
        assert '"level": "ERROR"' not in service.log
        assert "Traceback" not in service.log
        assert "client_disconnected" in service.log


def test_who_sends_nothing_or_not_all_delays_nobody(
    model_dir: Path, tmp_path: Path, encoder: Encoder
) -> None:
    """64 silent clients, as many as may be pending, and four uploads that fill all the memory there
    is for bodies. The issue allows a second.
    """
    data = picture(3)
    vector = encoder.encode(data)
    with server(model_dir, tmp_path) as service:
        usual = _seconds(service, data, vector)
        for _ in range(64):
            _open(service, b"", SILENT)
        unfinished = [_begin(service, 64 * MEGA, bytes(64 * MEGA - 1)) for _ in range(4)]
        delayed = _seconds(service, data, vector)
        print(f"usual {max(usual):.3f} s, then {max(delayed):.3f} s")
        assert max(delayed) < max(usual) + 1
        # One of the four made room. The others are read to the end (and are no images).
        codes = []
        for connection in unfinished:
            with contextlib.suppress(OSError):  # it was told to go, and the connection closed
                connection.sendall(b"\0")
            codes.append(_answer(connection).code)
        assert sorted(codes) == ["body_too_slow", *["image_too_large"] * 3]


def _seconds(service: Server, data: bytes, vector: Embedding) -> list[float]:
    """How long `data`'s vector and health take, three times."""
    seconds = []
    for _ in range(3):
        for answered in (lambda: is_of(service.encode(data), vector), service.health):
            begin = time.perf_counter()
            assert answered()
            seconds.append(time.perf_counter() - begin)
    return seconds


def test_a_body_has_a_time_limit(model_dir: Path, tmp_path: Path) -> None:
    with server(model_dir, tmp_path, CLIP_BODY_SECONDS="0.5") as service:
        for connection in (_begin(service, 1000, b"x" * 999), _open(service, b"", SILENT)):
            answer = _answer(connection)
            assert (answer.status, answer.code) == (408, "body_too_slow")
            assert answer.headers["connection"] == "close"
            assert connection.recv(1) == b""
        # The same for whoever sends a little all the time.
        slow = _begin(service, 1000, b"")
        with contextlib.suppress(OSError):  # the connection is closed
            for _ in range(200):
                slow.sendall(b"x")
                time.sleep(0.1)
        assert service.log.count('"code": "body_too_slow"') == 3


@pytest.mark.parametrize("ask_first", [False, True])
def test_too_large_a_body_is_refused_before_any_of_it(
    model_dir: Path, tmp_path: Path, ask_first: bool
) -> None:
    more = ["Expect: 100-continue"] if ask_first else []
    with server(model_dir, tmp_path, CLIP_MAX_BODY_BYTES="1000") as service:
        answer = _answer(_begin(service, 1001, b"", *more))
        assert (answer.status, answer.code) == (413, "body_too_large")


def test_too_large_a_body_is_refused_where_it_gets_too_large(
    model_dir: Path, tmp_path: Path
) -> None:
    """It does not say how long it is going to be, and does not end."""
    chunk = b"100\r\n" + bytes(256) + b"\r\n"
    with server(model_dir, tmp_path, CLIP_MAX_BODY_BYTES="1000") as service:
        connection = _open(service, chunk * 3, "Transfer-Encoding: chunked")
        time.sleep(0.2)
        assert "body_too_large" not in service.log
        connection.sendall(chunk)
        answer = _answer(connection)
        assert (answer.status, answer.code) == (413, "body_too_large")


def test_who_asks_whether_to_send_is_told_to(
    model_dir: Path, tmp_path: Path, encoder: Encoder
) -> None:
    data = picture(4)
    vector = encoder.encode(data)
    with server(model_dir, tmp_path) as service:
        connection = _begin(service, len(data), b"", "Expect: 100-continue")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(data)
        answer = _answer(connection)
        assert answer.status == 200
        np.testing.assert_array_equal(np.array(json.loads(answer.body), np.float32), vector)


def test_where_memory_is_short_the_slowest_goes(
    model_dir: Path, tmp_path: Path, encoder: Encoder
) -> None:
    """Four uploads of 1 MB may be held. Three go on, one does not, and a fifth comes."""
    data = picture(5)
    vector = encoder.encode(data)
    with server(model_dir, tmp_path, CLIP_MAX_BODY_BYTES=str(MEGA)) as service:
        # The one that has stopped has sent the most, and last.
        going = [_begin(service, MEGA, bytes(MEGA - 500_000)) for _ in range(3)]
        stopped = _begin(service, MEGA, bytes(MEGA - 1))
        for _ in range(18):
            for connection in going:
                connection.sendall(bytes(25_000))
            time.sleep(0.1)
        time.sleep(0.5)
        fifth = _begin(service, MEGA, bytes(MEGA - 1))
        assert _answer(stopped).code == "body_too_slow"
        assert is_of(service.encode(data), vector)
        for connection in going:
            connection.sendall(bytes(50_000))
        fifth.sendall(b"\0")
        for connection in [*going, fifth]:
            assert _answer(connection).code == "not_an_image"


def test_large_bodies_in_memory_are_bounded_together(model_dir: Path, tmp_path: Path) -> None:
    with server(model_dir, tmp_path, CLIP_MAX_BODY_BYTES=str(8 * MEGA)) as service:
        service.encode(picture(1))
        idle = service.reset_peak()
        _begin(service, 8 * MEGA, b"")
        for _ in range(20):
            with contextlib.suppress(OSError):  # it is the one that goes, before it has sent all
                _begin(service, 8 * MEGA, bytes(7 * MEGA))
        _wait_until(lambda: service.log.count('"code": "body_too_slow"') == 16)
        grown = peak_megabytes(service.process.pid) - idle
        assert service.health().status_code == 200
        print(f"{grown:.0f} MB")
        assert grown < 60  # 32 MB hold four, and a half; the server has a buffer for each


def test_no_work_is_done_for_who_has_left(
    model_dir: Path, tmp_path: Path, encoder: Encoder
) -> None:
    """Of eight only those whose turn had come, on two CPUs or fewer, are worked on."""
    data = slow_picture()
    with server(model_dir, tmp_path) as service:
        waiting = [_begin(service, len(data), data) for _ in range(8)]
        time.sleep(0.3)
        for connection in waiting:
            connection.close()
        _wait_until(lambda: service.log.count('"message": "request"') == 8)
        assert service.log.count("client_disconnected") >= 4
        assert is_of(service.encode(picture(6)), encoder.encode(picture(6)))


def slow_picture() -> bytes:
    gradient = Image.radial_gradient("L").resize((5000, 4000)).convert("RGB")
    return encoded(gradient, "PNG", compress_level=1)


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stop_waits_for_no_body_longer_than_it_may_take(model_dir: Path, tmp_path: Path) -> None:
    with server(model_dir, tmp_path, CLIP_BODY_SECONDS="1") as service:
        _begin(service, 1000, b"x")
        time.sleep(0.2)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=20) in (0, -signal.SIGTERM)
        assert service.log.count('"code": "body_too_slow"') == 1


def test_a_stop_finishes_what_it_began(model_dir: Path, tmp_path: Path, encoder: Encoder) -> None:
    data = slow_picture()
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


def test_make_dev_serves_what_was_changed(model_dir: Path, tmp_path: Path) -> None:
    """In a copy of the package, whose version is then another."""
    shutil.copytree(ROOT / "handler", tmp_path / "handler")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    would_run = [
        "make",
        "--no-print-directory",
        "--dry-run",
        "dev",
        f"PORT={free_port()}",
        f"MODEL_DIR={model_dir}",
    ]
    dry = subprocess.run(would_run, cwd=ROOT, capture_output=True, text=True, check=True)
    command = dry.stdout.splitlines()[-1]
    process = subprocess.Popen(["bash", "-c", command], cwd=tmp_path, start_new_session=True)
    try:
        _wait_until(lambda: _version(command) == __version__)
        package = tmp_path / "handler" / "__init__.py"
        package.write_text(package.read_text().replace(f'"{__version__}"', '"2.0.0-dev"'))
        _wait_until(lambda: _version(command) == "2.0.0-dev")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)


def _version(command: str) -> str:
    """Of the server that `command` started; empty while it does not answer."""
    port = command.partition("--port ")[2].split()[0]
    with contextlib.suppress(httpx.TransportError):
        return str(httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).json()["version"])
    return ""
