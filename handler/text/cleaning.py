"""A text is cleaned before it is cut into tokens, exactly as clip cleans it, but at a bounded cost.

clip lets ftfy repair the text (``ftfy.fix_text``), replaces HTML's entities twice, makes every run
of white space one space, and lower cases the rest. What ftfy repairs is above all mojibake: "é"
that became "Ã©" when its two bytes were read as two letters.

ftfy repeats its repairs until none of them changes anything. Some short texts keep it at that for
seconds, because each round repairs a single place and uncovers the next: ``&amp;amp;amp;...`` and
``ÂÂÂ...©``, say. For this reason its loops are written down here once more, over ftfy's own
repairs, with a count of the characters that these were given. A text that is served is cleaned as
clip cleans it, which a test holds; one that would cost too much is refused.

This module imports ftfy and regex, which takes 40 ms. So it is imported at the first text that
is not plain.
"""

import html
import re
import unicodedata
from itertools import chain, groupby

import regex
from ftfy import badness, chardata, fixes

from handler.errors import TextTooCostly

WORK = 300_000
"""How many characters the repairs of one text may be given, all rounds taken together.

That takes 0.15 s at most. A text of ordinary damage is given three or four times its length.
"""
_WORK_OF_A_CALL = 15
"""What a repair costs beside its characters, in characters: a text may consist of tiny lines."""
_WORK_OF_A_VARIANT = 4
"""What ftfy's decoder of UTF-8's variants costs for each of them that it finds, in characters."""
_WORK_OF_A_MARK = 4
"""What sorting combining marks costs for each of them, in characters."""
_LONG_RUN = 64
"""From how many combining marks in a row on they are sorted here."""

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_MARKS = regex.compile(rf"\p{{M}}{{{_LONG_RUN},}}")
_WHITE_SPACE = regex.compile(r"\s+")
_NUMERIC_ENTITY = re.compile(r"&#0*([0-9]{1,8})[0-9]*")

_REPAIRS = (
    fixes.fix_c1_controls,
    fixes.fix_latin_ligatures,
    fixes.fix_character_width,
    fixes.uncurl_quotes,
    fixes.fix_line_breaks,
    fixes.fix_surrogates,
    fixes.remove_terminal_escapes,
    fixes.remove_control_chars,
)
"""What ftfy does to a line after its entities and its encoding were repaired, in this order."""


def clean(text: str) -> str:
    """The text as clip's tokenizer cuts it into words: repaired, in lower case, with single spaces.

    Raises:
        TextTooCostly: the repairs would need more than `WORK`.
    """
    text = _repair(text)
    text = _unescape(_unescape(text)).strip()
    single_spaced: str = _WHITE_SPACE.sub(" ", text)
    return single_spaced.strip().lower()


class _Work:
    """Counts what the repairs of one text cost."""

    def __init__(self) -> None:
        self.left = WORK

    def spend(self, characters: int) -> None:
        """Count a repair of so many characters.

        Raises:
            TextTooCostly: there is not enough left for it.
        """
        self.left -= characters + _WORK_OF_A_CALL
        if self.left < 0:
            raise TextTooCostly(
                "the text was escaped or wrongly decoded so many times over that it takes too long "
                "to repair: send it as plain Unicode"
            )


def _repair(text: str) -> str:
    """As ``ftfy.fix_text``: each line by itself."""
    work = _Work()
    lines = []
    entities = True
    for line in _LINE.findall(text):
        if "<" in line:
            # This is HTML's source, so ftfy leaves the entities in it and in all that follows.
            entities = False
        lines.append(_repair_line(line, entities, work))
    return "".join(lines)


def _repair_line(text: str, entities: bool, work: _Work) -> str:
    """As ``ftfy.fix_and_explain``: every repair, until none of them changes the line."""
    while True:
        work.spend(len(text))
        before = text
        if entities:
            text = fixes.unescape_html(text)
        text = _repair_encoding(text, work)
        for repair in _REPAIRS:
            text = repair(text)
        text = _compose(text, work)
        if text == before:
            return text


def _repair_encoding(text: str, work: _Work) -> str:
    """As ``ftfy.fix_encoding``: undo one wrong decoding after the other, until none is found."""
    while text and not chardata.possible_encoding(text, "ascii") and badness.is_bad(text):
        work.spend(len(text))
        before = text
        text = _undo_a_decoding(text, work)
        if text == before:
            break
    return text


def _undo_a_decoding(text: str, work: _Work) -> str:
    """One round of ``ftfy.fix_encoding``, for a text that looks like mojibake."""
    for encoding in chardata.CHARMAP_ENCODINGS:
        if not chardata.possible_encoding(text, encoding):
            continue
        try:
            return _read_as_utf8(text, encoding, work)
        except UnicodeDecodeError:
            continue
    repaired = _repair_embedded(text, work)
    if repaired != text:
        return repaired
    # ftfy reads Latin-1 as Windows-1252 before, which is the same: they differ in these alone.
    return fixes.fix_c1_controls(text)


def _read_as_utf8(text: str, encoding: str, work: _Work) -> str:
    """The bytes of `text` in `encoding`, one that it can be written in, read as UTF-8.

    Raises:
        UnicodeDecodeError: they are no UTF-8.
    """
    data = text.encode(encoding)
    # Where a program turned no-break spaces into spaces. In MacRoman, a dash and a space look so.
    if encoding != "macroman" and chardata.ALTERED_UTF8_RE.search(data):
        data = fixes.restore_byte_a0(data)
    if encoding.startswith("sloppy"):
        data = fixes.replace_lossy_sequences(data)
    # These two bytes begin what UTF-8 forbids and some programs write: a long zero, and surrogates.
    variants = data.count(0xC0) + data.count(0xED)
    if variants == 0:
        return data.decode("utf-8")
    work.spend(_WORK_OF_A_VARIANT * variants)
    return data.decode("utf-8-variants")


def _repair_embedded(text: str, work: _Work) -> str:
    """As ``ftfy.fixes.decode_inconsistent_utf8``: repair mojibake amid text that is none."""

    def repaired(match: re.Match[str]) -> str:
        part = match.group()
        is_whole = len(part) == len(text)
        if is_whole or not badness.is_bad(part):
            return part
        return _repair_encoding(part, work)

    return chardata.UTF8_DETECTOR_RE.sub(repaired, text)


def _compose(text: str, work: _Work) -> str:
    """As ``unicodedata.normalize("NFC", text)``.

    That takes a time that grows with the square of a run of combining marks: half a second for
    10,000. Long runs are brought into Unicode's order before, which is what takes it so long.
    """
    if unicodedata.is_normalized("NFC", text):
        return text

    def in_order(run: regex.Match[str]) -> str:
        work.spend(_WORK_OF_A_MARK * len(run.group()))
        return _in_canonical_order(run.group())

    return unicodedata.normalize("NFC", _MARKS.sub(in_order, text))


def _in_canonical_order(marks: str) -> str:
    decomposed = "".join(unicodedata.normalize("NFD", mark) for mark in marks)
    # A mark of class 0 stays where it is, and none of the others moves past it.
    groups = groupby(decomposed, key=lambda mark: unicodedata.combining(mark) == 0)
    return "".join(
        chain.from_iterable(sorted(group, key=unicodedata.combining) for _, group in groups)
    )


def _unescape(text: str) -> str:
    """As ``html.unescape``, with entities of any length.

    Python refuses to read decimal numbers of more than 4,300 digits, and clip fails with it. Such
    an entity is read as HTML reads it: leading zeros mean nothing, and what exceeds Unicode is the
    replacement character.
    """
    try:
        return html.unescape(text)
    except ValueError:
        return html.unescape(_NUMERIC_ENTITY.sub(r"&#\1", text))
