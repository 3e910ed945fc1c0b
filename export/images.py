"""The images that the export needs: to judge its engines by, and to calibrate integers with.

Those over which it compares its engines with ``clip`` are photographs, and every awkward kind of
file that callers send. Those that it calibrates with are others, so that nothing is judged by what
it was fitted to.

The photographs come with scikit-image and are in the public domain or CC0.
"""

import io
from functools import cache

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image, ImageOps

PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "hubble_deep_field",
    "camera",
    "retina",
    "brick",
)
PHOTOGRAPH = "photograph "
"""How the names of the parity images begin that are photographs as they are."""
_ORIENTATION = 0x0112


def photograph(name: str) -> Image.Image:
    """One of `PHOTOGRAPHS`, RGB or L."""
    return Image.fromarray(getattr(skimage.data, name)())


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of `image` as a file of the Pillow format `kind`."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def golden_image() -> bytes:
    """The small JPEG that the self-check encodes at start-up. Not square, so it is cropped too."""
    image = photograph("coffee").resize((320, 213), Image.Resampling.LANCZOS)
    return encoded(image, "JPEG", quality=85)


@cache
def parity_images(side: int) -> dict[str, bytes]:
    """Name -> encoded file, about forty. Few are square: those hide mistakes in resizing.

    Some are of the `side` that the model sees, in pixels, and just beside it.
    """
    images = {PHOTOGRAPH + name: encoded(photograph(name), "PNG") for name in PHOTOGRAPHS}
    return images | _shapes(side) | _modes() | _formats()


def _shapes(side: int) -> dict[str, bytes]:
    rocket, coffee = photograph("rocket"), photograph("coffee")
    sizes = {
        f"already {side} x {side}": (side, side),
        f"odd {side + 1} x {side * 3 // 2 + 1}": (side + 1, side * 3 // 2 + 1),
        "odd 451 x 299": (451, 299),
        f"short side {side}": (side, side * 4 // 3 + 3),
        "tiny 3 x 2": (3, 2),
        "tiny 1 x 1": (1, 1),
        "very wide 2000 x 40": (2000, 40),
        "very tall 31 x 1500": (31, 1500),
    }
    shapes = {name: encoded(rocket.resize(size), "PNG") for name, size in sizes.items()}
    shapes["large 4000 x 2667 JPEG"] = encoded(coffee.resize((4000, 2667)), "JPEG", quality=90)
    return shapes


def _modes() -> dict[str, bytes]:
    chelsea = photograph("chelsea")
    width, height = chelsea.size
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    alpha = Image.fromarray(np.broadcast_to(ramp, (height, width)).copy())
    grey = chelsea.convert("L")
    rgba, la = chelsea.copy(), grey.copy()
    rgba.putalpha(alpha)
    la.putalpha(alpha)
    palette = chelsea.quantize(64)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return {
        "palette": encoded(palette, "PNG"),
        "palette, one colour transparent": encoded(palette, "PNG", transparency=3),
        "palette, alpha per colour": encoded(palette, "PNG", transparency=bytes(range(0, 256, 4))),
        "L": encoded(grey, "PNG"),
        "LA": encoded(la, "PNG"),
        "RGBA with real transparency": encoded(rgba, "PNG"),
        "1-bit": encoded(chelsea.convert("1"), "PNG"),
        "16-bit grey": encoded(deep, "PNG"),
        "CMYK JPEG": encoded(chelsea.convert("CMYK"), "JPEG", quality=92),
        "CMYK TIFF": encoded(chelsea.convert("CMYK"), "TIFF"),
        "RGB, one colour transparent": encoded(chelsea, "PNG", transparency=(200, 150, 100)),
    }


def _formats() -> dict[str, bytes]:
    coffee = photograph("coffee")
    transparent = coffee.copy()
    transparent.putalpha(coffee.convert("L"))
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    frames = [
        photograph("chelsea").quantize(128),
        photograph("coffee").resize((451, 300)).quantize(128),
    ]
    return {
        "JPEG": encoded(coffee, "JPEG", quality=85),
        "JPEG 4:4:4": encoded(coffee, "JPEG", quality=95, subsampling=0),
        "JPEG grey": encoded(coffee.convert("L"), "JPEG"),
        "progressive JPEG": encoded(coffee, "JPEG", progressive=True),
        "EXIF-rotated JPEG": encoded(coffee, "JPEG", exif=exif),
        "MPO": encoded(coffee, "MPO", save_all=True, append_images=[photograph("rocket")]),
        "WebP": encoded(coffee, "WEBP", quality=80),
        "WebP lossless with alpha": encoded(transparent, "WEBP", lossless=True),
        "GIF": encoded(frames[0], "GIF"),
        "GIF animated": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "BMP": encoded(coffee, "BMP"),
        "TIFF deflate": encoded(coffee, "TIFF", compression="tiff_adobe_deflate"),
        "AVIF": encoded(coffee, "AVIF", quality=70),
        "interlaced-size PNG 641 x 427": encoded(photograph("rocket").resize((641, 427)), "PNG"),
    }


@cache
def calibration_pixels(side: int) -> NDArray[np.uint8]:
    """What integers are calibrated with: uint8 RGB [64, side, side, 3], none a parity image.

    They are mirrored, rotated and shifted parts of the photographs, the same in black and white
    dots, which is what 8 bits hold worst, and pictures that are no photographs at all.
    """
    pictures = [
        view for name in PHOTOGRAPHS for view in _views(photograph(name).convert("RGB"))
    ] + _patterns(side)
    squares = [ImageOps.fit(one, (side, side), Image.Resampling.BICUBIC) for one in pictures]
    return np.stack([np.asarray(square) for square in squares])


def _views(photo: Image.Image) -> list[Image.Image]:
    """Six pictures made of a photograph, none of which shows what its middle shows as it is."""
    mirrored = ImageOps.mirror(photo)
    width, height = photo.size
    shifted = mirrored.crop((0, 0, width * 9 // 10, height * 9 // 10))
    corner = mirrored.crop((0, 0, width * 3 // 5, height * 3 // 5))
    opposite = photo.crop((width * 2 // 5, height * 2 // 5, width, height))
    return [
        mirrored,
        shifted,
        photo.rotate(90, expand=True),
        ImageOps.flip(opposite),
        mirrored.convert("1").convert("RGB"),
        corner.convert("L").convert("1").convert("RGB"),
    ]


def _patterns(side: int) -> list[Image.Image]:
    """Sixteen pictures: flat ones, noise of several grains and contrasts, stripes, ramps."""
    random = np.random.default_rng(0)
    flat = [np.full((side, side, 3), colour) for colour in (0, 127, 255, (200, 40, 30))]
    noise = [
        128 + contrast * random.uniform(-1, 1, (side // grain, side // grain, 3))
        for grain, contrast in ((1, 127), (1, 30), (4, 127), (16, 127), (56, 127))
    ]
    dots = [255.0 * (random.random((side, side, 1)) < share) for share in (0.1, 0.5, 0.9)]
    line = np.arange(side)
    stripes = [np.broadcast_to(255.0 * (line // width % 2), (side, side)) for width in (2, 16)]
    ramps = [
        np.add.outer(line, line) * 255 / (2 * line[-1]),
        np.abs(np.subtract.outer(line, line)) * 223 / line[-1],
    ]
    arrays = flat + noise + dots + stripes + ramps
    return [_picture(array, side) for array in arrays]


def _picture(array: NDArray[np.generic], side: int) -> Image.Image:
    """Numbers from 0 to 255, [height, width] or with 1 or 3 channels -> RGB, `side` x `side`."""
    array = array.reshape(*array.shape[:2], -1)
    pixels = np.broadcast_to(array, (*array.shape[:2], 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
