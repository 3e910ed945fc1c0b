"""The client of the CLIP image encoder: images and texts in, float32 [512] of unit length out.

`Client` blocks, `AsyncClient` is for asyncio. The command line is ``clip-encoder``.
"""

from clip_encoder.async_client import AsyncClient
from clip_encoder.client import Client
from clip_encoder.errors import (
    EncoderError,
    FingerprintChanged,
    Refused,
    ServiceUnusable,
    Unreachable,
)
from clip_encoder.results import RankError, Ranking, Result, Vector

__all__ = [
    "AsyncClient",
    "Client",
    "EncoderError",
    "FingerprintChanged",
    "RankError",
    "Ranking",
    "Refused",
    "Result",
    "ServiceUnusable",
    "Unreachable",
    "Vector",
]
