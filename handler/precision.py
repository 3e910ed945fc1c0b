"""The precisions that vectors are computed in: all that differs between them, in one table.

This is a file of its own, without imports that cost anything, because the settings need the names
before NumPy is loaded.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gate:
    """How far an exported engine's vectors may be from clip's, over all images of the export."""

    min_cosine: float
    max_difference: float
    """Largest difference of one element of two unit vectors."""


@dataclass(frozen=True, slots=True)
class Precision:
    """One precision."""

    name: str
    """As in ``CLIP_PRECISION`` and in the fingerprint."""
    file: str
    """The file of the model folder that holds its weights, or the graph that names them."""
    self_check: float
    """Smallest cosine, at start-up, of the golden image's vector to the one that clip gave it."""
    gate: Gate | None
    """The limits of the export; None: the export does not write this precision."""


_TABLE = (
    # What is promised of fp32 is a cosine of 0.9999 and a difference of 1e-3. GELU in the place of
    # QuickGELU, the classic mistake of CLIP ports, keeps within that (0.99998 and 8.5e-4 over
    # synthetic weights), so the gate is ten times as strict. Sound exports are a hundred times
    # better still.
    Precision("fp32", "visual.onnx", self_check=0.9999, gate=Gate(0.99999, 1e-4)),
    # torch on CUDA halves the fp32 weights when it loads them.
    Precision("fp16", "visual.pt", self_check=0.999, gate=None),
    Precision("int8", "visual.int8.onnx", self_check=0.99, gate=Gate(0.99, 1.0)),
)

PRECISIONS = {precision.name: precision for precision in _TABLE}
EXPORTED = tuple(precision.name for precision in _TABLE if precision.gate)
"""The names that ``CLIP_PRECISION`` and ``python -m export --precision`` take."""
