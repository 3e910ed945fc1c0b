"""What ``fastembed`` would download for its two CLIP models, made of this benchmark's own weights.

Both are torch's ONNX exports of clip's modules in fp32. Beside the image model lies a card of its
preprocessing, beside the text model a tokenizer of the ``tokenizers`` library, with clip's merges
and the steps that Hugging Face's CLIP tokenizer has.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from export.checkpoint import Reference
from export.formats.config import MEAN, STD
from handler.engines.torch_clip import import_clip
from handler.text.tokenizer import END, START

_WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""Hugging Face's pattern of a word, which is clip's."""


def write_image_model(directory: Path, reference: Reference) -> None:
    """``Qdrant/clip-ViT-B-32-vision``."""
    directory.mkdir(exist_ok=True)
    _export(
        reference.model.visual,
        (torch.zeros(1, 3, 224, 224),),
        directory / "model.onnx",
        inputs={"pixel_values": ["n"]},
        output="image_embeds",
    )
    card = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "do_convert_rgb": True,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(card))


def write_text_model(directory: Path, reference: Reference) -> None:
    """``Qdrant/clip-ViT-B-32-text``."""
    directory.mkdir(exist_ok=True)
    ids = torch.tensor([[49406, 320, 1125, 49407]])
    _export(
        _TextTower(reference.model),
        (ids, torch.ones_like(ids)),
        directory / "model.onnx",
        inputs={"input_ids": ["n", "t"], "attention_mask": ["n", "t"]},
        output="text_embeds",
    )
    _tokenizer().save(str(directory / "tokenizer.json"))
    config = {"model_max_length": reference.architecture.context_length, "pad_token": END}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


class _TextTower(torch.nn.Module):
    """clip's ``encode_text`` over texts that are padded to the longest of them, not always to 77.

    That is how Hugging Face's CLIP computes, of which fastembed's model is an export. The padding
    needs no mask: it comes after a text's end, and no token sees later ones.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """int64 [n, t] twice -> float32 [n, 512]."""
        model, length = self.model, ids.shape[1]
        x = model.token_embedding(ids) + model.positional_embedding[:length]  # [n, t, width]
        for block in model.transformer.resblocks:
            mask = block.attn_mask[:length, :length]
            x = x + _attention(block.attn, block.ln_1(x), mask)
            x = x + block.mlp(block.ln_2(x))
        x = model.ln_final(x)
        x = x[torch.arange(x.shape[0]), ids.argmax(dim=-1)] @ model.text_projection
        vectors: torch.Tensor = x + 0 * attention_mask[:, :1]  # else torch leaves this input out
        return vectors


def _attention(
    attention: torch.nn.MultiheadAttention, x: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attention, step by step: [n, t, width] -> the same.

    torch's own module would be exported for texts of the example's length alone.
    """
    heads = attention.num_heads

    def split(x: torch.Tensor) -> torch.Tensor:
        parts: torch.Tensor = x.unflatten(-1, (heads, -1))
        return parts.transpose(1, 2)  # [n, heads, t, width of a head]

    qkv = torch.nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (split(part) for part in qkv.chunk(3, dim=-1))
    scores = q @ k.transpose(-1, -2) * attention.head_dim**-0.5 + mask  # [n, heads, t, t]
    attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    projected: torch.Tensor = attention.out_proj(attended)
    return projected


def _tokenizer() -> Any:
    """Hugging Face's CLIP tokenizer, with the vocabulary of the clip package."""
    # Imported here: it comes with fastembed, without which the benchmark goes on.
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    theirs = import_clip().clip._tokenizer
    model = models.BPE(
        vocab=theirs.encoder,
        merges=list(theirs.bpe_ranks),
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        unk_token=END,
    )
    tokenizer = Tokenizer(model)
    clean = [
        normalizers.NFC(),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Lowercase(),
    ]
    tokenizer.normalizer = normalizers.Sequence(clean)
    words = [
        pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    start, end = ((token, theirs.encoder[token]) for token in (START, END))
    tokenizer.post_processor = processors.RobertaProcessing(
        end, start, trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def _export(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    *,
    inputs: dict[str, Sequence[str]],
    output: str,
) -> None:
    """Export as torch does; `inputs`: name -> the names of its first axes, which may vary."""
    axes = {name: dict(enumerate(names)) for name, names in inputs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's newer exporter needs another package
        torch.onnx.export(
            module,
            example,
            path,
            dynamo=False,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=axes | {output: {0: "n"}},
        )
