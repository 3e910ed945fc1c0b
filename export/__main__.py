"""``python -m export --out model``: make the model folder out of a checkpoint.

The folder is written only if every vector is as OpenAI's ``clip`` computes it. Otherwise the export
fails, and a model that was there before stays as it is.
"""

import argparse
import base64
import importlib.metadata
import io
import json
import platform
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from export import ExportError, checkpoint, folder, graph, images, int8, mending, parity
from export.checkpoint import DownloadError, Reference
from handler import __version__
from handler.engines import Engine
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.engines.torch_clip import TorchClipEngine
from handler.model import FORMAT, Model
from handler.precision import EXPORTED, PRECISIONS

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""clip.clip._transform's; `_card` refuses a clip whose own differ."""

HELP = """\
The official checkpoint could not be downloaded:
  {error}
To use it, fetch ViT-B-32.pt on a machine that can reach
  {url}
and put it at {cache}/ViT-B-32.pt, or pass it with --checkpoint FILE,
then export again (`make model`, or `make model CHECKPOINT=FILE`)."""


def main(arguments: list[str] | None = None) -> int:
    """Run the export: 0, or 1 with the reason on stderr and the old model, if any, untouched."""
    options = _parse(arguments)
    warnings.filterwarnings("ignore", module="PIL")  # advice on the parity set's odd images
    try:
        with folder.replacing(options.out) as new:
            reference = _reference(options)
            print(f"checkpoint  {reference.path} ({reference.weights}, {reference.sha256[:12]}...)")
            rows = write_model(reference, new.directory, options.precision)
            _gate(rows)
            new.publish()
    except (ExportError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    _report(options.out, rows)
    return 0


def _gate(rows: list[parity.Row]) -> None:
    """Refuse a model of which one vector or one pixel is not as clip has it."""
    if not parity.passed(rows):
        failed = sum(not row.passed for row in rows)
        count = f"{failed} of {len(rows)} comparisons failed"
        raise ExportError(f"{parity.table(rows)}\n{count}: no model written")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("model"),
        help="folder to write; a model that is there is replaced (default: model)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", type=Path, help="a local ViT-B/32 TorchScript file")
    source.add_argument("--synthetic", action="store_true", help="seeded noise instead of weights")
    source.add_argument(
        "--or-synthetic",
        action="store_true",
        help="the official checkpoint; seeded noise, loudly, if it cannot be downloaded",
    )
    parser.add_argument(
        "--precision",
        choices=EXPORTED,
        default="fp32",
        help="int8: write that one beside fp32; cosines to clip's vectors are at least 0.999 for "
        "photographs and 0.997 for all else; layers too inexact in integers stay in float",
    )
    return parser.parse_args(arguments)


def _reference(options: argparse.Namespace) -> Reference:
    synthetic = options.synthetic
    path = options.checkpoint
    if path is None and not synthetic:
        try:
            path = checkpoint.fetch()
        except DownloadError as error:
            url, cache = checkpoint.OFFICIAL_URL, checkpoint.CACHE
            text = HELP.format(error=error, url=url, cache=cache)
            if not options.or_synthetic:
                raise ExportError(
                    f"{text}\nOr pass --synthetic for weights that mean nothing."
                ) from error
            print(
                f"{text}\nGoing on with SYNTHETIC weights: vectors will mean nothing.",
                file=sys.stderr,
            )
            synthetic = True
    if synthetic:
        path = checkpoint.make_synthetic(checkpoint.CACHE / "ViT-B-32-synthetic.pt")
    return checkpoint.load_reference(path, synthetic)


def write_model(reference: Reference, directory: Path, precision: str = "fp32") -> list[parity.Row]:
    """Write every file of a model folder and compare its engines with clip, image by image."""
    state = {name: value.float() for name, value in reference.model.visual.state_dict().items()}
    weights = {name: value.numpy() for name, value in state.items()}
    samples = parity.samples(reference, images.parity_images())
    visual = directory / PRECISIONS["fp32"].file
    graph.save(graph.build(weights, np.array(MEAN), np.array(STD)), visual)
    in_float: tuple[str, ...] = ()
    if precision == "int8":
        in_float = _write_int8(weights, samples, directory)
    # Half where that loses nothing, as in the graph.
    halves = {
        name: v.half() if torch.equal(v.half().float(), v) else v for name, v in state.items()
    }
    torch.save(halves, directory / "visual.pt")

    card = _card(reference, directory)
    path = directory / "model.json"
    path.write_text(json.dumps(card, indent=2))
    model = Model.load(directory)  # through the reader that the service uses
    engines: list[Engine] = [OnnxCpuEngine(model, threads=0), TorchClipEngine(model, device="cpu")]
    if precision == "int8":
        engines.append(OnnxCpuEngine(model, threads=0, precision="int8"))
    rows = parity.compare(engines, samples)
    card["parity"] = parity.summary(rows, "fp32")
    if precision == "int8":
        scheme = {"scheme": PRECISIONS["int8"].scheme, "layers_in_float": in_float}
        card["parity_int8"] = parity.summary(rows, "int8") | scheme
    path.write_text(json.dumps(card, indent=2))
    return rows


def _write_int8(
    weights: graph.Weights, samples: list[parity.Sample], directory: Path
) -> tuple[str, ...]:
    """Write the graph in integers; the names of the layers that had to stay in float."""
    calibration = images.calibration_pixels()
    pixels = np.stack([sample.pixels for sample in samples])
    tower = int8.quantize(weights, np.array(MEAN), np.array(STD), calibration)
    tower = mending.mend(
        tower,
        calibration,
        lambda encode: parity.close_enough(samples, encode(pixels), "onnx", "int8"),
    )
    int8.save(tower.model(), directory)
    return tower.in_float


def _card(reference: Reference, directory: Path) -> dict[str, object]:
    """What ``model.json`` holds: all that a reader needs to trust a vector."""
    normalize = reference.preprocess.transforms[-1]  # type: ignore[attr-defined]
    if (tuple(normalize.mean), tuple(normalize.std)) != (MEAN, STD):
        raise ExportError(
            f"this clip normalises with {normalize.mean}, {normalize.std}: not OpenAI's"
        )
    golden = images.golden_image()
    embedding = parity.reference_embedding(reference, Image.open(io.BytesIO(golden)))
    packages = ("torch", "openai-clip", "torchvision", "onnx", "onnxruntime", "numpy", "pillow")
    return {
        "format": FORMAT,
        "model": "ViT-B/32",
        "embedding_size": 512,
        "weights": reference.weights,
        "checkpoint": {"file": reference.path.name, "sha256": reference.sha256},
        "preprocessing": {
            "steps": ["resize shorter side", "centre crop", "RGB", "scale to [0, 1]", "normalise"],
            "size": 224,
            "interpolation": "bicubic",
            "mean": MEAN,
            "std": STD,
        },
        "versions": {
            "exporter": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "golden": {
            "image": base64.b64encode(golden).decode(),
            "embedding": [float(str(x)) for x in embedding],
        },
        "files": {
            file.name: {"bytes": file.stat().st_size, "sha256": checkpoint.sha256_of(file)}
            for file in sorted(directory.iterdir())
        },
    }


def _report(out: Path, rows: list[parity.Row]) -> None:
    for precision in sorted({row.precision for row in rows}):
        figures = parity.summary(rows, precision)
        print(
            f"parity {precision} {figures['images']} images, pixels identical in all, smallest "
            f"cosine {figures['min_cosine']:.8f}, "
            f"largest difference {figures['max_difference']:.1e}"
        )
    for name in folder.files(out):
        print(f"written     {out / name}  {(out / name).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
