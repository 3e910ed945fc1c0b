"""The bar that shows how far a command is."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any


class _NoBar:
    """In the place of tqdm's bar."""

    def update(self) -> None:
        """Show nothing."""


def bar(total: int, done: int = 0, *, is_quiet: bool = False) -> AbstractContextManager[Any]:
    """A bar with the rate and the time left, where stderr is a terminal and tqdm is installed.

    It counts on by one with each call of ``update()``, from `done` to `total`.
    """
    if is_quiet or not sys.stderr.isatty():
        return nullcontext(_NoBar())
    try:
        from tqdm import tqdm  # here: it is an extra
    except ImportError:
        return nullcontext(_NoBar())
    shown: AbstractContextManager[Any] = tqdm(
        total=total, initial=done, unit=" images", smoothing=0.05, dynamic_ncols=True
    )
    return shown
