"""The engine of torch and OpenAI's clip: for GPUs, and in the export beside the other engine."""

import warnings
from types import ModuleType

import torch

from handler.engines import Embeddings, Pixels
from handler.model import Model, ModelError

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
    """clip's own ``VisionTransformer``: fp16 on CUDA, as ``clip.load`` does, fp32 on CPU."""

    name = "torch"

    def __init__(self, model: Model, device: str | None = None) -> None:
        """Load ``visual.pt`` onto `device`, CUDA when there is one.

        Raises:
            ModelError: ``visual.pt`` is missing or unreadable.
        """
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = "fp16" if self.device == "cuda" else "fp32"
        import_clip()
        from clip.model import VisionTransformer, convert_weights

        path = model.directory / "visual.pt"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # missing, truncated, not a checkpoint: each its own type
            raise ModelError(f"{path} cannot be loaded: {error}") from error
        visual = VisionTransformer(224, 32, 768, 12, 12, model.embedding_size)
        visual.load_state_dict(state)
        if self.precision == "fp16":
            convert_weights(visual)
        self._visual = visual.eval().to(self.device)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(model.mean, device=self.device).view(shape)
        self._std = torch.tensor(model.std, device=self.device).view(shape)

    @torch.inference_mode()
    def encode(self, pixels: Pixels) -> Embeddings:
        """uint8 [n, 224, 224, 3] -> float32 [n, 512] of unit length."""
        x = torch.tensor(pixels, device=self.device)  # a copy: the pixels may be read-only
        x = x.permute(0, 3, 1, 2).float().div(255)  # [n, 3, 224, 224] in [0, 1]
        x = (x - self._mean) / self._std
        x = self._visual(x.type(self._visual.conv1.weight.dtype)).float()  # [n, 512]
        embeddings: Embeddings = (x / x.norm(dim=-1, keepdim=True)).cpu().numpy()
        return embeddings
