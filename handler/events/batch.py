"""AWS's batch engines, which hand over objects in S3 and have their vectors written to an output.

They are S3 Batch Operations, SQS, S3's notifications (from S3 itself or by EventBridge) and Step
Functions' Distributed Map. Each has its own form of event, and its own way to be told what failed.
The engines do the retrying: what may succeed later is reported as such, and the engine sends it
again. To encode an object twice does no harm. S3 Batch Operations and a Map report every failure by
its object; SQS and S3's notifications only know "again" and "done". So a failure that is the
object's own, and would be the same at every delivery, is named in the log and then done; anything
else is handed back, for a later delivery or, in the end, for the queue of failures.

An object that is named without a version means the object as it is now. After each event the output
holds what the bucket holds: one vector for an image, none for anything else. Engines deliver twice,
late and in any order, so a notification is only taken to say that a key has changed. The object is
read, its vector is written or removed, and then the object is looked at once more. If it changed in
between, another invocation may have written its vector before this one did, so the engine is told
to try again.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote_plus

from handler import answers, schemas, telemetry
from handler.budget import Budget
from handler.encoder import Encoder
from handler.engines import Embedding
from handler.errors import (
    ClipError,
    InvalidEvent,
    InvalidField,
    NoSuchTower,
    OutOfTime,
    OutputRefused,
    RequestError,
    ServiceError,
    SourceDenied,
    SourceNotAllowed,
    SourceNotFound,
)
from handler.events import output
from handler.images import s3
from handler.images.s3 import Source
from handler.outcome import Outcome

log = logging.getLogger("clip")

T = TypeVar("T")
Event = Mapping[str, Any]
Wanted = dict[Source, bool]
"""Objects. True: their vectors are asked for. False: they are only said to have changed."""
Outcomes = dict[Source, Outcome[Embedding]]


class Task(NamedTuple):
    """What is needed to work on one event."""

    event: Event
    encoder: Encoder
    budget: Budget


class Engine(NamedTuple):
    """One of AWS's batch engines: how its events are recognised, and what answers them."""

    name: str
    recognises: Callable[[Event], bool]
    answer: Callable[[Task], dict[str, Any]]


def kind(event: Event) -> str | None:
    """The name of the batch engine that `event` comes from; None: from no engine."""
    return next((engine.name for engine in _ENGINES if engine.recognises(event)), None)


def handle(event: Event, context: Any, encoder: Encoder) -> dict[str, Any]:
    """Answer a batch engine's event, its vectors written to ``CLIP_OUTPUT``.

    Raises:
        InvalidEvent: malformed, or it has no caller to answer while ``CLIP_OUTPUT`` is ``caller``.
        ClipError: failures, of an engine that cannot be told of single ones; the text names them.
    """
    engine = next(engine for engine in _ENGINES if engine.recognises(event))
    if encoder.config.output == "caller" and engine.name != "map":
        raise InvalidEvent(
            "this event has no caller to answer: set CLIP_OUTPUT to where vectors should go"
        )
    return engine.answer(Task(event, encoder, Budget.of_batch(context)))


# --- the engines ----------------------------------------------------------------------------------


def _s3_batch(task: Task) -> dict[str, Any]:
    """S3 Batch Operations, schema 1.0 and 2.0: a code and a text for each of its tasks."""
    tasks = _objects(task.event, "tasks")
    sources = [Outcome.of(partial(_task_source, one)) for one in tasks]
    wanted = dict.fromkeys(_values(sources), True)
    try:
        outcomes = _process(wanted, task)
    except ServiceError as error:  # one that concerns every image: the model failed its self-check
        outcomes = {source: Outcome(error=error.with_traceback(None)) for source in wanted}
    results = [
        _s3_batch_result(one.get("taskId"), source, _of(source, outcomes), task.encoder)
        for one, source in zip(tasks, sources, strict=True)
    ]
    return {
        "invocationSchemaVersion": task.event["invocationSchemaVersion"],
        "treatMissingKeysAs": "PermanentFailure",
        "invocationId": task.event.get("invocationId"),
        "results": results,
    }


def _s3_batch_result(
    name: object, source: Outcome[Source], outcome: Outcome[Embedding], encoder: Encoder
) -> dict[str, object]:
    if outcome.error is None:
        code, text = "Succeeded", output.location(source.get(), encoder)
    else:
        code = "TemporaryFailure" if outcome.error.retryable else "PermanentFailure"
        text = str(outcome.error)
    return {"taskId": name, "resultCode": code, "resultString": text}


def _sqs(task: Task) -> dict[str, Any]:
    """SQS: the ids of the messages that are handed back, which SQS delivers again a few times."""
    records = _objects(task.event, "Records")
    messages = [Outcome.of(partial(_message_sources, record)) for record in records]
    wanted = _merged(_values(messages))
    failures = _handed_back(_process(wanted, task), wanted)
    failed = []
    for record, message in zip(records, messages, strict=True):
        name = record.get("messageId")
        if message.error is not None:
            # Handed back although it will not be understood later either: its text lies nowhere
            # else, and in the dead-letter queue whoever sent it can read it.
            _log_failure(f"message {name}", message.error)
            failed.append({"itemIdentifier": name})
        elif not failures.keys().isdisjoint(message.get()):
            failed.append({"itemIdentifier": name})
    return {"batchItemFailures": failed}


def _s3_event(task: Task) -> dict[str, Any]:
    """A notification without a queue: what is handed back is raised, so that Lambda retries it."""
    wanted = _sources(task.event)
    outcomes = _process(wanted, task)
    _raise_failures(_handed_back(outcomes, wanted), of=len(outcomes))
    removed = sum(outcome.error is not None for outcome in outcomes.values())
    return {"written": len(outcomes) - removed, "removed": removed}


def _map(task: Task) -> dict[str, Any]:
    """A batch of a Distributed Map: its vectors, or where they are, and the errors of its items.

    If any failure may pass, all are raised in one error, for the state machine's Retry.
    """
    items = _list(task.event, "Items")
    if task.encoder.config.output == "caller":
        size = task.encoder.model.embedding_size
        answers.check_vectors(len(items), size, answers.STEP_FUNCTIONS)
    sources = [Outcome.of(partial(_item_source, item)) for item in items]
    wanted = dict.fromkeys(_values(sources), True)
    file = _run_file(task.event, wanted, task.encoder)
    outcomes = _process(wanted, task, file)
    failures = _failures(outcomes, wanted)
    if any(isinstance(error, OutOfTime) for error in failures.values()):
        _log_too_large(len(items))
    if any(error.retryable for error in failures.values()):
        _raise_failures(failures, of=len(outcomes))
    errors = _map_errors(sources, outcomes)
    if task.encoder.config.output == "caller":
        vectors = answers.batch_floats([_of(source, outcomes) for source in sources])
        return {"embeddings": vectors, "errors": errors}
    written = len(outcomes) - len(failures)
    if not written and any(isinstance(error, OutputRefused) for error in failures.values()):
        raise OutputRefused("the output refuses every vector of the batch: the log says why")
    place = file or task.encoder.config.output
    return {"written": written, "output": place if written else None, "errors": errors}


def _map_errors(sources: Sequence[Outcome[Source]], outcomes: Outcomes) -> list[dict[str, Any]]:
    errors = answers.batch_errors([_of(source, outcomes) for source in sources])
    for error in errors:
        source = sources[error["index"]].value
        error["source"] = None if source is None else str(source)
    return errors


def _log_too_large(items: int) -> None:
    """Retry sends a Map's batch again as a whole, which helps only if it then takes less time."""
    log.warning(
        "the function's time is not enough for a Map's batch of %d objects: if this happens again, "
        "lower Objects in batch.yaml, or raise the function's Timeout",
        items,
    )


def _run_file(event: Event, wanted: Wanted, encoder: Encoder) -> str:
    """The file for all vectors of a run's batch; empty where each vector has its own place."""
    match event.get("BatchInput"):
        case {"run": str(run)} if encoder.config.output != "caller":
            return output.run_file(run, list(wanted), encoder)
    return ""


def _is_sqs(event: Event) -> bool:
    match event:
        case {"Records": [{"eventSource": "aws:sqs"}, *_]}:
            return True
    return False


def _is_s3_event(event: Event) -> bool:
    match event:
        case {"Records": _} | {"detail-type": _, "source": "aws.s3"}:
            return True
    return False


_ENGINES = (  # the first that recognises an event answers it
    Engine("s3_batch", lambda event: "invocationSchemaVersion" in event, _s3_batch),
    Engine("map", lambda event: "Items" in event, _map),
    Engine("sqs", _is_sqs, _sqs),
    Engine("s3_event", _is_s3_event, _s3_event),
)


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
    """The objects that a message names: an image, or S3's notification by any of its ways.

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
    """The object that changed, without its version: by now there may be a newer one."""
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


def _list(event: Event, key: str) -> list[Any]:
    items = event.get(key)
    if not isinstance(items, list):
        raise InvalidEvent(f"{key!r} must be a list")
    return items


def _objects(event: Event, key: str) -> list[dict[str, Any]]:
    items = _list(event, key)
    if not all(isinstance(item, dict) for item in items):
        raise InvalidEvent(f"{key!r} must be a list of objects")
    return items


def _values(outcomes: Iterable[Outcome[T]]) -> list[T]:
    return [outcome.get() for outcome in outcomes if outcome.error is None]


# --- what is common to all ------------------------------------------------------------------------


def _process(wanted: Wanted, task: Task, file: str = "") -> Outcomes:
    """Encode every object once, and write what came of it to the output, if there is one.

    Vectors go into `file`, or each to a place of its own. Failures are logged one by one.
    """
    sources = list(wanted)
    encoded = task.encoder.encode_images([Outcome(source) for source in sources], task.budget)
    outcomes = dict(zip(sources, encoded, strict=True))
    if task.encoder.config.output != "caller":
        outcomes |= _write(outcomes, task, file)
    failures = _failures(outcomes, wanted)
    for source, error in failures.items():
        _log_failure(str(source), error)
    telemetry.note(images=len(sources), failed=len(failures))
    return outcomes


def _write(encoded: Outcomes, task: Task, file: str) -> Outcomes:
    """Write each vector, remove those of what is no image, and look again: what failed at that."""
    entries = []
    for source, outcome in encoded.items():
        if outcome.error is None:
            entries.append(output.Entry(source, outcome.get()))
        elif _is_the_objects_own(outcome.error):
            entries.append(output.Entry(source, None))
    until = task.budget.until
    with telemetry.timed("s3_wait_ms"):
        errors = output.write(entries, task.encoder, file, until.write)
    if not file:
        # A run's file needs no second look: it says when each object was read, and whoever reads
        # the files lets the latest reading count.
        written = [entry.source for entry in entries if entry.source not in errors]
        may_change = [source for source in written if not source.version_id]
        errors |= s3.changed(may_change, until.look)
    return {source: Outcome(error=error) for source, error in errors.items()}


def _of(source: Outcome[Source], outcomes: Outcomes) -> Outcome[Embedding]:
    """What became of an object, or of an item that names none."""
    return Outcome(error=source.error) if source.error is not None else outcomes[source.get()]


_MENDED_ELSEWHERE = SourceDenied | SourceNotAllowed | NoSuchTower
"""What a role, a restored archive or a setting mends, while the object stays as it is."""


def _is_the_objects_own(error: ClipError) -> bool:
    """Return True if no image that can be encoded is there for certain: nothing, or something else.

    Then the object has no vector, and no further delivery would give it one.
    """
    return isinstance(error, RequestError) and not isinstance(error, _MENDED_ELSEWHERE)


def _log_failure(source: str, error: ClipError) -> None:
    request = telemetry.current()["request_id"]
    fields = {"source": source, **error.body(), "retryable": error.retryable}
    log.warning("no vector", extra={"fields": {**fields, "request_id": request}})


def _failures(outcomes: Outcomes, wanted: Wanted) -> dict[Source, ClipError]:
    """The errors that are named, in the log at least, by their objects.

    Where an object was only said to have changed, it is no failure that it is gone.
    """
    failures = {}
    for source, outcome in outcomes.items():
        is_removed = isinstance(outcome.error, SourceNotFound) and not wanted[source]
        if outcome.error is not None and not is_removed:
            failures[source] = outcome.error
    return failures


def _handed_back(outcomes: Outcomes, wanted: Wanted) -> dict[Source, ClipError]:
    """The failures for which a message has to come again: all that are not the object's own."""
    return {
        source: error
        for source, error in _failures(outcomes, wanted).items()
        if not _is_the_objects_own(error)
    }


def _raise_failures(failures: Mapping[Source, ClipError], of: int) -> None:
    """Raise one error that names all `failures`, if there are any. All else is written already.

    It is of the first failure's class, and those that may pass come first.
    """
    if not failures:
        return
    ordered = sorted(failures.items(), key=lambda failure: not failure[1].retryable)
    named = "; ".join(f"{source}: {error}" for source, error in ordered)
    _, first = ordered[0]
    raise type(first)(f"{len(ordered)} of {of} failed: {named}")
