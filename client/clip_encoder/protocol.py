"""The service's requests and answers, alike over HTTP, in direct invokes, and in this process."""

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from clip_encoder import images
from clip_encoder.batching import Item
from clip_encoder.errors import EncoderError
from clip_encoder.results import RankError, Ranking, Result, Vector

Tower = Literal["image", "text"]
"""The half of the model that makes a vector. Each has a fingerprint of its own."""


@dataclass(frozen=True)
class Upload:
    """A request's body that is not JSON."""

    media_type: str
    data: bytes


@dataclass(frozen=True)
class Call:
    """One request."""

    path: str
    """Where it goes over HTTP."""
    body: dict[str, Any] | Upload | None
    """What is sent there, a `dict` as JSON; None is a GET."""
    event: dict[str, Any]
    """The same request as the event of a direct invoke."""
    tower: Tower | None = None
    """Whose vectors the answer holds; None where it holds no vectors."""


@dataclass(frozen=True)
class Answer:
    """What came back from a request that was served."""

    body: Any
    """The JSON."""
    fingerprint: str | None
    """Of the vectors in it, where the service says so."""


@dataclass(frozen=True)
class Limits:
    """How much one request may hold."""

    images: int = 32
    texts: int = 256
    body_bytes: int = 6 * 2**20 - 2**16
    """Bytes of JSON of a request with several images or texts. Lambda takes 6 MB."""
    is_strict: bool = False
    """Whether a single image above that is not sent at all, because it could not arrive."""


class Transport(Protocol):
    """A way to the service."""

    limits: Limits

    def send(self, call: Call) -> Answer:
        """Send one request, once, and wait for its answer.

        Raises:
            EncoderError: it was not served; `retryable` says whether it may be sent again.
        """

    def close(self) -> None:
        """Give back what is held: connections, processes."""


HEALTH = Call("/health", None, {"action": "health"})


def encode_image(payload: images.Payload) -> Call:
    """Ask for one image's vector."""
    body = {"image": text_of(payload)}
    return Call("/encode_image", body, body, "image")


def upload_image(data: bytes, media_type: str) -> Call:
    """Ask for the vector of the image that is the request's whole body."""
    return Call("/encode_image", Upload(media_type, data), {"image": text_of(data)}, "image")


def upload_form(data: bytes, media_type: str) -> Call:
    """Ask for the vector of the image in a form, as browsers and ``curl -F`` send it."""
    boundary = secrets.token_hex(16)
    name = 'Content-Disposition: form-data; name="image"; filename="image"'
    head = f"--{boundary}\r\n{name}\r\nContent-Type: {media_type}\r\n\r\n".encode()
    body = head + data + f"\r\n--{boundary}--\r\n".encode()
    form = Upload(f"multipart/form-data; boundary={boundary}", body)
    return Call("/encode_image", form, {"image": text_of(data)}, "image")


def encode_images(payloads: Sequence[images.Payload]) -> Call:
    """Ask for the vectors of several images."""
    body = {"images": [text_of(payload) for payload in payloads]}
    return Call("/encode_images", body, body, "image")


def check_text(text: str) -> str:
    """`text` itself, if it can be sent.

    Raises:
        EncoderError: it holds half of a surrogate pair, for which the service would refuse a whole
            batch.
        TypeError: it is no `str`.
    """
    if not isinstance(text, str):
        raise TypeError(f"a text is a str, not a {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"half of a surrogate pair at character {error.start}, which is no text"
        raise EncoderError("invalid_text", detail) from error
    return text


def encode_text(text: str, truncate: bool) -> Call:
    """Ask for one text's vector.

    Raises:
        EncoderError: as `check_text`.
    """
    check_text(text)
    body = {"text": text, "truncate": truncate}
    return Call("/encode_text", body, body, "text")


def encode_texts(texts: Sequence[str], truncate: bool) -> Call:
    """Ask for the vectors of several texts."""
    body = {"texts": list(texts), "truncate": truncate}
    return Call("/encode_texts", body, body, "text")


def rank(
    queries: Sequence[object],
    candidates: Sequence[object],
    templates: Sequence[str] | None,
    truncate: bool,
) -> Call:
    """Ask how well each candidate fits each query; see `rank_item` for what they may be.

    Raises:
        EncoderError: a file that cannot be read, or a text that cannot be sent.
        TypeError: an item of no kind that can be ranked.
    """
    body: dict[str, Any] = {
        "queries": [rank_item(query) for query in queries],
        "candidates": [rank_item(candidate) for candidate in candidates],
    }
    if templates is not None:
        body["templates"] = list(templates)
    if truncate:
        body["truncate"] = True
    return Call("/rank", body, {"rank": body})


def rank_item(item: object) -> dict[str, Any]:
    """A query or candidate as the service reads it.

    A `str` is a text, unless it begins with ``s3://``; a `Path`, bytes and Pillow's pictures are
    images; an array [512] is a vector.

    Raises:
        EncoderError: a file that cannot be read, or a text that cannot be sent.
        TypeError: none of these.
    """
    if isinstance(item, str) and not images.is_in_s3(item):
        return {"text": check_text(item)}
    if isinstance(item, np.ndarray):
        return {"embedding": base64.b64encode(item.astype("<f4").tobytes()).decode()}
    if isinstance(item, str | Path | bytes | bytearray | memoryview) or images.is_picture(item):
        return {"image": text_of(images.payload(cast("images.Image", item)))}
    raise TypeError(f"a query or candidate cannot be a {type(item).__name__}")


def fingerprint_of(health: Mapping[str, Any], tower: Tower | None) -> str | None:
    """The fingerprint that the vectors of `tower` have, by the service's health."""
    names = {"image": "fingerprint", "text": "text_fingerprint"}
    return health.get(names[tower]) if tower else None


def text_of(payload: images.Payload) -> str:
    """An image as the service's JSON holds it: base64, or its place in S3."""
    return payload if isinstance(payload, str) else base64.b64encode(payload).decode()


def read_vector(answer: Answer) -> Vector:
    """The one vector of an answer: float32 [512].

    Raises:
        EncoderError: the answer is not the service's.
    """
    body = answer.body
    found = body.get("embedding") if isinstance(body, Mapping) else body
    return _vector(found)


def read_results(answer: Answer, items: Sequence[Item]) -> list[Result]:
    """What became of each of `items`, in order.

    Raises:
        EncoderError: the answer is not the service's.
    """
    try:
        rows, errors = answer.body["embeddings"], answer.body["errors"]
        failed = {e["index"]: EncoderError(e["code"], e["detail"]) for e in errors}
        if len(rows) != len(items):
            raise _foreign(f"{len(rows)} vectors where {len(items)} were asked for")
    except (KeyError, TypeError) as error:
        raise _foreign("no 'embeddings' and 'errors'") from error
    return [
        Result(item.index, item.source, error=failed[place])
        if place in failed
        else Result(item.index, item.source, _vector(rows[place]))
        for place, item in enumerate(items)
    ]


def read_ranking(answer: Answer) -> Ranking:
    """The answer to `rank`.

    Raises:
        EncoderError: the answer is not the service's.
    """
    try:
        body = answer.body
        errors = [RankError(**error) for error in body["errors"]]
        probabilities = _matrix(body["probabilities"])
        return Ranking(probabilities, _matrix(body["cosine_similarities"]), errors)
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign("no 'probabilities', 'cosine_similarities' and 'errors'") from error


def _matrix(rows: Sequence[Sequence[float | None] | None]) -> NDArray[np.float64]:
    """Rows of numbers -> [rows, columns]; a row that is None, and each number, becomes NaN."""
    width = max((len(row) for row in rows if row is not None), default=0)
    return np.array([[None] * width if row is None else row for row in rows], np.float64)


def _vector(row: object) -> Vector:
    try:
        vector = np.array(row, np.float32)
    except (TypeError, ValueError) as error:
        raise _foreign("no list of numbers") from error
    if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
        raise _foreign("no list of numbers")
    return vector


def _foreign(what: str) -> EncoderError:
    return EncoderError("foreign_answer", f"what answered is not this service: {what}")
