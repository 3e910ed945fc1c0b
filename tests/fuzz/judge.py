"""Whether an answer accounts for everything that its event asked for."""

import json
from collections.abc import Mapping
from typing import Any


def unaccounted(event: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """What `answer` drops or makes up of a batch; empty if it tells of every part of `event`.

    Of a service that may read no bucket: whatever names an object fails there, so that a task, a
    message or an item without a failure was dropped.
    """
    if "results" in answer:
        tasks = [(task.get("taskId"), "PermanentFailure") for task in event["tasks"]]
        told = [(result["taskId"], result["resultCode"]) for result in answer["results"]]
        return _difference("tasks", tasks, told)
    if "batchItemFailures" in answer:
        messages = [
            record.get("messageId")
            for record in event["Records"]
            if not _names_no_object(record.get("body"))
        ]
        failed = [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]
        return _difference("messages", messages, failed)
    if "Items" in event:
        failed = [error["index"] for error in answer["errors"]]
        return _difference("items", list(range(len(event["Items"]))), failed)
    if "written" in answer:
        return _difference("records", event["Records"], [])
    if "embeddings" in answer:
        sent = event["images"] if "images" in event else event["texts"]
        return _difference("items", len(sent), len(answer["embeddings"]))
    if "probabilities" in answer:
        lists = event["rank"]["queries"], event["rank"]["candidates"]
        told = [row for row in answer["probabilities"] if row is not None]
        columns = {len(row) for row in told} or {len(lists[1])}
        return _difference(
            "rows and columns",
            (len(lists[0]), {len(lists[1])}),
            (len(answer["probabilities"]), columns),
        )
    return ""


def _difference(what: str, sent: object, told: object) -> str:
    return "" if sent == told else f"of the {what} {sent} the answer tells of {told}"


def _names_no_object(body: object) -> bool:
    """Whether a message, by SNS or not, is S3's test event or a notification without records."""
    try:
        message = json.loads(body)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError, RecursionError):
        return False
    match message:
        case {"Type": "Notification", "Message": str(text)}:
            return _names_no_object(text)
        case {"Event": "s3:TestEvent"} | {"Records": []}:
            return True
    return False
