"""Ranking: as clip's own model does it, whatever the items are, and each bad one alone."""

import base64
import json
import types
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from events.generate import PHOTO
from export import images
from handler import schemas
from handler.encoder import Encoder
from handler.events import direct
from handler.schemas import MOST_ITEMS
from tests.conftest import serve, with_settings
from tests.test_every_way_in import event, main
from tests.test_texts import LONG, encoded

if TYPE_CHECKING:
    from export.checkpoint import Reference

__all__ = ["main"]  # the fixture

LABELS = ["a photo of a cat", "a photo of a dog", "a shoe", "ein Foto einer Katze 🐈"]
TEMPLATES = ["a photo of a {}.", "a drawing of a {}.", "{} from behind"]

Item = dict[str, Any]


def picture(name: str) -> bytes:
    return images.encoded(images.photograph(name), "PNG")


PICTURES = [picture("chelsea"), picture("coffee")]


def image(data: bytes) -> Item:
    return {"image": base64.b64encode(data).decode()}


def text(words: str) -> Item:
    return {"text": words}


def ranked(encoder: Encoder, queries: list[Any], candidates: list[Any], **more: Any) -> Any:
    """The answer to a direct invoke."""
    request = {"queries": queries, "candidates": candidates, **more}
    return direct.invoke({"rank": request}, None, encoder)


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


ROUNDED = 5e-6
"""How far a cosine may be from clip's: both compute in fp32, in another order."""


# --- clip's own -----------------------------------------------------------------------------------


def logits_of_clip(reference: "Reference", labels: list[str]) -> NDArray[np.float32]:
    """float32 [pictures, labels]: ``model(image, text)``, clip's own."""
    import io

    import torch
    from PIL import Image

    from handler.engines.torch_clip import import_clip

    pixels = [reference.preprocess(Image.open(io.BytesIO(data))) for data in PICTURES]
    with torch.inference_mode():
        per_image, _ = reference.model(torch.stack(pixels), import_clip().tokenize(labels))
    logits: NDArray[np.float32] = per_image.numpy()
    return logits


def test_images_by_texts_and_texts_by_images(encoder: Encoder, reference: "Reference") -> None:
    logits = logits_of_clip(reference, LABELS)
    pictures, labels = [image(data) for data in PICTURES], [text(label) for label in LABELS]
    scale = reference.model.logit_scale.exp().item()
    for answer, expected in (
        (ranked(encoder, pictures, labels), logits),
        (ranked(encoder, labels, pictures), logits.T),
    ):
        assert answer["errors"] == []
        cosines = np.array(answer["cosine_similarities"])
        np.testing.assert_allclose(cosines, expected / scale, rtol=0, atol=ROUNDED)
        probabilities = np.array(answer["probabilities"])
        np.testing.assert_allclose(probabilities, softmax(expected), rtol=0, atol=1e-3)
        # Given the cosines, they are right to the last bits of float32.
        exact = softmax(scale * cosines)
        np.testing.assert_allclose(probabilities, exact, rtol=0, atol=1e-6)


def test_templates_are_averaged_as_unit_vectors_and_made_of_unit_length(
    encoder: Encoder, reference: "Reference"
) -> None:
    """As in clip's notebook of prompts; texts among the queries are left as they are."""
    import torch

    from handler.engines.torch_clip import import_clip

    sentences = [template.replace("{}", "cat") for template in TEMPLATES]
    with torch.inference_mode():
        x = reference.model.encode_text(import_clip().tokenize(sentences))
        x = x / x.norm(dim=-1, keepdim=True)
        x = x.mean(dim=0)
        x = (x / x.norm()).numpy()
    queries = [image(PHOTO), text("cat")]
    answer = ranked(encoder, queries, [text("cat"), image(PHOTO)], templates=TEMPLATES)
    cosines = np.array(answer["cosine_similarities"])
    expected = [encoder.encode(PHOTO) @ x, encoded(encoder, "cat") @ x]
    np.testing.assert_allclose(cosines[:, 0], expected, rtol=0, atol=ROUNDED)
    assert cosines[0, 1] == pytest.approx(1, abs=1e-6)  # an image has no templates


def test_one_template_is_the_text_that_it_makes(encoder: Encoder) -> None:
    made = ranked(encoder, [image(PHOTO)], [text("cat")], templates=["a photo of a {}"])
    assert made == ranked(encoder, [image(PHOTO)], [text("a photo of a cat")])
    assert ranked(encoder, [image(PHOTO)], [text("cat")], templates=[]) == ranked(
        encoder, [image(PHOTO)], [text("cat")]
    )


# --- items ----------------------------------------------------------------------------------------


def test_a_vector_is_as_good_as_what_it_was_made_of(encoder: Encoder) -> None:
    """As numbers or as bytes, and of whatever length; a few bits are lost by making it a unit."""
    vector = encoder.encode(PHOTO)
    forms: list[Any] = [
        [float(str(x)) for x in vector],
        base64.b64encode(vector.astype("<f4").tobytes()).decode(),
        [float(x) * 1e300 for x in vector],
        [float(x) * 1e-300 for x in vector],
    ]
    items = [image(PHOTO), *({"embedding": form} for form in forms)]
    answer = ranked(encoder, items, [text(label) for label in LABELS])
    assert answer["errors"] == []
    cosines = np.array(answer["cosine_similarities"])
    np.testing.assert_allclose(cosines, cosines[:1].repeat(len(items), 0), rtol=0, atol=1e-6)


def test_an_image_may_lie_in_s3(encoder: Encoder, cloud: SimpleNamespace) -> None:
    cloud.s3.put_object(Bucket="photos", Key="rank.jpg", Body=PHOTO)
    here = with_settings(encoder, s3_buckets=("photos",))
    items = [{"s3": {"bucket": "photos", "key": "rank.jpg"}}, {"image": "s3://photos/rank.jpg"}]
    answer = ranked(here, items, [image(PHOTO)])
    assert answer["errors"] == []
    np.testing.assert_allclose(answer["cosine_similarities"], 1, rtol=0, atol=1e-6)


BAD: dict[str, tuple[Any, str]] = {
    "no object": (7, "invalid_field"),
    "nothing": ({}, "invalid_field"),
    "two things": ({"text": "a", "image": "aGk="}, "invalid_field"),
    "another thing": ({"video": "aGk="}, "invalid_field"),
    "no base64": ({"image": "!"}, "invalid_base64"),
    "no image": ({"image": "aGk="}, "not_an_image"),
    "an empty image": ({"image": ""}, "missing_field"),
    "a URL": ({"image": "https://a.example/b.jpg"}, "invalid_field"),
    "a bucket": ({"s3": {"bucket": "secret", "key": "a"}}, "source_not_allowed"),
    "no key": ({"s3": {"bucket": "photos"}}, "missing_field"),
    "a long text": ({"text": LONG}, "text_too_long"),
    "a number": ({"text": 7}, "invalid_field"),
    "511 numbers": ({"embedding": [1] * 511}, "invalid_field"),
    "no numbers": ({"embedding": ["1"] * 512}, "invalid_field"),
    "truths": ({"embedding": [True] * 512}, "invalid_field"),
    "zeros": ({"embedding": [0] * 512}, "invalid_field"),
    "NaN": ({"embedding": [float("nan"), *[0] * 511]}, "invalid_field"),
    "infinity": ({"embedding": [float("inf"), *[0] * 511]}, "invalid_field"),
    "an endless int": ({"embedding": [10**400, *[0] * 511]}, "invalid_field"),
    "NaN's bytes": (
        {"embedding": base64.b64encode(b"\1\0\x80\x7f" * 512).decode()},
        "invalid_field",
    ),
    "too few bytes": ({"embedding": base64.b64encode(bytes(2047)).decode()}, "invalid_field"),
    "no bytes": ({"embedding": "!"}, "invalid_base64"),
    "an object": ({"embedding": {"0": 1}}, "invalid_field"),
}


@pytest.mark.parametrize(("item", "code"), BAD.values(), ids=BAD)
def test_a_bad_item_fails_alone(encoder: Encoder, item: Any, code: str) -> None:
    good = ranked(encoder, [image(PHOTO)], [text("cat"), text("dog")])
    answer = ranked(
        encoder,
        [item, image(PHOTO), item],
        [text("cat"), item, text("dog")],
        templates=["{}"],
    )
    assert [(error["list"], error["index"], error["code"]) for error in answer["errors"]] == [
        ("queries", 0, code),
        ("queries", 2, code),
        ("candidates", 1, code),
    ]
    for name in ("probabilities", "cosine_similarities"):
        first, (cat, failed, dog), last = answer[name]
        assert (first, failed, last) == (None, None, None)
        np.testing.assert_allclose([cat, dog], good[name][0], rtol=0, atol=1e-5)
    assert sum(number or 0 for number in answer["probabilities"][1]) == pytest.approx(1, abs=1e-6)
    assert len(json.dumps(answer["errors"])) < 1500  # whatever was sent


def test_the_error_of_a_vector_speaks_of_vectors(encoder: Encoder) -> None:
    answer = ranked(encoder, [image(PHOTO)], [{"embedding": "!"}])
    assert answer["errors"][0]["detail"].startswith("the embedding is not valid base64")


def test_where_all_of_a_list_fail_there_is_still_an_answer(encoder: Encoder) -> None:
    answer = ranked(encoder, [image(PHOTO), text("a")], [7, 8])
    assert answer["probabilities"] == answer["cosine_similarities"] == [[None, None]] * 2
    answer = ranked(encoder, [7], [image(PHOTO)])
    assert answer["probabilities"] == answer["cosine_similarities"] == [None]


def test_of_a_text_that_fails_in_one_template_nothing_is_averaged(encoder: Encoder) -> None:
    """And the other templates are not tried: they would only take time."""
    templates = ["{}", "{} " + "very " * 80, "{}"]
    answer = ranked(encoder, [text("a")], [text("cat"), image(PHOTO)], templates=templates)
    assert [error["code"] for error in answer["errors"]] == ["text_too_long"]
    assert answer["cosine_similarities"][0][0] is None
    cut = ranked(encoder, [text("a")], [text("cat")], templates=templates, truncate=True)
    assert cut["errors"] == []


def test_a_single_candidate_is_certain_so_the_cosine_is_told_too(encoder: Encoder) -> None:
    answer = ranked(encoder, [image(PHOTO)], [text("a submarine")])
    assert answer["probabilities"] == [[1.0]]
    assert -1 < answer["cosine_similarities"][0][0] < 1


def test_what_fits_itself_has_a_cosine_of_at_most_1(encoder: Encoder) -> None:
    labels = [text(f"shoe {number}") for number in range(30)]
    answer = ranked(encoder, labels, labels)
    cosines = np.array(answer["cosine_similarities"])
    assert cosines.max() <= 1
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=0, atol=1e-6)


# --- over HTTP ------------------------------------------------------------------------------------


def test_every_way_in_gives_the_same(main: types.ModuleType, client: httpx.Client) -> None:
    by_invoke = main.handler(event("direct_rank"), None)
    by_event = main.handler(event("function_url_rank"), None)
    assert by_event["statusCode"] == 200
    assert json.loads(by_event["body"]) == by_invoke
    over_http = client.post("/rank", json=event("direct_rank")["rank"]).json()
    assert over_http == by_invoke


def test_the_answer_names_what_made_its_vectors(client: httpx.Client, encoder: Encoder) -> None:
    def fingerprints(queries: list[Item], candidates: list[Item]) -> list[str]:
        answer = client.post("/rank", json={"queries": queries, "candidates": candidates})
        assert answer.status_code == 200
        return answer.headers.get_list("x-clip-fingerprint")

    assert encoder.texts
    of_images, of_texts = encoder.fingerprint, encoder.texts.fingerprint
    vector = {"embedding": [1] * 512}
    assert fingerprints([text("a")], [image(PHOTO)]) == [f"{of_images}, {of_texts}"]
    assert fingerprints([text("a")], [vector]) == [of_texts]
    assert fingerprints([image(PHOTO)], [image(PHOTO)]) == [of_images]
    assert fingerprints([vector], [vector]) == [of_images]


def test_a_cut_text_is_said(client: httpx.Client) -> None:
    request = {"queries": [text("a")], "candidates": [text("b"), text(LONG)]}
    refused = client.post("/rank", json=request)
    assert "x-clip-truncated" not in refused.headers
    cut = client.post("/rank", json=request | {"truncate": True})
    assert (cut.json()["errors"], cut.headers["x-clip-truncated"]) == ([], "true")


TWO = [text("a"), text("b")]


@pytest.mark.parametrize(
    ("request_", "status", "code", "detail"),
    [
        ([], 400, "invalid_json", "not a JSON object"),
        ({"queries": TWO}, 400, "missing_field", "'candidates'"),
        ({"queries": [], "candidates": TWO}, 400, "invalid_field", "'queries'"),
        ({"queries": "a", "candidates": TWO}, 400, "invalid_field", "'queries'"),
        ({"queries": TWO, "candidates": TWO, "scale": 1}, 400, "invalid_field", "'scale'"),
        ({"queries": TWO, "candidates": TWO, "templates": ["a"]}, 400, "invalid_field", "{}"),
        ({"queries": TWO, "candidates": TWO, "templates": ["{}{}"]}, 400, "invalid_field", "once"),
        ({"queries": TWO, "candidates": TWO, "templates": [7]}, 400, "invalid_field", "templates"),
        (
            {"queries": TWO, "candidates": TWO, "templates": ["{}" + "a" * 999]},
            *(400, "invalid_field", "1000 characters"),
        ),
        (
            {"queries": TWO, "candidates": TWO, "templates": ["{}"] * 1001},
            *(400, "invalid_field", "at most 1000 items"),
        ),
        ({"queries": TWO, "candidates": [*TWO, *TWO]}, 413, "too_many_texts", "6 texts"),
        (
            {"queries": [text("a")], "candidates": TWO, "templates": ["{}", "{}", "a {}"]},
            *(413, "too_many_texts", "7 texts in one request (a text counts once for each"),
        ),
        (
            {"queries": [image(b"a")], "candidates": [image(b"a"), {"image": "s3://a/b"}]},
            *(413, "too_many_images", "3 images"),
        ),
        (
            {"queries": [7] * MOST_ITEMS, "candidates": [7]},
            *(400, "invalid_field", "1,025 items"),
        ),
        ({"queries": [[7]] * 2**17, "candidates": [7]}, 400, "invalid_json", "values"),
    ],
)
def test_bad_requests(
    encoder: Encoder, request_: object, status: int, code: str, detail: str
) -> None:
    with serve(with_settings(encoder, max_texts=5, max_images=2)) as client:
        response = client.post("/rank", json=request_)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert detail in response.json()["detail"]


def test_what_is_within_the_limits_is_answered(encoder: Encoder) -> None:
    """As many as there may be of everything: 2 images, 5 texts, and vectors to fill it up."""
    texts, pictures = [text("a")] * 5, [image(PHOTO)] * 2
    vectors = [{"embedding": base64.b64encode(np.ones(512, "<f4").tobytes()).decode()}]
    vectors *= MOST_ITEMS - len(texts) - len(pictures)
    with serve(with_settings(encoder, max_texts=5, max_images=2)) as client:
        answer = client.post("/rank", json={"queries": texts, "candidates": pictures + vectors})
    assert answer.status_code == 200
    assert np.array(answer.json()["probabilities"]).shape == (5, MOST_ITEMS - 5)


def test_numbers_of_many_vectors_fit_in(client: httpx.Client) -> None:
    vectors = [{"embedding": [number + 0.5, *[1] * 511]} for number in range(500)]
    answer = client.post("/rank", json={"queries": vectors[:1], "candidates": vectors})
    assert answer.status_code == 200
    assert len(vectors) * 512 < schemas.RankRequest.most_values
