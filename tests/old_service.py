"""The old service, in BentoML's shape, around ``clip`` itself; and the mistakes such services make.

``POST /encode_image`` takes the multipart field ``image`` and answers a bare list of numbers.
"""

import copy
import io
import threading
import time
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import uvicorn
from fastapi import FastAPI, File
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from export.checkpoint import Reference

FAULTS = ("not_normalised", "gelu", "exif", "squash", "squash_bilinear", "rgb_first", "int8")


class OldService:
    """``clip.load`` and its preprocessing, with some of `FAULTS`."""

    def __init__(self, reference: "Reference", faults: Set[str]) -> None:
        self.faults = faults
        self.visual = copy.deepcopy(reference.model.visual).eval()
        self.preprocess = reference.preprocess
        if "gelu" in faults:
            for block in self.visual.transformer.resblocks:
                block.mlp.gelu = torch.nn.GELU()
        if "int8" in faults:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch would like it done by another package
                self.visual = torch.ao.quantization.quantize_dynamic(
                    self.visual, {torch.nn.Linear}, dtype=torch.qint8
                )

    @torch.no_grad()
    def encode(self, data: bytes) -> list[float]:
        picture: Image.Image = Image.open(io.BytesIO(data))
        if "exif" in self.faults:
            picture = ImageOps.exif_transpose(picture)
        if "rgb_first" in self.faults:
            picture = picture.convert("RGB")
        if "squash" in self.faults:
            picture = picture.resize((224, 224), Image.Resampling.BICUBIC)
        if "squash_bilinear" in self.faults:
            picture = picture.resize((224, 224), Image.Resampling.BILINEAR)
        vector = self.visual(self.preprocess(picture).unsqueeze(0))[0]  # [512]
        if "not_normalised" not in self.faults:
            vector = vector / vector.norm()
        numbers: list[float] = vector.tolist()
        return numbers


@contextmanager
def serving(reference: "Reference", *faults: str) -> Iterator[str]:
    """Run it under uvicorn in a thread; gives its address."""
    assert set(faults) <= set(FAULTS)
    service, app = OldService(reference, set(faults)), FastAPI()

    @app.post("/encode_image")
    def encode_image(image: bytes = File()) -> Any:
        return service.encode(image)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
