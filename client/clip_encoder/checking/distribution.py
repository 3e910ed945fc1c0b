"""A picture of how the cosines of two sides are distributed, as SVG."""

from xml.sax.saxutils import escape

import numpy as np

from clip_encoder.checking.comparison import Comparison

EDGES = [0.0, *(float(f"{digit}e-{power}") for power in range(7, 0, -1) for digit in (1, 3)), 2.0]
"""Of the bins, as distances from a cosine of 1: two for each power of ten."""
WIDTH, ROW, LEFT, BAR = 640, 22, 170, 400
"""Pixels: of the picture, of a bin's row, and of what is left of a bar and the longest bar."""


def picture(comparison: Comparison) -> str:
    """Horizontal bars: how many images have a cosine within each bin, from like to unlike."""
    distances = np.maximum(1 - comparison.cosines, 0)
    counts, _ = np.histogram(distances, EDGES)
    filled = np.flatnonzero(counts)
    first, last = int(filled.min()), int(filled.max())
    shapes = []
    for row, place in enumerate(range(first, last + 1)):
        y = 50 + ROW * row
        count, far = int(counts[place]), EDGES[place + 1]
        is_same = far <= 1 - comparison.least_same + 1e-12
        width = BAR * count / int(counts.max())
        label = f"{1 - EDGES[place]:.7g} to {1 - min(far, 2.0):.7g}"
        colour = "#188038" if is_same else "#c5221f"
        shapes += [
            f'<text x="{LEFT - 10}" y="{y + 14}" text-anchor="end">{label}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{ROW - 4}" fill="{colour}"/>',
            f'<text x="{LEFT + 6 + width:.1f}" y="{y + 14}">{count:,}</text>',
        ]
    height = 60 + ROW * (last - first + 1)
    title = f"cosine of old and new, {len(comparison.names):,} images: {comparison.verdict}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n'
        f'<text x="10" y="28" font-weight="bold">{escape(title)}</text>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )
