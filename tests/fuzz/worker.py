"""One long-lived process that is given bad input: ``python -m tests.fuzz.worker``, driven over
pipes.

It loads the service as Lambda does. Each case is a kind and its bytes; each reply is one JSON line.
What would be a wrong answer is judged here, beside the exception; what would be a crash, a hang or
a lack of memory is judged by whoever drives it.
"""

import base64
import dataclasses
import json
import os
import re
import resource
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from benchmarks.measure import children
from events.generate import JSON, http_api, rest
from handler import errors
from handler.errors import RequestError
from handler.images.sandbox import Decoder, Sandbox
from handler.outcome import Outcome
from tests.fuzz.corpus import images
from tests.fuzz.judge import unaccounted
from tests.measure import resident_megabytes

MEMORY = 300 * 2**20
"""Bytes that the service may take for a case; what its decoders may take, the sandbox says."""


LONGEST_TOKENIZING = 0.2
"""Seconds of CPU that it may take to make a text's tokens, or to refuse it."""
WAYS = 5
"""In which a text is sent; see `_sent`."""
CODES = {b"i": "image", b"e": "event", b"v": "encode", b"t": "text"}
"""Kinds of cases as the pipe has them."""


class Wrong(Exception):
    """An answer that breaks a promise."""


class Worker:
    """The loaded service, and sound images to try after each bad one."""

    def __init__(self, service: ModuleType) -> None:
        """`service` is ``handler.main``."""
        self.main = service
        self.decoder: Decoder = service.encoder.images.decoder
        codes = re.findall(r"── \w+ +(\w+) +(\d{3})", errors.__doc__ or "")
        self.documented = {(int(status), code) for code, status in codes if int(status) < 500}
        self.documented |= {(404, "not_found"), (405, "method_not_allowed")}
        kinds = ("jpeg", "png RGB", "webp lossy", "gif", "bmp RGB", "tiff tiff_lzw", "avif")
        self.sound = [
            (data, self._pixels(data, "openai")) for data in (images()[kind] for kind in kinds)
        ]
        self.photo = images()["jpeg"]
        self.vector = service.encoder.encode(self.photo)
        service.encoder.tokenize("Käse")  # the first text loads the tower
        self.cases = 0

    def run(self, kind: str, data: bytes) -> tuple[int, str]:
        """Status and code of one case, and a sound image after it.

        Raises:
            Wrong: anything but a sound answer or a documented refusal, before or after.
        """
        try:
            status, code = getattr(self, f"_run_{kind}")(data)
        except RequestError as error:
            status, code = error.status, error.code
        if status != 200 and (status, code) not in self.documented:
            raise Wrong(f"{status} {code!r} is no documented refusal")
        self.cases += 1
        self._try_a_sound_one()
        return status, code

    def _pixels(self, data: bytes, profile: str) -> Any:
        """What the sandbox makes of it."""
        config = dataclasses.replace(self.main.encoder.config, preprocess=profile)
        decoded = self.decoder.decode(data, config, lambda _: None)
        side = self.main.encoder.model.architecture.resolution
        return np.frombuffer(decoded.pixels, np.uint8).reshape(side, side, 3)

    def _run_image(self, data: bytes) -> tuple[int, str]:
        """Decoded and preprocessed, as both profiles do."""
        for profile in ("openai", "corrected"):
            self._pixels(data, profile)  # which are as many as the model takes
        return 200, ""

    def _run_encode(self, data: bytes) -> tuple[int, str]:
        """The whole way to a vector."""
        _check_vector(self.main.encoder.encode(data))
        return 200, ""

    def _run_event(self, data: bytes) -> tuple[int, str]:
        """A Lambda event, as the runtime hands it over."""
        event = json.loads(data)
        answer = self.main.handler(event, None)
        json.dumps(answer, allow_nan=False)
        if "statusCode" not in answer:
            _check_answer(answer)
            if problem := unaccounted(event, answer):
                raise Wrong(problem)
            return 200, ""
        status = answer["statusCode"]
        if status != 200 and status not in (404, 405) and status < 400:
            return 200, ""  # a redirect, or another page: /docs
        headers = answer.get("headers") or answer["multiValueHeaders"]  # as an ALB may want them
        if "json" not in str(headers.get("content-type", "")):
            return status, "http_error" if status != 200 else ""
        body = json.loads(answer["body"])
        if status != 200:
            return status, body.get("error", body)["code"]  # OpenAI's shape, or ours
        _check_answer(body)
        return 200, ""

    def _run_text(self, data: bytes) -> tuple[int, str]:
        """A text, to tokens and then in one of the ways that texts come."""
        case = json.loads(data)
        text = str(case["text"])
        begin = time.thread_time()
        Outcome.of(lambda: self.main.encoder.tokenize(text, truncate=True))
        if (took := time.thread_time() - begin) > LONGEST_TOKENIZING:
            raise Wrong(f"making tokens of a text took {took:.2f} s")
        return self._run_event(json.dumps(_sent(text, case["way"])).encode())

    def _try_a_sound_one(self) -> None:
        data, expected = self.sound[self.cases % len(self.sound)]
        if not np.array_equal(self._pixels(data, "openai"), expected):
            raise Wrong("the next sound image has other pixels")
        if self.cases % 100 == 0 and not np.array_equal(
            self.main.encoder.encode(self.photo), self.vector
        ):
            raise Wrong("the next sound image has another vector")


def _sent(text: str, way: int) -> Any:
    """An event that has a text, in one of the ways that there are."""
    match way:
        case 0:
            return {"text": text, "truncate": True}
        case 1:
            return {"texts": ["a", text], "truncate": True}
        case 2:
            lists = {"queries": [{"text": text}, {"text": "a"}], "candidates": [{"text": text}]}
            return {"rank": lists | {"templates": ["a photo of {}"], "truncate": True}}
        case 3:
            body = json.dumps({"text": text, "truncate": True})
            return http_api("/encode_text", JSON, body.encode())
        case _:
            return rest("POST", "/encode_texts", JSON, json.dumps({"texts": [text]}).encode())


def _check_answer(answer: Any) -> None:
    """Every vector in an answer's body, whichever body it is."""
    if isinstance(answer, list):
        _check_vector(answer)
    elif "embedding" in answer:
        _check_vector(answer["embedding"])
    elif "embeddings" in answer:
        bad = {error["index"] for error in answer["errors"]}
        for index, vector in enumerate(answer["embeddings"]):
            if (vector is None) != (index in bad):
                raise Wrong("a batch whose errors and nulls disagree")
            if vector is not None:
                _check_vector(vector)
    elif "probabilities" in answer:
        _check_ranking(answer)
    elif "usage" in answer:
        _check_in_openais_shape(answer)
    elif not {"fingerprint", "openapi", "results", "batchItemFailures", "written"} & set(answer):
        raise Wrong(f"an answer of unknown form: {list(answer)[:5]}")


def _check_ranking(answer: Any) -> None:
    """Rows and numbers are null where there are errors, and only there."""
    bad: dict[str, set[int]] = {"queries": set(), "candidates": set()}
    for error in answer["errors"]:
        bad[error["list"]].add(error["index"])
    for name in ("probabilities", "cosine_similarities"):
        rows = answer[name]
        if {place for place, row in enumerate(rows) if row is None} != bad["queries"]:
            raise Wrong("a ranking whose errors and null rows disagree")
        for row in filter(None, rows):
            if {place for place, number in enumerate(row) if number is None} != bad["candidates"]:
                raise Wrong("a ranking whose errors and nulls disagree")
    for row in filter(None, answer["probabilities"]):
        numbers = [number for number in row if number is not None]
        if numbers and not abs(sum(numbers) - 1) < 1e-5:
            raise Wrong(f"probabilities that add up to {sum(numbers)}")


def _check_in_openais_shape(answer: Any) -> None:
    for entry in answer["data"]:
        vector = entry["embedding"]
        if isinstance(vector, str):
            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        _check_vector(vector)


def _check_vector(vector: Any) -> None:
    array = np.asarray(vector, np.float64)
    if (
        array.shape != (512,)
        or not np.isfinite(array).all()
        or abs(np.linalg.norm(array) - 1) > 1e-5
    ):
        raise Wrong(
            f"not 512 finite numbers of unit length: {array.shape}, {np.linalg.norm(array)}"
        )


def limit_memory(more: int) -> None:
    """Let this process have `more` bytes than it has now.

    Data, not address space: glibc reserves 64 MB of that for each thread, as room to grow without
    limit.
    """
    data = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert data
    most = int(data[1]) * 1024 + more
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _cases(pipe: BinaryIO) -> Iterator[tuple[str, bytes]]:
    while head := pipe.read(5):
        kind, length = struct.unpack(">cI", head)
        yield CODES[kind], pipe.read(length)


def _megabytes(box: Decoder) -> float:
    """What the service and the processes of its sandbox hold together."""
    assert isinstance(box, Sandbox)
    zygote = box.processes()[0]
    processes: list[int | str] = ["self", zygote, *children(zygote)]
    return sum(resident_megabytes(process) for process in processes)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the service logs to stdout
    # Batch engines' events want an output; no bucket is allowed, so there is nothing to write to
    # it.
    os.environ["CLIP_OUTPUT"], os.environ["CLIP_S3_BUCKETS"] = "s3://nowhere", ""
    from handler import main as service  # it loads the model now

    worker = Worker(service)
    limit_memory(MEMORY)
    print("ready", file=replies, flush=True)
    for kind, data in _cases(sys.stdin.buffer):
        status, code, problem, start = 0, "", None, time.perf_counter()
        try:
            status, code = worker.run(kind, data)
        except Exception as error:  # noqa: BLE001  # that is what is looked for
            problem = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        seconds = time.perf_counter() - start
        reply = (status, code, seconds, _megabytes(worker.decoder), problem)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
