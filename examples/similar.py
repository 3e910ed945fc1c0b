"""Find the pictures of a folder that are most like one picture, or that fit a text best.

    python examples/similar.py photos photos/cat.jpg
    python examples/similar.py photos "a red bicycle"

It needs httpx, numpy and a running service. It encodes the folder each time; to do so once, and for
many pictures, see the command line `clip-encoder`.
"""

import os
import sys
from pathlib import Path

import httpx
import numpy as np

SERVICE = os.environ.get("CLIP_URL", "http://localhost:3000")
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
BATCH = 32  # the most that one request may hold


def vectors_of(service: httpx.Client, paths: list[Path]) -> tuple[list[Path], np.ndarray]:
    """The paths that are pictures, and float32 [n, 512]: a vector of length 1 for each."""
    found, rows = [], []
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        files = [("images", (path.name, path.read_bytes())) for path in batch]
        answer = service.post("/encode_images", files=files).raise_for_status().json()
        for error in answer["errors"]:
            print(f"{batch[error['index']]}: {error['detail']}", file=sys.stderr)
        for path, row in zip(batch, answer["embeddings"], strict=True):
            if row is not None:
                found.append(path)
                rows.append(row)
    return found, np.array(rows, np.float32)


def vector_of(service: httpx.Client, wanted: str) -> np.ndarray:
    """The vector of a picture's file or, where there is no such file, of a text."""
    if Path(wanted).is_file():
        answer = service.post("/encode_image", files={"image": Path(wanted).read_bytes()})
    else:
        answer = service.post("/encode_text", json={"text": wanted})
    return np.array(answer.raise_for_status().json(), np.float32)


def main() -> None:
    """Print the ten best, the best one first."""
    folder, wanted = sys.argv[1:]
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)
    with httpx.Client(base_url=SERVICE, timeout=60) as service:
        found, vectors = vectors_of(service, paths)
        # All vectors have length 1, so a product of two is the cosine of the angle between them.
        cosines = vectors @ vector_of(service, wanted)
    for place in np.argsort(-cosines)[:10]:
        print(f"{cosines[place]:.4f}  {found[place]}")


if __name__ == "__main__":
    main()
