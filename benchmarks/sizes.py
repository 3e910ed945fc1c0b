"""How many megabytes of packages and weights each subject needs, beside the same Python."""

import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.subjects import CHECKPOINT

BASELINE = ("fastapi", "mangum", "python-multipart", "torch", "torchvision", "openai-clip")
FASTEMBED = ("fastapi", "mangum", "python-multipart", "fastembed")


def runtime() -> list[str]:
    """The packages of the function itself: all that ``pyproject.toml`` names as dependencies."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    return [Requirement(text).name for text in project["project"]["dependencies"]]


def installed(model: Path) -> dict[str, float]:
    """Subject -> MB of its packages, of all that these depend on, and of its weights.

    As pip installs them: the Lambda image holds less, because the Dockerfile removes what the
    function never imports.
    """
    ours = packages(runtime())
    sizes = {
        "exact": ours + sum(map(_megabytes, model.glob("visual.onnx*"))),
        "fast": ours + sum(map(_megabytes, model.glob("visual.int8.onnx*"))),
        "baseline": packages(BASELINE) + _megabytes(CHECKPOINT),
    }
    fastembed = model.parent / "fastembed" / "model.onnx"
    if "fastembed" in {d.name for d in metadata.distributions()}:
        sizes["fastembed"] = packages(FASTEMBED) + _megabytes(fastembed)
    return sizes


def _megabytes(file: Path) -> float:
    return file.stat().st_size / 1e6


def packages(names: Iterable[str]) -> float:
    """MB of `names` and their dependencies, as pip installed them, byte code included."""
    todo = list(names)
    seen: set[str] = set()
    size = 0
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another platform or Python
            continue
        for file in distribution.files or []:
            path = Path(str(distribution.locate_file(file)))
            size += path.stat().st_size if path.is_file() else 0
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return size / 1e6
