"""What one request may still spend: CPU time on decoding and on tokens, and Lambda's time.

Lambda ends a function that takes too long, and then nothing at all is answered. So each phase of a
request has a time from which on it begins nothing more, early enough for the phases after it. What
is not done by then is answered with an error that says to try again; what is done is kept. A phase
that is over sooner leaves the next ones more.

The phases end so many seconds before Lambda would end the function. The seconds are for a function
with one CPU, and each line says what happens between the end of its phase and the next phase's:

====== ========== ============= ==================================================================
phase  `BATCH`    `REQUEST`     and then
====== ========== ============= ==================================================================
read   15         5             what has come from S3, eight files at most, is decoded: 0.2 s
decode 14         4             an image is still being decoded, for 2 s of CPU at most
encode 11.5       1.5           eight images are in the engine: 0.5 s; then vectors are written,
                                a hundred in 1.5 s, or the answer of a request is
write  5                        S3 is asked for every object once more, a hundred in 1 s
look   2                        the answer is written
====== ========== ============= ==================================================================

A function whose time is short keeps at least two thirds of it for reading: all of these seconds
shrink alike.
"""

import math
import threading
import time
from typing import Any, NamedTuple

from handler.config import Config
from handler.errors import OutOfTime


class Phases(NamedTuple):
    """A time for each phase of a request, from which on it begins nothing more."""

    read: float = math.inf
    """Files are read from S3."""
    decode: float = math.inf
    """Files are decoded, and texts become tokens."""
    encode: float = math.inf
    """What is decoded goes through the engine."""
    write: float = math.inf
    """Vectors are written to ``CLIP_OUTPUT``."""
    look: float = math.inf
    """Objects in S3 are looked at once more, to see whether they changed meanwhile."""


BATCH = Phases(read=15, decode=14, encode=11.5, write=5, look=2)
"""Seconds before Lambda's end, in an event of AWS's batch engines."""
REQUEST = Phases(read=5, decode=4, encode=1.5, write=0, look=0)
"""Seconds before Lambda's end, in any other request: it has nothing to write."""
MOST = 1 / 3
"""The share of a function's time that is kept for what comes after reading."""


class Budget:
    """The CPU seconds and the wall-clock time of one request. Thread-safe."""

    def __init__(self, cpu_seconds: float = math.inf, until: Phases = Phases()) -> None:  # noqa: B008
        """`until` holds times of `time.monotonic`."""
        self._cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self.until = until

    @classmethod
    def of_request(cls, config: Config, context: Any) -> "Budget":
        """For what a caller sent: ``request_seconds`` of CPU, and Lambda's remaining time."""
        return cls(config.request_seconds, _until(REQUEST, context))

    @classmethod
    def of_batch(cls, context: Any) -> "Budget":
        """For an event of AWS's batch engines, whose owner chose its size: Lambda's time alone."""
        return cls(until=_until(BATCH, context))

    def spend(self, seconds: float) -> None:
        """Take `seconds` of CPU time off what is left."""
        with self._lock:
            self._cpu_seconds -= seconds

    def check(self) -> None:
        """Decode no further image, and make tokens of no further text, when nothing is left.

        Raises:
            OutOfTime: the CPU seconds are spent, or Lambda would end the request soon.
        """
        if self._cpu_seconds <= 0:
            raise OutOfTime("what came before took all of the request's time: send this one again")
        _check(self.until.decode)

    def check_clock(self) -> None:
        """Encode nothing more when Lambda would end the request soon.

        Raises:
            OutOfTime: it would.
        """
        _check(self.until.encode)


def _check(until: float) -> None:
    if time.monotonic() >= until:
        raise OutOfTime("the function's time is nearly over: send this one again")


def _until(before_end: Phases, context: Any) -> Phases:
    """The times at which each phase is over, from Lambda's context; never, where there is none."""
    remaining_of = getattr(context, "get_remaining_time_in_millis", None)
    if remaining_of is None:
        return Phases()
    remaining = float(remaining_of()) / 1000
    end = time.monotonic() + remaining
    scale = min(1, remaining * MOST / before_end.read)
    return Phases(*(end - seconds * scale for seconds in before_end))
