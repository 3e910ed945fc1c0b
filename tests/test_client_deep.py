"""``clip-encoder health --deep``: it passes what works, and names what does not."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from clip_encoder import transports
from clip_encoder.checking.deployment import PHOTO, Report, Sample, examine, load_sample
from clip_encoder.cli import main
from handler.encoder import Encoder
from tests.conftest import ROOT, serve, with_settings
from tests.gateway import CREDENTIALS, OWN, gateway
from tests.peers import Reply, Request, peer, vector

KEY = "a-key-of-the-api"
VENV = Path(sys.executable).parent.parent
ALL = [
    *("health", "sandbox", "multipart form", "raw image/jpeg", "base64 in JSON", "ways agree"),
    *("known image", "bad file, multipart form", "bad file, raw image/jpeg"),
    *("bad file, base64 in JSON", "warm", "text", "known text"),
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask three times in the place of ten, to save time."""
    monkeypatch.setattr("clip_encoder.checking.deployment.WARM_REQUESTS", 3)


@pytest.fixture(scope="module")
def url(client: httpx.Client) -> str:
    return str(client.base_url)


def deep(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["health", "--deep", *arguments])
    return status, capsys.readouterr().out


def checks(page: str) -> dict[str, tuple[str, str]]:
    """Of a page: what was tried -> how it went, and what is said of it."""
    names = "|".join(map(re.escape, ALL))
    found = re.findall(rf"^(ok|FAILED|-) +({names}) +(.*)$", page, re.MULTILINE)
    return {name: (mark, detail) for mark, name, detail in found}


# --- where all is well ----------------------------------------------------------------------------


def test_a_web_server(
    url: str, model_dir: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    status, page = deep(capsys, "--url", url, "--model", str(model_dir))
    assert status == 0
    found = checks(page)
    assert list(found) == ALL
    assert {mark for name, (mark, _) in found.items() if name != "sandbox"} == {"ok"}
    first = ", ".join(f"{number:.6f}" for number in encoder.encode(PHOTO.read_bytes())[:4])
    for way in ("multipart form", "raw image/jpeg", "base64 in JSON"):
        assert found[way][1].startswith(f"512 numbers, {first}, ...; ")
    assert found["ways agree"][1] == "the same vector to the bit"
    assert re.match(r"cosine (1\.0000000|0\.999999\d) ", found["known image"][1])
    assert re.search(rf"^fingerprint +{re.escape(encoder.fingerprint)}$", page, re.MULTILINE)
    assert page.endswith("\nnothing failed\n")


def test_an_api_that_asks_for_a_key(
    lambda_client: httpx.Client, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real runtime under the emulator, behind a stand-in for API Gateway."""
    with gateway(lambda_client, key=KEY) as api:
        status, page = deep(
            capsys, "--url", api.address, "--api-key", KEY, "--model", str(model_dir)
        )
    assert status == 0, page
    assert list(checks(page)) == ALL
    assert "access   an API key" in page
    assert KEY not in page


def test_an_api_that_asks_for_a_signature(
    lambda_client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with gateway(lambda_client, signed=True) as api:
        status, page = deep(capsys, "--url", api.address, "--sigv4")
        assert status == 0, page
        assert checks(page)["known image"][0] == "-"
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        status, page = deep(capsys, "--url", api.address, "--sigv4")
    assert status == 1
    assert CREDENTIALS["AWS_SESSION_TOKEN"] not in page


def test_the_function_without_http(
    lambda_client: httpx.Client,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", str(lambda_client.base_url))
    status, page = deep(capsys, "--url", "lambda://function", "--model", str(model_dir))
    assert status == 0, page
    uploads = ("multipart", "raw", "ways")
    assert list(checks(page)) == [name for name in ALL if not any(u in name for u in uploads)]


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``make smoke``, in the environment of the tests instead of one that it would install."""
    here = [f"SMOKE={VENV}", "--old-file", f"{VENV}/.installed"]
    return subprocess.run(
        ["make", "smoke", *here, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_smoke(lambda_client: httpx.Client, model_dir: Path) -> None:
    with gateway(lambda_client, key=KEY) as api:
        given = (f"URL={api.address}", f"MODEL_DIR={model_dir}")
        done = _make(*given, f"KEY={KEY}")
        refused = _make(*given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(checks(done.stdout)) == ALL
    assert checks(done.stdout)["known image"][0] == "ok"
    assert KEY not in done.stdout + done.stderr
    assert refused.returncode != 0
    assert checks(refused.stdout)["text"][1].startswith("forbidden: HTTP 403")


def test_make_smoke_wants_to_know_which(model_dir: Path) -> None:
    done = _make()
    assert done.returncode != 0
    assert "make smoke URL=" in done.stderr
    shown = _make("--dry-run", "URL=http://x", f"KEY={KEY}", f"MODEL_DIR={model_dir / 'none'}")
    assert "--url 'http://x'" in shown.stdout
    assert "--model" not in shown.stdout
    assert KEY not in shown.stdout


def test_as_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, page = deep(capsys, "--url", url, "--json")
    body = json.loads(page)
    assert (status, body["passed"], body["address"]) == (0, True, url)
    assert [check["name"] for check in body["checks"]] == ALL
    assert body["health"]["model"] == "ViT-B/32"


def test_a_service_of_texts_alone(encoder: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    texts_alone = with_settings(encoder)
    texts_alone.images = None
    with serve(texts_alone) as client:
        status, page = deep(capsys, "--url", str(client.base_url))
    assert status == 0, page
    assert list(checks(page)) == ["health", "sandbox", "text", "known text"]


# --- where something is wrong ---------------------------------------------------------------------

Change = Callable[[Request, Reply], Reply]


def _report(client: httpx.Client, change: Change, sample: Sample | None = None) -> Report:
    """What is found of the real server, whose answers `change` changes on the way."""

    def answer(request: Request) -> Reply:
        kept = {"content-type": request.headers.get("content-type", "")}
        answered = client.request(request.method, request.path, content=request.body, headers=kept)
        headers = {"x-clip-fingerprint": answered.headers.get("x-clip-fingerprint", "")}
        return change(request, Reply(answered.status_code, answered.json(), headers))

    with peer(answer) as service:
        transport = transports.connect(
            service.address, api_key=None, sigv4=False, timeout=60, connections=1
        )
        report = examine(transport, sample or load_sample(None), is_http=True)
        transport.close()
    return report


def _failed(report: Report) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks if check.passed is False}


def _of(way: str) -> Callable[[Request], bool]:
    return lambda request: request.headers.get("content-type", "").startswith(way)


RAW, JSON, FORM = _of("image/"), _of("application/json"), _of("multipart/")


def test_what_does_not_change_passes(client: httpx.Client) -> None:
    report = _report(client, lambda _, reply: reply)
    assert _failed(report) == {}
    assert report.passed


def test_an_api_that_carries_no_binary_bodies(client: httpx.Client) -> None:
    """As API Gateway is where nobody told it of media types: bytes arrive as broken text."""

    def answer(request: Request) -> Reply:
        body = request.body.decode("utf-8", "replace").encode()
        kept = {"content-type": request.headers.get("content-type", "")}
        answered = client.request(request.method, request.path, content=body, headers=kept)
        headers = {"x-clip-fingerprint": answered.headers.get("x-clip-fingerprint", "")}
        return Reply(answered.status_code, answered.json(), headers)

    with peer(answer) as service:
        transport = transports.connect(
            service.address, api_key=None, sigv4=False, timeout=60, connections=1
        )
        report = examine(transport, load_sample(None), is_http=True)
        transport.close()
    assert set(_failed(report)) == {"multipart form", "raw image/jpeg", "warm"}


@pytest.mark.parametrize(
    ("step", "passes"), [(1e-6, True), (1e-2, False)]
)  # the cosines are about 1 - 3e-10 and 1 - 0.025
def test_ways_that_do_not_agree(client: httpx.Client, step: float, passes: bool) -> None:
    def change(request: Request, reply: Reply) -> Reply:
        if not RAW(request) or reply.status != 200:
            return reply
        moved = np.array(reply.body) + step * np.array(vector(1)) * np.sqrt(512)
        return dataclasses.replace(reply, body=(moved / np.linalg.norm(moved)).tolist())

    report = _report(client, change)
    assert set(_failed(report)) == (set() if passes else {"ways agree"})
    (check,) = (check for check in report.checks if check.name == "ways agree")
    assert "not to the bit" in check.detail


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: dataclasses.replace(r, headers={}), "no header X-Clip-Fingerprint"),
        (lambda r: dataclasses.replace(r, headers={"x-clip-fingerprint": "other"}), "is other"),
        (lambda r: dataclasses.replace(r, body=[2 * x for x in r.body]), "length is 2.0000"),
        (lambda r: dataclasses.replace(r, body=[1.0]), "1 numbers"),
        (lambda r: dataclasses.replace(r, body={"vector": []}), "foreign_answer"),
        (lambda _: OWN["crashed function"], "HTTP 502"),
        (lambda _: OWN["too large"], "Request Too Long"),
    ],
)
def test_a_vector_that_is_not_sound(
    client: httpx.Client, change: Callable[[Reply], Reply], said: str
) -> None:
    report = _report(
        client,
        lambda request, reply: change(reply) if FORM(request) and reply.status == 200 else reply,
    )
    failed = _failed(report)
    assert list(failed) == ["multipart form"]
    assert said in failed["multipart form"]


@pytest.mark.parametrize(
    "reply", [OWN["crashed function"], OWN["no key"], Reply(body=vector(1)), Reply(422, {})]
)
def test_a_bad_file_that_is_not_refused_by_the_service(client: httpx.Client, reply: Reply) -> None:
    report = _report(
        client, lambda request, real: reply if RAW(request) and real.status == 422 else real
    )
    assert list(_failed(report)) == ["bad file, raw image/jpeg"]


def test_a_request_that_is_throttled_when_warm(client: httpx.Client) -> None:
    raw = 0

    def change(request: Request, reply: Reply) -> Reply:
        nonlocal raw
        raw += RAW(request)
        return (
            OWN["too many"] if RAW(request) and raw == 4 else reply
        )  # after the picture and the bad file

    failed = _failed(_report(client, change))
    assert list(failed) == ["warm"]
    assert failed["warm"].startswith("request 2 of 3: too_many_requests: HTTP 429")


def _with_health(**fields: Any) -> Change:
    def change(request: Request, reply: Reply) -> Reply:
        if request.path != "/health":
            return reply
        return dataclasses.replace(reply, body=reply.body | fields)

    return change


LIMITS = dict.fromkeys(("memory", "cpu", "files", "network", "processes", "syscalls"), True)


@pytest.mark.parametrize(
    ("lacking", "passes"),
    [((), True), (("network", "processes", "syscalls"), True), (("memory",), False),
     (("cpu", "syscalls"), False), (("files",), False)],
)  # fmt: skip
def test_limits_that_do_not_hold(
    client: httpx.Client, lacking: tuple[str, ...], passes: bool
) -> None:
    sandbox = LIMITS | dict.fromkeys(lacking, False)
    report = _report(client, _with_health(sandbox=sandbox))
    (check,) = (check for check in report.checks if check.name == "sandbox")
    assert check.passed is passes
    assert report.passed is passes
    named = check.detail.partition("not held here: ")[2]
    assert named == ", ".join(lacking)


def test_a_service_that_is_unhealthy(client: httpx.Client) -> None:
    failed = _failed(_report(client, _with_health(status="unhealthy")))
    assert list(failed) == ["health"]
    assert failed["health"].startswith("unhealthy; ")


def test_health_that_only_some_may_ask(client: httpx.Client) -> None:
    """What can be asked is tried, though nothing is known of it."""

    def change(request: Request, reply: Reply) -> Reply:
        return OWN["no key"] if request.path == "/health" else reply

    assert list(_failed(_report(client, change))) == ["health"]


def test_other_vectors_than_clips(client: httpx.Client, model_dir: Path) -> None:
    right = load_sample(model_dir)
    assert right.image_vector is not None
    wrong = dataclasses.replace(right, image_vector=right.image_vector[::-1].copy())
    failed = _failed(_report(client, lambda _, reply: reply, wrong))
    assert list(failed) == ["known image"]


def test_other_weights_are_not_compared(client: httpx.Client, model_dir: Path) -> None:
    other = dataclasses.replace(load_sample(model_dir), model="ViT-B-32.openai.40d365715913.")
    report = _report(client, lambda _, reply: reply, other)
    assert report.passed
    (check,) = (check for check in report.checks if check.name == "known image")
    assert check.passed is None
    assert "ViT-B-32.openai.40d365715913" in check.detail


def test_no_service(capsys: pytest.CaptureFixture[str]) -> None:
    with peer(lambda _: Reply(0)) as service:
        pass
    status, page = deep(capsys, "--url", service.address)
    assert status == 1
    assert checks(page)["health"][0] == "FAILED"
    assert page.endswith("\n1 of 1 failed\n")


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--deep", "--model", str(tmp_path)]) == 2
    assert "model_unusable" in capsys.readouterr().err


# --- what the page does not show ------------------------------------------------------------------


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize("name", ["not permitted", "wrongly signed", "no key"])
def test_no_secret_is_on_the_page(
    name: str, form: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = OWN[name]
    message = f"{said.body} AKIAIOSFODNN7EXAMPLE {KEY}"
    shown = dataclasses.replace(said, body={"message": message})
    with peer(lambda _: shown) as service:
        address = service.address.replace("http://", "http://me:password@")
        status, page = deep(capsys, "--url", address, "--api-key", KEY, *form)
    assert status == 1
    for secret in (KEY, "password", "AKIA", "123456789012"):
        assert secret not in page
    if form:
        assert json.loads(page)["address"].startswith("http://****@127.0.0.1:")


def test_an_address_with_a_query_keeps_it_to_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for form in ([], ["--json"]):
        _, page = deep(capsys, "--url", "http://127.0.0.1:9/?token=secret", *form)
        assert "secret" not in page
        assert "http://127.0.0.1:9/?****" in page
    assert json.loads(page)["passed"] is False
