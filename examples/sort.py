"""Sort the pictures of a folder by labels, without training: copy each to a folder of its label.

    python examples/sort.py photos sorted cat dog car

makes `sorted/cat`, `sorted/dog` and `sorted/car`. It needs httpx and a running service.

Each picture goes to the label that fits it best, even if none fits. Where that matters, look at the
cosines too: with OpenAI's weights a label that fits has a cosine of about 0.25 or more.
"""

import base64
import os
import shutil
import sys
from pathlib import Path

import httpx

SERVICE = os.environ.get("CLIP_URL", "http://localhost:3000")
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
BATCH = 32  # the most that one request may hold
TEMPLATES = ["a photo of a {}.", "a cropped photo of a {}.", "a close-up photo of a {}."]


def rank(
    service: httpx.Client, pictures: list[Path], labels: list[str]
) -> list[list[float] | None]:
    """For each picture how probable each label is; None where the picture cannot be read."""
    request = {
        "queries": [{"image": base64.b64encode(p.read_bytes()).decode()} for p in pictures],
        "candidates": [{"text": label} for label in labels],
        "templates": TEMPLATES,
    }
    answer = service.post("/rank", json=request).raise_for_status().json()
    for error in answer["errors"]:
        if error["list"] == "candidates":
            sys.exit(f"the label {labels[error['index']]!r} cannot be used: {error['detail']}")
        print(f"{pictures[error['index']]}: {error['detail']}", file=sys.stderr)
    probabilities: list[list[float] | None] = answer["probabilities"]
    return probabilities


def main() -> None:
    """Copy every picture, and print where to."""
    folder, target, *labels = sys.argv[1:]
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)
    with httpx.Client(base_url=SERVICE, timeout=60) as service:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            for path, row in zip(batch, rank(service, batch, labels), strict=True):
                if row is None:
                    continue
                label = labels[row.index(max(row))]
                (Path(target) / label).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, Path(target) / label)
                print(f"{label}  {max(row):.0%}  {path}")


if __name__ == "__main__":
    main()
