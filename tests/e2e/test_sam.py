"""The template and the image as people use them: ``sam validate``, ``build``, ``local``."""

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore
import httpx
import numpy as np
import pytest
from botocore.config import Config as BotoConfig
from PIL import Image

from clip_encoder import Client, EncoderError
from clip_encoder.cli import main
from events.generate import HERE, PHOTO
from handler.encoder import Encoder
from handler.engines import Embedding
from tests import documents
from tests.answers import ERRORS, EVENTS, assert_same, check_answer
from tests.conftest import ROOT, free_port
from tests.e2e.conftest import SAM, SAM_ENVIRONMENT, run, sam
from tests.test_backends import PROGRAMS

LOCAL = ("--skip-pull-image", "--template")


@pytest.mark.parametrize("name", ["template.yaml", "batch.yaml"])
def test_the_template_is_valid_and_lint_finds_nothing(template: Path, name: str) -> None:
    answer = sam("validate", "--lint", "--template", str(ROOT / name))
    assert "is a valid SAM Template" in answer.stdout
    assert "[W" not in answer.stdout + answer.stderr


@contextlib.contextmanager
def _serving(kind: str, template: Path, log: Path) -> Iterator[str]:
    """``sam local start-api`` or ``start-lambda``; gives its address."""
    port = free_port()
    command = [SAM, "local", kind, *LOCAL, str(template), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--warm-containers", "EAGER", "--no-watch"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=SAM_ENVIRONMENT, stdout=output, stderr=output, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(httpx.TransportError):
                httpx.get(address, trust_env=False)
                break
            time.sleep(0.1)
        else:
            pytest.fail(log.read_text()[-3000:])
        yield address
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def api(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    log = tmp_path_factory.mktemp("api") / "log"
    with (
        _serving("start-api", template, log) as address,
        httpx.Client(base_url=address, timeout=60, trust_env=False) as client,
    ):
        yield client


def test_health(api: httpx.Client) -> None:
    health = api.get("/health")
    assert health.status_code == 200
    assert health.json()["model"] == "ViT-B/32"
    assert health.json()["weights"] == "synthetic"
    assert health.json()["sandbox"]["syscalls"] is False  # refused as on Lambda, here too


def test_every_form_of_one_image(api: httpx.Client, vector: Embedding) -> None:
    text = base64.b64encode(PHOTO).decode()
    answers = [
        api.post("/encode_image", files={"image": ("photo.jpg", PHOTO, "image/jpeg")}),
        api.post("/encode_image", json={"image": text}),
        api.post("/encode_image", json={"image": f"data:image/jpeg;base64,{text}"}),
        api.post("/encode_image", content=PHOTO, headers={"content-type": "image/jpeg"}),
        api.post(
            "/encode_image", content=PHOTO, headers={"content-type": "application/octet-stream"}
        ),
    ]
    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["x-clip-fingerprint"].startswith("ViT-B-32.synthetic.")
        assert_same(answer.json(), vector)


def test_a_binary_answer(api: httpx.Client, vector: Embedding) -> None:
    headers = {"content-type": "image/jpeg", "accept": "application/octet-stream"}
    answer = api.post("/encode_image", content=PHOTO, headers=headers)
    assert_same(np.frombuffer(answer.content, "<f4"), vector)


def test_a_batch_with_one_bad_image(api: httpx.Client, vector: Embedding) -> None:
    text = base64.b64encode(PHOTO).decode()
    answer = api.post("/encode_images", json={"images": [text, "bm8gaW1hZ2U=", text]}).json()
    assert_same(answer["embeddings"][0], vector)
    assert answer["embeddings"][1] is None
    assert_same(answer["embeddings"][2], vector)
    assert [(e["index"], e["code"]) for e in answer["errors"]] == [(1, "not_an_image")]


@pytest.mark.parametrize(
    ("path", "content", "content_type", "status", "code"),
    [
        ("/encode_image", b"{}", "application/json", 400, "missing_field"),
        ("/encode_image", b"{", "application/json", 400, "invalid_json"),
        ("/encode_image", b"hello", "text/plain", 415, "unsupported_media_type"),
        ("/encode_image", b"hello", "image/jpeg", 422, "not_an_image"),
        ("/encode_image", PHOTO[:5000], "image/jpeg", 422, "truncated_image"),
        ("/nowhere", b"hello", "image/jpeg", 404, "not_found"),
    ],
)
def test_errors(
    api: httpx.Client, path: str, content: bytes, content_type: str, status: int, code: str
) -> None:
    answer = api.post(path, content=content, headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_the_client_over_http(api: httpx.Client, vector: Embedding) -> None:
    with Client(str(api.base_url)) as client:
        results = list(client.encode_images([PHOTO, b"no image", PHOTO]))
        assert [result.code for result in results] == [None, "not_an_image", None]
        assert_same(results[2].get(), vector)
        assert_same(client.encode_image(PHOTO), vector)
        assert client.health()["weights"] == "synthetic"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_backends_of_examples(api: httpx.Client, outside: Encoder, program: str) -> None:
    """``sam local`` lets everyone in, with a key or without."""
    settings = {
        "USE_LOCAL_CLIP": "true",
        "LOCAL_CLIP_URL": str(api.base_url),
        "LOCAL_CLIP_API_KEY": "any",
    }
    command = [PROGRAMS[program], str(ROOT / "examples" / program)]
    done = run([*command, str(HERE / "photo.jpg")], env=os.environ | settings)
    assert done.stdout.split() == ["512", outside.fingerprint]
    refused = run([*command, __file__], check=False, env=os.environ | settings)
    assert "PictureRefused: HTTP 422" in refused.stderr.replace(" [Error]", "")


def test_openais_client_as_the_recipes_show_it(
    api: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = (code for _, code in documents.blocks("python") if "from openai" in code)
    names: dict[str, Any] = {}
    exec(code.replace("http://localhost:3000", str(api.base_url).rstrip("/")), names)
    names["client"].close()
    assert capsys.readouterr().out == "2 512\n"


def test_all_of_it_as_its_first_user_would(
    api: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["health", "--deep", "--url", str(api.base_url), "--timeout", "60"]) == 0
    page = capsys.readouterr().out
    assert "FAILED" not in page
    assert "the same vector to the bit" in page
    assert "\nok      sandbox " in page


@pytest.mark.parametrize("form", ["multipart", "raw"])
def test_a_photograph_of_4_mb_arrives_byte_for_byte(
    api: httpx.Client, outside: Encoder, form: str
) -> None:
    """Lossless and compressed: one changed byte and it does not decode at all."""
    photo = np.asarray(Image.open(io.BytesIO(PHOTO)).resize((1600, 1064)))
    noise = np.random.default_rng(0).integers(0, 64, photo.shape, np.uint8)
    file = io.BytesIO()
    Image.fromarray(photo // 2 + noise).save(file, "PNG")
    data = file.getvalue()
    assert 3.9e6 < len(data) < 4.4e6
    if form == "multipart":
        answer = api.post("/encode_image", files={"image": ("photo.png", data, "image/png")})
    else:
        answer = api.post("/encode_image", content=data, headers={"content-type": "image/png"})
    assert answer.status_code == 200
    assert_same(answer.json(), outside.encode(data))


def _invoke(template: Path, name: str, *function: str, check: bool) -> Any:
    settings = ("--config-file", str(ROOT / "samconfig.toml"), "--event", str(HERE / name))
    return json.loads(
        sam("local", "invoke", *function, *settings, *LOCAL, str(template), check=check).stdout
    )


@pytest.mark.parametrize("name", EVENTS)
def test_invoke_with_every_event_file(template: Path, name: str, vector: Embedding) -> None:
    # It exits with 1 where the function raises, which is how a bad direct event is answered.
    check_answer(name, _invoke(template, name, check=name not in ERRORS), vector)


def test_invoke_the_batch_function(image: str, vector: Embedding) -> None:
    """The same image with the other template's command, which serves no HTTP."""

    def invoke(name: str, model: str, check: bool) -> Any:
        values = f"ImageUri={image} ImageBucket=photos VectorIndex=clip-1 Model={model}"
        return _invoke(ROOT / "batch.yaml", name, "--parameter-overrides", values, check=check)

    check_answer("direct_image.json", invoke("direct_image.json", "ViT-B-32", True), vector)
    answer = invoke("rest_multipart.json", "ViT-B-32", False)
    assert answer["errorType"] == "InvalidEvent"
    answer = invoke("direct_image.json", "ViT-L-14", False)
    assert "CLIP_MODEL names ViT-L-14, but" in answer["errorMessage"]


@pytest.fixture(scope="module")
def backend(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A boto3 client, as a backend has it, of ``sam local start-lambda``."""
    log = tmp_path_factory.mktemp("lambda") / "log"
    config = BotoConfig(
        signature_version=botocore.UNSIGNED, retries={"max_attempts": 0}, read_timeout=60
    )
    with _serving("start-lambda", template, log) as address:
        yield boto3.client("lambda", endpoint_url=address, region_name="us-east-1", config=config)


def test_the_client_without_http(
    backend: Any, vector: Embedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SAM_ENVIRONMENT[name])
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", backend.meta.endpoint_url)
    with Client("lambda://Function") as client:
        results = list(client.encode_images([PHOTO, b"no image", PHOTO]))
        assert [result.code for result in results] == [None, "not_an_image", None]
        assert_same(results[2].get(), vector)
        assert_same(client.encode_image(PHOTO), vector)
        with pytest.raises(EncoderError, match="not_an_image"):
            client.encode_image(b"no image")


@pytest.mark.parametrize("name", EVENTS)
def test_boto3_with_every_event_file(backend: Any, name: str, vector: Embedding) -> None:
    # Lambda itself also sets FunctionError where the function raised; sam local does not.
    answer = backend.invoke(FunctionName="Function", Payload=(HERE / name).read_bytes())
    check_answer(name, json.load(answer["Payload"]), vector)
