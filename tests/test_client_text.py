"""Texts and rankings through the client: over HTTP, to the real Lambda runtime, and in-process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from clip_encoder import AsyncClient, Client, EncoderError, FingerprintChanged
from clip_encoder.cli import main
from handler.encoder import Encoder
from tests.conftest import in_a_loop
from tests.peers import Reply, peer, vector

LONG = "a photo of a cat and " * 30
"""More than 77 tokens."""


def expected(encoder: Encoder, text: str, truncate: bool = False) -> Any:
    return encoder.encode(encoder.tokenize(text, truncate))


@pytest.fixture(params=["http", "lambda", "local"])
def connected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of each transport in turn."""
    if request.param == "http":
        address = str(request.getfixturevalue("client").base_url)
    elif request.param == "lambda":
        url = str(request.getfixturevalue("lambda_client").base_url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", url)
        address = "lambda://function"
    else:
        address = f"local:{request.getfixturevalue('model_dir')}"
    # The emulator of Lambda ends when it is called a second time meanwhile.
    with Client(address, concurrency=1 if request.param == "lambda" else 4) as client:
        yield client


def test_one_text(connected: Client, encoder: Encoder) -> None:
    found = connected.encode_text("a photo of a cat")
    assert found.shape == (512,)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(encoder, "a photo of a cat"), atol=1e-6)
    with pytest.raises(EncoderError, match="77") as caught:
        connected.encode_text(LONG)
    assert caught.value.code == "text_too_long"
    with pytest.raises(EncoderError, match="surrogate pair at character 2"):
        connected.encode_text("a \ud83d")
    cut = connected.encode_text(LONG, truncate=True)
    np.testing.assert_allclose(cut, expected(encoder, LONG, truncate=True), atol=1e-6)


def test_many_texts_in_order_and_failures_as_values(connected: Client, encoder: Encoder) -> None:
    texts = ["a cat", LONG, "a dog", "\ud83d", "cat 🐈"]
    results = list(connected.encode_texts(text for text in texts))
    assert [result.source for result in results] == texts
    assert [r.code for r in results] == [None, "text_too_long", None, "invalid_text", None]
    for place in (0, 2, 4):
        np.testing.assert_allclose(results[place].get(), expected(encoder, texts[place]), atol=1e-6)


def test_more_texts_than_one_request_takes(connected: Client) -> None:
    results = list(connected.encode_texts(f"number {n}" for n in range(300)))
    assert [result.index for result in results] == list(range(300))
    assert all(result.error is None for result in results)


def test_rank(connected: Client, encoder: Encoder, photo: bytes, tmp_path: Path) -> None:
    """Images, texts and vectors on both sides, and one that fails on each."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo)
    cat = expected(encoder, "a cat")
    ranking = connected.rank([path, b"no image"], ["a cat", LONG, cat, photo])
    assert ranking.cosine_similarities.shape == (2, 4)
    image = encoder.encode(photo)
    close = pytest.approx
    assert ranking.cosine_similarities[0, 0] == close(float(image @ cat), abs=1e-5)
    assert ranking.cosine_similarities[0, 2] == close(float(image @ cat), abs=1e-5)
    assert ranking.cosine_similarities[0, 3] == close(1, abs=1e-5)
    assert np.isnan(ranking.probabilities[0, 1])
    assert np.isnan(ranking.probabilities[1]).all()
    assert np.nansum(ranking.probabilities[0]) == close(1, abs=1e-5)
    failed = {(error.list, error.index): error.code for error in ranking.errors}
    assert failed == {("queries", 1): "not_an_image", ("candidates", 1): "text_too_long"}


def test_rank_with_templates(connected: Client, encoder: Encoder, photo: bytes) -> None:
    templates = ["a photo of a {}.", "{}, drawn"]
    ranking = connected.rank([photo], ["cat", "dog"], templates)
    means = [
        sum(expected(encoder, template.format(text)) for template in templates)
        for text in ("cat", "dog")
    ]
    cosines = [float(encoder.encode(photo) @ mean / np.linalg.norm(mean)) for mean in means]
    np.testing.assert_allclose(ranking.cosine_similarities, [cosines], atol=1e-5)


def test_texts_with_asyncio(client: httpx.Client, encoder: Encoder, photo: bytes) -> None:
    async def run() -> None:
        async with AsyncClient(str(client.base_url)) as asking:
            one = await asking.encode_text("a cat")
            np.testing.assert_allclose(one, expected(encoder, "a cat"), atol=1e-6)
            results = [result async for result in asking.encode_texts(["a cat", LONG] * 200)]
            assert [result.code for result in results] == [None, "text_too_long"] * 200
            results = [r async for r in asking.encode_texts([LONG], truncate=True)]
            assert results[0].error is None
            ranking = await asking.rank([photo], ["a cat", "a dog"])
            assert ranking.probabilities.shape == (1, 2)

    in_a_loop(run())


@pytest.mark.parametrize("item", [7, None, ["a"]])
def test_what_is_no_text_and_cannot_be_ranked(item: Any) -> None:
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(TypeError, match="a query or"):
            client.rank([item], ["a cat"])
        with pytest.raises(TypeError, match="a text is a str"):
            client.encode_text(item)
        with pytest.raises(TypeError, match="a text is a str"):
            list(client.encode_texts([item]))
        with pytest.raises(EncoderError, match="invalid_text"):
            client.rank(["\ud83d"], ["a cat"])


def test_images_and_texts_have_a_fingerprint_each() -> None:
    """Each is held to its own; a ranking, whose answer names both, is held to neither."""
    names = {"/encode_image": "image 1", "/encode_text": "text 1", "/rank": "image 2, text 2"}
    ranked = {"probabilities": [[1.0]], "cosine_similarities": [[0.5]], "errors": []}

    def answer(request: Any) -> Reply:
        body = ranked if request.path == "/rank" else vector(1)
        return Reply(body=body, headers={"x-clip-fingerprint": names[request.path]})

    with peer(answer) as service, Client(service.address) as client:
        client.encode_image(b"x")
        client.encode_text("x")
        client.rank(["x"], ["y"])
        names["/encode_text"] = "text 2"
        client.encode_image(b"x")
        with pytest.raises(FingerprintChanged, match="expected vectors of text 1"):
            client.encode_text("x")


def test_a_functions_texts_have_a_fingerprint_once_it_has_seen_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until then its health names none, and nothing can be held against it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("clip_encoder.transports.aws_lambda.TRUSTED_SECONDS", 0.0)
    known: list[str | None] = [None, "text 1"]

    def answer(request: Any) -> Reply:
        headers = {"x-amz-executed-version": "1"}
        if request.json() == {"action": "health"}:
            found = known.pop(0)
            return Reply(body={"fingerprint": "image", "text_fingerprint": found}, headers=headers)
        return Reply(body={"embedding": vector(1)}, headers=headers)

    with peer(answer) as service:
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", service.address)
        with Client("lambda://clip:live") as client:
            for _ in range(3):
                client.encode_text("x")
    assert known == []


# --- the commands ---------------------------------------------------------------------------------

Capture = pytest.CaptureFixture[str]


def test_similar_to_a_text(
    client: httpx.Client, encoder: Encoder, photo: bytes, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo)
    url, output = str(client.base_url), str(tmp_path / "v.npz")
    assert main(["encode", str(path), "-o", output, "--url", url]) == 0
    capsys.readouterr()
    assert main(["similar", output, "--text", "a cat", "--json", "--url", url]) == 0
    (hit,) = json.loads(capsys.readouterr().out)
    cosine = float(encoder.encode(photo) @ expected(encoder, "a cat"))
    assert hit == {"name": str(path), "cosine": pytest.approx(cosine, abs=1e-5)}


def test_rank_of_an_image(
    client: httpx.Client, photo: bytes, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo)
    texts = ["--text", "a cat", "--text", "a dog", "--template", "a photo of {}."]
    assert main(["rank", str(path), *texts, "--json", "--url", str(client.base_url)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["texts"] == ["a cat", "a dog"]
    assert sum(found["probabilities"][0]) == pytest.approx(1, abs=1e-5)
