"""What a configuration says of a model beside the shapes of its weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import ExportError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""``clip.clip._transform``'s: what is taken off each channel of [0, 1], and what it is divided by.
"""


Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Config:
    """What the shapes of the weights do not tell; the defaults are OpenAI's."""

    activation: str | None = None
    """As in `Architecture`; None: nobody told."""
    image_head_width: int | None = None
    """Numbers of one attention head of the image tower; None: nobody told."""
    text_heads: int | None = None
    """Attention heads of the text tower; None: nobody told."""
    mean: Triple = MEAN
    std: Triple = STD


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        ExportError: it is no JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ExportError(f"{path} cannot be read: it is no JSON object")
    return found


def triple(section: str, found: Mapping[str, Any], name: str, default: Triple) -> Triple:
    """Return a setting that has a number for each channel.

    Raises:
        ExportError: it is something else, or has a 0, by which nothing can be divided.
    """
    values = found.get(name, default)
    if len(values) != 3 or not all(isinstance(x, int | float) and x for x in values):
        raise ExportError(f"{section}.{name} is {values!r} instead of three numbers")
    first, second, third = map(float, values)
    return first, second, third


def demand(section: str, found: Mapping[str, Any], wanted: Mapping[str, tuple[Any, ...]]) -> None:
    """Make sure that each setting of `found` has one of its values in `wanted`, or is not there.

    Raises:
        ExportError: one has another value; the text names it.
    """
    for name, values in wanted.items():
        value = found.get(name, values[0])
        if value not in values:
            raise ExportError(
                f"{section}.{name} is {value!r}, and clip computes with {values[0]!r}: "
                "its vectors would be others"
            )
