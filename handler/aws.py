"""Calls to AWS. Each runs in a thread of its own, and is over by a certain time.

boto3 limits how long one read of a socket may take, but not how long an answer may: from an S3 that
sends a byte every second it would read for hours. So whoever needs an answer waits until the call's
time is over and no longer. Then the call's socket is shut down, and its thread ends at once,
whatever it was waiting for. (Only a look-up of a host's name cannot be cut short: the system's
resolver gives up by itself, after some seconds.) No threads are shared, so calls that hang hold up
no others.
"""

import logging
import math
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import cache, partial
from typing import Any, Generic, TypeVar

from handler.errors import ClipError

AHEAD = 8
"""Calls that are begun while the answer of an earlier one is waited for."""

CONNECT_TIMEOUT, READ_TIMEOUT = 2, 5
"""Seconds that one attempt waits for a connection, and for each part of an answer."""
PAUSES = 0.5, 1.0
"""Seconds between the attempts of one call, of which there is one more than pauses."""

LONGEST = 10.0
"""Seconds for one call, its attempts together. An object of 32 MB, which is the most that an image
may have by default, needs 3.2 MB a second then; Lambda reads about 70. And an attempt that hangs
leaves time for another."""
IN_VAIN = 15.0
"""Seconds that one request waits for calls which then do not end in time."""
LEAST = 1.0
"""Seconds for each further call after that: an AWS that is well begins to answer within 0.1. So 32
objects of an S3 that hangs, nine at a time, are waited for 10 + 5 + 1 + 1 seconds, in the 29 that
API Gateway waits."""

T = TypeVar("T")

_making_clients = threading.Lock()  # boto3 makes its clients in one thread only; they serve many
_call: "ContextVar[_Call[Any] | None]" = ContextVar("call", default=None)


class Calls:
    """The calls of one request, or of one phase of it. Those not waited for end with the block."""

    def __init__(self, until: float = math.inf) -> None:
        """`until` is a time of `time.monotonic` at which every call is over."""
        self._until = until
        self._in_vain = 0.0  # seconds
        self._open: set[_Call[Any]] = set()

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *_: object) -> None:
        for call in self._open:
            call.stop()

    def begin(self, work: Callable[[], T], late: Callable[[], T]) -> Callable[[], T]:
        """Begin `work`: a function that waits for its result, or gives `late`'s if time is over."""
        if time.monotonic() >= self._until:
            return late
        seconds = max(LEAST, min(LONGEST, IN_VAIN - self._in_vain))
        deadline = min(self._until, time.monotonic() + seconds)
        call = _Call(work, deadline)
        self._open.add(call)
        return partial(self._wait, call, late)

    def _wait(self, call: "_Call[T]", late: Callable[[], T]) -> T:
        begun = time.monotonic()
        self._open.discard(call)
        if call.is_in_time():
            return call.result.result()
        call.stop()
        self._in_vain += time.monotonic() - begun
        return late()


def in_order(begun: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of calls, in order, `AHEAD` more of which are begun than have been waited for.

    `begun` begins each call when it is asked for the next, as a generator does.
    """
    waiting: deque[Callable[[], T]] = deque()
    for result in begun:
        waiting.append(result)
        if len(waiting) > AHEAD:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


class _Call(Generic[T]):
    """One call in its thread."""

    def __init__(self, work: Callable[[], T], deadline: float) -> None:
        self.result: Future[T] = Future()
        self._deadline = deadline
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()  # around the socket
        run = partial(copy_context().run, self._run, work)  # its lines in the log are the request's
        threading.Thread(target=run, name="aws", daemon=True).start()

    def is_in_time(self) -> bool:
        """Wait for the result, or for the deadline: whether there is a result."""
        done, _ = wait([self.result], max(0, self._deadline - time.monotonic()))
        return bool(done)

    def stop(self) -> None:
        """End the thread, which may be waiting for its socket."""
        with self._lock:
            self._stopped.set()
            if self._socket is not None:
                with suppress(OSError):  # it is not connected any more
                    self._socket.shutdown(socket.SHUT_RDWR)

    def watch(self, connection: socket.socket) -> None:
        """Have `stop` shut `connection` down.

        Raises:
            ConnectionAbortedError: the call has been stopped.
        """
        with self._lock:
            if self._stopped.is_set():
                raise ConnectionAbortedError("the call's time is over")
            self._let_go()
            # A copy of the file descriptor, because TLS takes the original away.
            self._socket = socket.fromfd(connection.fileno(), connection.family, connection.type)

    def is_stopped(self, within: float = 0) -> bool:
        """Whether `stop` has been called, or is within so many seconds."""
        return self._stopped.wait(within)

    def _run(self, work: Callable[[], T]) -> None:
        _call.set(self)
        try:
            self.result.set_result(work())
        except BaseException as error:  # noqa: BLE001  # whoever waits for the result has it raised
            self.result.set_exception(error)
        finally:
            with self._lock:
                self._let_go()

    def _let_go(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


# --- one call's attempts, and what is made of their errors ----------------------------------------

_CREDENTIALS = {"ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_PASSING = {"RequestTimeout", "SlowDown", "RequestTimeTooSkewed", "OperationAborted", *_CREDENTIALS}
"""Error codes of AWS that come with a 4xx, and yet the request was right and may be made again."""


class Failure(Exception):
    """AWS refused a request, or did not answer it. The text is for the log, not for callers."""

    def __init__(self, code: str, status: int, may_pass: bool, text: str) -> None:
        super().__init__(text)
        self.code = code
        """AWS's name of the error; empty where AWS did not answer."""
        self.status = status
        """HTTP's; 0 where AWS did not answer."""
        self.may_pass = may_pass
        """Whether the same request may succeed later."""


class _Stopped(Exception):
    """The call's time is over, and nobody waits for it any more."""


def ask(request: Callable[[], T]) -> T:
    """What AWS answers to `request`, which is made up to three times while that may help.

    Raises:
        Failure: AWS's last word.
        ClipError: one that `request` raises.
    """
    call = _call.get()
    assert call is not None, "AWS is asked by calls only, which can be stopped"
    for pause in PAUSES:
        try:
            return _attempt(request)
        except Failure as failure:
            if not failure.may_pass:
                raise
        # Not the same for all, because what AWS throttles would otherwise come back all at once.
        if call.is_stopped(within=pause * random.uniform(0.5, 1)):  # noqa: S311
            raise _Stopped
    return _attempt(request)


def _attempt(request: Callable[[], T]) -> T:
    # What AWS answers is botocore's ClientError, and botocore's own errors are BotoCoreErrors. But
    # urllib3's and the socket's come through while a body is read, and an answer that lacks
    # something, or has a date that is none, makes KeyErrors and ValueErrors. So `request` holds
    # little besides the call, and all that it raises is AWS's failure.
    try:
        return request()
    except ClipError:
        raise
    except Exception as error:  # noqa: BLE001
        raise _failure(error) from None


def _failure(error: Exception) -> Failure:
    from botocore.exceptions import ClientError, ParamValidationError

    text = f"{type(error).__name__}: {error}"
    if isinstance(error, ParamValidationError):  # boto3 has not even sent it
        return Failure("", 400, False, text)
    if not isinstance(error, ClientError):
        return Failure("", 0, True, text)
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    ours = 400 <= status < 500 and status != 429
    may_pass = not ours or code in _PASSING or "Throttl" in code
    return Failure(code, status, may_pass, text)


# --- boto3's clients ------------------------------------------------------------------------------


def client(service: str) -> Any:
    """A boto3 client, made at first use: importing boto3 takes 0.2 s, which only S3 events pay."""
    with _making_clients:
        return _make_client(service)


@cache
def _make_client(service: str) -> Any:
    import boto3
    from botocore.config import Config as Settings

    settings = Settings(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"total_max_attempts": 1},  # `ask` makes the others
        max_pool_connections=2 * AHEAD,
    )
    made = boto3.client(service, config=settings)
    logging.getLogger("urllib3.connection").addFilter(_is_of_a_call_that_goes_on)
    # boto3 has no setting for this: what makes its connections, by the scheme of their URLs.
    kinds = made._endpoint.http_session._pool_classes_by_scheme
    kinds.update({scheme: _watched(kind) for scheme, kind in kinds.items()})
    return made


def _is_of_a_call_that_goes_on(_: logging.LogRecord) -> bool:
    """Not what urllib3 makes of an answer that was cut short because its call was stopped."""
    call = _call.get()
    return call is None or not call.is_stopped()


def _watched(pool: Any) -> Any:
    """As `pool`, a class of urllib3's, but each call watches the socket of its connection."""

    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:  # before TLS, and before a proxy, is spoken to
            connection: socket.socket = super()._new_conn()
            try:
                _watch(connection)
            except OSError:
                connection.close()
                raise
            return connection

        def request(self, *args: Any, **options: Any) -> None:
            if self.sock is not None:  # it has served another call before
                _watch(self.sock)
            super().request(*args, **options)

    class Pool(pool):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool


def _watch(connection: socket.socket) -> None:
    call = _call.get()
    if call is not None:
        call.watch(connection)
