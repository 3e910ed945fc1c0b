"""What is compared, and how each is called.

A subject loads when asked for, as a Lambda function's module does, and gives:

- ``handler(event, context)``: an API Gateway REST event in, its response out;
- ``encode(images)``: encoded files in, float32 [n, 512] of unit length out, in one batch;
- ``tokenize(texts)`` and ``encode_texts(texts)``: the same of texts, and the first half of it.

The old way loads both of clip's towers at once. The others load what texts need at the first text.

Environment: ``CLIP_MODEL_DIR``, ``CLIP_PROFILE``, ``CLIP_THREADS`` and ``CLIP_TOWERS``, as for the
service itself.
What the others read lies beside the model folder, where ``benchmarks/inputs.py`` put it.
"""

import io
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

Encode = Callable[[Sequence[bytes]], Any]
Handler = Callable[[dict[str, Any], Any], dict[str, Any]]


CHECKPOINT = Path("~/.cache/clip/ViT-B-32-synthetic.pt").expanduser()
"""The archive that `benchmarks/inputs.py` exports its model from, as ``clip.load`` takes it."""


class Subject(NamedTuple):
    """One loaded contender."""

    handler: Handler
    encode: Encode
    tokenize: Callable[[Sequence[str]], object]
    encode_texts: Callable[[Sequence[str]], Any]


def load(name: str) -> Subject:
    """``baseline``, ``fastembed``, or this service in its profile ``exact`` or ``fast``."""
    load = {"baseline": _baseline, "fastembed": _fastembed, "exact": _ours, "fast": _ours}
    return load[name]()


def _ours() -> Subject:
    from handler import main
    from handler.outcome import Outcome

    def encode(images: Sequence[bytes]) -> Any:
        return [o.get() for o in main.encoder.encode_images([Outcome(data) for data in images])]

    def tokenize(texts: Sequence[str]) -> list[Any]:
        return [Outcome(main.encoder.tokenize(text)) for text in texts]

    def encode_texts(texts: Sequence[str]) -> Any:
        return [o.get() for o in main.encoder.encode_texts(tokenize(texts))]

    return Subject(main.handler, encode, tokenize, encode_texts)


def _baseline() -> Subject:
    """The old recipe: ``clip.load`` and clip's own preprocessing, fp32 on CPU."""
    import torch
    from PIL import Image

    from handler.engines.torch_clip import import_clip

    torch.set_num_threads(int(os.environ["CLIP_THREADS"]))
    clip = import_clip()
    model, preprocess = clip.load(str(CHECKPOINT), device="cpu")

    @torch.no_grad()
    def encode(images: Sequence[bytes]) -> Any:
        batch = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data in images])
        embeddings = model.encode_image(batch)
        return (embeddings / embeddings.norm(dim=-1, keepdim=True)).numpy()

    @torch.no_grad()
    def encode_texts(texts: Sequence[str]) -> Any:
        embeddings = model.encode_text(clip.tokenize(texts))
        return (embeddings / embeddings.norm(dim=-1, keepdim=True)).numpy()

    return Subject(_minimal_handler(encode), encode, clip.tokenize, encode_texts)


def _fastembed() -> Subject:
    import numpy as np
    from fastembed import ImageEmbedding, TextEmbedding
    from PIL import Image

    def options(folder: str) -> dict[str, Any]:
        return {
            "specific_model_path": str(Path(os.environ["CLIP_MODEL_DIR"]).parent / folder),
            "threads": int(os.environ["CLIP_THREADS"]),
            "providers": ["CPUExecutionProvider"],
        }

    @cache
    def images() -> Any:
        return ImageEmbedding("Qdrant/clip-ViT-B-32-vision", **options("fastembed"))

    @cache
    def texts() -> Any:
        return TextEmbedding("Qdrant/clip-ViT-B-32-text", **options("fastembed-text"))

    def encode(files: Sequence[bytes]) -> Any:
        opened = [Image.open(io.BytesIO(data)) for data in files]
        return list(images().embed(opened, batch_size=len(opened)))

    def tokenize(given: Sequence[str]) -> object:
        return texts().model.tokenize(list(given))

    def encode_texts(given: Sequence[str]) -> Any:
        # Its own vectors of texts are not of unit length.
        embeddings = np.stack(list(texts().embed(list(given), batch_size=len(given))))
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    return Subject(_minimal_handler(encode), encode, tokenize, encode_texts)


def _minimal_handler(encode: Encode) -> Handler:
    """What one writes first: FastAPI with an upload field, and Mangum around it."""
    from fastapi import FastAPI, UploadFile
    from mangum import Mangum

    app = FastAPI()

    @app.post("/encode_image")
    def encode_image(image: UploadFile) -> list[float]:
        return encode([image.file.read()])[0].tolist()  # type: ignore[no-any-return]

    return Mangum(app, lifespan="off")
