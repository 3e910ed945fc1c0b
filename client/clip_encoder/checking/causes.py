"""Why an old service's vectors differ, found by trying: causes are made to happen.

- *Preprocessing.* The new service is sent what another preprocessing would have made of an image.
  If its vector then is the old one, that is how the old service differs (`pictures`).
- *Arithmetic.* Both services are sent images of 224 x 224 pixels, to which no preprocessing does
  anything. If their vectors still differ, the models do. Then one pixel is changed by one step. A
  model that rounds as it goes, such as one with 8-bit integers, gives a vector that has jumped by
  about as much as it was wrong before; one that computes smoothly gives nearly the same vector.
- *GELU* is tried with the model itself, where its folder is at hand. Otherwise it is told by the
  pattern: its error is nearly the same for all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_encoder.checking import gelu, pictures
from clip_encoder.checking.comparison import Comparison, Vectors, cosines, unit
from clip_encoder.checking.sides import Side
from clip_encoder.errors import EncoderError
from clip_encoder.images import payload

SAMPLE = 12
"""Images that are tried, the worst of all."""
JUMPS = 0.2
"""Of the error: by so much the vector of a model that rounds moves when one pixel is nudged.
Measured: 0.5 to 0.7 with torch's dynamic 8-bit integers, 0.02 or less with GELU and with rounded
weights."""
SHARED = 0.4
"""Of the squared error: so much is common to all images with GELU. Measured: 0.6 with GELU, 0.1
with dynamic 8-bit integers, 0.25 with rounded weights."""
LEEWAY = 3.0
"""Times the models' own difference that an image may still differ by once its cause is found."""
UNRELATED = 0.5
"""Median cosine below which the two sides do not have the same weights."""


@dataclass(frozen=True)
class Cause:
    """A reason why the vectors differ."""

    code: str
    text: str
    """A sentence."""
    tried: bool
    """Whether it was made to happen, rather than told by the figures."""
    least_cosine: float | None = None
    """Of the sample, once this and all causes of its kind are made up for."""


@dataclass(frozen=True)
class Arithmetic:
    """How the two models differ on images to which no preprocessing does anything."""

    pixels: NDArray[np.uint8]
    """[n, 224, 224, 3]."""
    old: Vectors
    new: Vectors
    jump: float
    """How far the old vector moves when one pixel is nudged, in units of its error; the median."""

    @property
    def worst(self) -> float:
        """1 - the least cosine."""
        return float(1 - cosines(self.old, self.new).min())

    @property
    def is_unrelated(self) -> bool:
        """Whether the two sides do not have the same weights at all."""
        return float(np.median(cosines(self.old, self.new))) < UNRELATED


@dataclass(frozen=True)
class Both:
    """The two sides of a comparison."""

    old: Side
    new: Side
    old_vectors: Vectors
    """[n, 512], as they came, of the images that were compared."""
    new_vectors: Vectors


def find(comparison: Comparison, both: Both, model: Path | None = None) -> list[Cause]:
    """The likely causes of a difference; may be none.

    `model` is the folder of an exported model, to try GELU with.

    Raises:
        EncoderError: a service fails, or `model` cannot be used.
    """
    found = []
    if not comparison.old.are_unit:
        found.append(_not_normalised(comparison))
    if comparison.verdict != "different":
        return found
    sample = _sample(comparison)
    arithmetic = _arithmetic(sample, both)
    if arithmetic is not None and arithmetic.is_unrelated:
        text = "the old service has other weights: the vectors are unrelated"
        return [*found, Cause("weights", text, tried=True)]
    tolerance = 1 - comparison.least_same
    differs_in_arithmetic = arithmetic is not None and arithmetic.worst > tolerance
    if arithmetic is not None and differs_in_arithmetic:
        tolerance = LEEWAY * arithmetic.worst
    preprocessing = []
    if both.new.can_be_asked and sample:
        rows = [comparison.names.index(name) for name in sample]
        preprocessing = _preprocessing(
            list(sample.values()), unit(both.old_vectors[rows]), both.new, tolerance
        )
    found += preprocessing
    if arithmetic is not None and differs_in_arithmetic:
        found.append(_of_arithmetic(arithmetic, model, comparison.least_same))
    if arithmetic is None and not preprocessing:
        found += _by_pattern(comparison, both)
    return found


def _not_normalised(comparison: Comparison) -> Cause:
    lengths = comparison.old
    text = (
        f"the old service does not normalise: its vectors are {lengths.least:.4g} to "
        f"{lengths.most:.4g} long instead of 1. Divide each stored vector by its length"
    )
    return Cause("not_normalised", text, tried=True, least_cosine=float(comparison.cosines.min()))


def _sample(comparison: Comparison) -> dict[str, bytes]:
    """The images whose vectors differ most and that can be read here: name -> file."""
    sample: dict[str, bytes] = {}
    for place in np.argsort(comparison.cosines, kind="stable"):
        name = comparison.names[int(place)]
        try:
            data = payload(name)
            assert isinstance(data, bytes)  # not in S3
            pictures.neutral(data)
        except (EncoderError, AssertionError, OSError, ValueError, SyntaxError):
            continue
        sample[name] = data
        if len(sample) == SAMPLE:
            break
    return sample


def _all_of(side: Side, images: Sequence[bytes]) -> Vectors:
    """A side's vectors of `images`, of unit length.

    Raises:
        EncoderError: it fails for one of them.
    """
    return unit(np.stack([result.get() for result in side.vectors(images)]))


# --- preprocessing --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """How near the new vectors come to the old ones once the images differ in some ways."""

    ways: frozenset[str]
    least_cosine: float
    distance: float
    """1 - cosine, the median."""


class Trials:
    """Tries ways to differ on some image files; what was asked for once is remembered."""

    def __init__(self, files: list[bytes], old: Vectors, new: Side) -> None:
        """Take the files, and the `old` vectors of them, [n, 512] of unit length."""
        self._files = files
        self._old = old
        self._new = new
        self._known: dict[bytes, Vectors] = {}

    def make(self, ways: frozenset[str]) -> Trial:
        """Send each file as it would be with `ways`; with none, as it is.

        Raises:
            EncoderError: the service fails for one of them.
        """
        files = [pictures.changed(file, ways) or file for file in self._files]
        unknown = [file for file in dict.fromkeys(files) if file not in self._known]
        if unknown:
            self._known |= zip(unknown, _all_of(self._new, unknown), strict=True)
        found = cosines(self._old, np.stack([self._known[file] for file in files]))
        return Trial(ways, float(found.min()), float(np.median(1 - found)))


def _preprocessing(files: list[bytes], old: Vectors, new: Side, tolerance: float) -> list[Cause]:
    """The ways to differ that, taken together, turn the new vectors of `files` into the `old`.

    Of several combinations that do, the one with the fewest ways. Where none does for every image,
    the one that brings the vectors ten times nearer, if there is one.
    """
    trials = Trials(files, old, new)
    plain = best = trials.make(frozenset())
    for ways in pictures.combinations():
        trial = trials.make(ways)
        if 1 - trial.least_cosine <= tolerance:
            return _causes(trial)
        if trial.distance < best.distance / 2:  # more ways must bring something
            best = trial
    return _causes(best) if best.distance < plain.distance / 10 else []


def _causes(trial: Trial) -> list[Cause]:
    return [
        Cause(way, f"the old service {text}", tried=True, least_cosine=trial.least_cosine)
        for way, text in pictures.DIFFERENCES.items()
        if way in trial.ways
    ]


# --- arithmetic -----------------------------------------------------------------------------------


def _arithmetic(sample: dict[str, bytes], both: Both) -> Arithmetic | None:
    """How the two models differ; None where a side is stored, or no image can be read here."""
    if not (sample and both.old.can_be_asked and both.new.can_be_asked):
        return None
    pixels = np.stack([pictures.neutral(data) for data in sample.values()])
    files = [pictures.png(image) for image in pixels]
    old_vectors, new_vectors = _all_of(both.old, files), _all_of(both.new, files)
    nudged = _all_of(both.old, [pictures.png(pictures.nudged(image)) for image in pixels])
    error = np.linalg.norm(old_vectors - new_vectors, axis=1)
    moved = np.linalg.norm(nudged - old_vectors, axis=1)
    jump = float(np.median(moved / np.maximum(error, np.finfo(np.float32).eps)))
    return Arithmetic(pixels, old_vectors, new_vectors, jump)


def _of_arithmetic(found: Arithmetic, model: Path | None, least_same: float) -> Cause:
    if found.jump >= JUMPS:
        text = (
            "the old service computes with fewer digits, as 8-bit integers (int8) do: its vector "
            f"jumps by {found.jump:.2g} of its error when a pixel changes by one step"
        )
        return Cause("int8", text, tried=True)
    if model is not None:
        least = float(cosines(found.old, unit(gelu.encode(model, found.pixels))).min())
        if least >= least_same:
            text = "the old service computes GELU where CLIP has QuickGELU"
            return Cause("gelu", text, tried=True, least_cosine=least)
        text = "the old service has other weights, or computes otherwise; it is not GELU"
        return Cause("weights", text, tried=True, least_cosine=least)
    difference = found.old - found.new
    return _smooth(_shared(difference))


def _shared(differences: Vectors) -> float:
    """The share of the squared differences [n, 512] that is the same for all, from 0 to 1."""
    common = float(np.square(differences.mean(axis=0)).sum())
    return common / float(np.square(differences).sum(axis=1).mean())


def _smooth(shared: float) -> Cause:
    """What a model that computes smoothly, but otherwise, is likely to do."""
    if shared >= SHARED:
        text = (
            "the old service probably computes GELU where CLIP has QuickGELU: its error is much "
            "the same for all images. Give --model FOLDER to try it"
        )
        return Cause("gelu", text, tried=False)
    text = (
        "the old service has other weights (rounded ones, perhaps), or computes otherwise. Give "
        "--model FOLDER to try GELU"
    )
    return Cause("weights", text, tried=False)


def _by_pattern(comparison: Comparison, both: Both) -> list[Cause]:
    """What the figures alone suggest, where the old service cannot be asked.

    A preprocessing that differs leaves some images alone, so nothing is said unless all differ.
    """
    if float(np.median(comparison.cosines)) < UNRELATED:
        text = "the vectors are unrelated: they are of other weights"
        return [Cause("weights", text, tried=False)]
    if float(comparison.cosines.max()) >= comparison.least_same:
        return []
    shared = _shared(unit(both.old_vectors) - unit(both.new_vectors))
    if shared >= SHARED:
        return [_smooth(shared)]
    text = (
        "the old vectors were probably computed with fewer digits, as 8-bit integers (int8) do, or "
        "with rounded weights: all images differ, each in its own way"
    )
    return [Cause("int8", text, tried=False)]
