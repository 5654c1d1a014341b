"""What the constants of the fusion cost on one sample, choice by choice, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.reference.fusion import Constants, fuse


def loss(
    text: Sequence[float],
    evidence: Sequence[float],
    adapter: Sequence[float] | None,
    tuned_text: Sequence[float] | None,
    counts: Sequence[int],
    own: int,
    noise: float,
    constants: Constants,
) -> float:
    """
    Return -log of the probability of the right class, where a share of labels says nothing.

    Args:
        text, evidence, adapter, tuned_text, counts: as of `fuse`; all classes are learnt.
        own: the right class.
        noise: the share of labels that are drawn from all classes alike.
        constants: of the fusion.
    """
    answer, _ = fuse(text, evidence, adapter, tuned_text, counts, constants)
    return -math.log((1 - noise) * answer[own] + noise / len(text))


def grid(
    text: Sequence[float],
    evidence: Sequence[float],
    adapter: Sequence[float] | None,
    tuned_text: Sequence[float] | None,
    counts: Sequence[int],
    own: int,
    constants: Constants,
    axes: tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]],
) -> list[list[list[list[float]]]]:
    """Return the loss of every kappa, text power, sharpness and share of noise, nested so."""
    kappas, powers, sharpnesses, noises = axes
    return [
        [
            [
                [
                    loss(
                        text,
                        evidence,
                        adapter,
                        tuned_text,
                        counts,
                        own,
                        noise,
                        constants._replace(kappa=kappa, text_power=power, sharpness=sharpness),
                    )
                    for noise in noises
                ]
                for sharpness in sharpnesses
            ]
            for power in powers
        ]
        for kappa in kappas
    ]
