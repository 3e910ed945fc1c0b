"""What one request may still spend: CPU time on decoding, and Lambda's time.

Lambda ends a function that takes too long, and then nothing at all is answered. So each phase of a
request has a time from which on it begins nothing more, early enough for the phases after it. What is
not done by then is answered with an error that says to try again; what is done is kept. A phase that
is over sooner leaves the next one more. `BATCH` and `REQUEST` say how many seconds before Lambda's
end each phase is over, and the gaps between them are what the next phase needs at worst, on a
function with one CPU:

========== ====== ======== ==========================================================================
phase      BATCH  REQUEST  the time until the next phase is over
========== ====== ======== ==========================================================================
read       14     4        one image is still being decoded (2 s of CPU), and eight encoded (0.5 s)
encode     11.5   1.5      the last eight are encoded; then a batch engine's vectors are written:
                           100 to S3 take 1.5 s, and one call that hangs leaves the others 5 s
write      5               S3 is asked for each object once more: 100 take 1 s
look       2               the answer
========== ====== ======== ==========================================================================

A function with a short time-out keeps two thirds of its time for reading.
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
    """Files are read from S3 and decoded."""
    encode: float = math.inf
    """What is decoded goes through the engine."""
    write: float = math.inf
    """Vectors are written to ``CLIP_OUTPUT``."""
    look: float = math.inf
    """Objects in S3 are looked at once more, to see whether they changed meanwhile."""


BATCH = Phases(read=14, encode=11.5, write=5, look=2)
"""Of a batch engine's event: seconds before Lambda's end."""
REQUEST = Phases(read=4, encode=1.5, write=0, look=0)
"""Of any other request, which has nothing to write: seconds before Lambda's end."""
MOST = 1 / 3
"""The share of a function's remaining time that all phases after reading may take."""


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
        """Read or decode no further image when there is nothing left.

        Raises:
            OutOfTime: the CPU seconds are spent, or Lambda would end the request soon.
        """
        if self._cpu_seconds <= 0:
            raise OutOfTime("the images before took all of the request's time: send this one again")
        _check(self.until.read)

    def check_clock(self) -> None:
        """Encode nothing more when Lambda would end the request soon.

        Raises:
            OutOfTime: it would.
        """
        _check(self.until.encode)


def _check(until: float) -> None:
    if time.monotonic() >= until:
        raise OutOfTime("the function's time is nearly over: send this image again")


def _until(before_end: Phases, context: Any) -> Phases:
    """The times at which each phase is over, from Lambda's context; never, where there is none."""
    remaining_of = getattr(context, "get_remaining_time_in_millis", None)
    if remaining_of is None:
        return Phases()
    remaining = float(remaining_of()) / 1000
    end = time.monotonic() + remaining
    scale = min(1, remaining * MOST / before_end.read)
    return Phases(*(end - seconds * scale for seconds in before_end))
