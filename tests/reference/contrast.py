"""The contrastive loss, pair by pair, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence


def loss(features: Sequence[Sequence[float]], classes: Sequence[int], temperature: float) -> float:
    """Return the mean over the pictures that have company of their class; zero without any."""

    def likeness(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(features[i], features[j], strict=True)) / temperature

    everyone = range(len(classes))
    of_picture = []
    for i in everyone:
        company = [j for j in everyone if j != i and classes[j] == classes[i]]
        if not company:
            continue
        total = math.fsum(math.exp(likeness(i, k)) for k in everyone if k != i)
        of_picture.append(
            -math.fsum(math.log(math.exp(likeness(i, j)) / total) for j in company) / len(company)
        )
    return math.fsum(of_picture) / len(of_picture) if of_picture else 0.0
