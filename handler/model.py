"""The exported model: what ``model/model.json`` says of it, and the fingerprint made of that."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from handler.precision import PRECISIONS

FORMAT = 1
"""Version of ``model.json``. The export writes it; a reader of another version refuses."""


class ModelError(RuntimeError):
    """The model folder cannot be used; the text says which file and what to do."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model folder whose ``model.json`` was read and whose files have the right sizes."""

    directory: Path
    name: str
    """``"ViT-B/32"``."""
    embedding_size: int
    weights: str
    """Where the weights come from: ``openai``, ``custom`` or ``synthetic``."""
    checkpoint_sha256: str
    """Hex digest that names the weights: see ``export/checkpoint.py``."""
    mean: tuple[float, float, float]
    """Per-channel mean of the preprocessing, in units of [0, 1]."""
    std: tuple[float, float, float]
    golden_image: bytes
    """A small JPEG that the self-check encodes."""
    golden_embedding: NDArray[np.float32]
    """The golden image's vector as ``clip`` itself computes it: float32 [512], unit length."""

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
                embedding_size=card["embedding_size"],
                weights=card["weights"],
                checkpoint_sha256=card["checkpoint"]["sha256"],
                mean=tuple(card["preprocessing"]["mean"]),
                std=tuple(card["preprocessing"]["std"]),
                golden_image=base64.b64decode(card["golden"]["image"]),
                golden_embedding=np.array(card["golden"]["embedding"], dtype=np.float32),
            )
        except FileNotFoundError:
            raise ModelError(
                f"no model at {path}: run `python -m export --out {directory}`"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{path} cannot be read ({error!r}): export the model again"
            ) from error

    def fingerprint(self, precision: str, preprocess: str, jpeg_draft: int) -> str:
        """Name everything that decides a vector: compare vectors of equal fingerprints only."""
        name = self.name.replace("/", "-")
        scheme = PRECISIONS[precision].scheme
        parts = [name, self.weights, self.checkpoint_sha256[:12], scheme]
        if preprocess != "openai":
            parts.append(preprocess)
        elif jpeg_draft:
            parts.append(f"jpeg{jpeg_draft}")
        return ".".join(parts)


def _check_size(path: Path, expected: int) -> None:
    # A deployment may leave out the files of the engine that it does not use.
    if path.exists() and (actual := path.stat().st_size) != expected:
        raise ModelError(
            f"{path} has {actual:,} bytes instead of {expected:,}: truncated or changed"
        )
