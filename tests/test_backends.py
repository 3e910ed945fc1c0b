"""The backends of examples/, in Python and in Node: behind a gateway, and through its errors."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import playwright
import pytest

from handler.encoder import Encoder
from tests import documents
from tests.conftest import ROOT, free_port
from tests.gateway import CREDENTIALS, OWN, gateway
from tests.peers import Reply, in_turn, peer, vector

NODE = Path(playwright.__file__).parent / "driver" / "node"
"""Playwright brings a Node of its own."""
PROGRAMS = {"backend.py": sys.executable, "backend.mjs": str(NODE)}
KEY = "a-key-of-the-api"
SERVED = Reply(body=vector(1), headers={"X-Clip-Fingerprint": "f"})

Backend = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=PROGRAMS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the two programs in turn."""

    def run(url: str, picture: Path, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PYTHONPATH": str(ROOT / "client"),
            "USE_LOCAL_CLIP": "true",
            "LOCAL_CLIP_URL": url,
        }
        return subprocess.run(
            [PROGRAMS[request.param], ROOT / "examples" / request.param, picture],
            env=os.environ | environment | settings,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory, photo: bytes) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "photo.jpg"
    path.write_bytes(photo)
    return path


# --- behind a gateway, with the function under the emulator ---------------------------------------


@pytest.mark.parametrize("access", ["open", "key", "signature"])
def test_a_backend_is_let_in(
    backend: Backend, lambda_client: httpx.Client, picture: Path, encoder: Encoder, access: str
) -> None:
    settings = {
        "open": {},
        "key": {"LOCAL_CLIP_API_KEY": KEY},
        "signature": {"LOCAL_CLIP_SIGV4": "true", **CREDENTIALS},
    }[access]
    wanted = {"key": KEY if access == "key" else "", "signed": access == "signature"}
    with gateway(lambda_client, **wanted) as api:  # type: ignore[arg-type]
        done = backend(api.address, picture, **settings)
    assert done.stdout.split() == ["512", encoder.fingerprint], done.stderr
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("settings", "wanted", "said"),
    [
        ({}, {"key": KEY}, "HTTP 403: Forbidden"),
        ({"LOCAL_CLIP_API_KEY": "wrong"}, {"key": KEY}, "HTTP 403: Forbidden"),
        ({}, {"signed": True}, "HTTP 403: User: anonymous is not authorized"),
        (
            {"LOCAL_CLIP_SIGV4": "true", **CREDENTIALS, "AWS_SECRET_ACCESS_KEY": "wrong"},
            {"signed": True},
            "HTTP 403: The request signature we calculated does not match",
        ),
    ],
)
def test_a_backend_that_is_not_let_in_says_so_at_once(
    backend: Backend,
    lambda_client: httpx.Client,
    picture: Path,
    settings: dict[str, str],
    wanted: dict[str, object],
    said: str,
) -> None:
    with gateway(lambda_client, **wanted) as api:  # type: ignore[arg-type]
        done = backend(api.address, picture, **settings)
    assert "CallerRefused" in done.stderr
    assert said in done.stderr
    assert CREDENTIALS["AWS_SESSION_TOKEN"] not in done.stderr
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no picture", "HTTP 422: the data is not an image"),
        (bytes(10 * 2**20 + 1), "HTTP 413: Request Too Long"),
    ],
)
def test_a_picture_that_is_refused_is_sent_once(
    backend: Backend, lambda_client: httpx.Client, tmp_path: Path, data: bytes, said: str
) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    with gateway(lambda_client) as api:
        done = backend(api.address, path)
    assert "PictureRefused" in done.stderr
    assert said in done.stderr
    assert len(api.requests) == 1


# --- what a gateway answers itself ----------------------------------------------------------------

ENDS = {
    "no key": "CallerRefused",
    "no such path": "CallerRefused",
    "not permitted": "CallerRefused",
    "wrongly signed": "CallerRefused",
    "unauthorized": "CallerRefused",
    "quota": "CallerRefused",
    "URL, not permitted": "CallerRefused",
    "too large": "PictureRefused",
}
"""What is not asked again, and the error that it is. All else of a gateway may pass."""


@pytest.mark.parametrize("name", OWN)
def test_what_may_pass_is_tried_again_and_nothing_else(
    backend: Backend, picture: Path, name: str
) -> None:
    with peer(in_turn(OWN[name], SERVED)) as service:
        done = backend(service.address, picture)
    if name in ENDS:
        assert ENDS[name] in done.stderr
        assert f"HTTP {OWN[name].status}: " in done.stderr
        assert len(service.requests) == 1
    else:
        assert done.stdout.split() == ["512", "f"], done.stderr
        assert len(service.requests) == 2


@pytest.mark.parametrize(
    "reply",
    [
        Reply(0),  # it hangs up
        Reply(503, {"code": "overloaded", "detail": "busy"}, {"Retry-After": "0"}),
        Reply(503, {"code": "overloaded", "detail": "busy"}, {"Retry-After": "soon"}),
        Reply(429, {}, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    ],
)
def test_a_service_in_trouble_is_asked_again(backend: Backend, picture: Path, reply: Reply) -> None:
    with peer(in_turn(reply, SERVED)) as service:
        done = backend(service.address, picture)
    assert done.stdout.split() == ["512", "f"], done.stderr
    assert len(service.requests) == 2


def test_a_backend_gives_up_after_three_times(backend: Backend, picture: Path) -> None:
    with peer(lambda _: OWN["crashed function"]) as service:
        done = backend(service.address, picture)
    assert "Failed" in done.stderr
    assert "HTTP 502: Internal server error" in done.stderr
    assert len(service.requests) == 3


def test_a_backend_gives_up_on_a_service_that_is_not_there(backend: Backend, picture: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    done = backend(address, picture)
    assert "Failed" in done.stderr
    assert f"{address}: " in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize("body", [b"<html>welcome</html>", {"embedding": []}, vector(1)])
def test_what_is_not_the_service_is_not_taken_for_it(
    backend: Backend, picture: Path, body: object
) -> None:
    """The last is a vector without the name of what made it, which must stand beside it."""
    with peer(lambda _: Reply(body=body)) as service:
        done = backend(service.address, picture)
    assert f"what answered at {service.address} is not the service" in done.stderr
    assert len(service.requests) == 1


def test_a_backend_asks_only_if_it_is_told_to(backend: Backend, picture: Path) -> None:
    with peer(lambda _: SERVED) as service:
        done = backend(service.address, picture, USE_LOCAL_CLIP="")
    assert "USE_LOCAL_CLIP is not true" in done.stderr
    assert service.requests == []


# --- OpenAI's client, as docs/recipes.md shows it -------------------------------------------------


def _recipe(address: str) -> str:
    (code,) = (code for _, code in documents.blocks("python") if "from openai" in code)
    return code.replace("http://localhost:3000", address)


def test_openais_client_is_let_in_by_a_key(
    lambda_client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with gateway(lambda_client, key=KEY) as api:
        monkeypatch.setenv("ENCODER_API_KEY", KEY)
        names: dict[str, Any] = {}
        exec(_recipe(api.address), names)
        names["client"].close()
        assert capsys.readouterr().out == "2 512\n"
        monkeypatch.delenv("ENCODER_API_KEY")
        with pytest.raises(openai.PermissionDeniedError, match="Forbidden"):
            exec(_recipe(api.address), names)
        names["client"].close()


def test_openais_client_is_let_in_by_a_signature(
    lambda_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_encoder.transports.sigv4 import Signature

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with (
        gateway(lambda_client, signed=True) as api,
        httpx.Client(auth=Signature(httpx.URL(api.address).host), trust_env=False) as http,
    ):
        # Its annotations name httpx2 alone; httpx is taken too.
        client = openai.OpenAI(base_url=f"{api.address}/v1", api_key="any", http_client=http)  # type: ignore[arg-type]
        answer = client.embeddings.create(model="ViT-B-32", input=["a photo of a cat"])
    assert len(answer.data[0].embedding) == 512
