"""Direct invokes: the same requests and answers as HTTP, as plain event JSON."""

from collections.abc import Mapping
from typing import Any

from handler import schemas
from handler.encoder import Encoder
from handler.errors import ClipError, InvalidEvent

EXPECTED = '{"image": ...}, {"images": [...]}, {"action": "health"}, a scheduled event or an HTTP event'


def handle(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """Answer a direct event, named by its keys.

    Raises:
        InvalidEvent: none of the events known here; names the keys that came, never their values.
        ClipError: the event's image or batch cannot be encoded, and why.
    """
    if "image" in event:
        return _encode(event, encoder)
    if "images" in event:
        return _encode_batch(event, encoder)
    # EventBridge calls on a schedule to keep an environment warm: being called is all it takes.
    if event.get("action") == "health" or event.get("detail-type") == "Scheduled Event":
        return encoder.health()
    raise InvalidEvent(f"expected {EXPECTED}; got the keys {_names(event)}")


def _encode(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    request = schemas.validate(schemas.EncodeRequest, event)
    embedding = encoder.encode(schemas.decode_base64(request.image))
    return {
        "embedding": schemas.to_floats(embedding),
        "embedding_size": encoder.model.embedding_size,
        "model": encoder.model.name,
    }


def _encode_batch(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    if isinstance(event["images"], list):  # counted before each is looked at
        schemas.check_count(len(event["images"]), encoder.config.max_images)
    request = schemas.validate(schemas.EncodeBatchRequest, event)
    images = schemas.decode_base64_batch(request.images, encoder.config.max_images)
    results = encoder.encode_batch(images)
    return {
        "embeddings": [None if isinstance(r, ClipError) else schemas.to_floats(r) for r in results],
        "errors": schemas.batch_errors(results),
    }


def _names(event: Mapping[str, Any]) -> str:
    return ", ".join(repr(str(key)[:64]) for key in list(event)[:20]) or "(none)"
