"""A backend's side of the service: the vector of a picture, with time-outs and retries.

Copy `vector` and what it needs. The environment of the backend says whether and where to ask:

    USE_LOCAL_CLIP=true
    LOCAL_CLIP_URL=http://localhost:3000    or https://....amazonaws.com/prod, behind API Gateway
    LOCAL_CLIP_API_KEY=...                  where the gateway asks for a key
    LOCAL_CLIP_SIGV4=true                   where it, or a Function URL, asks for AWS's signature

Try it with `python examples/backend.py photo.jpg`. It needs httpx and a running service, and to
sign requests the client: `pip install './client[aws]'`.
"""

import contextlib
import os
import random
import sys
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

USE_LOCAL_CLIP = os.environ.get("USE_LOCAL_CLIP", "").lower() == "true"
LOCAL_CLIP_URL = os.environ.get("LOCAL_CLIP_URL", "http://localhost:3000")
API_KEY = os.environ.get("LOCAL_CLIP_API_KEY", "")
SIGNS = os.environ.get("LOCAL_CLIP_SIGV4", "").lower() == "true"
ATTEMPTS = 3
TIMEOUT = httpx.Timeout(30, connect=2)  # API Gateway itself gives up after 29 s


class PictureRefused(ValueError):
    """The service cannot make a vector of this picture, and would not next time either."""


class CallerRefused(RuntimeError):
    """Nothing can be had at this address, or not with this key or signature: see to it."""


class Failed(RuntimeError):
    """The service, or the gateway before it, failed or was too busy. It may work later."""

    def __init__(self, text: str, retry_after: str | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


def connect() -> httpx.Client:
    """A client of the service, for the whole process: it keeps connections open."""
    auth: httpx.Auth | None = None
    if SIGNS:
        from clip_encoder.transports.sigv4 import Signature  # with the credentials boto3 finds

        auth = Signature(httpx.URL(LOCAL_CLIP_URL).host)
    headers = {"x-api-key": API_KEY} if API_KEY else {}
    return httpx.Client(base_url=LOCAL_CLIP_URL, headers=headers, auth=auth, timeout=TIMEOUT)


SERVICE = connect()


def vector(picture: bytes) -> tuple[list[float], str]:
    """A picture's file -> 512 numbers of length 1, and the fingerprint to store beside them.

    Raises:
        PictureRefused: the picture is damaged, too large or no picture; the text says which.
        CallerRefused: the key or the address is wrong, or the key's quota is used up.
        Failed: the service did not answer, or failed, three times.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _ask(picture)
        except Failed as error:
            if attempt == ATTEMPTS:
                raise
            time.sleep(_pause(attempt, error.retry_after))
    raise AssertionError("the last attempt returns or raises")


def _ask(picture: bytes) -> tuple[list[float], str]:
    try:
        answer = SERVICE.post("/encode_image", files={"image": picture})
    except httpx.TransportError as error:  # no connection, or no answer in time
        raise Failed(f"{LOCAL_CLIP_URL}: {type(error).__name__}: {error}") from error
    try:
        body = answer.json()
    except ValueError:  # some gateways and load balancers answer text or HTML
        body = None
    fingerprint = answer.headers.get("X-Clip-Fingerprint")
    if answer.is_success and isinstance(body, list) and fingerprint is not None:
        return body, fingerprint
    raise _error(answer, body if isinstance(body, dict) else {})


def _error(answer: httpx.Response, body: dict[str, Any]) -> Exception:
    """What to make of an answer that holds no vector."""
    status = answer.status_code
    if answer.is_success:
        return CallerRefused(f"what answered at {LOCAL_CLIP_URL} is not the service")
    # The service's errors are {"code", "detail"}. A gateway's own are {"message"}, or {"Message"}.
    # Below its first line API Gateway repeats what was signed, which belongs in no log.
    said = body.get("detail") or body.get("message") or body.get("Message") or answer.reason_phrase
    text = f"HTTP {status}: {str(said).splitlines()[0]}"
    is_quota = answer.headers.get("x-amzn-errortype") == "LimitExceededException"
    if (status in (408, 429) or status >= 500) and not is_quota:
        return Failed(text, answer.headers.get("Retry-After"))
    # A picture of more than 4.5 MB is refused by the gateway, in its own words.
    if status == 413 or (status in (400, 415, 422) and "code" in body):
        return PictureRefused(text)
    return CallerRefused(f"{text} ({LOCAL_CLIP_URL})")


def _pause(attempt: int, asked: str | None) -> float:
    """Seconds to wait: as long as the service asks, or 0.5 s, 1 s, ..., and by chance some more.

    Without the chance, all who were turned away at once would come back at once.
    """
    seconds = 0.5 * 2.0 ** (attempt - 1)
    if asked:
        with contextlib.suppress(ValueError):  # neither a number nor a date
            seconds = float(asked) if asked.isdigit() else _until(asked)
    return max(0.0, min(seconds, 8)) * random.uniform(1, 1.25)


def _until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()


def main() -> None:
    """Print the vector's length and its fingerprint."""
    if not USE_LOCAL_CLIP:
        sys.exit("USE_LOCAL_CLIP is not true: this backend would ask an API of others")
    numbers, fingerprint = vector(Path(sys.argv[1]).read_bytes())
    print(len(numbers), fingerprint)


if __name__ == "__main__":
    main()
