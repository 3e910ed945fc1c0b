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
from export.massive import add_massive_activations
from handler.engines.torch_clip import import_clip
from handler.model import Architecture

CACHE = Path("~/.cache/clip").expanduser()
"""Where ``clip.load`` keeps its downloads, so that one download serves both."""


@dataclass(frozen=True)
class Official:
    """One of OpenAI's checkpoints."""

    file: str
    sha256: str
    architecture: Architecture

    @property
    def url(self) -> str:
        """Where OpenAI serves it."""
        return f"https://openaipublic.azureedge.net/clip/models/{self.sha256}/{self.file}"


VIT_B_32 = Architecture(
    embedding_size=512,
    resolution=224,
    image_layers=12,
    image_width=768,
    patch=32,
    context_length=77,
    vocabulary=49408,
    text_width=512,
    text_heads=8,
    text_layers=12,
)
VIT_L_14 = VIT_B_32._replace(
    embedding_size=768, image_layers=24, image_width=1024, patch=14, text_width=768, text_heads=12
)
DEFAULT = "ViT-B/32"
MODELS = {
    DEFAULT: Official(
        "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        VIT_B_32,
    ),
    "ViT-B/16": Official(
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        VIT_B_32._replace(patch=16),
    ),
    "ViT-L/14": Official(
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        VIT_L_14,
    ),
    "ViT-L/14@336px": Official(
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        VIT_L_14._replace(resolution=336),
    ),
}
"""clip's own names of its models with a vision transformer."""


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
    name: str
    """Which of `MODELS` it is."""
    model: Any
    """clip.model.CLIP."""
    preprocess: Callable[[Image.Image], torch.Tensor]
    """PIL image -> float32 [3, side, side], normalised."""

    @property
    def architecture(self) -> Architecture:
        """The model's numbers."""
        return MODELS[self.name].architecture


def sha256_of(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def fetch(url: str, sha256: str, directory: Path = CACHE) -> Path:
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
    model = clip.model.CLIP(*architecture).eval()
    with torch.no_grad():
        for block in model.visual.transformer.resblocks:
            block.attn.in_proj_weight.mul_(2)
            block.attn.out_proj.weight.mul_(2)
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


def load_reference(path: Path, synthetic: bool = False, name: str = DEFAULT) -> Reference:
    """Load a checkpoint with ``clip.load`` and make sure that it is the model `name`.

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
    _check_architecture(path, model, name)
    official = MODELS[name].sha256
    if not synthetic and sha256_of(path) == official:
        return Reference(path, official, "openai", name, model, preprocess)
    weights = "synthetic" if synthetic else "custom"
    sha256 = sha256_of_weights(model.visual.state_dict())
    return Reference(path, sha256, weights, name, model, preprocess)


def _check_architecture(path: Path, model: Any, name: str) -> None:
    found, expected = _architecture(model), MODELS[name].architecture
    if found == expected:
        return
    names = [known for known, official in MODELS.items() if official.architecture == found]
    if names:
        raise ExportError(f"{path} is a {names[0]}, not a {name}: pass --model {names[0]}")
    numbers = found._asdict() if found else "no vision transformer"
    raise ExportError(f"{path} is not a {name}: it has {numbers}, expected {expected._asdict()}")


def _architecture(model: Any) -> Architecture | None:
    """The numbers of a clip.model.CLIP; None: its image tower is a ResNet."""
    visual = model.visual
    if not hasattr(visual, "transformer"):
        return None
    return Architecture(
        visual.output_dim,
        visual.input_resolution,
        visual.transformer.layers,
        visual.transformer.width,
        visual.conv1.weight.shape[-1],
        model.context_length,
        model.vocab_size,
        model.transformer.width,
        model.transformer.resblocks[0].attn.num_heads,
        model.transformer.layers,
    )
