"""A merged weight, number by number, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def merge(weight: Array, a: Array, b: Array, alpha: float) -> Array:
    """Return W + (alpha / rank) · B·A for a weight (out × in), A (rank × in), B (out × rank)."""
    rank = len(a)
    merged = weight.copy()
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            product = sum(float(b[row, r]) * float(a[r, column]) for r in range(rank))
            merged[row, column] += alpha / rank * product
    return merged
