"""Docker's API, with Lambda's refusals in every container: for programs that take no such option.

SAM CLI starts containers with options of its own. It is pointed at this proxy, which adds to each
order for a container the profile of system calls that `docker run` is given elsewhere, and passes
on everything else byte for byte.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from tests.refusing import LAMBDA

CREATE = re.compile(rb"POST (/v[\d.]+)?/containers/create[? ]")
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
HOST = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")


class _Connection(socketserver.BaseRequestHandler):
    """One connection of a client, with one of its own to the Docker engine."""

    def handle(self) -> None:
        """Pass on requests and answers, until both sides have said all."""
        with socket.socket(socket.AF_UNIX) as engine, self.request.makefile("rb") as stream:
            engine.connect(HOST)
            answers = threading.Thread(target=_copy, args=(engine, self.request), daemon=True)
            answers.start()
            while head := _head(stream):
                _pass_on(head, stream, engine)
            with contextlib.suppress(OSError):
                engine.shutdown(socket.SHUT_WR)
            answers.join()


def _pass_on(head: bytes, stream: BufferedReader, engine: socket.socket) -> None:
    """Send the engine one request or, where it takes the connection over, all that follows."""
    length = LENGTH.search(head)
    if b"chunked" in head or b"Upgrade" in head:
        engine.sendall(head)
        while data := stream.read1(2**16):
            engine.sendall(data)
        return
    body = stream.read(int(length[1])) if length else b""
    if CREATE.match(head):
        head, body = _confined(head, body)
    engine.sendall(head + body)


def _head(stream: BufferedReader) -> bytes:
    """The first lines of a request, with the empty one after them."""
    lines = bytearray()
    while not lines.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return b""
        lines += line
    return bytes(lines)


def _confined(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    """An order for a container, and the same with Lambda's refusals."""
    order = json.loads(body)
    host = order.setdefault("HostConfig", {})
    profile = json.dumps(json.loads(LAMBDA.read_text()))
    host["SecurityOpt"] = ["no-new-privileges", f"seccomp={profile}"]
    body = json.dumps(order).encode()
    return LENGTH.sub(b"\r\nContent-Length: %d" % len(body), head), body


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def docker_proxy() -> Iterator[str]:
    """A ``DOCKER_HOST`` whose containers are refused what Lambda refuses."""
    folder = Path(tempfile.mkdtemp(prefix="docker-"))  # pytest's are too long for a socket's name
    try:
        with _Server(str(folder / "docker.sock"), _Connection) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"unix://{folder}/docker.sock"
            server.shutdown()
    finally:
        shutil.rmtree(folder)
