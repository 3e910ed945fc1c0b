"""Events without HTTP: direct invokes, answered by the result itself, and batch engines'."""

import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from handler import answers, schemas, telemetry
from handler.budget import Budget
from handler.encoder import Encoder
from handler.errors import InvalidEvent
from handler.events import batch
from handler.rank import rank

EXPECTED = (
    '{"image": ...}, {"s3": {...}}, {"images": [...]}, {"text": ...}, {"texts": [...]}, '
    '{"rank": {...}}, {"action": "health"}, a scheduled event, an event of S3, SQS, S3 Batch '
    "Operations or a Distributed Map, or an HTTP event"
)

Event = Mapping[str, Any]


class Kind(NamedTuple):
    """A kind of event: how it is recognised, and what answers it."""

    name: str
    """What the log calls it."""
    recognises: Callable[[Event], bool]
    answer: Callable[[Event, Any, Encoder], dict[str, Any]]
    """Takes the event, Lambda's context, and the encoder."""


def invoke(event: Any, context: Any, encoder: Encoder) -> dict[str, Any]:
    """Answer one event, whose kind its keys tell.

    Raises:
        InvalidEvent: none of the events known here; names the keys that came, never their values.
        ClipError: an image or batch that cannot be encoded; Lambda reports its class and text.
    """
    kind = _kind(event)
    with telemetry.request(kind.name, invocation_id(context), context):
        return kind.answer(event, context, encoder)


def invocation_id(context: Any) -> str:
    """Lambda's id of this invocation, or a new one."""
    return getattr(context, "aws_request_id", None) or str(uuid.uuid4())


def _kind(event: Any) -> Kind:
    if not isinstance(event, dict):
        return _UNKNOWN
    engine = batch.kind(event)
    if engine is not None:
        return Kind(engine, lambda _: True, batch.handle)
    return next((kind for kind in _KINDS if kind.recognises(event)), _UNKNOWN)


def _encode(event: Event, context: Any, encoder: Encoder) -> dict[str, Any]:
    budget = Budget.of_request(encoder.config, context)
    embedding = encoder.encode(schemas.validate(schemas.EncodeRequest, event).read(), budget)
    return {
        "embedding": answers.to_floats(embedding),
        "embedding_size": encoder.model.embedding_size,
        "model": encoder.model.name,
    }


def _encode_batch(event: Event, context: Any, encoder: Encoder) -> dict[str, Any]:
    budget = Budget.of_request(encoder.config, context)
    if isinstance(event["images"], list):  # counted before each is looked at
        schemas.check_count(len(event["images"]), encoder.config.max_images)
    request = schemas.validate(schemas.EncodeBatchRequest, event)
    images = schemas.read_images(request.images, encoder.config.max_images)
    answers.check_vectors(len(images), encoder.model.embedding_size, answers.LAMBDA)
    outcomes = encoder.encode_images(images, budget)
    return {
        "embeddings": answers.batch_floats(outcomes),
        "errors": answers.batch_errors(outcomes),
    }


def _encode_text(event: Event, context: Any, encoder: Encoder) -> dict[str, Any]:
    budget = Budget.of_request(encoder.config, context)
    request = schemas.validate(schemas.EncodeTextRequest, event)
    tokens = encoder.tokenize(request.read(), request.truncate, budget)
    return {
        "embedding": answers.to_floats(encoder.encode(tokens, budget)),
        "embedding_size": encoder.model.embedding_size,
        "model": encoder.model.name,
        "truncated": tokens.truncated,
    }


def _encode_texts(event: Event, context: Any, encoder: Encoder) -> dict[str, Any]:
    budget = Budget.of_request(encoder.config, context)
    request = schemas.validate(schemas.EncodeTextsRequest, event)
    texts = schemas.read_texts(request.texts, encoder.config.max_texts)
    answers.check_vectors(len(texts), encoder.model.embedding_size, answers.LAMBDA)
    tokens = encoder.tokenize_all(texts, request.truncate, budget)
    outcomes = encoder.encode_texts(tokens, budget)
    return {
        "embeddings": answers.batch_floats(outcomes),
        "errors": answers.batch_errors(outcomes),
        "truncated": answers.batch_truncated(tokens),
    }


def _rank(event: Event, context: Any, encoder: Encoder) -> dict[str, Any]:
    budget = Budget.of_request(encoder.config, context)
    request = schemas.validate(schemas.RankEvent, event).rank
    lists = request.read(encoder.config, encoder.model.embedding_size)
    answers.check_ranking(len(lists.queries), len(lists.candidates), answers.LAMBDA)
    return answers.rank_floats(rank(encoder, lists, budget))


def _health(event: Event, context: Any, encoder: Encoder) -> dict[str, Any]:
    return encoder.health()


def _refuse(event: object, context: Any, encoder: Encoder) -> dict[str, Any]:
    if not isinstance(event, dict):
        raise InvalidEvent(f"expected {EXPECTED}; got a {type(event).__name__}")
    names = ", ".join(repr(str(key)[:64]) for key in list(event)[:20])
    raise InvalidEvent(f"expected {EXPECTED}; got the keys {names or '(none)'}")


def _is_scheduled(event: Event) -> bool:
    return event.get("detail-type") == "Scheduled Event"


_KINDS = (  # after the batch engines' events; the first that recognises an event answers it
    Kind("direct", lambda event: "image" in event or "s3" in event, _encode),
    Kind("direct", lambda event: "images" in event, _encode_batch),
    Kind("direct", lambda event: "text" in event, _encode_text),
    Kind("direct", lambda event: "texts" in event, _encode_texts),
    Kind("direct", lambda event: "rank" in event, _rank),
    Kind("direct", lambda event: event.get("action") == "health", _health),
    # EventBridge calls on a schedule to keep an environment warm: being called is all it takes.
    Kind("scheduled", _is_scheduled, _health),
)
_UNKNOWN = Kind("direct", lambda _: True, _refuse)
