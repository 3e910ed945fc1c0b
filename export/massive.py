"""Massive activations for synthetic weights, as trained transformers have them.

In a trained CLIP a few channels of the residual stream, always the same ones, are hundreds of times
larger than the rest at a few tokens, above all at the first. Units of the MLPs' hidden layers are
as large there: those that write these channels, and others that the channels drive. See
https://arxiv.org/abs/2402.17762 and https://arxiv.org/abs/2309.16588.
"""

from typing import Any

import numpy as np
import torch

CHANNELS = 4
"""Massive channels of the residual stream. Half are positive, so that a row's mean stays small."""
START = 4.0
"""Magnitude of these channels in the first token's embedding, whose others are below 0.2."""
RESIDUAL = 800.0
"""Magnitude that the MLPs add to these channels."""
UNITS = 4
"""Hidden units that write these channels, in each block that does."""
HIDDEN = 100.0
"""Magnitude of a massive hidden unit, which is also there in each of the other blocks."""
SHARE = 0.3
"""Part of the first token's reading below which a massive unit is silent."""


@torch.no_grad()
def add_massive_activations(model: Any, seed: int = 0) -> None:
    """Give both towers of a ``clip.model.CLIP`` massive activations at their first token.

    That is the class token of an image and the start of a text. The image tower's MLPs are doubled,
    as `checkpoint.make_synthetic` doubles its attention: errors at the class token of their hidden
    layers would hardly show in the embeddings otherwise.

    Args:
        model: Three blocks or more in each tower, 512 wide or more. It is changed in place.
        seed: Chooses the channels and the hidden units.
    """
    visual, start_of_text = model.visual, model.token_embedding.weight[-2]
    for block in visual.transformer.resblocks:
        block.mlp.c_fc.weight *= 2
        block.mlp.c_proj.weight *= 2
    _add(visual.transformer, visual.class_embedding, visual.ln_post, seed)
    _add(model.transformer, start_of_text, model.ln_final, seed)


def _add(transformer: Any, first: torch.Tensor, last_norm: Any, seed: int) -> None:
    """Let the first two blocks write massive activations, and the last one take them away.

    Trained transformers do so too. `first` is the embedding of the first token, [width].
    """
    random = np.random.default_rng(seed)
    width, blocks = len(first), transformer.resblocks
    channels = torch.from_numpy(random.choice(width, CHANNELS, replace=False))
    signs = torch.tensor([1.0, -1.0]).repeat(CHANNELS // 2)
    first[channels] = START * signs
    # The first block's LayerNorm gives the units a lower reading: they reach 0.65 of HIDDEN there.
    written = {0: 0.6 * RESIDUAL, 1: 0.6 * RESIDUAL, len(blocks) - 1: -RESIDUAL}
    for index, block in enumerate(blocks):
        count = UNITS if index in written else 1
        units = torch.from_numpy(random.choice(4 * width, count, replace=False))
        _drive(block, units, channels, signs)
        writes = block.mlp.c_proj.weight
        # What a unit writes is the same for all inputs. It is small, or inputs would look alike.
        writes[:, units] *= 0.1
        if index in written:
            writes[:, units] = 0
            writes[channels[:, None], units] = (written[index] / HIDDEN / UNITS * signs)[:, None]
    last_norm.weight[channels] *= 0.1  # what is left of them


def _drive(block: Any, units: torch.Tensor, channels: torch.Tensor, signs: torch.Tensor) -> None:
    """Let hidden `units` be `HIDDEN` where the massive `channels` are, and silent elsewhere."""
    c_fc = block.mlp.c_fc
    width = c_fc.weight.shape[1]
    # Behind a LayerNorm without gain, each massive channel is the root of width / CHANNELS.
    reading = (width * CHANNELS) ** 0.5
    gain = HIDDEN / (1 - SHARE)
    c_fc.weight[units] = 0
    c_fc.weight[units[:, None], channels] = gain / reading * signs / block.ln_2.weight[channels]
    c_fc.bias[units] = -gain * SHARE
