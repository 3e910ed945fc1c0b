"""S3, SQS and S3 Vectors over HTTP on this machine: moto's server, with faults where an object's
key asks.

``python -m tests.aws PORT`` serves it; `aws` runs that in a process of its own and gives its
clients.
"""

import io
import json
import os
import random
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
from botocore.config import Config as Settings

from handler import aws as calls
from tests import nearest
from tests.conftest import ROOT, free_port, wait_for

FAULTS = {
    "denied/": ("403 Forbidden", "AccessDenied"),
    "archived/": ("403 Forbidden", "InvalidObjectState"),
    "undecryptable/": ("400 Bad Request", "KMS.DisabledException"),
    "elsewhere/": ("400 Bad Request", "IllegalLocationConstraintException"),
    "expired/": ("400 Bad Request", "ExpiredToken"),
    "throttled/": ("503 Slow Down", "SlowDown"),
    "throttled-once/": ("503 Slow Down", "SlowDown"),
    "broken/": ("500 Internal Server Error", "InternalError"),
}
"""What reading an object whose key begins so is answered with, however often (``-once/``: the first
time).
"""
SLOW, CUT, HUGE = "slow/", "cut/", "huge/"
"""Read after a second; to the half, then the connection ends; a terabyte, of which no byte ever
comes.
"""
BROKEN_OUTPUT = "/no-space/"
"""The bucket that takes nothing."""
CHANGING = "changing/"
"""What a key begins with whose vector takes up to a second to be written or removed, however it
falls out: of two that write it, the later one is often done first."""
UNWRITABLE = "unwritable/"
"""What a key begins with whose vector may not be written, to a file of its own or to an index; and
a run, to whose folder nothing may be written."""


class Faulty:
    """A WSGI application around moto's."""

    def __init__(self, moto: Any, delay: float) -> None:
        self.moto = moto
        self.delay = (
            delay  # seconds before an object is read: S3's own first byte takes 20 to 50 ms
        )
        self.reads: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = str(environ["PATH_INFO"]).encode("latin-1").decode()
        key = path.lstrip("/").partition("/")[2]
        if environ["REQUEST_METHOD"] == "PUT" and key:
            return self._put_object(path, key, environ, start_response)
        if path in ("/PutVectors", "/DeleteVectors"):
            return self._write_vectors(environ, start_response)
        if path == "/QueryVectors":  # which moto does not know
            return self._query_vectors(environ, start_response)
        if environ["REQUEST_METHOD"] == "GET" and key:
            return self._get_object(path, key, environ, start_response)
        return self.moto(environ, start_response)  # type: ignore[no-any-return]

    def _put_object(
        self, path: str, key: str, environ: dict[str, Any], start_response: Any
    ) -> Iterable[bytes]:
        if path.startswith(BROKEN_OUTPUT):
            return _refuse(start_response, *FAULTS["broken/"])
        if key.endswith(".npz"):
            names = _names_in_file(environ)
            if f"/runs/{UNWRITABLE}" in key or ("/objects/" in key and _any(names, UNWRITABLE)):
                return _refuse(start_response, *FAULTS["denied/"])
            _take_time(names)
        return self.moto(environ, start_response)  # type: ignore[no-any-return]

    def _write_vectors(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        names = _names_in_request(environ)
        if _any(names, UNWRITABLE):  # one vector that is refused, and all of the request is
            return _refuse_json(start_response, "403 Forbidden", "AccessDeniedException")
        _take_time(names)
        return self.moto(environ, start_response)  # type: ignore[no-any-return]

    def _query_vectors(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        query = json.loads(_body(environ))
        everything = {"indexArn": query["indexArn"], "returnData": True, "returnMetadata": True}
        vectors = json.loads(self._ask("/ListVectors", everything, environ))["vectors"]
        try:
            found = nearest.find(query, vectors)
        except ValueError:
            return _refuse_json(start_response, "400 Bad Request", "ValidationException")
        answer = json.dumps({"vectors": found, "distanceMetric": "cosine"}).encode()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [answer]

    def _ask(self, path: str, request: dict[str, Any], environ: dict[str, Any]) -> bytes:
        """Ask moto something else in the name of who asked."""
        body = json.dumps(request).encode()
        asking = environ | {
            "PATH_INFO": path,
            "RAW_URI": path,
            "REQUEST_URI": path,
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        return b"".join(self.moto(asking, lambda *_: None))

    def _get_object(
        self, path: str, key: str, environ: dict[str, Any], start_response: Any
    ) -> Iterable[bytes]:
        self.reads[path] += 1
        time.sleep(1 if key.startswith(SLOW) else self.delay)
        for prefix, (status, code) in FAULTS.items():
            if key.startswith(prefix) and ("once" not in prefix or self.reads[path] == 1):
                return _refuse(start_response, status, code)
        if key.startswith(HUGE):
            start_response("200 OK", [("Content-Length", str(10**12)), ("ETag", '"0"')])
            return []
        whole = self.moto(environ, start_response)
        if key.startswith(CUT):  # the head has promised all of it
            return [b"".join(whole)[:1000]]
        return whole  # type: ignore[no-any-return]


def _refuse(start_response: Any, status: str, code: str) -> list[bytes]:
    body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    start_response(status, [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _body(environ: dict[str, Any]) -> bytes:
    """The request's body, which can be read again afterwards."""
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def _names_in_file(environ: dict[str, Any]) -> list[str]:
    body = _body(environ)
    if not zipfile.is_zipfile(io.BytesIO(body)):  # some test's own
        return []
    with np.load(io.BytesIO(body)) as file:
        return [*file["name"].tolist(), *file["removed"].tolist()]


def _names_in_request(environ: dict[str, Any]) -> list[str]:
    request = json.loads(_body(environ))
    return [vector["key"] for vector in request.get("vectors", [])] + list(request.get("keys", []))


def _any(names: list[str], prefix: str) -> bool:
    """Whether one of the objects of these names has a key that begins so."""
    return any(name.split("/", 3)[3].startswith(prefix) for name in names if "s3://" in name)


def _take_time(names: list[str]) -> None:
    if _any(names, CHANGING):
        time.sleep(random.random())


def _refuse_json(start_response: Any, status: str, code: str) -> list[bytes]:
    body = json.dumps({"message": code}).encode()
    head = [
        ("x-amzn-ErrorType", code),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
    ]
    start_response(status, head)
    return [body]


@contextmanager
def aws(delay: float = 0.0, host: str = "127.0.0.1") -> Iterator[SimpleNamespace]:
    """Run the stand-in and point this process's boto3, and its children's, at it.

    Gives clients ``s3``, ``sqs``, ``s3vectors``, and ``env``, the variables that lead to it. A
    container reaches it if `host`, where it listens, is 0.0.0.0.
    """
    port = free_port()
    command = [sys.executable, "-m", "tests.aws", str(port), str(delay), host]
    settings = os.environ | {"MOTO_PORT": str(port)}  # where its Step Functions look for S3
    process = subprocess.Popen(
        command, cwd=ROOT, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        wait_for(port, process)
        with environment(env):
            settings = Settings(retries={"total_max_attempts": 1})
            names = ("s3", "sqs", "s3vectors")
            clients = {name: boto3.client(name, config=settings) for name in names}
            yield SimpleNamespace(env=env, **clients)
    finally:
        process.kill()
        process.wait()


@contextmanager
def environment(env: dict[str, str]) -> Iterator[None]:
    """Set these variables, and have the service's clients made anew, which read them."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    calls._make_client.cache_clear()
    try:
        yield
    finally:
        calls._make_client.cache_clear()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def take_vectors(s3: Any, bucket: str = "vectors") -> dict[str, dict[str, Any]]:
    """Every object of vectors in `bucket`, its arrays by their names; then they are gone."""
    found = {}
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    for item in [item for page in pages for item in page.get("Contents", [])]:
        with np.load(
            io.BytesIO(s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
        ) as file:
            found[f"s3://{bucket}/{item['Key']}"] = dict(file)
        s3.delete_object(Bucket=bucket, Key=item["Key"])
    return found


def serve(port: int, delay: float, host: str) -> None:
    """Serve until killed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    from tests import stepfunctions

    stepfunctions.install()
    moto = DomainDispatcherApplication(create_backend_app)
    make_server(host, port, Faulty(moto, delay), threaded=True).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
