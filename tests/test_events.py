"""The committed event files are what the generator writes, and each HTTP one carries the
photograph.
"""

import base64
import json

import pytest

from events import generate

EVENTS = generate.events()


def test_the_files_are_exactly_those_generated() -> None:
    assert {path.name for path in generate.HERE.glob("*.json")} == set(EVENTS)


@pytest.mark.parametrize("name", EVENTS)
def test_a_file_equals_what_the_generator_writes(name: str) -> None:
    assert (generate.HERE / name).read_text() == generate.text(EVENTS[name])


OF_IMAGES = [
    name
    for name in EVENTS
    if "body" in EVENTS[name]
    and not any(word in name for word in ("health", "text", "rank", "openai"))
]


@pytest.mark.parametrize("name", OF_IMAGES)
def test_every_http_event_carries_the_same_photograph(name: str) -> None:
    event = EVENTS[name]
    body = base64.b64decode(event["body"]) if event["isBase64Encoded"] else event["body"].encode()
    if name.endswith(("json.json", "url.json")):
        body = base64.b64decode(json.loads(body)["image"].rpartition(",")[2])
    assert body.count(generate.PHOTO) == 1
