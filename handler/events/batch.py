"""AWS's batch engines: each hands over S3 objects in its own form and wants failures named in its
own.

S3 Batch Operations, SQS, S3 notifications (from S3 or by EventBridge) and Step Functions
Distributed Map. Retries are theirs: a failure that may pass is handed back, and doing a thing
twice does no harm.

Whatever names an object without a version means the object as it is now, and after each event the
output holds what the bucket holds: one vector for an image, none for anything else. Engines deliver
twice, late and in any order, so an event is never believed: a notification only says that a key
changed, the object is read, its vector written or removed, and then the object is looked at once
more. If it changed in between, someone newer may have written before us, and the engine tries
again.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote_plus

from handler import schemas, telemetry
from handler.encoder import Embedding, Encoder
from handler.errors import (
    ClipError,
    InvalidEvent,
    InvalidField,
    OutputRefused,
    ServiceError,
    SourceDenied,
    SourceNotAllowed,
    SourceNotFound,
)
from handler.events import output
from handler.images import s3
from handler.images.s3 import Source

log = logging.getLogger("clip")

Parsed = TypeVar("Parsed")
Wanted = dict[Source, bool]
"""Objects, and whether someone asks for their vectors by name; else they are said to have changed.
"""
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
        InvalidEvent: malformed, or there is no caller to answer while ``CLIP_OUTPUT`` is
        ``caller``.
        ClipError: failures, of an engine that cannot be told of single ones; the text names them.
    """
    name = kind(event)
    if encoder.config.output == "caller" and name != "map":
        raise InvalidEvent(
            "this event has no caller to answer: set CLIP_OUTPUT to where vectors should go"
        )
    answer = {"s3_batch": _s3_batch, "sqs": _sqs, "s3_event": _s3_event, "map": _map}[str(name)]
    return answer(event, encoder)


# --- the engines ----------------------------------------------------------------------------------


def _s3_batch(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """S3 Batch Operations, schema 1.0 and 2.0: a code and a text for each task."""
    tasks = [(task, _attempt(_task_source, task)) for task in _list(event, "tasks")]
    wanted = {source: True for _, source in tasks if isinstance(source, Source)}
    try:
        outcomes = _process(wanted, encoder)
    except ServiceError as error:  # of all of them alike: the model is not what it says
        outcomes = dict.fromkeys(wanted, error)
    results = []
    for task, source in tasks:
        outcome = outcomes[source] if isinstance(source, Source) else source
        code, text = (
            "Succeeded",
            output.location(source, encoder) if isinstance(source, Source) else "",
        )
        if isinstance(outcome, ClipError):
            code = "TemporaryFailure" if outcome.retryable else "PermanentFailure"
            text = str(outcome)
        results.append({"taskId": task.get("taskId"), "resultCode": code, "resultString": text})
    return {
        "invocationSchemaVersion": event["invocationSchemaVersion"],
        "treatMissingKeysAs": "PermanentFailure",
        "invocationId": event.get("invocationId"),
        "results": results,
    }


def _sqs(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """SQS: the ids of the messages that failed, which SQS delivers again or, in the end, sets
    aside.
    """
    messages = [
        (record.get("messageId"), _attempt(_message_sources, record))
        for record in _list(event, "Records")
    ]
    wanted = _merged(sources for _, sources in messages if not isinstance(sources, ClipError))
    failures = _failures(_process(wanted, encoder), wanted)
    failed = []
    for message, sources in messages:
        if isinstance(sources, ClipError):
            _log_failure(f"message {message}", sources)
        if isinstance(sources, ClipError) or not failures.keys().isdisjoint(sources):
            failed.append({"itemIdentifier": message})
    return {"batchItemFailures": failed}


def _s3_event(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """A notification without a queue: failures are raised: Lambda tries again, then sets them
    aside.
    """
    wanted = _sources(event)
    outcomes = _process(wanted, encoder)
    _raise_failures(_failures(outcomes, wanted), of=len(outcomes))
    removed = sum(isinstance(outcome, ClipError) for outcome in outcomes.values())
    return {"written": len(outcomes) - removed, "removed": removed}


def _map(event: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """A batch of a Distributed Map: failures that may pass are raised, for its Retry; others are
    named.
    """
    items = [_attempt(_item_source, item) for item in _list(event, "Items", object)]
    wanted = {item: True for item in items if isinstance(item, Source)}
    file = _run_file(event, wanted, encoder)
    outcomes = _process(wanted, encoder, file)
    results = [outcomes[item] if isinstance(item, Source) else item for item in items]
    errors = schemas.batch_errors(results)
    for error in errors:
        error["source"] = (
            str(items[error["index"]]) if isinstance(items[error["index"]], Source) else None
        )
    failures = _failures(outcomes, wanted)
    if any(error.retryable for error in failures.values()):
        _raise_failures(failures, of=len(outcomes))
    if encoder.config.output == "caller":
        return {"embeddings": schemas.batch_floats(results), "errors": errors}
    written = len(outcomes) - len(failures)
    if not written and any(isinstance(error, OutputRefused) for error in failures.values()):
        raise OutputRefused("the output refuses every vector of the batch: the log says why")
    place = file or encoder.config.output
    return {"written": written, "output": place if written else None, "errors": errors}


def _run_file(event: Mapping[str, Any], wanted: Wanted, encoder: Encoder) -> str:
    """The file of the batch in the folder of its run; empty where its objects have places of their
    own.
    """
    match event.get("BatchInput"):
        case {"run": str(run)} if encoder.config.output != "caller":
            return output.run_file(run, list(wanted), encoder)
    return ""


# --- what they name -------------------------------------------------------------------------------


def _task_source(task: Mapping[str, Any]) -> Source:
    match task:
        case {"s3Key": str(key), "s3Bucket": str(bucket)} | {
            "s3Key": str(key),
            "s3BucketArn": str(bucket),
        }:
            return _source(bucket.rpartition(":")[2], unquote_plus(key), task.get("s3VersionId"))
    raise InvalidEvent("a task of S3 Batch Operations names no bucket or no key")


def _item_source(item: object) -> Source:
    source = schemas.read_image(item)
    if not isinstance(source, Source):
        raise InvalidField('an image of a batch must be in S3: {"s3": {"bucket": ..., "key": ...}}')
    return source


def _message_sources(record: Mapping[str, Any]) -> Wanted:
    return _sources(_from_json(record.get("body")))


def _from_json(text: object) -> object:
    try:
        return json.loads(text)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(f"the message is not JSON ({type(error).__name__})") from None


def _sources(message: object) -> Wanted:
    """The objects that a message names: S3's own, by way of SNS or EventBridge or not, or `{"s3":
    ...}`.

    Raises:
        InvalidEvent, InvalidField, MissingField: none of those, or malformed.
    """
    match message:
        case {"Type": "Notification", "Message": str(text)}:  # SNS
            return _sources(_from_json(text))
        case {"Event": "s3:TestEvent"}:  # sent once, when notifications are set up
            return {}
        case {"Records": [*records]}:
            return {_record_source(record): False for record in records}
        # EventBridge gives keys as they are; S3's own notifications percent-encode them.
        case {"detail-type": str(), "detail": {"bucket": {"name": bucket}, "object": {"key": key}}}:
            return {_source(bucket, key): False}
        case {"s3": wanted, **rest} if not rest:
            return {_item_source({"s3": wanted}): True}
    raise InvalidEvent(
        'expected an S3 notification (as it is, or by SNS or EventBridge) or {"s3": {...}}'
    )


def _record_source(record: object) -> Source:
    """The object that changed; its version is left out, being the current one no more when this is
    late.
    """
    match record:
        case {"s3": {"bucket": {"name": bucket}, "object": {"key": str(key)}}}:
            return _source(bucket, unquote_plus(key))
    raise InvalidEvent("a record of an S3 notification names no object")


def _merged(messages: Iterable[Wanted]) -> Wanted:
    merged: Wanted = {}
    for wanted in messages:
        for source, by_name in wanted.items():
            merged[source] = by_name or merged.get(source, False)
    return merged


def _source(bucket: object, key: object, version_id: object = None) -> Source:
    if not (
        isinstance(bucket, str) and isinstance(key, str) and isinstance(version_id, str | None)
    ):
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


# --- what is common to all ------------------------------------------------------------------------


def _process(wanted: Wanted, encoder: Encoder, file: str = "") -> Outcomes:
    """Encode every source once, however often it is named, and make the output hold what came of
    it.

    Vectors go into `file`, or each to a place of its own. Failures are logged one by one.
    """
    sources = list(wanted)
    outcomes = dict(zip(sources, encoder.encode_batch(sources), strict=True))
    if encoder.config.output != "caller":
        outcomes |= _write(outcomes, encoder, file)
    failures = _failures(outcomes, wanted)
    for source, error in failures.items():
        _log_failure(str(source), error)
    telemetry.note(images=len(sources), failed=len(failures))
    return outcomes


def _write(encoded: Outcomes, encoder: Encoder, file: str) -> dict[Source, ClipError]:
    """Write each vector, remove each that should not be, and look again; the errors met on the way."""
    entries = []
    for source, outcome in encoded.items():
        if not isinstance(outcome, ClipError):
            entries.append(output.Entry(source, outcome))
        elif _has_no_vector(outcome):
            entries.append(output.Entry(source, None))
    with telemetry.timed("s3_wait_ms"):
        errors = output.write(entries, encoder, file)
    if file:  # a run's file says when each object was read: a reader lets the latest reading count
        return errors
    written = [entry.source for entry in entries if entry.source not in errors]
    return errors | s3.changed([source for source in written if not source.version_id])


def _has_no_vector(error: ClipError) -> bool:
    """Whether `error` says that the object is gone, or no image: not that it could not be looked
    at.
    """
    return not error.retryable and not isinstance(error, SourceDenied | SourceNotAllowed)


def _log_failure(source: str, error: ClipError) -> None:
    request = telemetry.current()["request_id"]
    fields = {"source": source, **error.body(), "retryable": error.retryable, "request_id": request}
    log.warning("no vector", extra={"fields": fields})


def _failures(outcomes: Outcomes, wanted: Wanted) -> dict[Source, ClipError]:
    """The errors; that an object is gone is none where it was only said to have changed."""
    return {
        source: outcome
        for source, outcome in outcomes.items()
        if isinstance(outcome, ClipError)
        and (wanted[source] or not isinstance(outcome, SourceNotFound))
    }


def _raise_failures(failures: Mapping[Source, ClipError], of: int) -> None:
    """Raise one error for all, of a retryable kind if there is one; the good ones are written
    already.
    """
    if failures:
        ordered = sorted(failures.items(), key=lambda failure: not failure[1].retryable)
        named = "; ".join(f"{source}: {error}" for source, error in ordered)
        raise type(ordered[0][1])(f"{len(ordered)} of {of} failed: {named}")
