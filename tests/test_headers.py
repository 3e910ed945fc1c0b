"""Header fields, by the examples and rules of RFC 9110."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.http.headers import parameters, preferred

JSON, OCTETS = "application/json", "application/octet-stream"


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("", JSON),
        ("*/*", JSON),
        (OCTETS, OCTETS),
        ("Application/OCTET-Stream", OCTETS),
        (f"{OCTETS}, {JSON}", OCTETS),
        (f"{JSON}, {OCTETS}", JSON),  # of equal weight
        (f"text/html, {OCTETS}", JSON),  # API Gateway looks at the first type only
        (f"{JSON};q=0.5, {OCTETS}", JSON),  # whatever the weights
        (f"{OCTETS};q=0.5, {JSON}", JSON),
        (f"{OCTETS}; Q=0.5 , {JSON} ;\tq=0.4", OCTETS),
        (f"{OCTETS};q=0.001, */*;q=0", OCTETS),
        (f"{OCTETS}, */*", OCTETS),
        (f"*/*, {OCTETS}", JSON),
        (f"*/*;q=0.1, {OCTETS}", JSON),
        ("application/*", JSON),
        (f"{JSON};q=0, {OCTETS}", JSON),
        (f"{OCTETS}, {JSON};q=0.9", OCTETS),
        (f"{OCTETS};q=0.9, {JSON};q=0.8, */*", OCTETS),  # the more specific range decides
        (f"{OCTETS};q=0.9, */*", JSON),
        (f"{OCTETS};q=0, */*", JSON),
        (f"{OCTETS};q=0", JSON),
        ("image/png", JSON),  # nothing acceptable: better than an error
        (f"{JSON};q=0, {OCTETS};q=0", JSON),
        (f"{OCTETS};charset=utf-8", OCTETS),
        (f'text/plain;x="a,{OCTETS};q=1", {JSON}', JSON),  # a quoted string is no list
        (f'text/plain;x="\\",{OCTETS}', JSON),
        (f"{OCTETS};q=0.1, {JSON};q=0.5, {OCTETS}", JSON),  # said twice: the first counts
        (f"{OCTETS};q=high", JSON),
        (f"{OCTETS};q=1.5", JSON),
        (f"{OCTETS};q=inf", JSON),
        (f",, ,{OCTETS},", OCTETS),
        ("application/octet-streams", JSON),
        ("nonsense", JSON),
    ],
)
def test_what_accept_asks_for(accept: str, answer: str) -> None:
    assert preferred(accept, (JSON, OCTETS)) == answer


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ("", {})),
        ("Text/HTML", ("text/html", {})),
        ("text/html; Charset=UTF-8", ("text/html", {"charset": "UTF-8"})),
        ('a/b;x="1;2";y=3', ("a/b", {"x": "1;2", "y": "3"})),
        (r'form-data; name="a\"b\\c"', ("form-data", {"name": r"a\"b\c".replace("\\", "", 1)})),
        ("a/b; x=1; x=2", ("a/b", {"x": "1"})),
        ('a/b; x="never closed', ("a/b", {"x": "never closed"})),
        ("a/b; flag", ("a/b", {"flag": ""})),
    ],
)
def test_parameters(value: str, expected: tuple[str, dict[str, str]]) -> None:
    assert parameters(value) == expected


@given(st.text('ab/*;,="\\ q01.\n'))
def test_anything_is_read(text: str) -> None:
    assert preferred(text, (JSON, OCTETS)) in (JSON, OCTETS)
    parameters(text)


@pytest.mark.parametrize("piece", ['"', '\\"', '"\\', ",", ";", "a;", '",', "a"])
def test_a_hostile_header_is_read_once(piece: str) -> None:
    """Reading on from each of its characters again, it would take hours."""
    text = 'x;y="' + piece * (2_000_000 // len(piece))
    assert preferred(text, (JSON, OCTETS)) == JSON
