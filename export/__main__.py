"""``python -m export --out model``: make the model folder out of a checkpoint.

The folder is written only if every vector is as OpenAI's ``clip`` computes it. Otherwise the export
fails, and a model that was there before stays as it is.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from export import (
    ExportError,
    checkpoint,
    folder,
    formats,
    graph,
    hub,
    int8,
    mending,
    parity,
    sources,
    towers,
)
from export.checkpoint import Reference
from export.download import sha256_of
from export.sources import DEFAULT, MODELS, NoSourceError
from export.towers import Source
from handler import __version__
from handler.config import TOWERS
from handler.engines import Engine
from handler.engines.onnx_cpu import OnnxCpuEngine
from handler.engines.torch_clip import TorchClipEngine
from handler.model import FORMAT, Model
from handler.precision import EXPORTED, PRECISIONS


def main(arguments: list[str] | None = None) -> int:
    """Run the export: 0, or 1 with the reason on stderr and the old model, if any, untouched."""
    options = _parse(arguments)
    warnings.filterwarnings("ignore", module="PIL")  # advice on the parity set's odd images
    try:
        with folder.replacing(options.out) as new:
            reference, notice = _reference(options)
            print(f"checkpoint  {reference.path} ({reference.weights}, {reference.sha256[:12]}...)")
            rows = write_model(reference, new.directory, options.precision, options.towers, notice)
            _gate(rows)
            new.publish()
    except (ExportError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    _report(options.out, rows)
    return 0


def _gate(rows: list[parity.Row]) -> None:
    """Refuse a model of which one vector, pixel or token is not as clip has it."""
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
    source.add_argument(
        "--checkpoint",
        help="a file, a folder, or hf:organisation/name[@revision]: OpenAI's TorchScript archive, "
        "a state dict, Hugging Face's CLIPModel, or OpenCLIP's",
    )
    source.add_argument("--synthetic", action="store_true", help="seeded noise instead of weights")
    source.add_argument(
        "--or-synthetic",
        action="store_true",
        help="OpenAI's weights; seeded noise, loudly, if no source has them",
    )
    parser.add_argument(
        "--model",
        help=f"one of {', '.join(MODELS)} (default: {DEFAULT}), or "
        "hf:organisation/name[@revision]; with --checkpoint: which model it has to be",
    )
    parser.add_argument(
        "--activation",
        choices=formats.ACTIVATIONS,
        help="of a state dict that does not tell it: gelu of most of OpenCLIP's models, quick_gelu "
        "of OpenAI's",
    )
    parser.add_argument(
        "--towers",
        type=lambda text: text.split(","),
        default=list(TOWERS),
        help="image, text, or both with a comma between: what to export (default: both)",
    )
    parser.add_argument(
        "--precision",
        choices=EXPORTED,
        default="fp32",
        help="int8: write that one beside fp32; cosines to clip's vectors are at least 0.999 for "
        "photographs and 0.997 for all else; layers too inexact in integers stay in float",
    )
    options = parser.parse_args(arguments)
    for tower in options.towers:
        if tower not in TOWERS:
            parser.error(f"--towers takes {' and '.join(TOWERS)}, not {tower!r}")
    if options.model and options.model.startswith(hub.PREFIX):
        if options.checkpoint or options.synthetic:
            parser.error("--model hf:... names the weights: pass no others")
        options.checkpoint, options.model = options.model, None
    if not options.checkpoint and (options.model or DEFAULT) not in MODELS:
        parser.error(f"--model takes {', '.join(MODELS)} or hf:..., not {options.model!r}")
    return options


def _reference(options: argparse.Namespace) -> tuple[Reference, str]:
    """Load the checkpoint that was asked for, or another; and say why it is another, if it is."""
    if options.checkpoint:
        return _own(options.checkpoint, options.model, options.activation), ""
    name = options.model or DEFAULT
    if not options.synthetic:
        try:
            return sources.obtain(name, checkpoint.load_reference), ""
        except NoSourceError as error:
            if not options.or_synthetic:
                raise
            notice = f"SYNTHETIC weights: every vector is well formed and means nothing.\n{error}"
            print(notice, file=sys.stderr)
            return _synthetic(name), notice
    return _synthetic(name), ""


def _own(given: str, name: str | None, activation: str | None) -> Reference:
    if not given.startswith(hub.PREFIX):
        return checkpoint.load_reference(Path(given), False, name, activation)
    snapshot = hub.fetch_one(given, formats.FOLDERS)
    return checkpoint.load_reference(snapshot.folder, False, name, activation, snapshot)


def _synthetic(name: str) -> Reference:
    official = MODELS[name]
    path = sources.CACHE / official.file.replace(".pt", "-synthetic.pt")
    path = checkpoint.make_synthetic(path, architecture=official.architecture)
    return checkpoint.load_reference(path, synthetic=True)


def write_model(
    reference: Reference,
    directory: Path,
    precision: str = "fp32",
    names: Sequence[str] = TOWERS,
    notice: str = "",
) -> list[parity.Row]:
    """Write every file of a model folder and compare its engines with clip, sample by sample."""
    chosen = []
    if "image" in names:
        chosen.append(towers.image(reference))
    if "text" in names:
        chosen.append(towers.text(reference, directory))
    in_float = {source.name: _write_tower(source, precision, directory) for source in chosen}
    card = _card(reference, chosen, directory) | {"notice": notice}
    path = directory / "model.json"
    path.write_text(json.dumps(card, indent=2))
    model = Model.load(directory)  # through the reader that the service uses
    rows: list[parity.Row] = []
    for source in chosen:
        found = parity.compare(_engines(model, source.name, precision), source.samples)
        tower = card["towers"][source.name]
        tower["parity"] = parity.summary(found, "fp32")
        if precision == "int8":
            scheme = {"scheme": PRECISIONS["int8"].scheme}
            layers = {"layers_in_float": in_float[source.name]}
            tower["parity_int8"] = parity.summary(found, "int8") | scheme | layers
        rows += found
    path.write_text(json.dumps(card, indent=2))
    return rows


def _write_tower(source: Source, precision: str, directory: Path) -> tuple[str, ...]:
    """Write a tower's weights for each engine; the names of its layers that int8 has in float."""
    graph.save(
        source.build(source.weights, graph.FLOAT),
        directory / PRECISIONS["fp32"].file(source.name),
    )
    # Half where that loses nothing, as in the graph.
    halves = {
        name: v.half() if torch.equal(v.half().float(), v) else v
        for name, v in source.state.items()
    }
    torch.save(halves, directory / PRECISIONS["fp16"].file(source.name))
    if precision != "int8":
        return ()
    calibration = source.calibration()
    inputs = [sample.input for sample in source.samples]
    tower = mending.mend(
        int8.quantize(source.weights, source.build, calibration),
        calibration,
        lambda encode: parity.close_enough(source.samples, encode(inputs), "onnx", "int8"),
    )
    int8.save(tower.model(), directory / PRECISIONS["int8"].file(source.name))
    return tower.in_float


def _engines(model: Model, tower: str, precision: str) -> list[Engine]:
    """Every engine that the export wrote weights for."""
    engines: list[Engine] = [
        OnnxCpuEngine(model, threads=0, tower=tower),
        TorchClipEngine(model, device="cpu", tower=tower),
    ]
    if precision == "int8":
        engines.append(OnnxCpuEngine(model, threads=0, precision="int8", tower=tower))
    return engines


def _card(reference: Reference, chosen: Sequence[Source], directory: Path) -> dict[str, Any]:
    """What ``model.json`` holds: all that a reader needs to trust a vector."""
    packages = (
        *("torch", "openai-clip", "torchvision", "onnx", "onnxruntime", "numpy", "pillow"),
        *("ftfy", "regex"),
    )
    return {
        "format": FORMAT,
        "model": reference.name,
        "architecture": reference.architecture._asdict(),
        "weights": reference.weights,
        "checkpoint": reference.record,
        "logit_scale": reference.model.logit_scale.exp().item(),
        "preprocessing": {
            "steps": ["resize shorter side", "centre crop", "RGB", "scale to [0, 1]", "normalise"],
            "interpolation": "bicubic",
            "mean": reference.mean,
            "std": reference.std,
        },
        "towers": {
            source.name: {
                "sha256": checkpoint.sha256_of_weights(source.state),
                "golden": source.golden,
            }
            for source in chosen
        },
        "versions": {
            "exporter": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "files": {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
            for file in sorted(directory.iterdir())
        },
    }


def _report(out: Path, rows: list[parity.Row]) -> None:
    for tower, precision in sorted({(row.tower, row.precision) for row in rows}):
        of_tower = [row for row in rows if row.tower == tower]
        figures = parity.summary(of_tower, precision)
        kind, given = ("images", "pixels") if tower == "image" else ("texts", "tokens")
        print(
            f"parity {precision} {figures['samples']} {kind}, {given} identical in all, smallest "
            f"cosine {figures['min_cosine']:.8f}, "
            f"largest difference {figures['max_difference']:.1e}"
        )
    for name in folder.files(out):
        print(f"written     {out / name}  {(out / name).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
