"""An AWS of raw sockets, which hangs, drips, and refuses with whatever status and code a test asks.

Each of `WAYS` is what an object's key or a bucket begins with that is answered so (``hang/x``), or
with a method before it that only this method finds so (``HEAD-hang/x``). All else is answered well:
every object is the one file given, and everything may be written. ``refuse-403-AccessDenied/x`` is
refused so, ``late/x`` comes after 0.2 s, ``garbled/x`` has a length that is no number, and
``corrupted/x`` a checksum that is not its own.
"""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.aws import environment

DRIP = 0.02
"""Seconds between the bytes of what drips: less than any limit on one read of a socket."""


class Slow:
    """The server. Each connection has a thread, which ends when the client hangs up."""

    def __init__(self, file: bytes) -> None:
        self.file = file
        self.written: list[str] = []
        """Paths of all that could be written."""
        self.refused = 0
        """Requests."""
        self.accepted = 0
        """Connections."""
        self.connections = 0
        """Open ones."""
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # `shutdown` wakes the thread that accepts; `close` alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with self._lock:
                    self.accepted += 1
                    self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if connection.recv(1, socket.MSG_PEEK) == b"\x16":  # TLS
                WAYS["drip-handshake"](connection, b"")
            while request := self._request(connection):
                self._answer(connection, request)
        with self._lock:
            self.connections -= 1

    def _request(self, connection: socket.socket) -> str:
        """Read a request: its method and path, or nothing when the client has hung up."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = connection.recv(1)
            if not byte:
                return ""
            head += byte
        length = re.search(rb"(?i)content-length: (\d+)", head)
        expected, body = int(length[1]) if length else 0, b""
        if expected and b"100-continue" in head:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(body) < expected:
            body += connection.recv(65536)
        line = head.split(b" HTTP/", 1)[0].decode()
        if "Vectors" in line:  # S3 Vectors has the names in its body
            index = json.loads(body)
            line += f"/{index['vectorBucketName']}/{index['vectors'][0]['key']}"
        return line

    def _answer(self, connection: socket.socket, request: str) -> None:
        method, _, path = request.partition(" ")
        body = self.file if method == "GET" else b""
        for name, way in WAYS.items():
            if re.search(rf"/({method}-)?{name}(/|$)", path):
                way(connection, _head(self.file) + body)
                return
        if refusal := re.search(rf"/({method}-)?refuse-(\d+)-([\w.]*)(/|$)", path):
            self.refused += 1
            connection.sendall(_refusal(method, *refusal.group(2, 3)))
        elif "/late/" in path:
            time.sleep(0.2)
            connection.sendall(_head(self.file) + body)
        elif "/garbled/" in path:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n")
            connection.shutdown(socket.SHUT_RDWR)
        elif "/corrupted/" in path:
            connection.sendall(_head(self.file, b"x-amz-checksum-crc32: AAAAAA==\r\n") + body)
        elif method in ("PUT", "POST"):
            self.written.append(path)
            connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 0\r\n\r\n')
        else:
            connection.sendall(_head(self.file) + body)


def _head(body: bytes, more: bytes = b"") -> bytes:
    return (
        b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Type: image/jpeg\r\n'
        + more
        + b"Content-Length: %d\r\n\r\n" % len(body)
    )


def _refusal(method: str, status: str, code: str) -> bytes:
    """In the form of S3, and of S3 Vectors, which has the code in a header."""
    body = (
        f"<Error><Code>{code}</Code><Message>{code}</Message></Error>" if method != "POST" else ""
    )
    length = len(body)
    body = "" if method == "HEAD" else body
    head = f"HTTP/1.1 {status} No\r\nx-amzn-ErrorType: {code}\r\nContent-Length: {length}\r\n\r\n"
    return (head + body).encode()


def _hang(connection: socket.socket, answer: bytes) -> None:
    while connection.recv(4096):
        pass


def _drip(connection: socket.socket, answer: bytes) -> None:
    """A byte at a time. The client does not read what it has hung up on, so sending fails then."""
    for number in range(len(answer)):
        connection.sendall(answer[number : number + 1])
        time.sleep(DRIP)


def _drip_body(connection: socket.socket, answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    connection.sendall(head + b"\r\n\r\n")
    _drip(connection, body)


def _drip_head(connection: socket.socket, answer: bytes) -> None:
    _drip(connection, b"HTTP/1.1 200 OK\r\n" + b"X-" + b"More" * 1000)


def _drip_handshake(connection: socket.socket, answer: bytes) -> None:
    _drip(connection, b"\x16\x03\x03\x40\x00" + bytes(16384))


WAYS: dict[str, Callable[[socket.socket, bytes], None]] = {
    "hang": _hang,
    "drip-body": _drip_body,
    "drip-head": _drip_head,
    "drip-handshake": _drip_handshake,
}


@contextmanager
def slow_aws(file: bytes) -> Iterator[Slow]:
    """Run the server and point this process's boto3 at it."""
    server = Slow(file)
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with environment(env):
        yield server
    server.close()
