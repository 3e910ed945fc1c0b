"""Web servers as one would run them, and the clients that send photographs to them.

``BentoML`` is what the old service was; ``exact`` and ``fast`` are this one under uvicorn, as
``make run`` starts it. Standard library only: see ``inputs``.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.measure import OURS, RIVALS, peak_megabytes

SERVERS = ("BentoML", *OURS)
CLIENTS = 8
"""Callers at the same time, each of whom waits for an answer before sending the next request."""
PATIENCE = 120
"""Seconds that a server may take to start."""


@dataclass(frozen=True)
class Upload:
    """A form with one photograph, which every client sends."""

    body: bytes
    content_type: str

    @classmethod
    def of(cls, inputs: Path) -> "Upload":
        """The same that the REST rows send, without API Gateway around it."""
        event = json.loads((inputs / "event.json").read_bytes())
        headers = {name.lower(): value for name, value in event["headers"].items()}
        return cls(base64.b64decode(event["body"]), headers["content-type"])


class Client:
    """One caller, who keeps a connection open."""

    def __init__(self, port: int, upload: Upload) -> None:
        self.connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.upload = upload
        self.answer = b""

    def post(self) -> float:
        """Send the photograph; the seconds until all of the vector is there."""
        begin = time.perf_counter()
        headers = {"Content-Type": self.upload.content_type}
        self.connection.request("POST", "/encode_image", self.upload.body, headers)
        response = self.connection.getresponse()
        self.answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"answered {response.status}: {self.answer[:200]!r}")
        return time.perf_counter() - begin

    def close(self) -> None:
        """Hang up; `post` would open a new connection."""
        self.connection.close()


class Running:
    """A server that has answered once."""

    def __init__(self, name: str, inputs: Path) -> None:
        """Start it and wait for its first answer.

        Raises:
            FileNotFoundError: it is not installed.
            RuntimeError: it ended, or did not answer in time, or not with a vector.
        """
        self.upload = Upload.of(inputs)
        self.port = _free_port()
        begin = time.monotonic()
        self.popen = subprocess.Popen(
            _command(name, self.port),
            env=os.environ | _environment(name, inputs),
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self.vector = self._first_answer(name)
        except BaseException:
            self.end()
            raise
        self.seconds_to_start = time.monotonic() - begin
        """From before it was started until its first answer was there."""

    def _first_answer(self, name: str) -> list[float]:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                with closing(Client(self.port, self.upload)) as client:
                    client.post()
            except ConnectionError:  # it does not listen yet
                if self.popen.poll() is not None:
                    raise RuntimeError(f"{name} ended with {self.popen.returncode}") from None
                time.sleep(0.02)
            else:
                vector: list[float] = json.loads(client.answer)
                assert len(vector) == 512, client.answer[:200]
                return vector
        raise RuntimeError(f"{name} did not answer within {PATIENCE} s")

    def one_client(self, requests: int) -> list[float]:
        """Seconds of each of so many requests, one after the other."""
        with closing(Client(self.port, self.upload)) as client:
            client.post()  # after a pause the first one is slower
            return [client.post() for _ in range(requests)]

    def many_clients(self, requests: int) -> tuple[float, list[float]]:
        """`CLIENTS` at once, each with so many requests: seconds in all, and of each request."""

        def one(_: int) -> list[float]:
            with closing(Client(self.port, self.upload)) as client:
                return [client.post() for _ in range(requests)]

        with ThreadPoolExecutor(CLIENTS) as threads:
            begin = time.perf_counter()
            times = list(threads.map(one, range(CLIENTS)))
            seconds = time.perf_counter() - begin
        return seconds, [second for row in times for second in row]

    def peak_mb(self) -> float:
        """Memory of all its processes, at its largest so far."""
        return peak_megabytes(self.popen.pid)

    def end(self) -> None:
        """Ask it to end, and see to it that nothing of it is left."""
        self.popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


def _command(name: str, port: int) -> list[str]:
    at = ["--host", "127.0.0.1", "--port", str(port)]
    if name == "BentoML":
        return [str(RIVALS / "bentoml"), "serve", "benchmarks.bento:ClipImageEncoder", *at]
    return [sys.executable, "-m", "uvicorn", "handler.main:app", "--no-access-log", *at]


def _environment(name: str, inputs: Path) -> dict[str, str]:
    if name == "BentoML":  # which keeps files of its own, and reports its use unless told not to
        return {"BENTOML_HOME": str(inputs / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    return {"CLIP_PROFILE": name, "CLIP_MODEL_DIR": str(inputs / "model")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
