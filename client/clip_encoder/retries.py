"""How long to wait before a request is sent again: as OpenAI's own client waits."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRIES = 2
"""Times that a request is sent again, by default."""
FIRST, LONGEST = 0.5, 8.0
"""Seconds of the first wait, which doubles each time, and of the longest."""
LONGEST_ASKED = 60.0
"""Seconds. A service that asks for a longer wait than this is not obeyed, but tried as usual."""


def pause(attempt: int, asked: float | None = None) -> float:
    """Seconds to wait after attempt number `attempt`, from 0, failed.

    `asked` is the service's own ``Retry-After``. Without it the wait is up to a quarter shorter
    than the full time, by chance, so that many clients do not come back all at once.
    """
    if asked is not None and 0 < asked <= LONGEST_ASKED:
        return asked
    return min(FIRST * 2.0**attempt, LONGEST) * (1 - 0.25 * random.random())  # noqa: S311


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the header ``Retry-After`` asks for, a number or a date; None without one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # no date, or one without a time zone
        return None
