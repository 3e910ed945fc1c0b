"""A stand-in for Hugging Face's server, for the real ``huggingface_hub``.

It speaks the part of the protocol by which files are downloaded, and refuses all else:
``HEAD`` and ``GET`` of ``/{repository}/resolve/{revision}/{file}``, with ``Range``.
"""

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMIT = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"


@dataclass
class Hub:
    """The server, and what it has seen."""

    repositories: Mapping[str, Path]
    """Name -> the folder of its files, all of one commit, `COMMIT`."""
    token: str = ""
    """What the ``Authorization`` of a request has to bear; empty: anyone may ask."""
    break_off_at: int = 0
    """Bytes after which the next answer with a body breaks off; 0: it does not."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each."""
    url: str = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: "_Server"
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub = self.server.hub
        wanted = self.headers.get("Range", "")
        hub.requests.append((self.command, self.path, wanted))
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/?]+)", self.path)
        if not match:
            self._refuse(404, "")
        elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(401, "GatedRepo")
        elif match[1] not in hub.repositories:
            self._refuse(401, "RepoNotFound")  # a private one is not told from a missing one
        elif match[2] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif not (file := hub.repositories[match[1]] / match[3]).is_file():
            self._refuse(404, "EntryNotFound")
        else:
            self._send(file.read_bytes(), wanted, body)

    def _send(self, data: bytes, wanted: str, body: bool) -> None:
        digest = hashlib.sha256(data).hexdigest()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not body:
            return
        hub = self.server.hub
        if hub.break_off_at:
            self.wfile.write(data[start : start + hub.break_off_at])
            hub.break_off_at = 0
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


@contextmanager
def serving(repositories: Mapping[str, Path], **options: Any) -> Iterator[Hub]:
    """Run the stand-in at ``hub.url`` on a free port."""
    hub = Hub(repositories, **options)
    with _Server(hub) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
