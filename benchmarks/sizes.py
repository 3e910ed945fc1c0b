"""How many megabytes each recipe puts into a container image, beside the same Python."""

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

RUNTIME = ("fastapi", "mangum", "numpy", "onnxruntime", "pillow", "pydantic")
BASELINE = ("fastapi", "mangum", "python-multipart", "torch", "torchvision", "openai-clip")
FASTEMBED = ("fastapi", "mangum", "python-multipart", "fastembed")
CHECKPOINT = Path("~/.cache/clip/ViT-B-32-synthetic.pt").expanduser()


def installed(model: Path) -> dict[str, float]:
    """Subject -> MB of its packages, all they depend on, and its weights."""
    weights = sum(path.stat().st_size for path in model.iterdir() if path.name != "visual.pt") / 1e6
    sizes = {
        "ours": _packages(RUNTIME) + weights,
        "baseline": _packages(BASELINE) + CHECKPOINT.stat().st_size / 1e6,
    }
    fastembed = model.parent / "fastembed" / "model.onnx"
    if "fastembed" in {d.name for d in metadata.distributions()}:
        sizes["fastembed"] = _packages(FASTEMBED) + fastembed.stat().st_size / 1e6
    return sizes


def _packages(names: tuple[str, ...]) -> float:
    """MB of `names` and their dependencies, as pip installed them, byte code included."""
    todo, seen, size = list(names), set[str](), 0
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
