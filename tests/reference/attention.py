"""Multi-head self-attention, head by head and token by token, in float64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def attend(
    states: Array,
    qkv: tuple[Array, Array],
    out: tuple[Array, Array],
    heads: int,
    *,
    causal: bool,
) -> Array:
    """
    Return the attended states (L × E) of one sequence.

    Args:
        states: L × E.
        qkv, out: weight and bias of the two linear maps; qkv's rows are queries, keys, values.
        heads: into which each of the three is divided.
        causal: whether a token looks at itself and those before it only.
    """
    length, width = states.shape
    size = width // heads
    mixed = states @ qkv[0].T + qkv[1]
    attended = np.zeros((length, width))
    for head in range(heads):
        span = slice(head * size, (head + 1) * size)
        query, key, value = (
            mixed[:, part * width : (part + 1) * width][:, span] for part in range(3)
        )
        for i in range(length):
            reach = i + 1 if causal else length
            scores = [float(query[i] @ key[j]) / math.sqrt(size) for j in range(reach)]
            powers = [math.exp(score - max(scores)) for score in scores]
            for j in range(reach):
                attended[i, span] += powers[j] / sum(powers) * value[j]
    return attended @ out[0].T + out[1]
