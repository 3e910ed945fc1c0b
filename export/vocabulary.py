"""Writes the tokenizer's vocabulary, taken from the clip package, into the model folder.

``vocabulary.json`` is one object::

    {"bytes": [...], "first_merge": 512, "merges": [...], "start": 49406, "end": 49407,
     "context_length": 77}

- ``bytes``: 256 numbers, the token of each byte. The same byte at the end of a word has the token
  that is 256 higher.
- ``merges``: the pairs of tokens that become one, earliest first, as one flat list: left, right,
  left, right, ... The pair of index i becomes the token ``first_merge`` + i.
- ``start``, ``end``: the tokens around every text. ``context_length``: how many tokens fit, with
  those two.

clip's own vocabulary is a list of strings. A reader of tokens alone is right only where every token
is a string of its own, numbered in the order of the merges: this is checked.
"""

import inspect
import json
from pathlib import Path
from typing import Any

from export import ExportError
from handler.engines.torch_clip import import_clip
from handler.text.tokenizer import END, FILE, START


def write(directory: Path) -> None:
    """Write ``vocabulary.json`` into `directory`.

    Raises:
        ExportError: the clip package's vocabulary is not numbered as described above.
    """
    (directory / FILE).write_text(json.dumps(vocabulary(), separators=(",", ":")))


def vocabulary() -> dict[str, Any]:
    """What `write` writes.

    Raises:
        ExportError: as there.
    """
    clip = import_clip()
    tokenizer = clip.clip._tokenizer
    ids: dict[str, int] = tokenizer.encoder
    merges: list[tuple[str, str]] = list(tokenizer.bpe_ranks)
    written = {
        "bytes": [ids[tokenizer.byte_encoder[byte]] for byte in range(256)],
        "first_merge": 512,
        "merges": [ids[token] for pair in merges for token in pair],
        "start": ids[START],
        "end": ids[END],
        "context_length": inspect.signature(clip.tokenize).parameters["context_length"].default,
    }
    check(tokenizer, written)
    return written


def check(tokenizer: Any, written: dict[str, Any]) -> None:
    """Refuse a vocabulary that `handler.text.tokenizer` would not read as clip does.

    `tokenizer` is clip's ``SimpleTokenizer``, `written` what was made of it.

    Raises:
        ExportError: a token is not numbered as this module's description says.
    """
    ids: dict[str, int] = tokenizer.encoder
    letters = tokenizer.byte_encoder
    first = written["first_merge"]
    pairs = list(tokenizer.bpe_ranks)
    rules = {
        "the bytes are the first 256 tokens": sorted(written["bytes"]) == list(range(256)),
        "those at the end of a word are the next 256": all(
            ids[letters[byte] + "</w>"] == token + 256
            for byte, token in enumerate(written["bytes"])
        ),
        "every pair becomes the token of its place in the list": all(
            ids["".join(pair)] == first + place for place, pair in enumerate(pairs)
        ),
        "no pair is of tokens further down the list": all(
            max(ids[token] for token in pair) < first + place for place, pair in enumerate(pairs)
        ),
        "the special tokens come last": [ids[START], ids[END], len(ids)]
        == [first + len(pairs), first + len(pairs) + 1, first + len(pairs) + 2],
        "no token has more than 16 bits": len(ids) <= 1 << 16,
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ExportError(
            f"the vocabulary of this clip package is of another kind: that {broken[0]} does not "
            "hold. Install openai-clip 1.0.1"
        )
