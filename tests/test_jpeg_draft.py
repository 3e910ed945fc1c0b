"""Large JPEGs decoded at a reduced scale: what it may cost, and that nothing else is touched.

`python -m benchmarks.accuracy` measures every photograph at six sizes; here are the worst.
"""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from benchmarks.accuracy import MIN_COSINE, cosine, enlarged, halftone
from export.images import encoded, parity_images, photograph
from handler.config import Config
from handler.engines import Engine
from handler.images.decode import decode, full_size
from handler.images.wire import Limits
from tests.conftest import SIDE, pixels_of

FAST = Config.from_env({"CLIP_PROFILE": "fast"})
DRAFT = FAST.jpeg_draft_for(SIDE)
FULL = Config()


def jpeg(
    data: bytes, kind: str = "JPEG", draft: int = DRAFT, corrected: bool = False
) -> Image.Image:
    """The decoded picture, before it is resized."""
    config = Config()
    return decode(data, kind, Limits(config.max_pixels, 100, draft, corrected, SIDE))


@pytest.mark.parametrize(
    ("photo", "size"),
    [
        (
            "camera",
            (2881, 2887),
        ),  # neither side a multiple of the scale: picture ends inside a pixel
        ("camera", (4000, 3000)),
        ("brick", (1441, 1441)),
        ("brick", (8000, 6000)),
    ],
)
def test_the_vector_stays_that_of_full_decoding(
    engine: Engine, photo: str, size: tuple[int, int]
) -> None:
    data = enlarged(photo, size)
    assert min(jpeg(data).size) < min(size) == min(full_size(jpeg(data)))
    assert cosine(engine, data, DRAFT, SIDE) >= MIN_COSINE


@pytest.mark.parametrize(("period", "degrees"), [(4, 0), (6, 45), (10, 20)])
def test_printed_dots_are_found_and_decoded_in_full(period: float, degrees: float) -> None:
    """At a reduced scale their vector's cosine would be 0.992 to 0.9995."""
    data = halftone("chelsea", 4 * DRAFT, period, degrees)
    assert jpeg(data).size == (DRAFT, DRAFT)
    assert np.array_equal(pixels_of(data, FAST), pixels_of(data, FULL))


@pytest.mark.parametrize("photo", ["camera", "coffee"])  # a grey one and one in colour
def test_photographs_are_not_decoded_twice(photo: str) -> None:
    data = enlarged(photo, (2881, 2887))
    assert not np.array_equal(pixels_of(data, FAST), pixels_of(data, FULL))


def test_every_image_of_the_parity_gate_keeps_what_the_gate_promises(engine: Engine) -> None:
    for name, data in parity_images(SIDE).items():
        assert cosine(engine, data, DRAFT, SIDE) >= 0.9999, name


def test_below_twice_the_limit_pixels_are_those_of_full_decoding() -> None:
    data = enlarged("camera", (2 * DRAFT - 1, 2 * DRAFT - 1))
    assert np.array_equal(pixels_of(data, FAST), pixels_of(data, FULL))


def test_by_default_all_is_decoded_in_full() -> None:
    assert FULL.jpeg_draft == 0
    assert jpeg(enlarged("camera", (2000, 2000)), draft=0).size == (2000, 2000)


def test_the_corrected_profile_decodes_in_full() -> None:
    """It may turn the picture, and the part of the last pixel that is picture with it."""
    assert jpeg(enlarged("camera", (2000, 2000)), corrected=True).size == (2000, 2000)


def test_a_file_cannot_say_what_its_full_size_is() -> None:
    text = PngImagePlugin.PngInfo()
    for key in ("(0, 0)", "full size"):
        text.add_text(key, "9")
    data = encoded(photograph("coffee"), "PNG", pnginfo=text)
    assert full_size(jpeg(data, "PNG")) == Image.open(io.BytesIO(data)).size
