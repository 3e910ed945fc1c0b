"""OpenCLIP's checkpoints: their weights have clip's own names; this is their configuration."""

from pathlib import Path
from typing import Any

from export import ExportError
from export.formats.config import MEAN, STD, Config, Triple, demand, read_json, triple

CONFIG = "open_clip_config.json"

_FREE = frozenset(
    # Told by the weights' shapes, or of training, or of parts that are not there.
    {"layers", "width", "patch_size", "image_size", "context_length", "vocab_size", "head_width"}
    | {"heads", "patch_dropout", "output_tokens", "pad_id", "eos_id"}
    | {"attn_pooler_queries", "attn_pooler_heads", "hf_model_pretrained", "hf_proj_type"}
    | {"hf_pooler_type", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias"}
    | {"timm_drop", "timm_drop_path"}
)
"""Settings of a tower that may have any value."""
_WANTED = {
    "mlp_ratio": 4.0,
    "pos_embed_type": "learnable",
    "proj_type": "linear",
    "block_type": "default",
}
"""Settings of a tower that, where they are, must have this value; all others must be off."""
_POOLED = {"vision_cfg": "tok", "text_cfg": "argmax"}
_ELSEWHERE = frozenset({"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"})
_ELSEWHERE |= {"init_logit_scale", "cast_dtype", "output_dict", "nonscalar_logit_scale"}


def read(folder: Path, resolution: int) -> Config:
    """Read ``open_clip_config.json``.

    Raises:
        ExportError: what it describes is not computed as clip does.
    """
    found = read_json(folder / CONFIG)
    model, preprocessing = found["model_cfg"], found.get("preprocess_cfg", {})
    for name, value in model.items():
        if name not in _ELSEWHERE and value not in (None, False):
            raise ExportError(f"model_cfg.{name} is {value!r}, which clip's model has not")
    for section, pooled in _POOLED.items():
        _check_tower(section, model[section], pooled)
    mean, std = _preprocessing(preprocessing, resolution)
    return Config(
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        image_head_width=model["vision_cfg"].get("head_width", 64),
        text_heads=model["text_cfg"].get("heads", 8),
        mean=mean,
        std=std,
    )


def _check_tower(section: str, found: dict[str, Any], pooled: str) -> None:
    wanted = _WANTED | {"pool_type": pooled}
    for name, value in found.items():
        if name in _FREE or value is None or value == wanted.get(name, False):
            continue
        tokenizer = " (another tokenizer)" if "hf_" in name or "tokenizer" in name else ""
        raise ExportError(f"{section}.{name} is {value!r}, which clip's model has not{tokenizer}")


def _preprocessing(found: dict[str, Any], resolution: int) -> tuple[Triple, Triple]:
    side = resolution
    demand(
        "preprocess_cfg",
        found,
        {
            "size": (side, [side, side]),
            "mode": ("RGB",),
            "interpolation": ("bicubic",),
            "resize_mode": ("shortest",),
        },
    )
    mean, std = (
        triple("preprocess_cfg", found, name, default)
        for name, default in (("mean", MEAN), ("std", STD))
    )
    return mean, std
