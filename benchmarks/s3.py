"""A stand-in for S3 that costs next to no CPU: one photograph under every key, at S3's own pace."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FIRST_BYTE = 0.03
"""Seconds until S3 begins to answer a request from a function in its region, typically."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    photograph: bytes

    def do_GET(self) -> None:  # the standard library's name
        self._answer(self.photograph)

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_PUT(self) -> None:
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        time.sleep(FIRST_BYTE)
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def stand_in(photograph: bytes) -> Iterator[None]:
    """Serve `photograph`. Processes that are started meanwhile take this for S3."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (_Handler,), {"photograph": photograph})
    )
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_REGION": "us-east-1",
        "CLIP_S3_BUCKETS": "photos",
        "CLIP_OUTPUT": "s3://vectors/benchmark",
    }
    before = os.environ.copy()
    os.environ.update(env)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        os.environ.clear()
        os.environ.update(before)
