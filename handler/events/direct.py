"""Events without HTTP: direct invokes, whose answer is the result itself, and those of batch
engines.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from handler import answers, schemas, telemetry
from handler.budget import Budget
from handler.encoder import Encoder
from handler.errors import InvalidEvent
from handler.events import batch

EXPECTED = (
    '{"image": ...}, {"s3": {...}}, {"images": [...]}, {"action": "health"}, a scheduled event, '
    "an event of S3, SQS, S3 Batch Operations or a Distributed Map, or an HTTP event"
)


def invoke(event: Any, context: Any, encoder: Encoder) -> dict[str, Any]:
    """Answer one event, named by its keys.

    Raises:
        InvalidEvent: none of the events known here; names the keys that came, never their values.
        ClipError: an image or batch that cannot be encoded; Lambda reports its class and text.
    """
    with telemetry.request(_kind(event), invocation_id(context)):
        if not isinstance(event, dict):
            raise InvalidEvent(f"expected {EXPECTED}; got a {type(event).__name__}")
        if batch.kind(event):
            return batch.handle(event, context, encoder)
        budget = Budget.of_request(encoder.config, context)
        if "image" in event or "s3" in event:
            return _encode(event, budget, encoder)
        if "images" in event:
            return _encode_batch(event, budget, encoder)
        # EventBridge calls on a schedule to keep an environment warm: being called is all it takes.
        if event.get("action") == "health" or event.get("detail-type") == "Scheduled Event":
            return encoder.health()
        raise InvalidEvent(f"expected {EXPECTED}; got the keys {_names(event)}")


def invocation_id(context: Any) -> str:
    """Lambda's id of this invocation, or a new one."""
    return getattr(context, "aws_request_id", None) or str(uuid.uuid4())


def _kind(event: Any) -> str:
    if not isinstance(event, dict):
        return "direct"
    return batch.kind(event) or ("scheduled" if "detail-type" in event else "direct")


def _encode(event: Mapping[str, Any], budget: Budget, encoder: Encoder) -> dict[str, Any]:
    embedding = encoder.encode(schemas.validate(schemas.EncodeRequest, event).read(), budget)
    return {
        "embedding": answers.to_floats(embedding),
        "embedding_size": encoder.model.embedding_size,
        "model": encoder.model.name,
    }


def _encode_batch(event: Mapping[str, Any], budget: Budget, encoder: Encoder) -> dict[str, Any]:
    if isinstance(event["images"], list):  # counted before each is looked at
        schemas.check_count(len(event["images"]), encoder.config.max_images)
    request = schemas.validate(schemas.EncodeBatchRequest, event)
    images = schemas.read_images(request.images, encoder.config.max_images)
    outcomes = encoder.encode_batch(images, budget)
    return {
        "embeddings": answers.batch_floats(outcomes),
        "errors": answers.batch_errors(outcomes),
    }


def _names(event: Mapping[str, Any]) -> str:
    return ", ".join(repr(str(key)[:64]) for key in list(event)[:20]) or "(none)"
