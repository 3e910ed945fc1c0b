"""``python -m benchmarks.accuracy``: what decoding large JPEGs at a reduced scale does to vectors.

Every photograph of the parity gate, enlarged to 2, 12 and 48 megapixels and, the worst case of each
scale, to a shorter side that reduces to ``jpeg_draft`` and a fraction. A sensor's noise is added.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from export.images import PHOTOGRAPHS, encoded, photograph
from handler.config import PROFILES, Config
from handler.engines import Engine, load_engine
from handler.images.sandbox import Unconfined
from handler.images.wire import SIZE
from handler.model import Model

MIN_COSINE = 0.9998
MEGAPIXELS = (2, 12, 48)


def enlarged(name: str, size: tuple[int, int]) -> bytes:
    """A photograph as a camera would have written it: large, noisy, JPEG."""
    picture = np.asarray(photograph(name).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    picture += 4 * np.random.default_rng(0).standard_normal(picture.shape, dtype=np.float32)
    return encoded(Image.fromarray(picture.clip(0, 255).astype(np.uint8)), "JPEG", quality=90)


def sizes(name: str, draft: int) -> Iterator[tuple[int, int]]:
    """By area, then by the shorter side."""
    width, height = photograph(name).size
    for megapixels in MEGAPIXELS:
        scale = (megapixels * 1e6 / (width * height)) ** 0.5
        yield round(width * scale), round(height * scale)
    for reduction in (2, 4, 8):
        scale = (draft * reduction + 1) / min(width, height)
        yield round(width * scale), round(height * scale)


def cosine(engine: Engine, data: bytes, draft: int) -> float:
    """Between the vectors of `data` decoded in full and decoded with ``jpeg_draft``."""
    configs = (Config(jpeg_draft=value) for value in (0, draft))
    decoder = Unconfined()
    pixels = [decoder.decode(data, config, lambda _: None).pixels for config in configs]
    if pixels[0] == pixels[1]:  # nothing was reduced
        return 1.0
    full, reduced = (np.frombuffer(one, np.uint8).reshape(SIZE, SIZE, 3) for one in pixels)
    a, b = engine.encode(np.stack([full, reduced]))
    return float(a @ b)


def main() -> None:
    """Print one line a photograph: the smallest cosine, and the size that gave it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(".cache/benchmark/model"))
    parser.add_argument("--draft", type=int, default=PROFILES["fast"]["jpeg_draft"])
    options = parser.parse_args()
    engine = load_engine(Config(engine="onnx"), Model.load(options.model))
    worst: dict[str, tuple[float, tuple[int, int]]] = {}
    for name in tqdm(PHOTOGRAPHS, unit="photograph"):
        found = (
            (cosine(engine, enlarged(name, s), options.draft), s)
            for s in sizes(name, options.draft)
        )
        worst[name] = min(found)
    for name, (value, size) in worst.items():
        print(f"{name:20} {value:.6f} at {size[0]} x {size[1]}")


if __name__ == "__main__":
    main()
