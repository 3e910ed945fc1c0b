"""The exported model: what ``model/model.json`` says of it, and the fingerprints made of that."""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from handler.precision import PRECISIONS

FORMAT = 2
"""Version of ``model.json``. The export writes it; a reader of another version refuses."""


class ModelError(RuntimeError):
    """The model folder cannot be used; the text says which file and what to do."""


class Architecture(NamedTuple):
    """The numbers of one CLIP with vision transformer.

    The first ten are those of ``clip.model.CLIP``, in its order. The others have one value in all
    of OpenAI's models, and in folders that were exported before they were recorded.
    """

    embedding_size: int
    resolution: int
    """Side of the square that the image tower sees, in pixels."""
    image_layers: int
    image_width: int
    patch: int
    """Side of the square that becomes one token, in pixels."""
    context_length: int
    """Most tokens of a text."""
    vocabulary: int
    text_width: int
    text_heads: int
    text_layers: int
    image_head_width: int = 64
    """Numbers of one attention head of the image tower."""
    activation: str = "quick_gelu"
    """Of the MLPs: ``quick_gelu``, x * sigmoid(1.702 x), or ``gelu``, exact."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to the pixels of an image, which lie in [0, 1], before the tower sees them."""

    mean: tuple[float, float, float]
    """Per channel."""
    std: tuple[float, float, float]
    """Per channel."""


@dataclass(frozen=True, slots=True)
class Golden:
    """What the self-check of a tower encodes, and the vector that ``clip`` itself gave it."""

    input: bytes
    """A small JPEG, or a text in UTF-8."""
    embedding: NDArray[np.float32]
    """float32 [embedding size], unit length."""


@dataclass(frozen=True, slots=True)
class Tower:
    """One of the two halves of CLIP: the one for images, or the one for texts."""

    name: str
    """``image`` or ``text``, as in ``CLIP_TOWERS``."""
    sha256: str
    """Hex digest that names its weights: see ``export/checkpoint.py``."""
    golden: Golden


@dataclass(frozen=True, slots=True)
class Model:
    """A model folder whose ``model.json`` was read and whose files have the right sizes."""

    directory: Path
    name: str
    """clip's own name of it, such as ``"ViT-L/14@336px"``; of a model on Hugging Face, its
    repository and the commit's first digits: ``"laion/CLIP-ViT-B-32-laion2B-s34B-b79K@1a25a44"``.
    """
    architecture: Architecture
    weights: str
    """Where the weights come from: ``openai``, ``custom`` or ``synthetic``."""
    checkpoint_sha256: str
    """Hex digest that names the weights in fingerprints: see ``export/checkpoint.py``."""
    logit_scale: float
    """What cosines are multiplied by before a softmax makes probabilities of them."""
    preprocessing: Preprocessing
    towers: Mapping[str, Tower]
    """The towers that the folder was exported with, by name."""
    files: frozenset[str]
    """The names of all files that the export wrote; a deployment may have left some out."""
    notice: str = ""
    """Text for whoever starts a server: why the weights are not those that were asked for."""

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read ``model.json`` and compare every file that is there with the size it records.

        Hashes are not compared, because that would read the weights twice at each cold start. The
        self-check, which comes next, finds what a size does not show.

        Raises:
            ModelError: the folder is missing, incomplete, truncated or of another format.
        """
        path = directory / "model.json"
        try:
            card = json.loads(path.read_bytes())
            if card["format"] != FORMAT:
                raise ModelError(
                    f"{path} is of format {card['format']}, this package reads {FORMAT}: "
                    "export the model again with this version's `python -m export`"
                )
            for name, file in card["files"].items():
                _check_size(directory / name, file["bytes"])
            return cls(
                directory=directory,
                name=card["model"],
                architecture=Architecture(**card["architecture"]),
                weights=card["weights"],
                checkpoint_sha256=card["checkpoint"]["sha256"],
                logit_scale=float(card["logit_scale"]),
                preprocessing=Preprocessing(
                    tuple(card["preprocessing"]["mean"]), tuple(card["preprocessing"]["std"])
                ),
                towers={name: _tower(name, tower) for name, tower in card["towers"].items()},
                files=frozenset(card["files"]),
                notice=card.get("notice", ""),
            )
        except FileNotFoundError:
            raise ModelError(
                f"no model at {path}: run `python -m export --out {directory}`"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{path} cannot be read ({error!r}): export the model again"
            ) from error

    @property
    def embedding_size(self) -> int:
        """Numbers of one vector."""
        return self.architecture.embedding_size

    @property
    def slug(self) -> str:
        """The model's name as OpenAI's files have it: ViT-L/14@336px is ViT-L-14-336px.

        A fingerprint is a folder's name in S3 with dots between its parts, so that this has neither
        slashes nor dots.
        """
        return re.sub("[/@.]", "-", self.name)

    def fingerprint(self, precision: str, preprocess: str, jpeg_draft: int) -> str:
        """Name everything that decides an image's vector.

        Compare vectors of images of equal fingerprints only.
        """
        parts = [*self._identity(), PRECISIONS[precision].scheme]
        if preprocess != "openai":
            parts.append(preprocess)
        elif jpeg_draft:
            parts.append(f"jpeg{jpeg_draft}")
        return ".".join(parts)

    def text_fingerprint(self, precision: str) -> str:
        """Name everything that decides a text's vector.

        It begins as the fingerprints of those images do whose vectors it may be compared with: the
        first three parts are equal. The last names the text tower's own weights.
        """
        scheme, sha256 = PRECISIONS[precision].scheme, self.towers["text"].sha256
        return ".".join([*self._identity(), scheme, f"text-{sha256[:12]}"])

    def _identity(self) -> tuple[str, str, str]:
        return self.slug, self.weights, self.checkpoint_sha256[:12]


def _tower(name: str, card: Mapping[str, Any]) -> Tower:
    golden = card["golden"]
    given = base64.b64decode(golden["image"]) if name == "image" else golden["text"].encode()
    embedding = np.array(golden["embedding"], dtype=np.float32)
    return Tower(name, card["sha256"], Golden(given, embedding))


def _check_size(path: Path, expected: int) -> None:
    # A deployment may leave out the files of the engine, or the tower, that it does not use.
    if path.exists() and (actual := path.stat().st_size) != expected:
        raise ModelError(
            f"{path} has {actual:,} bytes instead of {expected:,}: truncated or changed"
        )
