"""QueryVectors of S3 Vectors, which moto does not know."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST = 100
"""Vectors that one query can find."""


def find(query: Mapping[str, Any], vectors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return those of `vectors` that are nearest by cosine distance, as ``QueryVectors`` does.

    AWS finds them approximately, and this exactly.

    Raises:
        ValueError: AWS would refuse the query.
    """
    asked = np.array(query["queryVector"]["float32"], np.float32)
    if not 1 <= query["topK"] <= MOST or not asked.any():
        raise ValueError("topK is out of its range, or the vector is zero")
    given = np.array([vector["data"]["float32"] for vector in vectors], np.float32)
    lengths = np.linalg.norm(given, axis=1) * np.linalg.norm(asked)
    distances = 1 - given @ asked / lengths  # ValueError: vectors of another dimension
    found = []
    for place in np.argsort(distances)[: query["topK"]]:
        hit = {"key": vectors[place]["key"]}
        if query.get("returnMetadata"):
            hit["metadata"] = vectors[place]["metadata"]
        if query.get("returnDistance"):
            hit["distance"] = float(distances[place])
        found.append(hit)
    return found
