"""Where the weights come from: OpenAI's official file, a file of the user's, or seeded noise."""

import hashlib
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from export import ExportError
from handler.engines.torch_clip import import_clip

OFFICIAL_SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
OFFICIAL_URL = f"https://openaipublic.azureedge.net/clip/models/{OFFICIAL_SHA256}/ViT-B-32.pt"
CACHE = Path("~/.cache/clip").expanduser()
"""Where ``clip.load`` keeps its downloads, so that one download serves both."""

VIT_B_32 = (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)
"""clip.model.CLIP's arguments for ViT-B/32."""


class DownloadError(ExportError):
    """The official checkpoint could not be fetched."""


@dataclass(frozen=True)
class Reference:
    """A checkpoint as ``clip`` itself loads it: fp32 on CPU, with clip's own preprocessing."""

    path: Path
    sha256: str
    """What the fingerprint names the weights by: OpenAI's official file by its own sha256, all
    others by `sha256_of_weights`. Of two archives of the same weights, the bytes differ."""
    weights: str
    """``openai``, ``custom`` or ``synthetic``."""
    model: Any
    """clip.model.CLIP."""
    preprocess: Callable[[Image.Image], torch.Tensor]
    """PIL image -> float32 [3, 224, 224], normalised."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_weights(image_tower: Mapping[str, torch.Tensor]) -> str:
    """Hex digest of the weights themselves, whichever file and number format they were read from.

    Hashed is the state dict of the image tower (``model.visual``), in the order of its names by
    code point, with nothing between the tensors. Each tensor is one line of UTF-8 text, such as
    ``conv1.weight float32 768x3x32x32`` and a newline, and then its values: float32,
    little-endian, last dimension fastest. A scalar has the shape ``-``.

    The text tower has no part in it, so that it can be added or changed while the fingerprint of
    image vectors stays.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(image_tower.items()):
        shape = "x".join(map(str, tensor.shape)) or "-"
        digest.update(f"{name} float32 {shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor.detach().numpy(), "<f4").data)
    return digest.hexdigest()


def fetch(url: str = OFFICIAL_URL, sha256: str = OFFICIAL_SHA256, directory: Path = CACHE) -> Path:
    """Download `url` into `directory`, verified, unless a verified copy is there already.

    Raises:
        DownloadError: the server was not reached, broke off, or sent other bytes than `sha256`
                names.
    """
    target = directory / url.rsplit("/", 1)[-1]
    if target.is_file():
        if sha256_of(target) == sha256:
            return target
        print(f"{target} is not the file expected (sha256 differs): downloading it again")
    directory.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        digest = _download(url, partial)
        if digest != sha256:
            raise DownloadError(
                f"{url} gave other bytes than expected: sha256 {digest}, not {sha256}"
            )
        partial.replace(target)
    except (OSError, urllib.error.URLError) as error:
        raise DownloadError(
            f"{url} could not be downloaded: {getattr(error, 'reason', error)}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _download(url: str, target: Path) -> str:
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=30) as source, target.open("wb") as output:  # noqa: S310
        size = int(source.headers.get("Content-Length") or 0)
        title = target.name.split(".")[0]
        with tqdm(total=size or None, desc=title, unit="B", unit_scale=True) as bar:
            for block in iter(lambda: source.read(1 << 20), b""):
                output.write(block)
                digest.update(block)
                bar.update(len(block))
    if size and target.stat().st_size != size:
        raise OSError(f"broke off after {target.stat().st_size:,} of {size:,} bytes")
    return digest.hexdigest()


Distribution = Literal["uniform", "gaussian", "student"]
"""How the values of a matrix are spread; ``student``: Student's t with 4 degrees of freedom."""

MATRICES = ("conv1.weight", "in_proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight")
"""How the names of the image tower's matrices end, but for the last projection."""


def make_synthetic(
    path: Path,
    seed: int = 0,
    architecture: tuple[int, ...] = VIT_B_32,
    *,
    distribution: Distribution = "uniform",
    outliers: bool = False,
) -> Path:
    """Write a full-size checkpoint in OpenAI's TorchScript format, of seeded noise.

    One seed gives the same weights each time, under one version of torch and on one kind of CPU:
    torch's normal distribution is rounded differently where there is no AVX2.

    Weights as torch initialises them barely tell images apart, which would hide mistakes from a
    parity check. With the attention's input and output projections doubled, photographs score
    about 0.1 against each other: sharper than the trained model.

    torch draws uniform values and no outliers, which suits integers far too well. See `redraw` and
    `add_outliers` for the image tower's two further temptations.
    """
    clip = import_clip()
    torch.manual_seed(seed)
    model = clip.model.CLIP(*architecture).eval()
    with torch.no_grad():
        for block in model.visual.transformer.resblocks:
            block.attn.in_proj_weight.mul_(2)
            block.attn.out_proj.weight.mul_(2)
    redraw(model.visual, distribution, seed)
    if outliers:
        add_outliers(model.visual, seed)
    clip.model.convert_weights(model)
    _, resolution, *_, context, vocabulary, _, _, _ = architecture
    for name, value in (
        ("input_resolution", resolution),
        ("context_length", context),
        ("vocab_size", vocabulary),
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


def load_reference(path: Path, synthetic: bool = False) -> Reference:
    """Load a checkpoint with ``clip.load`` and make sure it is a ViT-B/32.

    Raises:
        ExportError: not a TorchScript archive, or another architecture.
    """
    clip = import_clip()
    if not path.is_file():
        raise ExportError(f"no such file: {path}")
    try:
        torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise ExportError(
            f"{path} is not a TorchScript archive, the format of OpenAI's own checkpoints: "
            "save a fine-tuned model with torch.jit.save(torch.jit.trace(...))"
        ) from error
    model, preprocess = clip.load(str(path), device="cpu", jit=False)
    visual = model.visual
    found = (
        getattr(visual, "output_dim", None),
        getattr(visual, "input_resolution", None),
        getattr(getattr(visual, "transformer", None), "layers", None),
        getattr(getattr(visual, "transformer", None), "width", None),
        visual.conv1.weight.shape[-1],
    )
    if found != VIT_B_32[:5]:
        raise ExportError(
            f"{path} is not a ViT-B/32: (embedding, resolution, layers, width, patch) is {found}, "
            f"expected {VIT_B_32[:5]}"
        )
    if not synthetic and sha256_of(path) == OFFICIAL_SHA256:
        return Reference(path, OFFICIAL_SHA256, "openai", model, preprocess)
    weights = "synthetic" if synthetic else "custom"
    return Reference(path, sha256_of_weights(visual.state_dict()), weights, model, preprocess)
