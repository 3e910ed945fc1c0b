"""What became of one thing: its value, or the error that stands in its place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from handler.errors import ClipError

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """A value or an error, never both.

    Whatever handles many images passes these along, one for each, so that a bad image fails alone::

        Outcome.of(lambda: read(item)).then(decode)
    """

    value: T | None = None
    error: ClipError | None = None

    @classmethod
    def of(cls, make: Callable[[], T]) -> "Outcome[T]":
        """What `make` returns, or the `ClipError` that it raises."""
        try:
            return cls(value=make())
        except ClipError as error:
            # An error that is kept must not keep its traceback: the traceback holds the frames that
            # the error passed through, and those hold the image's bytes.
            error.__cause__ = error.__context__ = None
            return cls(error=error.with_traceback(None))

    def then(self, step: Callable[[T], U]) -> "Outcome[U]":
        """What `step` makes of the value, or the `ClipError` it raises; an error stays as it is."""
        if self.error is not None:
            return Outcome(error=self.error)
        return Outcome.of(lambda: step(self.get()))

    def get(self) -> T:
        """The value.

        Raises:
            ClipError: there is only an error. It is a new one of the same class and text, because
                raising the one that is kept would tie it to the frames of its own raising.
        """
        if self.error is not None:
            raise type(self.error)(self.error.detail)
        return cast(T, self.value)
