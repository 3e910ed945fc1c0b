"""Checkpoints of one small CLIP in every format, as others' own code writes them.

Its text tower knows all of clip's tokens, so that the whole export runs over it in seconds.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from export import checkpoint, sources
from export.download import sha256_of
from export.hub import File
from export.sources import Official
from handler.engines.torch_clip import build_clip, import_clip
from handler.model import Architecture
from tests.conftest import ROOT

SMALL = Architecture(
    embedding_size=512,
    resolution=64,
    image_layers=2,
    image_width=128,
    patch=32,
    context_length=77,
    vocabulary=49408,
    text_width=128,
    text_heads=2,
    text_layers=2,
    image_head_width=64,
    activation="quick_gelu",
)
WIDE_HEADS = SMALL._replace(image_width=320, image_head_width=80, activation="gelu")
"""With heads as wide as in LAION's ViT-H/14: 4 of 80 numbers, where clip would have 5 of 64."""


def random_clip(architecture: Architecture, seed: int = 0) -> Any:
    """clip.model.CLIP with weights that tell images and texts apart."""
    torch.manual_seed(seed)
    return sharpened(build_clip(architecture))


def hugging_face(architecture: Architecture, seed: int = 0) -> Any:
    """transformers' CLIPModel of these numbers, with weights of its own."""
    import_clip()
    from transformers import CLIPConfig, CLIPModel

    a = architecture
    config = CLIPConfig(
        projection_dim=a.embedding_size,
        vision_config={
            "hidden_size": a.image_width,
            "intermediate_size": 4 * a.image_width,
            "num_hidden_layers": a.image_layers,
            "num_attention_heads": a.image_width // a.image_head_width,
            "image_size": a.resolution,
            "patch_size": a.patch,
            "hidden_act": a.activation,
            "projection_dim": a.embedding_size,
        },
        text_config={
            "hidden_size": a.text_width,
            "intermediate_size": 4 * a.text_width,
            "num_hidden_layers": a.text_layers,
            "num_attention_heads": a.text_heads,
            "vocab_size": a.vocabulary,
            "max_position_embeddings": a.context_length,
            "hidden_act": a.activation,
            "projection_dim": a.embedding_size,
        },
    )
    torch.manual_seed(seed)
    model: Any = CLIPModel(config)
    return sharpened(model.eval())


def open_clip(architecture: Architecture, seed: int = 0) -> Any:
    """OpenCLIP's model of these numbers, with weights of its own."""
    import_clip()
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    return sharpened(CLIP(**open_clip_config(architecture)).eval())


@torch.no_grad()
def sharpened(model: Any) -> Any:
    """`model`, with larger weights and biases: as they begin, little depends on the activation."""
    for name, x in model.named_parameters():
        if x.ndim == 2 and "embedding" not in name and "projection" not in name:
            x.mul_(2)
        if name.endswith("bias"):
            x.add_(torch.randn_like(x) * 0.1)
    return model


def open_clip_config(architecture: Architecture) -> dict[str, Any]:
    a = architecture
    return {
        "embed_dim": a.embedding_size,
        "quick_gelu": a.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": a.resolution,
            "layers": a.image_layers,
            "width": a.image_width,
            "head_width": a.image_head_width,
            "patch_size": a.patch,
        },
        "text_cfg": {
            "context_length": a.context_length,
            "vocab_size": a.vocabulary,
            "width": a.text_width,
            "heads": a.text_heads,
            "layers": a.text_layers,
        },
    }


def write_hugging_face(model: Any, folder: Path, *, safe: bool = True) -> Path:
    """The folder as ``save_pretrained`` writes it, or with the pickle of older versions."""
    model.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def write_open_clip(model: Any, architecture: Architecture, folder: Path, **changes: Any) -> Path:
    """The folder as ``push_to_hf_hub`` of OpenCLIP writes it; `changes`: of its preprocessing."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "mode": "RGB",
        "size": [architecture.resolution] * 2,
        "fill_color": 0,
    }
    config = {"model_cfg": open_clip_config(architecture), "preprocess_cfg": preprocess | changes}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def as_hugging_face(model: Any, architecture: Architecture) -> Any:
    """transformers' model with clip's numbers, copied as their public conversion does it."""
    theirs = hugging_face(architecture)
    with torch.no_grad():
        for ours, tower in (
            (model.visual.transformer.resblocks, theirs.vision_model.encoder.layers),
            (model.transformer.resblocks, theirs.text_model.encoder.layers),
        ):
            for a, b in zip(ours, tower, strict=True):
                qkv = ("q_proj", "k_proj", "v_proj")
                weights, biases = a.attn.in_proj_weight.chunk(3), a.attn.in_proj_bias.chunk(3)
                for name, weight, bias in zip(qkv, weights, biases, strict=True):
                    getattr(b.self_attn, name).weight.copy_(weight)
                    getattr(b.self_attn, name).bias.copy_(bias)
                b.self_attn.out_proj.load_state_dict(a.attn.out_proj.state_dict())
                b.layer_norm1.load_state_dict(a.ln_1.state_dict())
                b.layer_norm2.load_state_dict(a.ln_2.state_dict())
                b.mlp.fc1.load_state_dict(a.mlp.c_fc.state_dict())
                b.mlp.fc2.load_state_dict(a.mlp.c_proj.state_dict())
        vision, text = theirs.vision_model, theirs.text_model
        vision.embeddings.class_embedding.copy_(model.visual.class_embedding)
        vision.embeddings.patch_embedding.weight.copy_(model.visual.conv1.weight)
        vision.embeddings.position_embedding.weight.copy_(model.visual.positional_embedding)
        vision.pre_layrnorm.load_state_dict(model.visual.ln_pre.state_dict())
        vision.post_layernorm.load_state_dict(model.visual.ln_post.state_dict())
        text.embeddings.token_embedding.weight.copy_(model.token_embedding.weight)
        text.embeddings.position_embedding.weight.copy_(model.positional_embedding)
        text.final_layer_norm.load_state_dict(model.ln_final.state_dict())
        theirs.visual_projection.weight.copy_(model.visual.proj.T)
        theirs.text_projection.weight.copy_(model.text_projection.T)
        theirs.logit_scale.copy_(model.logit_scale)
    return theirs


def write_official(folder: Path) -> Official:
    """Write one small model as both of OpenAI's files; the table's entry for it.

    ``ViT-B-32.pt`` is a TorchScript archive of 16-bit numbers, ``pytorch_model.bin`` in the folder
    ``hub`` has the same numbers in 32 bits under Hugging Face's names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = checkpoint.make_synthetic(folder / "ViT-B-32.pt", architecture=SMALL)
    model, _ = import_clip().load(str(archive), device="cpu", jit=False)
    write_hugging_face(as_hugging_face(model, SMALL), folder / "hub", safe=False)
    theirs = File(
        "openai/clip-vit-base-patch32",
        "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        "pytorch_model.bin",
        sha256_of(folder / "hub/pytorch_model.bin"),
    )
    known = sources.MODELS["ViT-B/32"]
    return dataclasses.replace(known, sha256=sha256_of(archive), architecture=SMALL, hub=theirs)


def exporter(official: Official) -> str:
    """The code of ``export/__main__.py`` with `official` as ViT-B/32 in the table of weights.

    OpenAI's servers are out of its reach, and its gate is of few samples.
    """
    begin = 'if __name__ == "__main__":'
    code = (ROOT / "export/__main__.py").read_text()
    return code.replace(begin, INJECTED.format(official=official) + begin)


INJECTED = """
from export import images, sources, texts
from export.hub import File
from export.sources import Official
from handler.model import Architecture
pictures, captions = images.parity_images, texts.captions()[::20]
images.parity_images = lambda side: dict(list(pictures(side).items())[::9])
texts.captions = lambda: captions
texts.nasty = lambda: ()
sources.SERVERS = ("http://127.0.0.1:9/one", "http://127.0.0.1:9/other")
sources.MODELS["ViT-B/32"] = {official!r}
"""
