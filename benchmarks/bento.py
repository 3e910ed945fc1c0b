"""The old service as its README describes it: BentoML around ``clip.load``.

``bentoml serve benchmarks.bento:ClipImageEncoder`` runs it, in the virtual environment of
``requirements-rivals.txt``.
"""

import bentoml
import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from benchmarks.subjects import CHECKPOINT
from handler.engines.torch_clip import import_clip


@bentoml.service
class ClipImageEncoder:
    """``POST /encode_image`` takes a multipart field ``image`` and answers with 512 numbers."""

    def __init__(self) -> None:
        self.model, self.preprocess = import_clip().load(str(CHECKPOINT), device="cpu")

    @bentoml.api  # type: ignore[untyped-decorator]  # not installed where this is checked
    @torch.no_grad()
    def encode_image(self, image: Image) -> NDArray[np.float32]:
        """The vector of one image: float32 [512], unit length."""
        embedding = self.model.encode_image(self.preprocess(image).unsqueeze(0))[0]
        return (embedding / embedding.norm()).numpy()  # type: ignore[no-any-return]
