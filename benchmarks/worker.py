"""``python -m benchmarks.worker NAME INPUTS``: the process that is timed.

Each line on stdin is a request ``{"do": NAME, ...}``, each line on stdout its answer. Times are
seconds. Nothing but the standard library is imported before the first request, so that a cold start
holds the subject's imports and no others.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import subjects

clock = time.perf_counter
SGEMM = 2048
"""Side of the matrices whose product is the machine's peak."""
SIDE = 224
"""Of the square that ViT-B/32 sees, which is the model of every subject."""


class Worker:
    """One contender in its own process; each public method answers one kind of request.

    The name is one of `subjects`, whose whole way from a file to a vector is timed, or one of
    `engines`, of which the image tower alone is.
    """

    def __init__(self, name: str, inputs: Path) -> None:
        self.name = name
        self.inputs = inputs
        self.subject: subjects.Subject | None = None
        self.tower: Callable[[Any], Any] | None = None

    @property
    def loaded(self) -> subjects.Subject:
        """The subject, loaded at first use."""
        self.subject = self.subject or subjects.load(self.name)
        return self.subject

    def first(self) -> float:
        """The system's monotonic clock (shared by all processes) when the first vector is there."""
        event = json.loads((self.inputs / "event.json").read_bytes())
        self._answer(event)
        return time.monotonic()

    def image(self, image: str, batch: int, repeat: int) -> list[float]:
        """Encoded file(s) -> vector(s)."""
        images = [(self.inputs / f"{image}.image").read_bytes()] * batch
        return _times(lambda: self.loaded.encode(images), repeat)

    def request(self, repeat: int) -> list[float]:
        """Whole REST requests with a multipart body."""
        event = json.loads((self.inputs / "event.json").read_bytes())
        return _times(lambda: self._answer(event), repeat)

    def texts(self, texts: str, repeat: int) -> list[float]:
        """One request's texts -> their vectors; `texts` names them in ``texts.json``."""
        given = self._texts(texts)
        return _times(lambda: self.loaded.encode_texts(given), repeat)

    def tokens(self, texts: str) -> float:
        """Texts -> their tokens, one text at a time: the mean of a text."""
        given = self._texts(texts)
        begin = clock()
        for text in given:
            self.loaded.tokenize([text])
        return (clock() - begin) / len(given)

    def first_text(self) -> tuple[float, float]:
        """Seconds until the first text's vector is there, and MiB by which the process grew."""
        before = _resident_megabytes()
        (seconds,) = self.texts("10 tokens", repeat=1)
        return seconds, _resident_megabytes() - before

    def texts_exactness(self, texts: int | None) -> list[float]:
        """The cosine of each judged text's vector to clip's; `texts`: the first so many alone."""
        given = json.loads((self.inputs / "judged/texts.json").read_bytes())[:texts]
        vectors = self.loaded.encode_texts(given)
        pairs = zip(vectors, self._judged("texts"), strict=False)
        return [float(ours @ theirs) for ours, theirs in pairs]

    def s3_batch(self, count: int) -> list[float]:
        """Ours only: a batch, from S3 to S3; its seconds, and those spent on waiting.

        Many images come as a Distributed Map's batch, one as any other engine's event.
        """
        from handler import main, telemetry
        from handler.events import batch

        items = [{"s3": {"bucket": "photos", "key": f"{number}.jpg"}} for number in range(count)]
        event = {"Items": items} | ({"BatchInput": {"run": "benchmark"}} if count > 1 else {})
        begin = clock()
        with telemetry.request("map", "benchmark") as record:
            answer = batch.handle(event, None, main.encoder)
        seconds = clock() - begin
        assert answer["written"] == count, answer
        return [seconds, record["s3_wait_ms"] / 1e3]

    def exactness(self, pictures: int | None) -> list[float | None]:
        """The cosine of each judged file's vector to clip's; None where the subject has none.

        `pictures`: the first so many alone; None means all.
        """
        cosines = []
        for number, theirs in enumerate(self._judged("vectors")[:pictures]):
            file = (self.inputs / "judged" / f"{number}.image").read_bytes()
            try:
                cosine = float(self.loaded.encode([file])[0] @ theirs)
            except Exception:  # noqa: BLE001  # each library refuses a file in its own way
                cosine = None
            cosines.append(cosine)
        return cosines

    def tower_exactness(self, pictures: int | None) -> list[float]:
        """Engines only: the same, of the files' pixels."""
        tower = self._tower()
        pixels, vectors = self._judged("pixels")[:pictures], self._judged("vectors")[:pictures]
        pairs = zip(pixels, vectors, strict=True)
        return [float(tower(picture[None])[0] @ theirs) for picture, theirs in pairs]

    def trouble(self) -> str:
        """Engines only: why this one cannot run here, in a line; empty where it can."""
        try:
            self.tower_times(batch=1, repeat=1)
        except Exception as error:  # noqa: BLE001  # each library's own; the table shows it
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return ""

    def split(self, repeat: int) -> list[list[float]]:
        """Ours only: a request's time in parts: event, decode, engine, response."""
        from handler import main

        marks: list[float] = []
        tower = main.encoder.images
        assert tower is not None
        _mark(tower.decoder, "decode", marks)
        _mark(tower.engine, "encode", marks)
        event = json.loads((self.inputs / "event.json").read_bytes())
        rows = []
        for _ in range(repeat):
            marks.clear()
            begin = clock()
            self._answer(event)
            end = clock()
            start, decoded, engine, encoded = marks
            parsing = start - begin + engine - decoded  # the batch is stacked between
            rows.append([parsing, decoded - start, encoded - engine, end - encoded])
        return rows

    def sandbox(self, image: str, repeat: int) -> list[list[float]]:
        """Ours only: decoding in the service itself, and in the sandbox, in turns."""
        from handler import main
        from handler.images.sandbox import Unconfined

        data = (self.inputs / f"{image}.image").read_bytes()
        config = main.encoder.config
        tower = main.encoder.images
        assert tower is not None
        rows = []
        for decoder in [Unconfined(SIDE), tower.decoder] * repeat:
            begin = clock()
            decoder.decode(data, config, lambda _: None)
            rows.append(clock() - begin)
        return [rows[::2][1:], rows[1::2][1:]]  # without the first, which imports Pillow

    def tower_times(self, batch: int, repeat: int) -> list[float]:
        """Engines only: pixels in memory -> vectors."""
        import numpy as np

        tower = self._tower()
        pixels = np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
        return _times(lambda: tower(pixels), repeat)

    def sgemm(self, repeat: int) -> list[float]:
        """A float32 matrix product, 2,048 cubed, by the subject's library: MKL or ONNX Runtime."""
        import numpy as np

        a, b = np.random.default_rng(0).random((2, SGEMM, SGEMM), np.float32)
        if self.name == "baseline":
            import torch

            x, y = torch.from_numpy(a), torch.from_numpy(b)
            return _times(lambda: x @ y, repeat)
        session = _matmul_session(int(os.environ["CLIP_THREADS"]))
        return _times(lambda: session.run(None, {"a": a, "b": b}), repeat)

    def _tower(self) -> Callable[[Any], Any]:
        """The engine, loaded at first use."""
        from benchmarks import engines  # here, because a cold start does without

        threads = int(os.environ["CLIP_THREADS"])
        self.tower = self.tower or engines.load(self.name, self.inputs, threads)
        return self.tower

    def _judged(self, what: str) -> Any:
        """An array that `inputs` wrote: ``pixels``, ``vectors`` or, of texts, ``texts``."""
        import numpy as np

        return np.load(self.inputs / "judged" / f"{what}.npy")

    def _texts(self, name: str) -> list[str]:
        """The texts of one request: see `inputs.write_texts`."""
        texts: list[str] = json.loads((self.inputs / "texts.json").read_bytes())[name]
        return texts

    def _answer(self, event: dict[str, Any]) -> None:
        response = self.loaded.handler(event, None)
        assert response["statusCode"] == 200, response
        assert response["body"].count(",") == 511, response["body"][:100]


def _matmul_session(threads: int) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper

    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [SGEMM, SGEMM]) for name in "abc"
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])], "sgemm", values[:2], values[2:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def _resident_megabytes() -> float:
    """MiB of memory that this process holds, mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _times(call: Callable[[], object], repeat: int) -> list[float]:
    times = []
    for _ in range(repeat):
        begin = clock()
        call()
        times.append(clock() - begin)
    return times


def _mark(owner: Any, name: str, marks: list[float]) -> None:
    """Note the time before and after every call of ``owner.name``."""
    call = getattr(owner, name)

    def marked(*arguments: Any) -> Any:
        marks.append(clock())
        result = call(*arguments)
        marks.append(clock())
        return result

    setattr(owner, name, marked)


def main() -> None:
    """Answer requests until stdin closes."""
    worker = Worker(sys.argv[1], Path(sys.argv[2]))
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a subject prints is not an answer
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
