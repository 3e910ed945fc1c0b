"""What is sent, when it is sent again, and what is made of the answers; without sending anything.

A *flow* is a generator that yields its next step, a request to send or a time to wait. Whoever runs
it does the step and hands back the answer, or throws the error of a request that failed into it.
Hence the rules stand here once, while `Client` runs flows with threads and `AsyncClient` with
asyncio.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from clip_encoder.batching import Item
from clip_encoder.errors import EncoderError, FingerprintChanged, ServiceUnusable
from clip_encoder.protocol import Answer, Call, Tower, read_results
from clip_encoder.results import Result
from clip_encoder.retries import RETRIES, pause

T = TypeVar("T")


@dataclass(frozen=True)
class Wait:
    """A step that sends nothing."""

    seconds: float


Flow: TypeAlias = Generator[Call | Wait, Answer | None, T]


class Flows:
    """The flows of one client, which remember the fingerprints of the vectors so far."""

    def __init__(self, fingerprint: str | None, retries: int = RETRIES) -> None:
        """Expect image vectors of `fingerprint`; None expects whatever the first answer has."""
        self.fingerprints: dict[Tower, str] = {} if fingerprint is None else {"image": fingerprint}
        self._retries = retries

    def call(self, call: Call) -> Flow[Answer]:
        """Send `call`, again where that may help.

        Raises:
            EncoderError: as the last attempt failed.
            FingerprintChanged: the answer's vectors are of another kind than those before.
        """
        for attempt in range(self._retries + 1):
            try:
                answer = yield call
            except EncoderError as error:
                if attempt == self._retries or not error.retryable:
                    raise
                failed = error
            else:
                assert answer is not None  # only a `Wait` has none
                if call.tower is not None and answer.fingerprint is not None:
                    self.expect(call.tower, answer.fingerprint)
                return answer
            yield Wait(pause(attempt, failed.retry_after))
        raise AssertionError("the last attempt returns or raises")

    def expect(self, tower: Tower, fingerprint: str) -> None:
        """Note the fingerprint of the vectors of `tower`.

        Raises:
            FingerprintChanged: it is another than that of those before.
        """
        expected = self.fingerprints.setdefault(tower, fingerprint)
        if fingerprint != expected:
            raise FingerprintChanged(expected, fingerprint)

    def batch(
        self, items: Sequence[Item], call_for: Callable[[Sequence[Item]], Call]
    ) -> Flow[list[Result]]:
        """What became of each of `items`, in order, by requests that `call_for` makes.

        Those that failed alone, by a code after which they may succeed later, are sent again. (A
        request has only so much time for decoding, and the last images of a large one may find it
        spent.)

        Raises:
            ServiceUnusable: nothing further can succeed.
        """
        waiting = [item for item in items if item.error is None]
        results = {
            item.index: Result(item.index, item.source, error=item.error)
            for item in items
            if item.error is not None
        }
        for attempt in range(self._retries + 1):
            if attempt and waiting:
                yield Wait(pause(attempt - 1))
            served, refused = yield from self._halves(waiting, call_for)
            results.update({result.index: result for result in served + refused})
            again = {r.index for r in served if r.error is not None and r.error.retryable}
            waiting = [item for item in waiting if item.index in again]
        return [results[item.index] for item in items]

    def _halves(
        self, items: Sequence[Item], call_for: Callable[[Sequence[Item]], Call]
    ) -> Flow[tuple[list[Result], list[Result]]]:
        """One request for `items`, or several smaller ones if that is too large for the service.

        Gives the results of requests that were served, and those of requests that were not.
        """
        if not items:
            return [], []
        try:
            answer = yield from self.call(call_for(items))
            return read_results(answer, items), []
        except ServiceUnusable:
            raise
        except EncoderError as error:
            if error.status != 413 or len(items) == 1:
                return [], [Result(item.index, item.source, error=error) for item in items]
        middle = len(items) // 2
        served, refused = yield from self._halves(items[:middle], call_for)
        more_served, more_refused = yield from self._halves(items[middle:], call_for)
        return served + more_served, refused + more_refused


def run(flow: Flow[T], send: Callable[[Call], Answer], sleep: Callable[[float], object]) -> T:
    """Do every step of `flow`, and give what it returns.

    Raises:
        EncoderError: as the flow does.
    """
    try:
        step = next(flow)
        while True:
            if isinstance(step, Wait):
                sleep(step.seconds)
                step = next(flow)
                continue
            try:
                answer = send(step)
            except EncoderError as error:
                step = flow.throw(error)
            else:
                step = flow.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def run_async(
    flow: Flow[T],
    send: Callable[[Call], Awaitable[Answer]],
    sleep: Callable[[float], Awaitable[object]],
) -> T:
    """`run` for asyncio."""
    try:
        step = next(flow)
        while True:
            if isinstance(step, Wait):
                await sleep(step.seconds)
                step = next(flow)
                continue
            try:
                answer = await send(step)
            except EncoderError as error:
                step = flow.throw(error)
            else:
                step = flow.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
