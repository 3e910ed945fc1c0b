"""A backend's side of the service: the vector of a picture, with time-outs and retries.

Copy `vector` and what it needs. The environment of the backend says whether and where to ask:

    USE_LOCAL_CLIP=true
    LOCAL_CLIP_URL=http://localhost:3000

Try it with `python examples/backend.py photo.jpg`. It needs httpx and a running service.
"""

import os
import random
import sys
import time
from pathlib import Path

import httpx

USE_LOCAL_CLIP = os.environ.get("USE_LOCAL_CLIP", "").lower() == "true"
LOCAL_CLIP_URL = os.environ.get("LOCAL_CLIP_URL", "http://localhost:3000")
ATTEMPTS = 3
# One client for the whole process: it keeps connections open, which saves time on every request.
SERVICE = httpx.Client(base_url=LOCAL_CLIP_URL, timeout=httpx.Timeout(30, connect=2))


class PictureRefused(ValueError):
    """The service cannot make a vector of this picture, and would not next time either."""


def vector(picture: bytes) -> tuple[list[float], str]:
    """A picture's file -> 512 numbers of length 1, and the fingerprint to store beside them.

    Raises:
        PictureRefused: the picture is damaged, too large or no picture; the text says which.
        httpx.HTTPError: the service did not answer, or failed, three times.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            answer = SERVICE.post("/encode_image", files={"image": picture})
        except httpx.TransportError:  # no connection, or no answer in time
            if attempt == ATTEMPTS:
                raise
            _wait(attempt)
            continue
        if answer.is_success:
            return answer.json(), answer.headers["X-Clip-Fingerprint"]
        may_work_later = answer.status_code in (408, 429) or answer.status_code >= 500
        if not may_work_later:
            raise PictureRefused(answer.json()["detail"])
        if attempt < ATTEMPTS:
            _wait(attempt, answer.headers.get("Retry-After"))
    raise httpx.HTTPStatusError(answer.text, request=answer.request, response=answer)


def _wait(attempt: int, asked: str | None = None) -> None:
    """Wait as long as the service asks, or 0.5 s, 1 s, ... with some chance in it.

    Without the chance, all who were turned away at once would come back at once.
    """
    seconds = float(asked) if asked else 0.5 * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
    time.sleep(min(seconds, 8))


def main() -> None:
    """Print the vector's length and its fingerprint."""
    if not USE_LOCAL_CLIP:
        sys.exit("USE_LOCAL_CLIP is not true: this backend would ask an API of others")
    numbers, fingerprint = vector(Path(sys.argv[1]).read_bytes())
    print(len(numbers), fingerprint)


if __name__ == "__main__":
    main()
