"""CLIP's two towers, each with what comes before it: a decoder of images, a tokenizer of texts."""

import logging
from collections.abc import Callable

from handler.engines import Embedding
from handler.precision import PRECISIONS

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
