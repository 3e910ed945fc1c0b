"""What the runtime must answer to each event file, without a container and in one."""

import json
from typing import Any

import numpy as np

from events.generate import BUCKET, HERE, KEY, TEXTS
from handler.engines import Embedding
from tests.aws import take_vectors

INVOKE = "/2015-03-31/functions/function/invocations"
EVENTS = sorted(path.name for path in HERE.glob("*.json"))
IN_S3 = ("direct_s3.json", "direct_s3_images.json", "map_batch.json")
ENGINES = (
    *("s3_batch_1.json", "s3_batch_2.json", "s3_notification.json", "s3_eventbridge.json"),
    *("sqs_s3.json", "sqs_s3_malformed.json"),
)
ERRORS = {
    "bad_not_an_image.json": ("NotAnImage", "not_an_image: "),
    "bad_base64.json": ("InvalidBase64", "invalid_base64: "),
    "bad_unknown_keys.json": ("InvalidEvent", "invalid_event: "),
    "direct_s3.json": ("SourceNotAllowed", "source_not_allowed: "),
    **dict.fromkeys(ENGINES, ("InvalidEvent", "invalid_event: this event has no caller to answer")),
}
"""What raises, by the default settings: they read no bucket, and write nowhere."""


def check_answer(name: str, answer: Any, vector: Embedding, atol: float = 1e-6) -> None:
    """The right answer to the event file `name` by the default settings.

    The photograph's vector, health, or its error.
    """
    if name in ERRORS:
        kind, text = ERRORS[name]
        assert answer["errorType"] == kind
        assert answer["errorMessage"].startswith(text)
        return
    if "statusCode" in answer:
        assert answer["statusCode"] == 200
        answer = json.loads(answer["body"])
    if "health" in name or "warmup" in name:
        assert answer["status"] == "synthetic"
        assert answer["engine"] == "onnx"
        return
    if "text" in name:
        check_texts(answer)
        return
    if "rank" in name:
        check_ranking(answer)
        return
    if "openai" in name:
        answer = answer["data"][0]
    if name in IN_S3:
        refused = [(error["index"], error["code"]) for error in answer["errors"]]
        assert refused == [(0, "source_not_allowed"), (1, "source_not_allowed")]
        assert answer["embeddings"][:2] == [None, None]
        if name == "map_batch.json":
            return
    if isinstance(answer, dict):
        answer = answer["embeddings"][2] if "embeddings" in answer else answer["embedding"]
    assert_same(answer, vector, atol)


def check_texts(answer: Any) -> None:
    """The vectors of `events.generate.TEXTS`, or of the first, whatever the weights are."""
    if isinstance(answer, dict) and "embeddings" in answer:
        *vectors, wrong = answer["embeddings"]
        assert wrong is None
        assert [(error["index"], error["code"]) for error in answer["errors"]] == [
            (len(TEXTS), "invalid_field")
        ]
        assert answer["truncated"] == []
        assert len(vectors) == len(TEXTS)
    else:
        vectors = [answer["embedding"] if isinstance(answer, dict) else answer]
    lengths = np.linalg.norm(np.array(vectors), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=0, atol=1e-6)


def check_ranking(answer: Any) -> None:
    """What becomes of `events.generate.ranking`, whatever the weights are."""
    assert [(error["list"], error["index"], error["code"]) for error in answer["errors"]] == [
        ("candidates", 2, "invalid_field")
    ]
    for name in ("probabilities", "cosine_similarities"):
        assert [row[2] for row in answer[name]] == [None, None]
    rows = np.array([row[:2] for row in answer["probabilities"]])
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=0, atol=1e-6)


def check_answer_from_s3(name: str, answer: Any, vector: Embedding, s3: Any) -> None:
    """The right answer where `s3` holds the photograph and ``CLIP_OUTPUT`` is the bucket
    ``vectors``.

    `s3` is a client; the vectors that it holds afterwards are looked at and removed.
    """
    written = take_vectors(s3)
    names = list(written)
    match name:
        case "direct_s3.json":
            assert_same(answer["embedding"], vector)
        case "direct_s3_images.json":
            assert answer["errors"] == []
            assert_same(answer["embeddings"], np.stack([vector] * 3))
        case "s3_batch_1.json" | "s3_batch_2.json":
            asked = json.loads((HERE / name).read_text())
            (result,) = answer.pop("results")
            assert answer == {
                "invocationSchemaVersion": asked["invocationSchemaVersion"],
                "treatMissingKeysAs": "PermanentFailure",
                "invocationId": asked["invocationId"],
            }
            assert result["taskId"] == asked["tasks"][0]["taskId"]
            assert (result["resultCode"], result["resultString"]) == (
                "Succeeded",
                names[0],
            )
        case "sqs_s3.json":
            assert answer == {"batchItemFailures": []}
        case "sqs_s3_malformed.json":
            assert answer == {
                "batchItemFailures": [{"itemIdentifier": "059f36b4-87a3-44ab-83d2-661975050003"}]
            }
        case "map_batch.json":
            # The batch names one object in two ways.
            assert answer == {"written": 1, "output": names[0], "errors": []}
        case _:
            assert answer == {"written": 1, "removed": 0}
    assert len(written) == (0 if name.startswith("direct") else 1)
    for file in written.values():
        assert (*file["bucket"], *file["key"]) == (BUCKET, KEY)
        assert_same(file["embedding"], vector[None])


def assert_same(answer: Any, vector: Embedding, atol: float = 1e-6) -> None:
    """Equal but for the rounding of another thread count or batch size; exactly, with `atol` 0."""
    np.testing.assert_allclose(np.array(answer, np.float32), vector, rtol=0, atol=atol)
