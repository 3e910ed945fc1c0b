"""The error tree: drawn in the docstring, complete, and consistent."""

import re

from handler import errors
from handler.errors import ClipError


def _all(error: type[ClipError]) -> list[type[ClipError]]:
    return [error, *(deeper for child in error.__subclasses__() for deeper in _all(child))]


LEAVES = [error for error in _all(ClipError) if not error.__subclasses__()]


def test_the_docstring_draws_every_error() -> None:
    drawn = re.findall(r"[├└]── (\w+) +(\w+) +(\d{3})( +yes)?", errors.__doc__ or "")
    assert {(name, code, int(status), bool(retry)) for name, code, status, retry in drawn} == {
        (error.__name__, error.code, error.status, error.retryable) for error in LEAVES
    }


def test_codes_are_unique_and_statuses_fit() -> None:
    assert len({error.code for error in LEAVES}) == len(LEAVES)
    for error in LEAVES:
        request = issubclass(error, errors.RequestError)
        assert error.status in ((400, 403, 404, 408, 413, 415, 422) if request else (500, 503))
        assert error.retryable is not (request or error is errors.OutputRefused)
        assert error.__doc__


def test_an_error_shows_its_code_and_detail() -> None:
    error = errors.TruncatedImage("the JPEG image ends early")
    assert str(error) == "truncated_image: the JPEG image ends early"
    assert error.args == ("the JPEG image ends early",)  # what a copy of it is made from
    assert error.body() == {"code": "truncated_image", "detail": "the JPEG image ends early"}
