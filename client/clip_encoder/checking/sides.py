"""The two sides of a comparison: a service of today, an old one, or vectors that are stored."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np

from clip_encoder import files, images
from clip_encoder.batching import side_by_side
from clip_encoder.client import Client
from clip_encoder.errors import EncoderError, Refused, Unreachable
from clip_encoder.results import Result

SIDE_BY_SIDE = 2
"""Requests at once to an old service, which may know only one at a time."""


class Side(Protocol):
    """Something that has vectors of images."""

    can_be_asked: bool
    """Whether it can make the vector of any image, or has those that it has."""

    def vectors(self, images: Iterable[images.Image]) -> Iterator[Result]:
        """A result for each image, in order. Vectors are as they come, of any length.

        Raises:
            ServiceUnusable: nothing further can succeed.
        """

    def close(self) -> None:
        """Give back what is held."""


class NewService:
    """The service, as this package's client asks it."""

    can_be_asked = True

    def __init__(self, client: Client) -> None:
        self._client = client

    def vectors(self, images: Iterable[images.Image]) -> Iterator[Result]:
        """See `Side`."""
        return self._client.encode_images(images)

    def close(self) -> None:
        """Close the client."""
        self._client.close()


class OldService:
    """A service in the shape of the one that this replaces, which was BentoML's.

    An image goes as the multipart field ``image`` to ``POST /encode_image``, and a list of numbers
    comes back. The service of today understands this too.
    """

    can_be_asked = True

    def __init__(self, address: str, timeout: float) -> None:
        self._http = httpx.Client(base_url=address.rstrip("/"), timeout=timeout)
        self._pool = ThreadPoolExecutor(SIDE_BY_SIDE, "old")

    def vectors(self, images: Iterable[images.Image]) -> Iterator[Result]:
        """See `Side`."""
        return side_by_side(self._encode, enumerate(images), self._pool, SIDE_BY_SIDE)

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(cancel_futures=True)
        self._http.close()

    def _encode(self, numbered: tuple[int, images.Image]) -> Result:
        index, image = numbered
        try:
            return Result(index, image, _vector(self._post(images.payload(image))))
        except (Refused, Unreachable):
            raise
        except EncoderError as error:
            return Result(index, image, error=error)

    def _post(self, payload: images.Payload) -> Any:
        if isinstance(payload, str):
            raise EncoderError("source_not_allowed", "an old service reads no images in S3")
        # Some old services decide by the file's type whether it is an image at all.
        part = ("image", payload, "image/png" if payload[:4] == b"\x89PNG" else "image/jpeg")
        try:
            response = self._http.post("/encode_image", files={"image": part})
        except httpx.TransportError as error:
            raise Unreachable(f"{self._http.base_url}: {error}") from error
        status = response.status_code
        if status in (401, 403, 404, 405):
            detail = f"HTTP {status} from {response.request.url}"
            raise Refused(f"http_{status}", detail, status)
        if not response.is_success:
            raise EncoderError(f"http_{status}", response.text[:200], status)
        try:
            return response.json()
        except ValueError as error:
            raise EncoderError("foreign_answer", "the old service answered no JSON") from error


def _vector(body: Any) -> Any:
    """An old answer -> its vector: ``[...]``, ``[[...]]`` or ``{"embedding": ...}``.

    Raises:
        EncoderError: it is none of these.
    """
    if isinstance(body, dict):
        found = [body[name] for name in ("embedding", "embeddings", "vector") if name in body]
        body = found[0] if found else None
    try:
        vector = np.array(body, np.float32).squeeze()
    except (TypeError, ValueError):
        vector = np.zeros(0, np.float32)
    if vector.ndim != 1 or vector.size < 2 or not np.isfinite(vector).all():
        raise EncoderError("foreign_answer", "the old service answered no list of numbers")
    return vector


class Stored:
    """Vectors in a file, found by the names of their images."""

    can_be_asked = False

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            UnreadableVectors: it is no file of vectors.
        """
        self._rows = {
            name: vector
            for table in files.read(path)
            for name, vector in zip(table.names, table.vectors, strict=True)
        }
        self._path = path

    @property
    def names(self) -> list[str]:
        """The images whose vectors it has."""
        return sorted(self._rows)

    def vectors(self, images: Iterable[images.Image]) -> Iterator[Result]:
        """See `Side`."""
        for index, image in enumerate(images):
            vector = self._rows.get(str(image))
            if vector is None:
                error = EncoderError("not_stored", f"{self._path} has no vector of it")
                yield Result(index, image, error=error)
            else:
                yield Result(index, image, vector)

    def close(self) -> None:
        """Nothing is held open."""
