"""The SIT loss and its relatives, picture by picture, after arXiv 2405.15155."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def probabilities(logits: Sequence[float]) -> list[float]:
    """Return the softmax."""
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    return [power / sum(powers) for power in powers]


def cosines(picture: Array, texts: Array) -> list[float]:
    """Return the scalar product of one picture with each text."""
    return [sum(float(a) * float(b) for a, b in zip(picture, text, strict=True)) for text in texts]


def loss(
    pictures: Array,
    texts: Array,
    targets: Sequence[int],
    scale: float,
    candidates: Collection[int] | None = None,
) -> float:
    """
    Return -(1/B) Σ_i log p_i(y_i), with p_i the softmax over the candidates.

    The symmetric strategy has as candidates the classes of the batch, the asymmetric one all
    classes there are (None).
    """
    allowed = sorted(range(len(texts)) if candidates is None else candidates)
    total = 0.0
    for picture, target in zip(pictures, targets, strict=True):
        cosine = cosines(picture, texts)
        chosen = probabilities([scale * cosine[k] for k in allowed])
        total -= math.log(chosen[allowed.index(target)])
    return total / len(targets)


def text_gradient(
    pictures: Array,
    texts: Array,
    targets: Sequence[int],
    scale: float,
    candidates: Collection[int] | None = None,
) -> Array:
    """Return (s/B) Σ_i (p_ic - [y_i = c]) z_i for each text c; zero where c is no candidate."""
    allowed = sorted(range(len(texts)) if candidates is None else candidates)
    gradient = np.zeros_like(texts)
    for picture, target in zip(pictures, targets, strict=True):
        cosine = cosines(picture, texts)
        chosen = probabilities([scale * cosine[k] for k in allowed])
        for place, k in enumerate(allowed):
            gradient[k] += scale / len(targets) * (chosen[place] - (k == target)) * picture
    return gradient


def doubled_loss(pictures: Array, texts: Array, targets: Sequence[int], scale: float) -> float:
    """Return the loss of the published code, which applies the softmax to probabilities again."""
    total = 0.0
    for picture, target in zip(pictures, targets, strict=True):
        once = probabilities([scale * cosine for cosine in cosines(picture, texts)])
        total -= math.log(probabilities(once)[target])
    return total / len(targets)


def slope(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    """Return the gradient of a function by central differences."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        above, below = at.copy(), at.copy()
        above[place] += step
        below[place] -= step
        gradient[place] = (function(above) - function(below)) / (2 * step)
    return gradient
