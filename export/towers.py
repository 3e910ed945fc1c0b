"""What the export needs of each tower: its weights, its graph, and what it is judged by."""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from PIL import Image

from export import ExportError, checkpoint, graph, images, parity, texts, vocabulary
from export.checkpoint import Reference
from export.graph import Inputs, Linear, Weights
from export.parity import Sample
from handler.engines import Embedding
from handler.engines.torch_clip import import_clip
from handler.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Source:
    """One tower of a checkpoint, ready to be exported."""

    name: str
    """``image`` or ``text``."""
    state: Mapping[str, torch.Tensor]
    """Its state dict, in float32."""
    build: Callable[[Weights, Linear], ModelProto]
    """Makes its graph."""
    samples: list[Sample]
    """What the parity gate compares."""
    calibration: Callable[[], Inputs]
    """Makes what integers are calibrated with, other inputs than those of `samples`."""
    golden: Mapping[str, object]
    """What the self-check encodes, and clip's vector of it, as ``model.json`` has them."""

    @property
    def weights(self) -> Weights:
        """`state` as arrays."""
        return {name: value.numpy() for name, value in self.state.items()}


def image(reference: Reference) -> Source:
    """The image tower."""
    side = reference.architecture.resolution
    golden = images.golden_image()
    picture = Image.open(io.BytesIO(golden))

    def build(weights: Weights, linear: Linear) -> ModelProto:
        mean, std = np.array(reference.mean), np.array(reference.std)
        return graph.build_image(weights, reference.architecture, mean, std, linear=linear)

    return Source(
        "image",
        _in_float(reference.model.visual.state_dict()),
        build,
        parity.samples(reference, images.parity_images(side)),
        lambda: list(images.calibration_pixels(side)),
        {
            "image": base64.b64encode(golden).decode(),
            "embedding": _floats(parity.reference_embedding(reference, picture)),
        },
    )


def text(reference: Reference, directory: Path) -> Source:
    """The text tower, whose vocabulary is written into `directory`.

    Raises:
        ExportError: the model has another tokenizer, or our tokens of some text are not clip's.
    """
    vocabulary.write(directory)
    clip, a = import_clip(), reference.architecture
    theirs = len(clip.clip._tokenizer.encoder), clip.tokenize("").shape[1]
    if (a.vocabulary, a.context_length) != theirs:
        raise ExportError(
            f"the model takes {a.vocabulary} tokens, {a.context_length} a text, and clip's "
            f"tokenizer has {theirs[0]}, {theirs[1]} a text: the model is another tokenizer's. "
            "--towers image exports the image tower alone"
        )
    tokenizer = Tokenizer.load(directory)
    _check_tokens(tokenizer)
    golden = texts.golden_text()
    tokens = clip.tokenize(golden)

    def build(weights: Weights, linear: Linear) -> ModelProto:
        return graph.build_text(weights, reference.architecture, linear=linear)

    return Source(
        "text",
        _in_float(checkpoint.text_tower(reference.model)),
        build,
        parity.text_samples(reference, tokenizer, texts.captions()),
        lambda: [_cut(tokenizer, text, length) for text, length in texts.calibration()],
        {
            "text": golden,
            "embedding": _floats(parity.reference_text_embeddings(reference, tokens)[0]),
        },
    )


def _cut(tokenizer: Tokenizer, text: str, length: int) -> NDArray[np.int32]:
    """The first tokens of a long text, and its end: [length]."""
    ids = tokenizer.tokenize(text, truncate=True).ids
    return np.concatenate([ids[: length - 1], ids[-1:]])


def _check_tokens(tokenizer: Tokenizer) -> None:
    """Refuse to go on unless every text that is known to be hard has clip's tokens."""
    clip = import_clip()
    for name, text in texts.nasty():
        theirs = clip.tokenize(text, truncate=True)[0].numpy()
        if not parity.same_tokens(tokenizer.tokenize(text, truncate=True).ids, theirs):
            raise ExportError(
                f"the tokens of the text {name!r} are not clip's: no model written. Are ftfy and "
                "regex the versions that clip has?"
            )


def _in_float(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in state.items()}


def _floats(embedding: Embedding) -> list[float]:
    return [float(str(x)) for x in embedding]
