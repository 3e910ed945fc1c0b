"""clip's tokenizer: a text becomes the numbers that the text tower reads.

A text is cut into words (`handler.text.cleaning` says what is done to it before), and each word
into its bytes of UTF-8, which are the first tokens. Then neighbours are merged by a list of pairs
that OpenAI learned from captions, the earliest pair of that list first, until no two neighbours are
on it. This is called byte pair encoding. Frequent words end as one token, rare ones as several.

The list is the file ``vocabulary.json`` of the model folder, which ``export/vocabulary.py`` writes.
"""

import heapq
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from handler.errors import TextTooLong
from handler.model import ModelError

FILE = "vocabulary.json"
"""The vocabulary's name in the model folder."""
MAX_CHARACTERS = 10_000
"""Longer texts are refused. A text of 77 tokens seldom has more than 400 characters."""
START, END = "<|startoftext|>", "<|endoftext|>"
"""How clip writes the two special tokens. Where a text has them, they are those tokens."""

# A word is a run of letters, one digit, a run of all else but white space, or a contraction's end.
_WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_PLAIN = re.compile(r"[\t\n\x20-%'-~]*")
"""Printable ASCII without the ``&`` of HTML's entities: cleaning changes nothing of it but its case
and white space."""
_SHORT_WORD = 32
"""In bytes. Nearly all words are short: they are merged by simpler code, and remembered."""
_REMEMBERED_WORDS = 8192
"""That is 2 MB of words from captions, and at most 5 MB."""
_GONE = -1
"""In the place of a token that was merged into the one on its left: it is part of no pair."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A text as the text tower reads it."""

    ids: NDArray[np.int32]
    """int32 [t]: the start's token, the words', the end's; t is 2 to 77. There is no padding."""
    truncated: bool
    """Whether the text had more tokens than fit, and the last of them were left out."""


class Tokenizer:
    """clip's ``tokenize`` with one vocabulary. Thread-safe."""

    def __init__(self, vocabulary: dict[str, Any]) -> None:
        """Prepare what ``vocabulary.json`` holds; `export.vocabulary` says what that is."""
        # Imported here, because a service that is sent images needs no regex.
        import regex

        self.context_length: int = vocabulary["context_length"]
        self._start: int = vocabulary["start"]
        self._end: int = vocabulary["end"]
        self._bytes: list[int] = vocabulary["bytes"]
        first: int = vocabulary["first_merge"]
        pairs = np.array(vocabulary["merges"], np.int64).reshape(-1, 2)  # [merges, 2]
        keys = _key(pairs[:, 0], pairs[:, 1]).tolist()
        self._merges: dict[int, int] = dict(zip(keys, range(first, first + len(keys)), strict=True))
        self._words = regex.compile(_WORD, regex.IGNORECASE)
        self._remembered: Callable[[bytes], Sequence[int]] = lru_cache(_REMEMBERED_WORDS)(
            self._merge
        )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the vocabulary of a model folder.

        Raises:
            ModelError: it is missing or unreadable.
        """
        path = directory / FILE
        try:
            return cls(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{path} cannot be read ({error!r}): export the model again"
            ) from error

    def tokenize(self, text: str, truncate: bool = False) -> Tokens:
        """Make the tokens of a text, the same as ``clip.tokenize`` without the padding.

        With `truncate`, the last words of a text that has too many tokens are left out.

        Raises:
            TextTooLong: the text has more than 10,000 characters; or, without `truncate`, more
                tokens than 77.
            TextTooCostly: it is damaged in a way that takes too long to repair.
        """
        if len(text) > MAX_CHARACTERS:
            raise TextTooLong(
                f"the text has {len(text):,} characters, and at most {MAX_CHARACTERS:,} are read: "
                "shorten it"
            )
        ids = [self._start, *chain.from_iterable(map(self._encode, self._cut(text))), self._end]
        truncated = len(ids) > self.context_length
        if truncated and not truncate:
            raise TextTooLong(
                f"the text has {len(ids):,} tokens, its start and its end included, and the model "
                f'reads at most {self.context_length}: shorten it, or send "truncate": true to '
                "have its end cut off"
            )
        if truncated:
            ids[self.context_length - 1 :] = [self._end]
        return Tokens(np.array(ids, np.int32), truncated)

    def _cut(self, text: str) -> list[str]:
        """The words of a text, cleaned."""
        if _PLAIN.fullmatch(text):
            cleaned = text.lower()
        else:
            # Imported here, because most texts are plain, and their answers need not wait for it.
            from handler.text.cleaning import clean

            cleaned = clean(text)
        words: list[str] = self._words.findall(cleaned)
        return words

    def _encode(self, word: str) -> Sequence[int]:
        """The tokens of one word."""
        if word == START:
            return (self._start,)
        if word == END:
            return (self._end,)
        data = word.encode()
        return self._remembered(data) if len(data) <= _SHORT_WORD else self._merge(data)

    def _merge(self, word: bytes) -> Sequence[int]:
        """Byte pair encoding of one word of any length, in UTF-8."""
        ids = [self._bytes[byte] for byte in word]
        # The last byte of a word is another token than the same byte within a word.
        ids[-1] += len(self._bytes)
        if len(ids) <= _SHORT_WORD:
            return _merge_short(ids, self._merges)
        return _merge_long(ids, self._merges)


def _key(left: Any, right: Any) -> Any:
    """What a pair of tokens is looked up by: one number. Takes arrays as well."""
    return left << 32 | right


def _merge_short(ids: list[int], merges: dict[int, int]) -> list[int]:
    """Merge neighbours, the earliest pair of the list first: clip's loop.

    The token that a pair becomes says how early the pair is on the list: they are numbered so.
    """
    while len(ids) > 1:
        found = [merges.get(_key(*pair)) for pair in pairwise(ids)]
        merged = min((token for token in found if token is not None), default=None)
        if merged is None:
            break
        ids = _replace(ids, found, merged)
    return ids


def _replace(ids: list[int], found: list[int | None], merged: int) -> list[int]:
    """Put `merged` in the place of every pair that becomes it, from the left."""
    kept = []
    position = 0
    while position < len(ids):
        is_pair = position < len(found) and found[position] == merged
        kept.append(merged if is_pair else ids[position])
        position += 2 if is_pair else 1
    return kept


def _merge_long(ids: list[int], merges: dict[int, int]) -> list[int]:
    """The same as `_merge_short`, in a time that does not grow with the square of the length.

    Each round merges one pair wherever it stands, from the left, as clip's loop does. A pair that
    arises from that is further down the list, because the token in it was not there before: the
    export checks this of every vocabulary. So no round can be due again, and it is enough to note
    for each pair that is still to come where it stands.
    """
    ids = ids.copy()
    end = len(ids)
    previous = list(range(-1, end - 1))
    following = list(range(1, end + 1))
    due: list[int] = []  # a heap: the tokens that pairs become
    places: dict[int, list[int]] = {}  # for each of them, where such a pair begins

    def note(left: int, right: int) -> None:
        """Note which token the neighbours at `left` and `right` become, if they become one."""
        if left < 0 or right == end:
            return
        merged = merges.get(_key(ids[left], ids[right]))
        if merged is None:
            return
        if merged not in places:
            heapq.heappush(due, merged)
            places[merged] = []
        places[merged].append(left)

    for left in range(end - 1):
        note(left, left + 1)
    while due:
        merged = heapq.heappop(due)
        for left in sorted(places.pop(merged)):
            right = following[left]
            # Since it was noted, one of the two may have been merged with its other neighbour.
            is_gone = right == end or merges.get(_key(ids[left], ids[right])) != merged
            if is_gone:
                continue
            ids[left] = merged
            ids[right] = _GONE
            following[left] = following[right]
            if following[left] < end:
                previous[following[left]] = left
            note(previous[left], left)
            note(left, following[left])
    return [token for token in ids if token != _GONE]
