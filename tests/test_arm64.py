"""What judges ``make arm64``: it lets the same vectors through and no others."""

import math

import pytest

from tests import arm64

SAME = {"JPEG": [0.6, 0.8], "AVIF": [1.0, 0.0]}


def test_the_same_vectors_pass() -> None:
    lines, passed = arm64.compare(SAME, {"JPEG": [0.6000001, 0.7999999], "AVIF": [1.0, 0.0]})
    assert passed
    assert not any("FAILED" in line for line in lines)


@pytest.mark.parametrize("vector", [[0.59, 0.8074], [0.8, 0.6], [math.nan, 0.8]])
def test_another_vector_fails_by_name(vector: list[float]) -> None:
    lines, passed = arm64.compare(SAME, SAME | {"JPEG": vector})
    assert not passed
    assert [line.startswith("JPEG") and line.endswith("FAILED") for line in lines] == [True, False]


@pytest.mark.parametrize(
    ("x86", "other"), [(SAME, {"JPEG": [0.6, 0.8]}), ({"JPEG": [0.6, 0.8]}, SAME), ({}, {})]
)
def test_a_missing_vector_fails(x86: arm64.Vectors, other: arm64.Vectors) -> None:
    assert not arm64.compare(x86, other)[1]


@pytest.mark.parametrize(("require", "status"), [("", 0), ("emulator,arm64", 1)])
def test_where_a_part_is_missing_it_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], require: str, status: int
) -> None:
    monkeypatch.setenv("REQUIRE", require)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(arm64, "CACHE", arm64.CACHE / "nothing")
    assert arm64.main([]) == status
    assert ("skipped" in (said := capsys.readouterr().out)) == (not status)
    assert any(part in said for part in ("apt-get", "root", "x86_64"))
