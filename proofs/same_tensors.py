"""``python -m proofs.same_tensors ONE OTHER``: say if two checkpoints hold the same numbers.

A checkpoint is whatever the export reads: OpenAI's archive, Hugging Face's or OpenCLIP's folder, a
state dict, ``hf:organisation/name[@revision]``. The service gives OpenAI's own file and the one of
Hugging Face's organisation ``openai`` the same fingerprint, because the second is a copy of the
first in 32 bits. Whoever has both can check that::

    python -m proofs.same_tensors ~/.cache/clip/ViT-B-32.pt hf:openai/clip-vit-base-patch32

The exit status is 0 if every tensor of both is equal to the bit, 1 if one is not, and 2 if a
checkpoint cannot be read.
"""

import argparse
import sys
from pathlib import Path

import torch

from export import ExportError, formats, hub
from export.formats import Checkpoint


def main(arguments: list[str] | None = None) -> int:
    """Compare two checkpoints and print each tensor that differs."""
    parser = argparse.ArgumentParser(prog="python -m proofs.same_tensors", description=__doc__)
    parser.add_argument("checkpoints", nargs=2, metavar="CHECKPOINT")
    parser.add_argument("--activation", choices=formats.ACTIVATIONS, help="as for the export")
    options = parser.parse_args(arguments)
    try:
        one, other = (read(given, options.activation) for given in options.checkpoints)
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2
    differences = differing(one, other)
    for line in differences:
        print(line)
    numbers = sum(x.numel() for x in one.state.values())
    verdict = (
        "not equal" if differences else f"equal: {len(one.state)} tensors, {numbers:,} numbers"
    )
    print(verdict)
    return 1 if differences else 0


def read(given: str, activation: str | None) -> Checkpoint:
    """Read a checkpoint as the export does."""
    path = Path(given)
    if given.startswith(hub.PREFIX):
        path = hub.fetch_one(given, formats.FOLDERS).folder
    return formats.read(path, activation)


def differing(one: Checkpoint, other: Checkpoint) -> list[str]:
    """Return a line for each tensor, and each number of the architecture, that differs."""
    lines = [
        f"{name}: {a} and {b}"
        for name, a, b in zip(
            one.architecture._fields, one.architecture, other.architecture, strict=True
        )
        if a != b
    ]
    for name in sorted(one.state.keys() | other.state.keys()):
        if name not in one.state or name not in other.state:
            lines.append(f"{name}: in one only")
        elif not torch.equal(one.state[name], other.state[name]):
            a, b = one.state[name], other.state[name]
            same = a.shape == b.shape
            most = f"up to {(a - b).abs().max():.1e}" if same else f"{a.shape} and {b.shape}"
            lines.append(f"{name}: differs, {most}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
