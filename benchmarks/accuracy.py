"""``python -m benchmarks.accuracy``: what decoding large JPEGs at a reduced scale does to vectors.

Every photograph of the parity gate, enlarged to 2, 12 and 48 megapixels and, the worst case of each
scale, to a shorter side that reduces to ``jpeg_draft`` and a fraction. A sensor's noise is added.
The same photographs as a press prints them, in black dots on white, are the pictures that suffer
most from a reduced scale. The service has to find them and to decode them in full.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from export.images import PHOTOGRAPHS, encoded, photograph
from handler.config import Config
from handler.engines import Engine, load_engine
from handler.images.sandbox import Unconfined
from handler.model import Model

FAST = Config.from_env({"CLIP_PROFILE": "fast"})
MIN_COSINE = 0.9998
MEGAPIXELS = (2, 12, 48)
HALFTONES = ((4.0, 0), (4.0, 45), (6.0, 45), (8.0, 45), (10.0, 20), (16.0, 45))
"""Distance of a halftone's dots in pixels, and the angle of their grid in degrees."""


def enlarged(name: str, size: tuple[int, int]) -> bytes:
    """A photograph as a camera would have written it: large, noisy, JPEG."""
    picture = np.asarray(photograph(name).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    picture += 4 * np.random.default_rng(0).standard_normal(picture.shape, dtype=np.float32)
    return encoded(Image.fromarray(picture.clip(0, 255).astype(np.uint8)), "JPEG", quality=90)


def halftone(name: str, side: int, period: float, degrees: float) -> bytes:
    """A photograph as a press prints it: dots in a grid, `period` pixels apart, turned by an angle.

    A grey JPEG of `side` x `side` pixels. Where the photograph is darker, its dots are larger.
    """
    grey = photograph(name).convert("L").resize((side, side), Image.Resampling.BICUBIC)
    y, x = np.mgrid[:side, :side].astype(np.float32) * (2 * np.pi / period)
    angle = np.deg2rad(degrees)
    waves = np.cos(x * np.cos(angle) + y * np.sin(angle))
    waves += np.cos(y * np.cos(angle) - x * np.sin(angle))
    # The share of the paper that is black equals the photograph's darkness: so by rank, not height.
    ranks = np.searchsorted(np.sort(waves, axis=None)[::256], waves) / (waves.size / 256)
    return encoded(Image.fromarray(np.asarray(grey) / 255 > ranks), "JPEG", quality=90)


def sizes(name: str, draft: int) -> Iterator[tuple[int, int]]:
    """By area, then by the shorter side."""
    width, height = photograph(name).size
    for megapixels in MEGAPIXELS:
        scale = (megapixels * 1e6 / (width * height)) ** 0.5
        yield round(width * scale), round(height * scale)
    for reduction in (2, 4, 8):
        scale = (draft * reduction + 1) / min(width, height)
        yield round(width * scale), round(height * scale)


def pictures(name: str, draft: int) -> Iterator[tuple[str, bytes]]:
    """All that one photograph is tried as, and what to call it."""
    for size in sizes(name, draft):
        yield f"at {size[0]} x {size[1]}", enlarged(name, size)
    for period, degrees in HALFTONES:
        what = f"in dots {period} pixels apart at {degrees} degrees"
        yield what, halftone(name, 4 * draft, period, degrees)


def cosine(engine: Engine, data: bytes, draft: int, side: int) -> float:
    """Between the vectors of `data` decoded in full and decoded with ``jpeg_draft``.

    The model sees a square of `side` pixels.
    """
    configs = (Config(jpeg_draft=value) for value in (0, draft))
    decoder = Unconfined(side)
    pixels = [decoder.decode(data, config, lambda _: None).pixels for config in configs]
    if pixels[0] == pixels[1]:  # nothing was reduced
        return 1.0
    full, reduced = (np.frombuffer(one, np.uint8).reshape(side, side, 3) for one in pixels)
    a, b = engine.encode(np.stack([full, reduced]))
    return float(a @ b)


def main() -> int:
    """Print one line a photograph: the smallest cosine, and what gave it; 1 if it is too small."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(".cache/benchmark/model"))
    parser.add_argument("--draft", type=int, help="pixels (default: those of the profile fast)")
    options = parser.parse_args()
    model = Model.load(options.model)
    side = model.architecture.resolution
    draft = options.draft or FAST.jpeg_draft_for(side)
    engine = load_engine(Config(engine="onnx"), model)
    worst = {}
    for name in tqdm(PHOTOGRAPHS, unit="photograph"):
        worst[name] = min(
            (cosine(engine, data, draft, side), what) for what, data in pictures(name, draft)
        )
    for name, (value, what) in worst.items():
        print(f"{name:20} {value:.6f} {what}")
    return int(min(worst.values())[0] < MIN_COSINE)


if __name__ == "__main__":
    sys.exit(main())
