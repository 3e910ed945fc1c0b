"""Every input that a fuzzer ever broke the service with (``tests/fuzz``), tried again."""

import types
from pathlib import Path

import pytest

from tests.fuzz.__main__ import CRASHES
from tests.fuzz.worker import Worker
from tests.test_every_way_in import main

__all__ = ["main"]  # the fixture


@pytest.fixture(scope="module")
def worker(main: types.ModuleType) -> Worker:
    return Worker(main)


@pytest.mark.parametrize("path", sorted(CRASHES.iterdir()), ids=lambda path: path.name)
def test_it_is_answered_now(worker: Worker, path: Path) -> None:
    assert worker.run(path.name.partition("-")[0], path.read_bytes())[0] in (
        200,
        400,
        413,
        415,
        422,
    )
