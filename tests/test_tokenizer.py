"""The tokenizer: the same tokens as clip's for every text, at a bounded cost."""

import copy
import itertools
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export import ExportError, texts
from handler.errors import TextTooCostly, TextTooLong
from handler.model import ModelError
from handler.text import tokenizer as module
from handler.text.tokenizer import FILE, MAX_CHARACTERS, Tokenizer
from tests.conftest import ROOT, missing
from tests.texts import at_random

WHOLE = 131_072
"""A context length that no text of 10,000 characters fills: all tokens are compared, not 77."""


@pytest.fixture(scope="session")
def clip() -> ModuleType:
    """OpenAI's clip itself."""
    pytest.importorskip("torch")
    from handler.engines.torch_clip import import_clip

    return import_clip()


@pytest.fixture(scope="session")
def vocabulary_dir(shared: Path, request: pytest.FixtureRequest) -> Path:
    """A folder with the vocabulary of the clip package or, without torch, of the model."""
    try:
        import torch  # noqa: F401
    except ImportError:
        model: Path = request.getfixturevalue("model_dir")
        if not (model / FILE).exists():
            pytest.skip("no torch to export a vocabulary with, and none in the model folder")
        return model
    from export import vocabulary

    folder = shared / "vocabulary"
    with missing(folder) as wanted:
        if wanted:
            folder.mkdir()
            vocabulary.write(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(vocabulary_dir: Path) -> Tokenizer:
    return Tokenizer.load(vocabulary_dir)


def _all_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Every token of `text`, however many."""
    unbounded = copy.copy(tokenizer)
    unbounded.context_length = WHOLE
    return list(unbounded.tokenize(text).ids)


def _clips(clip: ModuleType, text: str) -> list[int]:
    """Every token that clip makes of `text`, with those that ``clip.tokenize`` puts around them."""
    inner: list[int] = clip.clip._tokenizer.encode(text)
    return [49406, *inner, 49407]


# The same with any clip, and known without one.
KNOWN = {
    "": [49406, 49407],
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "A  Photo\tof a CAT": [49406, 320, 1125, 539, 320, 2368, 49407],
    "it's 2026!": [49406, 585, 568, 273, 271, 273, 277, 256, 49407],
}


@pytest.mark.parametrize("text", KNOWN)
def test_known_tokens(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.tokenize(text)
    assert tokens.ids.tolist() == KNOWN[text]
    assert tokens.ids.dtype == np.int32
    assert not tokens.truncated


@pytest.mark.parametrize(("name", "text"), texts.nasty(), ids=[name for name, _ in texts.nasty()])
def test_nasty_texts_have_clips_tokens(
    clip: ModuleType, tokenizer: Tokenizer, name: str, text: str
) -> None:
    assert _all_of(tokenizer, text) == _clips(clip, text)


def test_20_000_random_texts_have_clips_tokens(clip: ModuleType, tokenizer: Tokenizer) -> None:
    def differs(text: str) -> bool:
        return _all_of(tokenizer, text) != _clips(clip, text)

    assert [seed for seed in range(20_000) if differs(at_random(seed))] == []


@pytest.mark.parametrize(
    "text", ["a photo of a dog " * 30, "é!" * 50, "a " * 74 + "a unheardofword"]
)
def test_a_long_text_is_cut_as_clip_cuts_it(
    clip: ModuleType, tokenizer: Tokenizer, text: str
) -> None:
    tokens = tokenizer.tokenize(text, truncate=True)
    assert tokens.truncated
    assert tokens.ids.tolist() == clip.tokenize(text, truncate=True)[0].tolist()


def test_a_text_of_77_tokens_is_read_whole_and_one_of_78_is_refused_by_its_count(
    tokenizer: Tokenizer,
) -> None:
    full = tokenizer.tokenize("cat " * 75, truncate=True)
    assert len(full.ids) == 77
    assert not full.truncated
    with pytest.raises(TextTooLong) as error:
        tokenizer.tokenize("cat " * 76)
    assert error.value.detail == (
        "the text has 78 tokens, its start and its end included, and the model reads at most 77: "
        'shorten it, or send "truncate": true to have its end cut off'
    )


@pytest.mark.parametrize("truncate", [False, True])
def test_a_text_of_too_many_characters_is_refused(tokenizer: Tokenizer, truncate: bool) -> None:
    assert len(tokenizer.tokenize(" " * MAX_CHARACTERS).ids) == 2
    with pytest.raises(TextTooLong) as error:
        tokenizer.tokenize(" " * (MAX_CHARACTERS + 1), truncate)
    assert error.value.detail == (
        "the text has 10,001 characters, and at most 10,000 are read: shorten it"
    )


# ftfy, and so clip, takes seconds for these: a second for those that are not the longest.
COSTLY = {
    "escaped 1,200 times amid other letters": "&" + "amp;" * 1_200 + "一" * 5_000,
    "escaped 2,000 times in many ways": "&" + "amp;#38;#x26;AMP;" * 500,
    "one wrong decoding after the other": "Â" * 9_000 + "©",
    "the same amid other scripts": "Â" * 9_000 + "© 一",
    # Few rounds, but of a decoder that takes long for each of these.
    "with variants of UTF-8 to decode each time": "À\x80" * 4_900 + "Â" * 15 + "©",
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_text_that_takes_too_long_to_repair_is_refused(tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(TextTooCostly):
        tokenizer.tokenize(COSTLY[name], truncate=True)


def test_each_mark_that_is_sorted_counts(tokenizer: Tokenizer) -> None:
    """Sorting is what a round of repairs spends most on, where there are many marks."""
    late = "".join(f"&{'amp;' * times}#x316;" for times in range(26))
    text = "a" + "\u0316\u0301" * 2_000 + late
    with pytest.raises(TextTooCostly):
        tokenizer.tokenize(text, truncate=True)


def test_marks_are_sorted_as_unicode_sorts_them() -> None:
    from handler.text.cleaning import _in_canonical_order

    chance = random.Random(16)
    marks = [chr(code) for code in range(0x1F000) if unicodedata.category(chr(code)) == "Mn"]
    for _ in range(500):
        run = "".join(chance.choices(marks, k=100))
        assert _in_canonical_order(run) == unicodedata.normalize("NFD", run)


def test_numbers_of_thousands_of_digits_are_read_where_clip_fails(
    clip: ModuleType, tokenizer: Tokenizer
) -> None:
    zeros, ones = "0" * 5_000, "1" * 5_000
    with pytest.raises(ValueError, match="4300 digits"):
        _clips(clip, f"&#{zeros}65;")
    assert _all_of(tokenizer, f"x &#{zeros}65; y") == _clips(clip, "x A y")
    assert _all_of(tokenizer, f"x &#{zeros} y") == _clips(clip, "x &#0 y")
    assert _all_of(tokenizer, f"x &#{ones}; y") == _clips(clip, "x &#9999999; y")


def test_long_words_are_merged_as_short_ones(tokenizer: Tokenizer) -> None:
    """By two functions, of which the simpler one is clip's own loop."""
    chance = random.Random(14)
    merges = tokenizer._merges
    for _ in range(2_000):
        alphabet = chance.choice(("a", "ab", "etaoinshrdlu", "!?.", "😀😁", "あいう", "éa"))
        word = "".join(chance.choices(alphabet, k=chance.randint(1, 90)))
        ids = [tokenizer._bytes[byte] for byte in word.encode()]
        ids[-1] += 256
        assert module._merge_long(ids, merges) == module._merge_short(ids, merges)


def test_only_short_words_are_remembered_and_not_all(vocabulary_dir: Path) -> None:
    tokenizer = Tokenizer.load(vocabulary_dir)
    remembered: Any = tokenizer._remembered
    tokenizer.tokenize("a " * 3 + "b" * 33, truncate=True)
    assert remembered.cache_info().currsize == 1
    words = ["".join(letters) for letters in itertools.product("abcdefghij", repeat=4)]
    for start in range(0, len(words), 1_000):
        tokenizer.tokenize(" ".join(words[start : start + 1_000]), truncate=True)
    assert remembered.cache_info().currsize == module._REMEMBERED_WORDS < len(words)


def _modules_after(code: str, argument: Path) -> set[str]:
    command = [sys.executable, "-c", f"{code}\nprint(*sys.modules)", str(argument)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_ftfy_and_regex_are_imported_when_they_are_needed(vocabulary_dir: Path) -> None:
    imported = "import sys; from handler.text.tokenizer import *"
    loaded = f"{imported}\ntokenizer = Tokenizer.load(Path(sys.argv[1]))"
    plain = f"{loaded}\ntokenizer.tokenize('a photo of a cat')"
    other = f"{plain}\ntokenizer.tokenize('café')"
    expected = {imported: set(), plain: {"regex"}, other: {"regex", "ftfy"}}
    for code, packages in expected.items():
        assert _modules_after(code, vocabulary_dir) & {"regex", "ftfy"} == packages


def test_a_vocabulary_that_cannot_be_read_is_named(tmp_path: Path, vocabulary_dir: Path) -> None:
    path = tmp_path / FILE
    whole = (vocabulary_dir / FILE).read_text()
    unfinished: dict[str, Any] = json.loads(whole)
    del unfinished["merges"]
    odd = json.loads(whole) | {"merges": [1, 2, 3]}
    for content in (None, whole[:-1], json.dumps(unfinished), json.dumps(odd), "[]"):
        if content is not None:
            path.write_text(content)
        with pytest.raises(ModelError, match=rf"{FILE} cannot be read .* export the model again"):
            Tokenizer.load(tmp_path)


def _clips_tokenizer(clip: ModuleType) -> SimpleNamespace:
    """What the export reads of clip's tokenizer, to be changed."""
    original = clip.clip._tokenizer
    return SimpleNamespace(
        encoder=dict(original.encoder),
        byte_encoder=dict(original.byte_encoder),
        bpe_ranks=dict(original.bpe_ranks),
    )


def _exchange(changed: SimpleNamespace, one: str, other: str) -> None:
    ids = changed.encoder
    ids[one], ids[other] = ids[other], ids[one]


def _put_a_pair_before_what_it_is_of(changed: SimpleNamespace) -> None:
    """``th`` + ``e</w>`` before ``t`` + ``h``, with the tokens that they become."""
    _exchange(changed, "th", "the</w>")
    pairs = list(changed.bpe_ranks)
    one, other = pairs.index(("t", "h")), pairs.index(("th", "e</w>"))
    pairs[one], pairs[other] = pairs[other], pairs[one]
    changed.bpe_ranks = dict(zip(pairs, range(len(pairs)), strict=True))


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("the bytes are the first 256 tokens", lambda it: _exchange(it, "a", "the</w>")),
        ("those at the end of a word", lambda it: _exchange(it, "a</w>", "b</w>")),
        ("every pair becomes the token of its place", lambda it: _exchange(it, "in", "th")),
        ("no pair is of tokens further down", _put_a_pair_before_what_it_is_of),
        ("the special tokens come last", lambda it: it.encoder.update({"one more": 49408})),
    ],
)
def test_a_vocabulary_of_another_kind_is_refused(clip: ModuleType, rule: str, change: Any) -> None:
    from export import vocabulary

    vocabulary.of(_clips_tokenizer(clip), 77)
    changed = _clips_tokenizer(clip)
    change(changed)
    with pytest.raises(ExportError, match=f"that {rule}"):
        vocabulary.of(changed, 77)


def test_there_are_enough_captions_and_they_fit(tokenizer: Tokenizer) -> None:
    captions = texts.captions()
    assert len(set(captions)) == len(captions) >= 100
    lengths = [len(tokenizer.tokenize(caption).ids) for caption in captions]
    assert {2, 3, 77} <= set(lengths)
    assert len(set(lengths)) > 20
    assert not tokenizer.tokenize(texts.golden_text()).truncated
