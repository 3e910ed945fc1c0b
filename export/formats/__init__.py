"""Read a CLIP in any of the formats that people keep it in.

Whatever the format, the result is a state dict with the names of ``clip.model.CLIP``, in float32,
and the model's numbers. What cannot be served exactly is refused, with the reason.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from export import ExportError
from export.formats import archive, hugging_face, openclip
from export.formats.archive import State
from export.formats.config import MEAN, STD, Config
from handler.model import Architecture

FOLDERS = (
    (openclip.CONFIG, ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"), ()),
    (
        hugging_face.CONFIG,
        ("model.safetensors", "pytorch_model.bin"),
        (hugging_face.PREPROCESSOR,),
    ),
)
"""Of a folder, in this order: a configuration, the weights beside it, and what may stand there too.
"""

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
"""How the name of a file of weights ends."""

ACTIVATIONS = ("quick_gelu", "gelu")
"""What ``--activation`` takes."""

HEAD_WIDTH = 64
"""Of every CLIP whose image tower is at most `USUAL` wide."""
USUAL = 1024

_OTHERS = (
    ("visual.trunk.", "its image tower is one of timm's, not clip's vision transformer"),
    ("visual.layer1.", "its image tower is a ResNet, and only vision transformers are served"),
    ("visual.attnpool.", "its image tower is not clip's vision transformer"),
    ("visual.attn_pool.", "its image tower pools by attention, which clip's does not"),
    ("text_decoder.", "it is a CoCa, not a CLIP"),
    ("logit_bias", "it is a SigLIP, whose tokenizer and towers are others"),
    ("vision_model.head.", "it is a SigLIP, whose tokenizer and towers are others"),
    ("text.", "its text tower is not clip's own (OpenCLIP calls it custom text)"),
)
"""How the name of a weight begins that no served model has -> why the model is refused."""

_BUFFERS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Names of what a state dict may hold beside weights."""


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP as it was read."""

    path: Path
    """The file of its weights."""
    state: State
    """float32, with the names of ``clip.model.CLIP``."""
    architecture: Architecture
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


def read(path: Path, activation: str | None = None) -> Checkpoint:
    """Read a checkpoint: a file of weights, or a folder that holds one beside its configuration.

    `activation` is asked for where nothing in the file or beside it tells which one it has.

    Raises:
        ExportError: nothing there can be read, or it cannot be served exactly; the text says why.
    """
    weights = _in_folder(path) if path.is_dir() else path
    content = archive.read(weights)
    try:
        return _checkpoint(weights, content, activation)
    except ExportError as error:
        raise ExportError(f"{weights} is refused: {error}") from error
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise ExportError(f"{weights} is refused: it is no CLIP ({error!r})") from error


def read_official(path: Path, architecture: Architecture) -> Checkpoint:
    """Read one of OpenAI's files, either of the two, whose sha256 was verified.

    Raises:
        ExportError: it cannot be read here.
    """
    state = archive.read(path, trusted=True).state
    if hugging_face.recognises(state):
        state = hugging_face.renamed(state)
    return Checkpoint(path, _in_float(state), architecture)


def _in_folder(folder: Path) -> Path:
    for config, weights, _ in FOLDERS:
        for name in weights:
            if (folder / config).is_file() and (folder / name).is_file():
                return folder / name
    alone = [file for file in folder.iterdir() if file.suffix in SUFFIXES]
    if len(alone) == 1:
        return alone[0]
    wanted = "; or ".join(f"{config} and {' or '.join(weights)}" for config, weights, _ in FOLDERS)
    raise ExportError(f"{folder} holds no checkpoint. It needs {wanted}; or one file of weights")


def _checkpoint(path: Path, content: archive.Content, activation: str | None) -> Checkpoint:
    state, config = content.state, Config(content.activation)
    for prefix, reason in _OTHERS:
        if any(name.startswith(prefix) for name in state):
            raise ExportError(reason)
    if hugging_face.recognises(state):
        state = hugging_face.renamed(state)
        config = hugging_face.read(path.parent, _resolution(state))
    elif path.name.startswith("open_clip_") and (path.parent / openclip.CONFIG).is_file():
        config = openclip.read(path.parent, _resolution(state))
    architecture = _architecture(state, config, activation)
    return Checkpoint(path, _in_float(state), architecture, config.mean, config.std)


def _in_float(state: State) -> State:
    return {name: x.float().contiguous() for name, x in state.items() if name not in _BUFFERS}


def _resolution(state: State) -> int:
    """Side of the picture, in pixels."""
    patch = state["visual.conv1.weight"].shape[-1]
    grid = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
    return patch * grid


def _architecture(state: State, config: Config, activation: str | None) -> Architecture:
    """The model's numbers, from the shapes of its weights and from its configuration.

    Raises:
        ExportError: they do not tell the activation, or the width of a head.
    """
    told = config.activation
    if told and activation not in (None, told):
        raise ExportError(f"--activation is {activation}, but the checkpoint says {told}")
    if not (told or activation):
        raise ExportError(
            "nothing tells its activation. Pass --activation gelu (most of OpenCLIP's models) or "
            "--activation quick_gelu (OpenAI's, and what was fine-tuned from them)"
        )
    width = state["visual.conv1.weight"].shape[0]
    if config.image_head_width is None and width > USUAL:
        raise ExportError(
            f"its image tower is {width} wide, where a head has more numbers than {HEAD_WIDTH}, "
            "and nothing tells how many: pass the folder, with "
            f"{openclip.CONFIG} or {hugging_face.CONFIG}"
        )
    text_width = state["ln_final.weight"].shape[0]
    head_width = config.image_head_width or HEAD_WIDTH
    text_heads = config.text_heads or text_width // HEAD_WIDTH
    if width % head_width or text_width % text_heads:
        raise ExportError(
            f"heads of {head_width} numbers do not fill an image tower {width} wide, or "
            f"{text_heads} heads a text tower {text_width} wide"
        )
    return Architecture(
        embedding_size=state["text_projection"].shape[1],
        resolution=_resolution(state),
        image_layers=_layers(state, "visual."),
        image_width=width,
        patch=state["visual.conv1.weight"].shape[-1],
        context_length=state["positional_embedding"].shape[0],
        vocabulary=state["token_embedding.weight"].shape[0],
        text_width=text_width,
        text_heads=text_heads,
        text_layers=_layers(state, ""),
        image_head_width=head_width,
        activation=told or str(activation),
    )


def _layers(state: State, tower: str) -> int:
    pattern = re.compile(rf"{re.escape(tower)}transformer\.resblocks\.(\d+)\.")
    return len({match[1] for name in state if (match := pattern.match(name))})
