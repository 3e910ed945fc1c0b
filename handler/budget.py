"""What one request may still spend: CPU time on decoding, and time until Lambda would end it."""

import math
import threading
import time
from typing import Any

from handler.config import Config
from handler.errors import OutOfTime

RESERVE = 3.0
"""Seconds before Lambda's end at which no more work begins: what a batch through the engine and its
answer take on a small function."""


class Budget:
    """The CPU seconds and the wall-clock time of one request. Thread-safe."""

    def __init__(self, cpu_seconds: float = math.inf, until: float = math.inf) -> None:
        """`until` is a time of `time.monotonic`, from which on no more work is begun."""
        self._cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self.until = until

    @classmethod
    def of_request(cls, config: Config, context: Any) -> "Budget":
        """For what a caller sent: ``request_seconds`` of CPU, and Lambda's remaining time."""
        return cls(config.request_seconds, _until(context))

    @classmethod
    def of_batch(cls, context: Any) -> "Budget":
        """For an event of AWS's batch engines, whose owner chose its size: Lambda's time alone."""
        return cls(until=_until(context))

    def spend(self, seconds: float) -> None:
        """Take `seconds` of CPU time off what is left."""
        with self._lock:
            self._cpu_seconds -= seconds

    def check(self) -> None:
        """Begin no further image when there is nothing left.

        Raises:
            OutOfTime: the CPU seconds are spent, or Lambda would end the request soon.
        """
        if self._cpu_seconds <= 0:
            raise OutOfTime("the images before took all of the request's time: send this one again")
        self.check_clock()

    def check_clock(self) -> None:
        """As `check`, of Lambda's remaining time alone.

        Raises:
            OutOfTime: Lambda would end the request soon.
        """
        if time.monotonic() >= self.until:
            raise OutOfTime("the function's time is nearly over: send this image again")


def _until(context: Any) -> float:
    """When to begin no more work, from Lambda's context; never, where there is none."""
    remaining_of = getattr(context, "get_remaining_time_in_millis", None)
    if remaining_of is None:
        return math.inf
    remaining = float(remaining_of()) / 1000
    # A function with a timeout of a few seconds keeps most of them.
    return time.monotonic() + remaining - min(RESERVE, remaining / 4)
