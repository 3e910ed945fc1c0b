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
from itertools import chain
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
    clip = import_clip()
    context_length = inspect.signature(clip.tokenize).parameters["context_length"].default
    vocabulary = of(clip.clip._tokenizer, context_length)
    (directory / FILE).write_text(json.dumps(vocabulary, separators=(",", ":")))


def of(tokenizer: Any, context_length: int) -> dict[str, Any]:
    """What `write` writes of `tokenizer`, clip's ``SimpleTokenizer``.

    Raises:
        ExportError: as there.
    """
    ids: dict[str, int] = tokenizer.encoder
    letters = [tokenizer.byte_encoder[byte] for byte in range(256)]
    pairs = [(ids[left], ids[right]) for left, right in tokenizer.bpe_ranks]
    merged = [ids[left + right] for left, right in tokenizer.bpe_ranks]
    first, end = 512, 512 + len(pairs)
    rules = {
        "the bytes are the first 256 tokens": {ids[letter] for letter in letters}
        == set(range(256)),
        "those at the end of a word are the next 256": all(
            ids[letter + "</w>"] == ids[letter] + 256 for letter in letters
        ),
        "every pair becomes the token of its place in the list": merged == list(range(first, end)),
        "no pair is of tokens further down the list": all(
            max(pair) < token for pair, token in zip(pairs, merged, strict=True)
        ),
        "the special tokens come last": (ids[START], ids[END], len(ids)) == (end, end + 1, end + 2),
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ExportError(
            f"the vocabulary of this clip package is of another kind: that {broken[0]} does not "
            "hold. Install openai-clip 1.0.1"
        )
    return {
        "bytes": [ids[letter] for letter in letters],
        "first_merge": first,
        "merges": list(chain.from_iterable(pairs)),
        "start": ids[START],
        "end": ids[END],
        "context_length": context_length,
    }
