"""Damage to files and events: what bit rot, broken uploads and attackers do to them; and texts
that are made to take long.
"""

import base64
import contextlib
import copy
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from tests import texts

NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    4096,
    32767,
    32768,
    65535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


def mutate_image(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """`data` with one to eight wounds; `other` is a file of the same format to take pieces from."""
    wounded = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
        rng.choice(_WOUNDS)(rng, wounded, other)
    # What a checksum or a length guards is reached only where they are right.
    if rng.random() < 0.8:
        wounded = _mended(wounded)
    return bytes(wounded)


def _position(rng: random.Random, data: bytearray) -> int:
    """Headers are short and interesting: half the wounds are in the first bytes."""
    end = len(data) if rng.random() < 0.5 else min(len(data), rng.choice((32, 64, 256)))
    return rng.randrange(max(end, 1))


def _flip(rng: random.Random, data: bytearray, _: bytes) -> None:
    if data:
        data[_position(rng, data)] ^= 1 << rng.randrange(8)


def _set_byte(rng: random.Random, data: bytearray, _: bytes) -> None:
    if data:
        data[_position(rng, data)] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))


def _set_number(rng: random.Random, data: bytearray, _: bytes) -> None:
    at, kind = _position(rng, data), rng.choice(("<H", ">H", "<I", ">I"))
    number = rng.choice(NUMBERS) & (2 ** (8 * struct.calcsize(kind)) - 1)
    data[at : at + struct.calcsize(kind)] = struct.pack(kind, number)


def _truncate(rng: random.Random, data: bytearray, _: bytes) -> None:
    del data[_position(rng, data) :]


def _delete(rng: random.Random, data: bytearray, _: bytes) -> None:
    at = _position(rng, data)
    del data[at : at + rng.choice((1, 2, 4, 12, 100))]


def _duplicate(rng: random.Random, data: bytearray, _: bytes) -> None:
    at, to = _position(rng, data), _position(rng, data)
    data[to:to] = data[at : at + rng.choice((1, 4, 12, 100, 1000))] * rng.choice((1, 1, 2, 50))


def _insert(rng: random.Random, data: bytearray, _: bytes) -> None:
    at = _position(rng, data)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = _position(rng, data)
    data[at:] = other[rng.randrange(len(other)) :]


def _graft(rng: random.Random, data: bytearray, other: bytes) -> None:
    at, start = _position(rng, data), rng.randrange(len(other))
    piece = other[start : start + rng.choice((2, 8, 64))]
    data[at : at + len(piece)] = piece


_WOUNDS = (
    _flip,
    _flip,
    _set_byte,
    _set_number,
    _set_number,
    _truncate,
    _delete,
    _duplicate,
    _insert,
    _splice,
    _graft,
)


def _mended(data: bytearray) -> bytearray:
    """PNG checksums and the RIFF length made right again."""
    if data.startswith(b"RIFF"):
        data[4:8] = struct.pack("<I", max(len(data) - 8, 0))
    if data.startswith(b"\x89PNG"):
        at = 8
        while at + 12 <= len(data):
            end = at + 8 + int.from_bytes(data[at : at + 4])
            if end + 4 > len(data):
                break
            data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
            at = end + 4
    return data


# --- texts ----------------------------------------------------------------------------------------

_REPEATED = (
    *("a", "9", ",", " ", "\n", "\0", "'", "&", ";", "<", "amp;", "&amp;", "&lt;", "&#38;", "&#x"),
    *("Â", "Ã", "Ã¢â\u201a¬â„¢", "â€", "ÂÂ©", "\u0301", "\u0315\u0300", "\u200b", "\u200d"),
    *("\u202e", "\u2066", "\ufeff", "\ud800", "\udc00", "\x1b[", "\x1b[31m", "ﷺ", "ŉ", "İ", "ß"),
    *("가", "👩\u200d", "'s", "<|endoftext|>", "<|startoftext|>", "a ", "1a", "!a", "\u3000"),
    *("\U0010ffff", "\x85"),
)
"""What is worst where there is much of it: for repairs, for regular expressions, for merging."""


def hostile_text(rng: random.Random) -> str:
    """A text at random, or one of ten thousand characters or a million, mostly of one kind."""
    piece = texts.at_random(rng.randrange(2**32))
    shape = rng.choice(("piece", "piece", "repeated", "repeated", "mixed", "between", "entity"))
    if shape == "piece":
        return piece
    if shape == "mixed":
        return "".join(rng.choices((piece, *_REPEATED), k=rng.choice((10, 100, 1000))))[:10_000]
    length = rng.choice((100, 1000, 9_999, 10_000, 10_000, 10_001, 1_000_000))
    repeated = rng.choice((*_REPEATED, piece or "x"))
    many = (repeated * (length // len(repeated) + 1))[:length]
    if shape == "entity":
        return f"&{many}{rng.choice((';', 'lt;', piece))}"[:length]
    if shape == "between":
        return f"{piece}{many}{piece}"[:length]
    return many


# --- events ---------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**63, 1.5, "", " ", "x", "\ud800", "\0", "ü", "a" * 5000),
    *(
        [],
        {},
        [[]],
        [None],
        {"": {}},
        ["x"] * 100,
        "data:",
        "data:image/png;base64,",
        "AAAA",
        "%%",
        "\r\n",
    ),
)
KEYS = (
    *(
        "image",
        "images",
        "text",
        "texts",
        "truncate",
        "rank",
        "queries",
        "candidates",
        "templates",
        "embedding",
        "input",
        "content",
        "modality",
        "encoding_format",
        "dimensions",
        "model",
        "action",
        "detail-type",
        "requestContext",
        "http",
        "httpMethod",
        "body",
        "x",
        "",
    ),
    *(
        "s3",
        "bucket",
        "key",
        "version_id",
        "Items",
        "Records",
        "Message",
        "source",
        "detail",
        "tasks",
    ),
)


def mutate_event(rng: random.Random, event: Any, other: Any) -> Any:
    """`event` with one to four wounds, from removed keys to bytes changed inside its base64."""
    event = copy.deepcopy(event)
    for _ in range(rng.choice((1, 1, 2, 4))):
        event = rng.choice(_EVENT_WOUNDS)(rng, event, other)
    return event


def _somewhere(rng: random.Random, event: Any) -> tuple[Any, Any]:
    """A random container in `event`, and one of its keys; shallow ones more often."""
    holder = event
    while True:
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        inner = holder[key]
        if not (isinstance(inner, dict | list) and inner) or rng.random() < 0.4:
            return holder, key
        holder = inner


def _replace(rng: random.Random, event: Any, _: Any) -> Any:
    if rng.random() < 0.05 or not (isinstance(event, dict | list) and event):
        return copy.deepcopy(rng.choice(VALUES))
    holder, key = _somewhere(rng, event)
    holder[key] = copy.deepcopy(rng.choice(VALUES))
    return event


def _remove(rng: random.Random, event: Any, _: Any) -> Any:
    if isinstance(event, dict | list) and event:
        holder, key = _somewhere(rng, event)
        del holder[key]
    return event


def _add(rng: random.Random, event: Any, other: Any) -> Any:
    if isinstance(event, dict):
        key = rng.choice((*KEYS, *(other if isinstance(other, dict) else ())))
        theirs = other.get(key) if isinstance(other, dict) and key in other else rng.choice(VALUES)
        event[key] = copy.deepcopy(theirs)
    return event


def _change_text(rng: random.Random, event: Any, _: Any) -> Any:
    """Damage one of the longest strings: as text, or as the bytes its base64 stands for."""
    texts = _texts(event)
    if not texts:
        return event
    holder, key = rng.choice(sorted(texts, key=lambda at: -len(at[0][at[1]]))[:4])
    text: str = holder[key]
    if rng.random() < 0.5:
        prefix, comma, encoded = text.rpartition(",")
        try:
            data = base64.b64decode(encoded)
        except ValueError:
            pass
        else:
            damaged = mutate_image(rng, data, data or b"\0")
            holder[key] = prefix + comma + base64.b64encode(damaged).decode()
            return event
    damaged = mutate_image(
        rng, text.encode("utf-8", "replace"), text.encode("utf-8", "replace") or b"\0"
    )
    holder[key] = damaged.decode("utf-8", "replace")
    return event


def _change_inside(rng: random.Random, event: Any, other: Any) -> Any:
    """Wound the JSON that one of the strings holds, as a queue's messages do."""
    inner = [(holder, key) for holder, key in _texts(event) if holder[key].startswith("{")]
    if inner:
        holder, key = rng.choice(inner)
        with contextlib.suppress(ValueError):  # damaged already
            holder[key] = json.dumps(mutate_event(rng, json.loads(holder[key]), other))
    return event


def _texts(event: Any) -> list[tuple[Any, Any]]:
    """Every place that holds a string."""
    if not isinstance(event, dict | list):
        return []
    items = list(event.items() if isinstance(event, dict) else enumerate(event))
    here = [(event, key) for key, value in items if isinstance(value, str)]
    return here + [place for _, value in items for place in _texts(value)]


_EVENT_WOUNDS: tuple[Callable[[random.Random, Any, Any], Any], ...] = (
    *(_replace, _replace, _remove, _add),
    *(_change_text, _change_text, _change_text, _change_inside, _change_inside),
)
