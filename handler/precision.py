"""The precisions that vectors are computed in: all that differs between them, in one table.

This is a file of its own, without imports that cost anything, because the settings need the names
before NumPy is loaded.
"""

from dataclasses import dataclass

STEMS = {"image": "visual", "text": "text"}
"""Name of a tower, as in ``CLIP_TOWERS`` -> how the names of its files begin."""


@dataclass(frozen=True, slots=True)
class Gate:
    """How far an exported engine's vectors may be from clip's, over all images of the export."""

    min_cosine: float
    """Of any image."""
    max_difference: float
    """Largest difference of one element of two unit vectors."""
    min_cosine_photographs: float | None = None
    """Of any photograph, where more is asked of them than of other images."""
    min_mean_cosine: float | None = None
    """Of all images on average."""
    batches: tuple[int, ...] = ()
    """Sizes of batches in which each vector has to be what it is alone, to the bit."""


@dataclass(frozen=True, slots=True)
class Precision:
    """One precision."""

    name: str
    """As in ``CLIP_PRECISION``."""
    scheme: str
    """As in the fingerprint: how the numbers are made, which changes when vectors do."""
    suffix: str
    """How the names of those files end that hold its weights, or the graph that names them."""
    self_check: float
    """Smallest cosine, when a tower loads, of its golden input's vector to the one of clip."""
    gate: Gate | None
    """The limits of the export; None: the export does not write this precision."""

    def file(self, tower: str) -> str:
        """The file of the model folder that holds a tower's weights, or the graph that names them.

        That of the image tower is called by clip's own word for it.
        """
        return f"{STEMS[tower]}{self.suffix}"


_TABLE = (
    # What is promised of fp32 is a cosine of 0.9999 and a difference of 1e-3. GELU in the place of
    # QuickGELU, the classic mistake of CLIP ports, keeps within that (0.99998 and 8.5e-4 over
    # synthetic weights), so the gate is ten times as strict. Sound exports are a hundred times
    # better still.
    Precision("fp32", "fp32", ".onnx", self_check=0.9999, gate=Gate(0.99999, 1e-4)),
    # torch on CUDA halves the fp32 weights when it loads them.
    Precision("fp16", "fp16", ".pt", self_check=0.999, gate=None),
    # The scheme is a scale for each row, and outlier channels in float. Before, it was a scale for
    # each row alone (int8row), and once one for a whole tensor (int8): vectors of the three do not
    # compare. Weights that would not pass this gate are mended until they do; the worst images are
    # black and white dots. The self-check's image is a photograph, but it may run on another kind
    # of processor than the export, where vectors differ by 2e-4.
    Precision(
        "int8",
        "int8mix",
        ".int8.onnx",
        self_check=0.997,
        gate=Gate(
            min_cosine=0.997,
            max_difference=1.0,
            min_cosine_photographs=0.999,
            min_mean_cosine=0.9995,
            batches=(2, 8, 32),
        ),
    ),
)

PRECISIONS = {precision.name: precision for precision in _TABLE}
EXPORTED = tuple(precision.name for precision in _TABLE if precision.gate)
"""The names that ``CLIP_PRECISION`` and ``python -m export --precision`` take."""
