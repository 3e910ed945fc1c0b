"""Hugging Face's ``CLIPModel``: the names of its weights, and its configuration."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from export import ExportError
from export.formats.archive import State
from export.formats.config import MEAN, STD, Config, Triple, demand, read_json, triple

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"

_BLOCK = r"(vision|text)_model\.encoder\.layers\.(\d+)\."
_TOWERS = {"vision": "visual.", "text": ""}
_NAMES = (
    # Theirs, a regular expression, and clip's.
    (r"logit_scale", "logit_scale"),
    (r"visual_projection\.weight", "visual.proj"),
    (r"text_projection\.weight", "text_projection"),
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
)
_IN_BLOCKS = {
    "self_attn.out_proj.": "attn.out_proj.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_QUERIES = "self_attn.q_proj."
_TRANSPOSED = ("visual.proj", "text_projection")

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
"""Their name -> ours; others are approximations."""


def recognises(state: State) -> bool:
    """Return True if the names are those of ``CLIPModel``, or of a part or a relative of it."""
    return any(name.startswith(("vision_model.", "text_model.")) for name in state)


def renamed(state: State) -> State:
    """Return the same weights with clip's names and shapes."""
    found = {}
    for name in state:
        if not name.endswith((".position_ids", ".k_proj.weight", ".k_proj.bias")) and not (
            name.endswith((".v_proj.weight", ".v_proj.bias"))
        ):
            ours = _renamed(name)
            found[ours] = _value(state, name, transpose=ours in _TRANSPOSED)
    return found


def _value(state: State, name: str, *, transpose: bool) -> torch.Tensor:
    if _QUERIES in name:  # clip has queries, keys and values in one matrix
        parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
        missing = [part for part in parts if part not in state]
        if missing:
            raise ExportError(f"it lacks {missing[0]}")
        return torch.cat([state[part] for part in parts])
    return state[name].T.contiguous() if transpose else state[name]


def _renamed(name: str) -> str:
    """Clip's name of one weight; of one that clip's model has not, their own."""
    if match := re.match(_BLOCK, name):
        tower, layer = match.groups()
        prefix = f"{_TOWERS[tower]}transformer.resblocks.{layer}."
        rest = name[match.end() :]
        if rest.startswith(_QUERIES):
            return f"{prefix}attn.in_proj_{rest.removeprefix(_QUERIES)}"
        for theirs, ours in _IN_BLOCKS.items():
            if rest.startswith(theirs):
                return prefix + ours + rest.removeprefix(theirs)
        return name
    for pattern, ours in _NAMES:
        if match := re.match(pattern, name):
            return ours + name[match.end() :]
    return name


def read(folder: Path, resolution: int) -> Config:
    """Read ``config.json`` and, if it is there, ``preprocessor_config.json``.

    Raises:
        ExportError: what they describe is not computed as clip does.
    """
    if not (folder / CONFIG).is_file():
        raise ExportError(f"{CONFIG} must lie beside it, because it tells the activation")
    config = read_json(folder / CONFIG)
    kind = config.get("model_type")
    if kind != "clip":
        raise ExportError(f"its model_type is {kind!r}, and only 'clip' is served")
    vision, text = _section(config, "vision"), _section(config, "text")
    for section, found in (("vision_config", vision), ("text_config", text)):
        width = found.get("hidden_size", {"vision": 768, "text": 512}[section.split("_")[0]])
        demand(
            section,
            found,
            {"layer_norm_eps": (1e-5,), "intermediate_size": (4 * width,), "num_channels": (3,)},
        )
    # Which token of a text is read: 2 is an old way to say that it is the one of the highest id.
    demand("text_config", text, {"eos_token_id": (49407, 2)})
    activations = [found.get("hidden_act", "quick_gelu") for found in (vision, text)]
    if activations[0] != activations[1] or activations[0] not in _ACTIVATIONS:
        raise ExportError(
            f"hidden_act is {activations[0]!r} for images and {activations[1]!r} for texts; served "
            f"is one of {', '.join(_ACTIVATIONS)} for both"
        )
    heads = vision.get("num_attention_heads", 12)
    mean, std = _preprocessing(folder, resolution)
    return Config(
        activation=_ACTIVATIONS[activations[0]],
        image_head_width=vision.get("hidden_size", 768) // heads,
        text_heads=text.get("num_attention_heads", 8),
        mean=mean,
        std=std,
    )


def _section(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    # The second is an old place, which transformers lets win.
    return {
        **(config.get(f"{tower}_config") or {}),
        **(config.get(f"{tower}_config_dict") or {}),
    }


def _preprocessing(folder: Path, resolution: int) -> tuple[Triple, Triple]:
    if not (folder / PREPROCESSOR).is_file():
        return MEAN, STD
    found = read_json(folder / PREPROCESSOR)
    side = resolution
    size = (side, {"shortest_edge": side})
    crop = (side, {"height": side, "width": side})
    demand(
        PREPROCESSOR,
        found,
        {
            **{f"do_{step}": (True,) for step in ("resize", "center_crop", "rescale", "normalize")},
            "size": size,
            "crop_size": crop,
            "resample": (3,),  # Pillow's number of bicubic
        },
    )
    mean, std = (
        triple(PREPROCESSOR, found, name, default)
        for name, default in (("image_mean", MEAN), ("image_std", STD))
    )
    return mean, std
