"""The evidence from all samples at once, by the inverse matrix itself, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def unit(vector: Array) -> Array:
    """Return the vector at length one."""
    length = float(np.sqrt(sum(float(number) ** 2 for number in vector)))
    return vector / length


def metric(features: Array, ridge: float = 0.5) -> Array:
    """Return (Σ x xᵀ + λI)⁻¹ over unit features."""
    gram = ridge * np.eye(features.shape[1])
    for feature in features:
        gram += np.outer(unit(feature), unit(feature))
    return np.asarray(np.linalg.inv(gram), np.float64)


def mean(features: Array, classes: Sequence[int], of: int) -> Array:
    """Return the mean unit feature of one class."""
    own = [unit(feature) for feature, c in zip(features, classes, strict=True) if c == of]
    total: Array = sum(own, np.zeros(features.shape[1]))
    return total / len(own)


def led_away(own: Sequence[Array], refused: Sequence[Array], share: float = 0.25) -> Array:
    """Return the mean of a class's unit features less a share of each refused one."""
    labels = len(own)
    centre: Array = sum((unit(feature) for feature in own), np.zeros(len(own[0]))) / labels
    for feature in refused:
        centre = centre - share * unit(feature) / (labels + len(refused))
    return centre


def score(feature: Array, centre: Array, inverse: Array) -> float:
    """Return the cosine of a picture and a class in the metric: xᵀMμ / √(xᵀMx · μᵀMμ)."""
    x = unit(feature)
    lengths = (x @ inverse @ x) * (centre @ inverse @ centre)
    return float(x @ inverse @ centre / np.sqrt(lengths))


def ridge_scores(features: Array, classes: Sequence[int], queries: Array) -> Array:
    """Return what ridge regression itself answers: W = (G + λI)⁻¹ Q, in which counts tell."""
    inverse = metric(features)
    sums = [
        sum(
            (unit(feature) for feature, c in zip(features, classes, strict=True) if c == of),
            np.zeros(features.shape[1]),
        )
        for of in range(max(classes) + 1)
    ]
    return np.array([[unit(query) @ inverse @ total for total in sums] for query in queries])
