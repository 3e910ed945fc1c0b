"""``python slim.py /packages``: remove what the function never imports from its installed packages.

The Dockerfile runs it. It is Python because AWS's base image has no ``find``.
"""

import shutil
import sys
from pathlib import Path

UNUSED = (
    *("onnxruntime/transformers", "onnxruntime/quantization", "onnxruntime/tools"),  # 9 MB: they convert models
    "bin",  # pip's launchers
)
SERVICES = {"s3", "s3vectors"}
"""What the function calls, of all the services of AWS that botocore describes in 27 MB."""


def slim(packages: Path) -> None:
    """Remove `UNUSED`, 17 MB of the packages' own tests, and the services that are not in `SERVICES`."""
    descriptions = (packages / "botocore/data").iterdir()
    unused = [packages / name for name in UNUSED]
    unused += [path for path in descriptions if path.is_dir() and path.name not in SERVICES]
    unused += [path for path in packages.rglob("tests") if path.is_dir()]
    for path in unused:
        if path.exists():  # not so where it lay in one that is gone
            shutil.rmtree(path)


if __name__ == "__main__":
    slim(Path(sys.argv[1]))
