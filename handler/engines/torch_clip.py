"""The engine of torch and OpenAI's clip: for GPUs, and in the export beside the other engine."""

import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

from handler.engines import Embeddings, Pixels, TokenIds
from handler.model import Architecture, Model, ModelError
from handler.precision import PRECISIONS

# The compiled operators that torchvision's Python code names when it is imported.
_TORCHVISION_OPERATORS = (
    *("roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward"),
    *("ps_roi_align", "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward"),
    *("nms", "qnms", "qroi_align", "deform_conv2d", "_deform_conv2d_backward"),
)


def import_clip() -> ModuleType:
    """Import OpenAI's ``clip``, whichever build of torchvision is installed with torch.

    A torchvision built for CUDA cannot be imported with a torch for CPUs, because its compiled
    operators are missing. clip needs none of them (only ``torchvision.transforms``, which is
    Python), so it is enough to declare their names.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clip imports pkg_resources, which warns of its own end
        try:
            import torchvision  # noqa: F401
        except RuntimeError:
            library = torch.library.Library("torchvision", "DEF")  # kept alive below
            for operator in _TORCHVISION_OPERATORS:
                library.define(f"{operator}() -> ()")
            _keep_alive.append(library)
        import clip

    return clip  # type: ignore[no-any-return]


_keep_alive: list[object] = []  # a torch.library.Library undeclares its operators when collected


class TorchClipEngine:
    """clip's own model, of which one tower is loaded.

    Its precision is fp16 on CUDA, as with ``clip.load``, and fp32 on CPU.
    """

    name = "torch"

    def __init__(self, model: Model, device: str | None = None, tower: str = "image") -> None:
        """Load ``visual.pt`` or ``text.pt`` onto `device`, CUDA when there is one.

        Raises:
            ModelError: the file is missing or unreadable.
        """
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = "fp16" if self.device == "cuda" else "fp32"
        path = model.directory / PRECISIONS["fp16"].file(tower)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # missing, truncated, not a checkpoint: each its own type
            raise ModelError(f"{path} cannot be loaded: {error}") from error
        build = _image_tower if tower == "image" else _text_tower
        self.module, self._encode = build(model, state, self.device)

    @torch.inference_mode()
    def encode(self, inputs: Pixels | TokenIds) -> Embeddings:
        """See `Engine.encode`."""
        x = torch.tensor(inputs, device=self.device)  # a copy: pixels may be read-only
        x = self._encode(x).float()  # [n, embedding size]
        embeddings: Embeddings = (x / x.norm(dim=-1, keepdim=True)).cpu().numpy()
        return embeddings


Encode = Callable[[torch.Tensor], torch.Tensor]
State = Mapping[str, torch.Tensor]


def build_clip(architecture: Architecture) -> Any:
    """Build ``clip.model.CLIP`` with weights of no meaning, in float32.

    Its constructor knows OpenAI's numbers only: heads of 64 numbers, and QuickGELU. Others are put
    in their places afterwards; no name of a weight changes.
    """
    import_clip()
    from clip.model import CLIP

    model = CLIP(*architecture[:10])
    for block in model.visual.transformer.resblocks:
        block.attn.head_dim = architecture.image_head_width
        block.attn.num_heads = architecture.image_width // architecture.image_head_width
    if architecture.activation == "gelu":
        for tower in (model.visual, model):
            for block in tower.transformer.resblocks:
                block.mlp.gelu = torch.nn.GELU()
    return model.eval()


def _image_tower(model: Model, state: State, device: str) -> tuple[torch.nn.Module, Encode]:
    """Clip's ``VisionTransformer``, and how it is used: uint8 [n, side, side, 3] -> [n, size]."""
    # As small a text tower as can be: only the image tower is used.
    small = model.architecture._replace(vocabulary=1, text_width=64, text_heads=1, text_layers=1)
    visual = _loaded(build_clip(small).visual, state, device)
    shape = (1, 3, 1, 1)
    mean = torch.tensor(model.preprocessing.mean, device=device).view(shape)
    std = torch.tensor(model.preprocessing.std, device=device).view(shape)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.permute(0, 3, 1, 2).float().div(255)  # [n, 3, side, side] in [0, 1]
        encoded: torch.Tensor = visual(((x - mean) / std).type(visual.conv1.weight.dtype))
        return encoded

    return visual, encode


def _text_tower(model: Model, state: State, device: str) -> tuple[torch.nn.Module, Encode]:
    """A ``CLIP``, and how its ``encode_text``, which takes 77 tokens of each text, is used.

    int32 [n, t] -> [n, size].
    """
    a = model.architecture
    # clip has no class for the text tower alone: the image tower is as small as can be, and of its
    # weights only their number format is looked at.
    clip = build_clip(a._replace(resolution=1, patch=1, image_layers=0, image_width=64))
    clip = _loaded(clip, {**clip.state_dict(), **state}, device)

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        padding = (0, a.context_length - tokens.shape[1])
        encoded: torch.Tensor = clip.encode_text(torch.nn.functional.pad(tokens, padding))
        return encoded

    return clip, encode


def _loaded(module: torch.nn.Module, state: State, device: str) -> Any:
    """`module` with its weights, on its device, in the number format of that."""
    from clip.model import convert_weights

    module.load_state_dict(state)
    if device == "cuda":
        convert_weights(module)
    return module.eval().to(device)
