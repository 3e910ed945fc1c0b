"""Texts made at random, of everything that tokenizers differ over."""

import html.entities
import random
import unicodedata
from collections.abc import Callable
from functools import cache

from export import texts

_ENCODINGS = (
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1257"),
    *("iso-8859-2", "latin-1", "mac_roman", "cp437"),
)
_SEPARATORS = ("", "", " ", " ", ", ", "\n", "\u00a0", "-", "<", "&", ";")


def at_random(seed: int) -> str:
    """A text of one to eight pieces; each seed has its own. clip makes tokens of all of them."""
    chance = random.Random(seed)
    pieces = (chance.choice(_PIECES)(chance) for _ in range(chance.randint(1, 8)))
    return "".join(piece + chance.choice(_SEPARATORS) for piece in pieces)


def _some(chance: random.Random, characters: str, most: int = 12) -> str:
    return "".join(chance.choices(characters, k=chance.randint(1, most)))


def _any_character(chance: random.Random) -> str:
    plane = chance.choice((0, 0, 0, 1, 1, 2, 3, 14, 15, 16))
    return "".join(
        chr(plane << 16 | chance.randrange(1 << 16)) for _ in range(chance.randint(1, 9))
    )


def _of_one_block(chance: random.Random) -> str:
    start = chance.randrange(0, 0x30000, 128)
    return "".join(chr(start + chance.randrange(128)) for _ in range(chance.randint(1, 12)))


def _latin(chance: random.Random) -> str:
    return _some(chance, "".join(map(chr, range(0x250))))


def _ascii(chance: random.Random) -> str:
    return _some(chance, "".join(map(chr, range(128))), 30)


def _caption(chance: random.Random) -> str:
    words = chance.choice(texts.captions()).split() or ["none"]
    change = chance.choice((str, str.upper, str.title, str.swapcase))
    return change(" ".join(chance.sample(words, chance.randint(1, len(words)))))


def _mojibake(chance: random.Random) -> str:
    """Characters in UTF-8, read in another encoding up to three times, and perhaps with a loss."""
    text = chance.choice((_caption, _latin, _quotes, _emoji, _of_one_block))(chance)
    for _ in range(chance.randint(1, 3)):
        data = text[:40].encode(errors="replace")
        text = data.decode(chance.choice(_ENCODINGS), errors="replace")
    if chance.random() < 0.3:
        text = text.replace(chance.choice(text), chance.choice((" ", "\ufffd", "?", "\x1a")))
    return text


def _mojibake_s_characters(chance: random.Random) -> str:
    high = bytes(range(0x80, 0x100))
    encoding = chance.choice(_ENCODINGS)
    return _some(chance, high.decode(encoding, errors="replace") + "ÂÃâ€\x80 ")


def _full_width(chance: random.Random) -> str:
    return _some(chance, "".join(map(chr, range(0xFF00, 0xFFF0))) + "\u3000")


def _entity(chance: random.Random) -> str:
    number = chance.choice((chance.randrange(0x120), chance.randrange(0x120000)))
    name = chance.choice(_names()).rstrip(";")
    named = chance.choice((name, name.upper(), name.lower(), name[:-1]))
    body = chance.choice((named, f"#{number}", f"#x{number:x}", f"#X{number:06X}"))
    return "&" + "amp;" * chance.choice((0, 0, 1, 3)) + body + chance.choice((";", ";", ";", ""))


@cache
def _names() -> tuple[str, ...]:
    return tuple(sorted(html.entities.html5))


def _quotes(chance: random.Random) -> str:
    return _some(chance, "“”„‟‘’‚‛«»‹›ʼ′″'\"`´", 4)


def _control(chance: random.Random) -> str:
    characters = "".join(map(chr, [*range(32), *range(0x7F, 0xA0), *range(0x206A, 0x2070)]))
    return chance.choice((_some(chance, characters), "\x1b[31m", "\x1b[0;1;2m", "\x1b["))


def _white_space(chance: random.Random) -> str:
    spaces = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
    return _some(chance, spaces + "\u200b\u180e\ufeff\u2060")


def _contraction(chance: random.Random) -> str:
    end = chance.choice(("s", "t", "re", "ve", "m", "ll", "d", "ſ", "x"))
    word = chance.choice(("it", "he", "", "IT", "don", "9", "é", "!"))
    return word + chance.choice("'’ʼ＇") + chance.choice((end, end.upper(), end + "e"))


def _special(chance: random.Random) -> str:
    token = chance.choice(("<|startoftext|>", "<|endoftext|>"))
    change = chance.choice(
        (
            str,
            str.upper,
            str.title,
            lambda token: token.replace("s", "ſ"),
            lambda token: token.replace("st", "ﬅ"),
            lambda token: token[1:],
            lambda token: token.replace("<", "&lt;").replace(">", "&gt;"),
        )
    )
    return change(token)


def _emoji(chance: random.Random) -> str:
    emoji = [chr(code) for code in range(0x1F300, 0x1FB00)] + [
        "\u200d",
        "\ufe0f",
        "🏽",
        "❤",
        "🇩",
        "🇪",
    ]
    return "".join(chance.choices(emoji, k=chance.randint(1, 6)))


def _marks(chance: random.Random) -> str:
    most = chance.choice((5, 5, 5, 200))
    return chance.choice("aeoz ßΑא가") + _some(chance, _all_marks(), most)


@cache
def _all_marks() -> str:
    return "".join(chr(code) for code in range(0x1F000) if unicodedata.combining(chr(code)))


def _digits(chance: random.Random) -> str:
    return _some(chance, _all_digits())


@cache
def _all_digits() -> str:
    return "".join(
        chr(code) for code in range(0x1FC00) if unicodedata.category(chr(code))[0] == "N"
    )


def _surrogates(chance: random.Random) -> str:
    return _some(chance, "".join(map(chr, range(0xD800, 0xE000, 37))) + "x", 4)


def _one_kind(chance: random.Random) -> str:
    character = chance.choice((_any_character, _latin, _ascii, _of_one_block))(chance)[0]
    return character * chance.choice((3, 40, 400))


_PIECES: tuple[Callable[[random.Random], str], ...] = (
    *(_any_character, _of_one_block, _latin, _ascii, _caption, _mojibake, _mojibake),
    *(_mojibake_s_characters, _full_width, _entity, _entity, _quotes, _control, _white_space),
    *(_contraction, _special, _emoji, _marks, _digits, _surrogates, _one_kind),
)
