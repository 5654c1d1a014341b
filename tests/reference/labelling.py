"""What labels still add to each class, one class and one exponent after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

EXPONENTS = [k / 20 for k in range(25)]
Curve = Sequence[tuple[int, int]]  # of each bin: answers, and those that were right


class Outlook(NamedTuple):
    error: float
    gain: float
    least: float
    most: float


def middle(place: int) -> float:
    """Return how many labels a bin stands for: of 2^k to 2^(k+1) - 1, the geometric mean."""
    return math.sqrt(2**place * (2 ** (place + 1) - 1))


def expected(curve: Curve, exponent: float) -> float:
    """Return how many errors there would be at a level of one."""
    return math.fsum(
        answers * middle(place) ** -exponent for place, (answers, _) in enumerate(curve)
    )


def log_likelihood(curve: Curve, exponent: float) -> float:
    """Return the log-probability of which answers were wrong, given how many were."""
    total = expected(curve, exponent)
    return math.fsum(
        (answers - right) * math.log(middle(place) ** -exponent / total)
        for place, (answers, right) in enumerate(curve)
        if answers > right
    )


def weights(logs: Sequence[float]) -> list[float]:
    highest = max(logs)
    powers = [math.exp(log - highest) for log in logs]
    return [power / math.fsum(powers) for power in powers]


def near(exponent: float, centre: float, spread: float) -> float:
    """Return the logarithm of a normal density, but for a constant."""
    return -(((exponent - centre) / spread) ** 2) / 2


def gamma_quantile(shape: float, z: float) -> float:
    return max(0.0, 1 - 1 / (9 * shape) + z / (3 * math.sqrt(shape))) ** 3


def outlook(curves: Sequence[Curve], labels: Sequence[int]) -> list[Outlook]:
    """Return what is expected of each class with so many labels."""
    logs = [
        math.fsum(log_likelihood(curve, b) for curve in curves) + near(b, 0.5, 0.25)
        for b in EXPONENTS
    ]
    common = math.fsum(w * b for w, b in zip(weights(logs), EXPONENTS, strict=True))
    wrong = [sum(answers - right for answers, right in curve) for curve in curves]
    found = []
    for curve, errors, n in zip(curves, wrong, labels, strict=True):
        own = weights([log_likelihood(curve, b) + near(b, common, 0.25) for b in EXPONENTS])
        error = gain = least = most = 0.0
        for weight, b in zip(own, EXPONENTS, strict=True):
            of_all = (sum(wrong) + 0.5) / (math.fsum(expected(c, b) for c in curves) + 1)
            level = (0.5 + errors) / (0.5 / of_all + expected(curve, b))
            now = min(1.0, level * n**-b)
            error += weight * now
            gain += weight * (now - now * (n / (n + 1)) ** b)
            again = 1 - 2**-b
            least += weight * min(1.0, now * gamma_quantile(0.5 + errors, -1.28)) * again
            most += weight * min(1.0, now * gamma_quantile(0.5 + errors, 1.28)) * again
        found.append(Outlook(error, gain, least, most))
    return found
