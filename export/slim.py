"""``python slim.py /packages``: remove what the function never imports from its installed packages.

The Dockerfile runs it. It is Python because AWS's base image has no ``find``.
"""

import shutil
import sys
from pathlib import Path

CONVERTERS = ("onnxruntime/transformers", "onnxruntime/quantization", "onnxruntime/tools")
"""Of models, 9 MB."""
LAUNCHERS = "bin"
SERVICES = {"s3", "s3vectors"}
"""What the function calls, of all the services of AWS that botocore describes in 27 MB."""


def slim(packages: Path) -> None:
    """Remove converters, pip's launchers, 17 MB of the packages' own tests, services never called."""
    descriptions = (packages / "botocore/data").iterdir()
    unused = [packages / name for name in (*CONVERTERS, LAUNCHERS)]
    unused += [path for path in descriptions if path.is_dir() and path.name not in SERVICES]
    unused += [path for path in packages.rglob("tests") if path.is_dir()]
    for path in unused:
        if path.exists():  # it does not where it lay in one that is gone by now
            shutil.rmtree(path)


if __name__ == "__main__":
    slim(Path(sys.argv[1]))
