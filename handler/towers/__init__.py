"""CLIP's two towers, each with what comes before it: a decoder of images, a tokenizer of texts."""

import logging
from collections.abc import Callable

from handler.config import PROFILES, Config
from handler.engines import Embedding, uses_torch
from handler.model import Model, ModelError
from handler.precision import PRECISIONS
from handler.text import tokenizer

log = logging.getLogger("clip")


def self_check(
    kind: str, precision: str, expected: Embedding, encode: Callable[[], Embedding]
) -> str | None:
    """Encode a golden image or text, which also warms every code path.

    None when its vector is the `expected` one, which clip gave it at export; else what is wrong, in
    words for the log. `kind`: "image" or "text".
    """
    try:
        cosine = float(encode() @ expected)
    except Exception:
        log.exception("self-check: the golden %s cannot be encoded", kind)
        return f"the golden {kind} cannot be encoded"
    if cosine >= PRECISIONS[precision].self_check:
        return None
    fault = f"the golden {kind}'s vector has cosine {cosine:.6f} with the recorded one"
    log.error("self-check: %s: the model files are not those that model.json describes", fault)
    return fault


def check_files(config: Config, model: Model, tower: str) -> None:
    """Refuse settings that ask for files which the model folder does not hold.

    A container image holds one precision's files, and maybe one tower's, so its settings must be
    those that it was built with. The text tower's files are opened later, but looked for now.

    Raises:
        ModelError: a file of `tower` is missing; the text says which settings the folder allows.
    """
    precision = "fp16" if uses_torch(config, model, tower) else config.precision
    graph = PRECISIONS[precision].file(tower)
    needed = {graph, f"{graph}.data"} & model.files | {graph}
    if tower == "text":
        needed.add(tokenizer.FILE)
    missing = sorted(name for name in needed if not (model.directory / name).exists())
    if missing:
        raise ModelError(
            f"{_asked(config, precision)} needs {' and '.join(missing)} for the {tower} tower, and "
            f"{model.directory} lacks that: {_advice(model, precision, tower)}"
        )


def _asked(config: Config, precision: str) -> str:
    """Return the setting that asks for a precision; fp16 is that of torch's files."""
    if precision == "fp16":
        return "CLIP_ENGINE=torch"
    if precision == PROFILES[config.profile]["precision"]:
        return f"CLIP_PROFILE={config.profile}"
    return f"CLIP_PRECISION={precision}"


def _advice(model: Model, wanted: str, tower: str) -> str:
    """Return what to do where files of the precision `wanted` are missing, by those that exist."""
    held = {
        precision.name
        for precision in PRECISIONS.values()
        if (model.directory / precision.file(tower)).exists()
    }
    if wanted in held:
        return "it is an incomplete copy, so export the model again"
    if not held:
        other = "image" if tower == "text" else "text"
        return f"set CLIP_TOWERS={other}, or export the model again with --towers image,text"
    if wanted == "fp16":
        setting = "CLIP_ENGINE=onnx"
    elif held == {"fp16"}:
        setting = "CLIP_ENGINE=torch"
    else:
        setting = "CLIP_PROFILE=exact" if "fp32" in held else "CLIP_PROFILE=fast"
    return f"set {setting}, for which it was made, or export the model again"
