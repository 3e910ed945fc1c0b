"""A checkpoint in clip's own model: OpenAI's, one of the user's, or seeded noise."""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from export import ExportError, formats
from export.formats import Checkpoint
from export.hub import Snapshot
from export.massive import add_massive_activations
from export.sources import MODELS, VIT_B_32, official_of
from handler.engines.torch_clip import build_clip, import_clip
from handler.model import Architecture


@dataclass(frozen=True)
class Reference:
    """A checkpoint in ``clip``'s own model, fp32 on CPU, with clip's own preprocessing."""

    path: Path
    """The file of its weights."""
    sha256: str
    """What the fingerprint names the weights by: OpenAI's official file by its own sha256, all
    others by `sha256_of_weights`. Of two archives of the same weights, the bytes differ."""
    weights: str
    """``openai``, ``custom`` or ``synthetic``."""
    name: str
    """As in `handler.model.Model`."""
    model: Any
    """clip.model.CLIP."""
    preprocess: Callable[[Image.Image], torch.Tensor]
    """PIL image -> float32 [3, side, side], normalised."""
    architecture: Architecture
    mean: tuple[float, ...]
    """What `preprocess` takes off each channel of [0, 1]."""
    std: tuple[float, ...]
    """What `preprocess` divides each channel by after that."""
    snapshot: Snapshot | None = None
    """Where it was downloaded from; None: from nowhere, or by one of `sources`."""

    @property
    def record(self) -> dict[str, str]:
        """Return what ``model.json`` says of the checkpoint."""
        found = {
            "file": self.path.name,
            "sha256": self.sha256,
            "tensors_sha256": sha256_of_weights(self.model.state_dict()),
        }
        if self.snapshot:
            found |= {
                "asked": self.snapshot.asked,
                "repository": self.snapshot.repository,
                "revision": self.snapshot.revision,
            }
        return found


def sha256_of_weights(tower: Mapping[str, torch.Tensor]) -> str:
    """Hex digest of the weights themselves, whichever file and number format they were read from.

    Hashed is the state dict of a tower, in the order of its names by code point, with nothing
    between the tensors. Each tensor is one line of UTF-8 text, such as
    ``conv1.weight float32 768x3x32x32`` and a newline, and then its values: float32,
    little-endian, last dimension fastest. A scalar has the shape ``-``.

    Checkpoints are named by their image tower (``model.visual``). The text tower has no part in
    that, so that it can be added or changed while the fingerprint of image vectors stays; it is
    named by a digest of its own.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.items()):
        shape = "x".join(map(str, tensor.shape)) or "-"
        digest.update(f"{name} float32 {shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor.detach().numpy(), "<f4").data)
    return digest.hexdigest()


def text_tower(model: Any) -> dict[str, torch.Tensor]:
    """The state dict of a model's text tower; clip has no module of its own for it."""
    others = ("visual.", "logit_scale")
    return {name: x for name, x in model.state_dict().items() if not name.startswith(others)}


Distribution = Literal["uniform", "gaussian", "student"]
"""How the values of a matrix are spread; ``student``: Student's t with 4 degrees of freedom."""

MATRICES = ("conv1.weight", "in_proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight")
"""How the names of the image tower's matrices end, but for the last projection."""


def make_synthetic(
    path: Path,
    seed: int = 0,
    architecture: Architecture = VIT_B_32,
    *,
    distribution: Distribution = "uniform",
    outliers: bool = False,
    massive: bool = False,
) -> Path:
    """Write a full-size checkpoint in OpenAI's TorchScript format, of seeded noise.

    One seed gives the same weights each time, under one version of torch and on one kind of CPU:
    torch's normal distribution is rounded differently where there is no AVX2.

    Weights as torch initialises them barely tell images apart, which would hide mistakes from a
    parity check. With the attention's input and output projections doubled, photographs score
    about 0.1 against each other: sharper than the trained model.

    torch draws uniform values and no outliers, which suits integers far too well. See `redraw` and
    `add_outliers` for the image tower's two further temptations, and `add_massive_activations` for
    one of both towers.
    """
    clip = import_clip()
    torch.manual_seed(seed)
    model = build_clip(architecture)
    with torch.no_grad():
        for block in model.visual.transformer.resblocks:
            block.attn.in_proj_weight.mul_(2)
            block.attn.out_proj.weight.mul_(2)
        # In 16 bits, as `convert_weights` makes every matrix but this one.
        model.token_embedding.weight.copy_(model.token_embedding.weight.half())
    redraw(model.visual, distribution, seed)
    if outliers:
        add_outliers(model.visual, seed)
    if massive:
        add_massive_activations(model, seed)
    clip.model.convert_weights(model)
    resolution, context = architecture.resolution, architecture.context_length
    for name, value in (
        ("input_resolution", resolution),
        ("context_length", context),
        ("vocab_size", architecture.vocabulary),
    ):
        # OpenAI's own archives hold these three numbers as tensors, and clip.load expects them.
        if name in model.__dict__:
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    inputs = torch.zeros(1, 3, resolution, resolution), torch.zeros(1, context, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape check it makes permanent
        traced = torch.jit.trace(model, inputs, check_trace=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.save(traced, path)
    return path


@torch.no_grad()
def redraw(image_tower: torch.nn.Module, distribution: Distribution, seed: int = 0) -> None:
    """Draw the image tower's matrices anew, at the spread they have.

    Trained matrices look like a bell or have heavy tails. A scale for 8 bits has to reach to the
    largest value, so that the fewer values are large, the coarser are all others rounded.
    """
    if distribution == "uniform":  # which is what they are
        return
    random = np.random.default_rng(seed)
    for name, tensor in image_tower.named_parameters():
        if not name.endswith(MATRICES):
            continue
        if distribution == "gaussian":
            values = random.standard_normal(tensor.shape)
        else:
            values = random.standard_t(4, tensor.shape) / np.sqrt(2)  # whose spread is sqrt(2)
        tensor.copy_(torch.from_numpy(values) * tensor.std())


@torch.no_grad()
def add_outliers(image_tower: Any, seed: int = 0) -> None:
    """Make six channels of every LayerNorm in a block 3 to 23 times as large as they are.

    Trained transformers have such channels. The columns of the matrix that reads them are divided
    by the same, so that the function is unchanged, but for fp16's rounding of these columns.
    """
    random = np.random.default_rng(seed)
    for block in image_tower.transformer.resblocks:
        readers = ((block.ln_1, block.attn.in_proj_weight), (block.ln_2, block.mlp.c_fc.weight))
        for norm, matrix in readers:
            width = matrix.shape[1]
            channels = torch.from_numpy(random.choice(width, min(6, width), replace=False))
            factors = torch.from_numpy(random.uniform(3, 23, len(channels))).float()
            norm.weight[channels] *= factors
            norm.bias[channels] *= factors
            matrix[:, channels] /= factors


def load_reference(
    path: Path,
    synthetic: bool = False,
    name: str | None = None,
    activation: str | None = None,
    snapshot: Snapshot | None = None,
) -> Reference:
    """Load a checkpoint in any format into ``clip.model.CLIP``, and name it.

    `name`: which model it has to be. `snapshot`: where `path` was downloaded from. For
    `activation` and what `path` may be see `formats.read`.

    Raises:
        ExportError: it cannot be read, cannot be served exactly, or is another model.
    """
    official = official_of(path)
    if official and not synthetic:
        found = formats.read_official(path, MODELS[official].architecture)
    else:
        found = formats.read(path, activation)
        official = official_of(found.path)
    model = _loaded(found)
    if official and not synthetic:
        named, weights, sha256 = official, "openai", MODELS[official].sha256
    else:
        named = snapshot.name if snapshot else name_of(found.architecture)
        weights = "synthetic" if synthetic else "custom"
        sha256 = sha256_of_weights(model.visual.state_dict())
    if name and name != named:
        raise ExportError(f"{path} is a {named}, not a {name}: pass --model {named}")
    return Reference(
        found.path,
        sha256,
        weights,
        named,
        model,
        _preprocess(found),
        found.architecture,
        found.mean,
        found.std,
        snapshot,
    )


def _loaded(found: Checkpoint) -> Any:
    """The checkpoint as clip.model.CLIP, fp32 on CPU.

    Raises:
        ExportError: a weight is missing, too many, or of another shape.
    """
    model = build_clip(found.architecture)
    shapes = {name: x.shape for name, x in model.state_dict().items()}
    wrong = [
        *(f"it lacks {name}" for name in shapes if name not in found.state),
        *(f"clip's model has no {name}" for name in found.state if name not in shapes),
        *(
            f"{name} is {tuple(x.shape)} instead of {tuple(shapes[name])}"
            for name, x in found.state.items()
            if name in shapes and x.shape != shapes[name]
        ),
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more such)" if len(wrong) > 1 else ""
        raise ExportError(f"{found.path} is refused: {wrong[0]}{more}")
    model.load_state_dict(found.state)
    return model


def _preprocess(found: Checkpoint) -> Callable[[Image.Image], torch.Tensor]:
    """Clip's own preprocessing, with the checkpoint's mean and deviation."""
    clip = import_clip()
    from torchvision.transforms import Compose, Normalize

    steps = clip.clip._transform(found.architecture.resolution).transforms[:-1]
    preprocess: Callable[[Image.Image], torch.Tensor] = Compose(
        [*steps, Normalize(found.mean, found.std)]
    )
    return preprocess


_SIZES = {(384, 12): "S", (512, 12): "M", (768, 12): "B", (1024, 24): "L", (1280, 32): "H"}
"""Width and layers of an image tower -> how such a ViT is called."""


def name_of(architecture: Architecture) -> str:
    """Name a model as clip names its own, by the size of its image tower: ``ViT-B/32``."""
    a = architecture
    for name, official in MODELS.items():
        if official.architecture[:10] == a[:10]:
            return name
    size = _SIZES.get((a.image_width, a.image_layers), f"{a.image_width}x{a.image_layers}")
    side = "" if a.resolution == 224 else f"@{a.resolution}px"
    return f"ViT-{size}/{a.patch}{side}"
