"""A deployment, tried as its first user would: its health, every way in, a bad file and the time.

Each request is sent once, so that what fails once is seen.
"""

import base64
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip_encoder import protocol
from clip_encoder.checking.comparison import SAME, cosines
from clip_encoder.errors import EncoderError, Unreachable
from clip_encoder.protocol import Answer, Call, Transport
from clip_encoder.results import Vector

PHOTO = Path(__file__).with_name("photo.jpg")
"""A photograph of 320 x 213 pixels, in the public domain. The service's self-check has the same."""
TEXT = "a photo of a cat"
BAD_FILE = b"this is not an image"
WARM_REQUESTS = 10
FORM, RAW, IN_JSON = "multipart form", "raw image/jpeg", "base64 in JSON"
"""Ways in for one image."""
NEEDED_LIMITS = ("memory", "cpu", "files")
"""Limits of the sandbox that hold on every platform. The others depend on what it allows."""
LEAST_KNOWN = {"fp16": 0.999, "int8row": 0.997}
"""Least cosine to clip's own vector by the fingerprint's arithmetic, as at the service's start."""
LEAST_SAME = {"int8row": 0.9999}
"""Least cosine of two vectors of one image, which may come from two kinds of processor."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    passed: bool | None
    """None: there was nothing to judge by."""
    detail: str


@dataclass(frozen=True)
class Sample:
    """What is sent, and the vectors that clip itself gave it, where they are known."""

    image: bytes
    """A JPEG."""
    text: str
    model: str | None = None
    """What the fingerprints of the same weights begin with."""
    image_vector: Vector | None = None
    text_vector: Vector | None = None


@dataclass(frozen=True)
class Report:
    """What was found."""

    health: Mapping[str, Any]
    """The service's own words; empty where it gave none."""
    checks: Sequence[Check]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.passed is not False for check in self.checks)


@dataclass(frozen=True)
class _Service:
    """What is asked."""

    transport: Transport
    is_http: bool
    health: Mapping[str, Any]

    def ways(self, image: bytes) -> dict[str, Call]:
        """Every way in for one image: name -> request."""
        in_json = {IN_JSON: protocol.encode_image(image)}
        if not self.is_http:
            return in_json
        form = protocol.upload_form(image, "image/jpeg")
        return {FORM: form, RAW: protocol.upload_image(image, "image/jpeg"), **in_json}

    @property
    def fingerprint(self) -> str:
        """That of an image's vectors or, where only texts are served, of a text's."""
        return str(self.health.get("fingerprint") or self.health.get("text_fingerprint"))


def load_sample(model_dir: Path | None) -> Sample:
    """The photograph and a text; or, of an exported model, what its self-check encodes.

    Raises:
        EncoderError: the folder holds no model.
    """
    if model_dir is None:
        return Sample(PHOTO.read_bytes(), TEXT)
    try:
        card = json.loads((model_dir / "model.json").read_bytes())
        golden = {name: tower["golden"] for name, tower in card["towers"].items()}
        name = card["model"].replace("/", "-").replace("@", "-")
        model = f"{name}.{card['weights']}.{card['checkpoint']['sha256'][:12]}."
    except (OSError, ValueError, KeyError, TypeError) as error:
        detail = f"{model_dir}: no model.json of an exported model: {error}"
        raise EncoderError("model_unusable", detail) from error
    image, text = golden.get("image"), golden.get("text")
    return Sample(
        image=base64.b64decode(image["image"]) if image else PHOTO.read_bytes(),
        text=text["text"] if text else TEXT,
        model=model,
        image_vector=np.array(image["embedding"], np.float32) if image else None,
        text_vector=np.array(text["embedding"], np.float32) if text else None,
    )


def examine(transport: Transport, sample: Sample, *, is_http: bool) -> Report:
    """Try the service behind `transport`; `is_http`: uploads are tried, beside JSON."""
    start = time.perf_counter()
    try:
        health = transport.send(protocol.HEALTH).body
    except EncoderError as error:
        checks = [Check("health", False, str(error))]
        if isinstance(error, Unreachable):
            return Report({}, checks)
        health = {}
    else:
        checks = [_health(health, time.perf_counter() - start)]
        health = health if isinstance(health, dict) else {}
    checks.append(_sandbox(health.get("sandbox")))
    service = _Service(transport, is_http, health)
    towers = health.get("towers", ["image", "text"])
    if "image" in towers:
        checks += _images(service, sample)
    if "text" in towers:
        checks += _texts(service, sample)
    return Report(health, checks)


def _health(health: object, seconds: float) -> Check:
    if not isinstance(health, dict) or "status" not in health:
        return Check("health", False, "what answered is not this service")
    detail = f"{health['status']}; first answer after {_ms(seconds)}"
    if health["status"] == "synthetic":
        detail += "; synthetic weights, whose vectors mean nothing"
    return Check("health", health["status"] in ("healthy", "synthetic"), detail)


def _sandbox(sandbox: object) -> Check:
    if not isinstance(sandbox, dict):
        return Check("sandbox", None, "the service does not say which of its limits hold")
    lacking = [name for name, holds in sandbox.items() if not holds]
    held = [name for name, holds in sandbox.items() if holds]
    detail = f"held: {', '.join(held) or 'none'}"
    if lacking:
        detail += f"; not held here: {', '.join(lacking)}"
    return Check("sandbox", not set(lacking) & set(NEEDED_LIMITS), detail)


# --- images ---------------------------------------------------------------------------------------


def _images(service: _Service, sample: Sample) -> list[Check]:
    ways = service.ways(sample.image)
    found = [_vector_check(name, service, call) for name, call in ways.items()]
    checks = [check for check, _ in found]
    vectors = [vector for _, vector in found if vector is not None]
    if len(vectors) > 1:
        checks.append(_agreement(vectors, service.fingerprint))
    if vectors:
        checks.append(_known("known image", vectors[0], sample.image_vector, sample, service))
    for name, call in service.ways(BAD_FILE).items():
        checks.append(_bad_file(f"bad file, {name}", service.transport, call))
    warm = RAW if RAW in ways else IN_JSON
    return [*checks, _warm(warm, service.transport, ways[warm])]


def _agreement(vectors: Sequence[Vector], fingerprint: str) -> Check:
    """Say whether all ways in gave the same vector: on one server it is the same to the bit."""
    first, *others = vectors
    if all(np.array_equal(first, other) for other in others):
        return Check("ways agree", True, "the same vector to the bit")
    least = min(_cosine(first, other) for other in others)
    detail = f"least cosine {least:.7f}, not to the bit: another processor or model answered"
    return Check("ways agree", least >= _least(LEAST_SAME, fingerprint), detail)


def _bad_file(name: str, transport: Transport, call: Call) -> Check:
    try:
        transport.send(call)
    except EncoderError as error:
        is_ours = error.code == "not_an_image" and error.status in (None, 422)
        return Check(name, is_ours, f"refused: {error}")
    return Check(name, False, "answered as if it were an image")


def _warm(way: str, transport: Transport, call: Call) -> Check:
    times: list[float] = []
    for _ in range(WARM_REQUESTS):
        start = time.perf_counter()
        try:
            transport.send(call)
        except EncoderError as error:
            return Check("warm", False, f"request {len(times) + 1} of {WARM_REQUESTS}: {error}")
        times.append(time.perf_counter() - start)
    detail = f"median {_ms(statistics.median(times))} of {WARM_REQUESTS} requests, {way}"
    return Check("warm", True, f"{detail}; from {_ms(min(times))} to {_ms(max(times))}")


# --- texts ----------------------------------------------------------------------------------------


def _texts(service: _Service, sample: Sample) -> list[Check]:
    check, vector = _vector_check("text", service, protocol.encode_text(sample.text, False))
    if vector is None:
        return [check]
    return [check, _known("known text", vector, sample.text_vector, sample, service)]


# --- vectors --------------------------------------------------------------------------------------


def _vector_check(name: str, service: _Service, call: Call) -> tuple[Check, Vector | None]:
    """Ask for one vector, which the second value is where it is sound."""
    start = time.perf_counter()
    try:
        answer = service.transport.send(call)
        seconds = time.perf_counter() - start
        vector = _sound(answer, call, service)
    except EncoderError as error:
        return Check(name, False, str(error)), None
    numbers = ", ".join(f"{number:.6f}" for number in vector[:4])
    return Check(name, True, f"{len(vector)} numbers, {numbers}, ...; {_ms(seconds)}"), vector


def _sound(answer: Answer, call: Call, service: _Service) -> Vector:
    """The vector of an answer.

    Raises:
        EncoderError: it has another size than health says, is not of length 1, or is of another
            fingerprint or none.
    """
    vector = protocol.read_vector(answer)
    if len(vector) != service.health.get("embedding_size", len(vector)):
        raise EncoderError("wrong_vector", f"{len(vector)} numbers: /health says another size")
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if abs(length - 1) > 1e-3:
        raise EncoderError("wrong_vector", f"its length is {length:.4f} instead of 1")
    expected = protocol.fingerprint_of(service.health, call.tower)
    if service.is_http and answer.fingerprint is None:
        raise EncoderError("wrong_vector", "no header X-Clip-Fingerprint: something removed it")
    if None not in (expected, answer.fingerprint) and expected != answer.fingerprint:
        detail = f"its fingerprint is {answer.fingerprint}, and /health says {expected}"
        raise EncoderError("wrong_vector", detail)
    return vector


def _known(
    name: str, vector: Vector, known: Vector | None, sample: Sample, service: _Service
) -> Check:
    """Compare with the vector that clip itself gave, where it is known for these weights."""
    if known is None or sample.model is None:
        return Check(name, None, "not compared: no exported model was given")
    if not service.fingerprint.startswith(sample.model):
        detail = f"not compared: the model given is {sample.model.rstrip('.')}"
        return Check(name, None, detail)
    cosine = _cosine(vector, known)
    detail = f"cosine {cosine:.7f} to the vector that clip itself gave"
    return Check(name, cosine >= _least(LEAST_KNOWN, service.fingerprint), detail)


def _least(by_arithmetic: Mapping[str, float], fingerprint: str) -> float:
    parts = fingerprint.split(".")
    return min((by_arithmetic[part] for part in parts if part in by_arithmetic), default=SAME)


def _cosine(a: Vector, b: Vector) -> float:
    return float(cosines(a[None], b[None])[0])


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"
