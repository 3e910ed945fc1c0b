"""``python slim.py /packages``: remove what the function never imports from its installed packages.

The Dockerfile runs it. It is Python because AWS's base image has no ``find``.
"""

import shutil
import sys
from pathlib import Path

CONVERTERS = ("onnxruntime/transformers", "onnxruntime/quantization", "onnxruntime/tools")
"""Tools that convert models, 9 MB."""
LAUNCHERS = "bin"
"""Where pip puts the packages' command-line programs."""
SERVICES = {"s3", "s3vectors"}
"""What the function calls, of all the services of AWS that botocore describes in 27 MB."""


def slim(packages: Path) -> None:
    """Remove converters, launchers, the packages' own tests (17 MB) and unused AWS services."""
    descriptions = (packages / "botocore/data").iterdir()
    unused = [packages / name for name in (*CONVERTERS, LAUNCHERS)]
    unused += [path for path in descriptions if path.is_dir() and path.name not in SERVICES]
    unused += [path for path in packages.rglob("tests") if path.is_dir()]
    for path in unused:
        if path.exists():  # unless the folder that held it was removed before
            shutil.rmtree(path)


if __name__ == "__main__":
    slim(Path(sys.argv[1]))
