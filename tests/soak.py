"""``python -m tests.soak``: thousands of good and bad requests, one by one, as Lambda gives them.

The real runtime client under the real emulator answers events of every kind. After each, the
memory of the runtime's process is read from /proc. What must hold: every good request gets its
exact vectors, every bad one its refusal, and neither memory nor latency grows.
"""

import argparse
import base64
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.measure import children
from events import generate
from tests import bombs
from tests.answers import INVOKE
from tests.conftest import emulator
from tests.measure import growth, resident_megabytes

MEMORY_GROWTH = 1.05
"""The last tenth's memory over the second tenth's, at most. The first tenth fills caches."""
LATENCY_GROWTH = 1.5
"""The same of the time one image takes: what is slower than that is no noise."""

Event = dict[str, Any]


def pictures() -> list[bytes]:
    """Six sound images of other formats and sizes."""
    photo = bombs.encoded(Image.radial_gradient("L").resize((640, 480)).convert("RGB"), "JPEG")
    large = bombs.encoded(Image.linear_gradient("L").resize((4000, 3000)).convert("RGB"), "JPEG")
    small = [
        bombs.encoded(bombs.small().rotate(90 * i), kind)
        for i, kind in enumerate(("PNG", "WEBP", "GIF"))
    ]
    return [generate.PHOTO, photo, large, *small]


def good(rng: random.Random, images: list[bytes]) -> tuple[Event, list[int]]:
    """An event, and which of the images it carries."""
    index = rng.randrange(len(images))
    data = images[index]
    text = base64.b64encode(data).decode()
    some = [rng.randrange(len(images)) for _ in range(3)]
    batch = {"images": [base64.b64encode(images[i]).decode() for i in some]}
    raw, form, json_type = "image/jpeg", generate.MULTIPART, "application/json"
    body = json.dumps({"image": text}).encode()
    events: list[tuple[Event, list[int]]] = [
        ({"image": text}, [index]),
        (batch, some),
        (generate.http_api("/encode_image", raw, data), [index]),
        (generate.alb("/encode_image", raw, data), [index]),
        (generate.function_url("/encode_image", json_type, body), [index]),
        (generate.rest("POST", "/encode_image", form, generate.multipart("image", data)), [index]),
        ({"action": "health"}, []),
    ]
    return rng.choice(events)


BOMBS = (
    *("PNG, iTXt bomb", "TIFF, tiles of 20,000 x 20,000"),
    *("JPEG claiming 65,500 x 65,500", "GIF claiming 65,535 x 65,535"),
    *("WebP claiming 16,383 x 16,383", "AVIF claiming 16,384 x 16,384"),
)


def bad(rng: random.Random, images: list[bytes], made: list[bytes]) -> Any:
    """An event that must be refused: damaged, lying, of no kind, or nothing of the sort."""
    broken = rng.choice(images)
    broken = broken[: rng.randrange(len(broken) // 2)]
    text = base64.b64encode(rng.choice([broken, b"no image", rng.choice(made)])).decode()
    form = generate.multipart("image", broken)[: -rng.randrange(3, 100)]
    nonsense = [[], {}, {"image": text, "x": 1}, {"image": 7}, {"image": "%"}, {"images": []}]
    return rng.choice(
        [
            {"image": text},
            generate.http_api("/encode_image", "image/png", base64.b64decode(text)),
            generate.rest("POST", "/encode_image", generate.MULTIPART, form),
            generate.rest("POST", "/encode_image", "text/plain", b"hello"),
            generate.rest("GET", "/nowhere"),
            rng.choice(nonsense),
        ]
    )


@dataclass
class Soak:
    """What was seen, in the order of the requests."""

    memory: list[float] = field(default_factory=list)
    """Megabytes resident in the runtime's process."""
    latency: list[float] = field(default_factory=list)
    """Seconds that each request for one sound image took."""
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def memory_growth(self) -> float:
        return growth(self.memory)

    @property
    def latency_growth(self) -> float:
        return growth(self.latency)

    @property
    def passed(self) -> bool:
        return (
            not self.wrong
            and self.memory_growth <= MEMORY_GROWTH
            and self.latency_growth <= LATENCY_GROWTH
        )

    def __str__(self) -> str:
        times = sorted(seconds * 1000 for seconds in self.latency)
        median, slow = times[len(times) // 2], times[-len(times) // 100]
        lines = [
            f"{len(self.memory):,} requests, {self.refused:,} of them bad; {len(self.wrong)} wrong",
            f"memory {max(self.memory):.0f} MB; last tenth over second: {self.memory_growth:.3f}",
            f"one image {median:.0f} ms (99 %: {slow:.0f}); "
            f"last tenth over second: {self.latency_growth:.2f}",
        ]
        return "\n".join([*self.wrong[:10], *lines])


def run(client: httpx.Client, emulator_pid: int, requests: int, seed: int) -> Soak:
    """Send `requests`, two of five of them bad."""
    rng, soak, images = random.Random(seed), Soak(), pictures()
    made = [bombs.HOSTILE[name]() for name in BOMBS]
    vectors = [
        _invoke(client, {"image": base64.b64encode(data).decode()})["embedding"] for data in images
    ]
    (runtime,) = children(emulator_pid)
    for number in range(requests):
        if rng.random() < 0.4:
            soak.refused += 1
            answer = _invoke(client, bad(rng, images, made))
            if not _is_refusal(answer):
                soak.wrong.append(f"request {number}: not refused: {str(answer)[:200]}")
        else:
            event, indices = good(rng, images)
            start = time.perf_counter()
            answer = _invoke(client, event)
            if len(indices) == 1:
                soak.latency.append(time.perf_counter() - start)
            if _vectors(answer) != [vectors[i] for i in indices]:
                soak.wrong.append(f"request {number}: other vectors: {str(answer)[:200]}")
        soak.memory.append(resident_megabytes(runtime))
    return soak


def _invoke(client: httpx.Client, event: Any) -> Any:
    return client.post(INVOKE, json=event).json()


def _is_refusal(answer: dict[str, Any]) -> bool:
    if "statusCode" in answer:
        body: dict[str, str] = json.loads(answer["body"])
        return 400 <= answer["statusCode"] < 500 and body.keys() == {"code", "detail"}
    return ": " in answer.get("errorMessage", "") and answer["errorType"] != "InternalError"


def _vectors(answer: Any) -> list[Any]:
    """Those of an answer of any form; of an error, no list that could be right."""
    if "statusCode" in answer:
        answer = json.loads(answer["body"])
    if isinstance(answer, list):
        return [answer]
    if "embedding" in answer:
        return [answer["embedding"]]
    batch: list[Any] = answer.get("embeddings", [] if "fingerprint" in answer else [answer])
    return batch


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        emulator(Path(os.environ["CLIP_MODEL_DIR"]), Path(folder) / "log") as (client, pid),
    ):
        soak = run(client, pid, options.requests, options.seed)
    print(soak)
    return 0 if soak.passed else 1


if __name__ == "__main__":
    sys.exit(main())
