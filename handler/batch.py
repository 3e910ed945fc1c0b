"""AWS's batch engines: each hands over S3 objects in its own form and wants failures named in its own.

S3 Batch Operations, SQS, S3 notifications (from S3 or by EventBridge) and Step Functions Distributed
Map. Retries are theirs: a failure that may pass is handed back, and doing a thing twice does no harm.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote_plus

from handler import output, schemas, telemetry
from handler.encoder import Embedding, Encoder
from handler.errors import ClipError, InvalidEvent, InvalidField, ServiceError
from handler.s3 import Source

log = logging.getLogger("clip")

Parsed = TypeVar("Parsed")
Outcomes = dict[Source, Embedding | ClipError]


def kind(event: Mapping[str, Any]) -> str | None:
    """Name a batch engine's event by its keys; None: it is none."""
    if "invocationSchemaVersion" in event:
        return "s3_batch"
    if "Items" in event:
        return "map"
    match event:
        case {"Records": [{"eventSource": "aws:sqs"}, *_]}:
            return "sqs"
        case {"Records": _} | {"detail-type": _, "source": "aws.s3"}:
            return "s3_event"
    return None


def handle(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """Answer a batch engine's event, its vectors written to ``CLIP_OUTPUT``.

    Raises:
        InvalidEvent: malformed, or there is no caller to answer while ``CLIP_OUTPUT`` is ``caller``.
        ClipError: failures, of an engine that cannot be told of single ones; the text names them.
    """
    name = kind(event)
    if encoder.config.output == "caller" and name != "map":
        raise InvalidEvent("this event has no caller to answer: set CLIP_OUTPUT to where vectors should go")
    answer = {"s3_batch": _s3_batch, "sqs": _sqs, "s3_event": _s3_event, "map": _map}[str(name)]
    return answer(event, encoder)


# --- the engines ------------------------------------------------------------------------------------


def _s3_batch(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """S3 Batch Operations, schema 1.0 and 2.0: a code and a text for each task."""
    tasks = [(task, _attempt(_task_source, task)) for task in _list(event, "tasks")]
    sources = list(dict.fromkeys(source for _, source in tasks if isinstance(source, Source)))
    outcomes: Outcomes = {}
    try:
        outcomes = _encode(sources, encoder)
        output.write([_group(sources, outcomes)], encoder)
    except ServiceError as error:  # of each task that has no error of its own: it can be tried again
        told = {source: o for source, o in outcomes.items() if isinstance(o, ClipError)}
        outcomes = {source: told.get(source, error) for source in sources}
    written, results = output.location(sources, encoder), []
    for task, source in tasks:
        outcome = outcomes[source] if isinstance(source, Source) else source
        code, text = "Succeeded", ""
        if isinstance(outcome, ClipError):
            code = "TemporaryFailure" if outcome.retryable else "PermanentFailure"
            text = str(outcome)
        results.append({"taskId": task.get("taskId"), "resultCode": code, "resultString": text or written})
    return {
        "invocationSchemaVersion": event["invocationSchemaVersion"],
        "treatMissingKeysAs": "PermanentFailure",
        "invocationId": event.get("invocationId"),
        "results": results,
    }


def _sqs(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """SQS: the ids of the messages that failed, which SQS delivers again or, in the end, sets aside."""
    messages = [
        (record.get("messageId"), _attempt(_message_sources, record)) for record in _list(event, "Records")
    ]
    wanted = [source for _, sources in messages if isinstance(sources, list) for source in sources]
    outcomes = _encode(wanted, encoder)
    # An object for each, not for all: delivered again, a message comes with other companions.
    output.write([_group([source], outcomes) for source in outcomes], encoder)
    failed = []
    for message, sources in messages:
        if isinstance(sources, ClipError):
            _log_failure(f"message {message}", sources)
        if isinstance(sources, ClipError) or any(isinstance(outcomes[s], ClipError) for s in sources):
            failed.append({"itemIdentifier": message})
    return {"batchItemFailures": failed}


def _s3_event(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """A notification without a queue: failures are raised: Lambda tries again, then sets them aside."""
    outcomes = _encode(_sources(event), encoder)
    output.write([_group([source], outcomes) for source in outcomes], encoder)
    _raise_failures(outcomes, retryable_only=False)
    return {"written": len(outcomes)}


def _map(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """A batch of a Distributed Map: failures that may pass are raised, for its Retry; others are named."""
    items = [_attempt(_item_source, item) for item in _list(event, "Items", object)]
    outcomes = _encode((item for item in items if isinstance(item, Source)), encoder)
    sources = list(outcomes)
    results = [outcomes[item] if isinstance(item, Source) else item for item in items]
    errors = schemas.batch_errors(results)
    for error in errors:
        error["source"] = str(items[error["index"]]) if isinstance(items[error["index"]], Source) else None
    if encoder.config.output == "caller":
        _raise_failures(outcomes, retryable_only=True)
        return {"embeddings": schemas.batch_floats(results), "errors": errors}
    group = _group(sources, outcomes)
    output.write([group], encoder)
    _raise_failures(outcomes, retryable_only=True)
    place = output.location(sources, encoder) if group.rows else None
    return {"written": len(group.rows), "output": place, "errors": errors}


# --- what they name ---------------------------------------------------------------------------------


def _task_source(task: Mapping[str, Any]) -> Source:
    match task:
        case {"s3Key": str(key), "s3Bucket": str(bucket)} | {"s3Key": str(key), "s3BucketArn": str(bucket)}:
            return _source(bucket.rpartition(":")[2], unquote_plus(key), task.get("s3VersionId"))
    raise InvalidEvent("a task of S3 Batch Operations names no bucket or no key")


def _item_source(item: object) -> Source:
    source = schemas.read_image(item)
    if not isinstance(source, Source):
        raise InvalidField('an image of a batch must be in S3: {"s3": {"bucket": ..., "key": ...}}')
    return source


def _message_sources(record: Mapping[str, Any]) -> list[Source]:
    return _sources(_from_json(record.get("body")))


def _from_json(text: object) -> object:
    try:
        return json.loads(text)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(f"the message is not JSON ({type(error).__name__})") from None


def _sources(message: object) -> list[Source]:
    """The objects that a message names: S3's own, by way of SNS or EventBridge or not, or `{"s3": ...}`.

    Raises:
        InvalidEvent, InvalidField, MissingField: none of those, or malformed.
    """
    match message:
        case {"Type": "Notification", "Message": str(text)}:  # SNS
            return _sources(_from_json(text))
        case {"Event": "s3:TestEvent"}:  # sent once, when notifications are set up
            return []
        case {"Records": [*records]}:
            return [source for record in records for source in _record_sources(record)]
        # EventBridge gives keys as they are; S3's own notifications percent-encode them.
        case {
            "detail-type": str(what),
            "detail": {"bucket": {"name": bucket}, "object": {"key": key, **more}},
        }:
            return [] if "Delet" in what else [_source(bucket, key, more.get("version-id"))]
        case {"s3": wanted, **rest} if not rest:
            return [_item_source({"s3": wanted})]
    raise InvalidEvent('expected an S3 notification (as it is, or by SNS or EventBridge) or {"s3": {...}}')


def _record_sources(record: object) -> list[Source]:
    match record:
        case {"eventName": str(what)} if what.startswith(("ObjectRemoved:", "LifecycleExpiration:")):
            return []  # no image is left
        case {"s3": {"bucket": {"name": bucket}, "object": {"key": str(key), **more}}}:
            return [_source(bucket, unquote_plus(key), more.get("versionId"))]
    raise InvalidEvent("a record of an S3 notification names no object")


def _source(bucket: object, key: object, version_id: object) -> Source:
    if not (isinstance(bucket, str) and isinstance(key, str) and isinstance(version_id, str | None)):
        raise InvalidEvent("a bucket, a key or a version is not a text")
    return Source(bucket, key, version_id or "")


def _list(event: Mapping[str, Any], key: str, kind: type = dict) -> list[Any]:
    items = event.get(key)
    if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
        raise InvalidEvent(f"{key!r} must be a list{' of objects' if kind is dict else ''}")
    return items


def _attempt(parse: Callable[[Any], Parsed], item: object) -> Parsed | ClipError:
    """What `parse` makes of `item`, or why it cannot: a malformed one fails alone."""
    try:
        return parse(item)
    except ClipError as error:
        return error.with_traceback(None)


# --- what is common to all --------------------------------------------------------------------------


def _encode(sources: Iterable[Source], encoder: Encoder) -> Outcomes:
    """Encode every source once, however often it is named; failures are logged one by one."""
    unique = list(dict.fromkeys(sources))
    outcomes = dict(zip(unique, encoder.encode_batch(unique), strict=True))
    for source, outcome in outcomes.items():
        if isinstance(outcome, ClipError):
            _log_failure(str(source), outcome)
    return outcomes


def _group(sources: Sequence[Source], outcomes: Outcomes) -> output.Group:
    rows = [output.Row(s, e) for s in sources if not isinstance(e := outcomes[s], ClipError)]
    return output.Group(sources, rows)


def _log_failure(source: str, error: ClipError) -> None:
    request = telemetry.current()["request_id"]
    fields = {"source": source, **error.body(), "retryable": error.retryable, "request_id": request}
    log.warning("no vector", extra={"fields": fields})


def _raise_failures(outcomes: Outcomes, *, retryable_only: bool) -> None:
    """Raise one error for all, of a retryable kind if there is one; the good ones are written already."""
    failures = [(s, e) for s, e in outcomes.items() if isinstance(e, ClipError)]
    failures.sort(key=lambda failure: not failure[1].retryable)
    if failures and (failures[0][1].retryable or not retryable_only):
        named = "; ".join(f"{source}: {error}" for source, error in failures)
        raise type(failures[0][1])(f"{len(failures)} of {len(outcomes)} failed: {named}")
