"""
Have I labelled enough? What each class still gains by labels, from what its answers were so far. ⑨

Answers were scored before their label was learnt, so a class's curve says how its recall grew with
its labels. Errors are taken to fall by a power law,

    error_c(n) = a_c · n^(-β_c)    after n labels,

and wrong answers to come by chance as often as that says (Poisson). What a class's own few answers
leave open is filled in by what all classes did: first the exponent, from within classes alone, since
which classes have many labels says nothing about labels; then the level. So a class nobody asked
about stands where others stood with as many labels, and one that labels did not help gains little.

Shape suffixes: C classes, N bins, G exponents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everlens.model.snapshot import CURVE_BINS

Numbers = NDArray[np.float64]

# Twice as many labels gain less than that: enough.
ENOUGH = 0.05
# Below so many scored answers nothing is said of a class (`enough`), of all of them (`gain`).
ANSWERS_MIN = 5

# A label halves the error when labels double at β = 1; a class mean's own error falls with β = 1.
_EXPONENT_G = np.linspace(0.0, 1.2, 25)
_EXPONENT = 0.5  # before anything was scored
# What all classes together weigh beside a class's own wrong answers; half an error, since one of
# many may be far worse than they are.
_PRIOR_ERRORS = 0.5
_SPREAD = 0.25  # of the exponent of all around that, and of one class around all
_Z = 1.28  # four of five cases lie between both ends
_CLASSES_A_TURN = 4096

# Labels in the middle of a bin, as factors multiply: 1 label, 2 or 3, 4 to 7, …
LABELS_N = np.array([np.sqrt(2.0**n * (2.0 ** (n + 1) - 1)) for n in range(CURVE_BINS)])


class Outlook(NamedTuple):
    """
    What is expected of each class.

    Args:
        error_C: of the next answer.
        gain_C: what the next label takes off that.
        least_C, most_C: what as many labels again take off it, between which four of five lie.
    """

    error_C: Numbers
    gain_C: Numbers
    least_C: Numbers
    most_C: Numbers


@dataclass(frozen=True, slots=True)
class Trend:
    """What all classes together say: the exponent's probability, and the level with each."""

    log_prior_G: Numbers
    level_G: Numbers


def trend(curve_CN2: NDArray[np.uint8]) -> Trend:
    """Return what the curves of all classes have in common."""
    wrong_N, log_likelihood_G, exposure_G = 0.0, np.zeros(len(_EXPONENT_G)), 0.0
    for start in range(0, len(curve_CN2), _CLASSES_A_TURN):
        part = _Counts.of(curve_CN2[start : start + _CLASSES_A_TURN])
        wrong_N = wrong_N + part.wrong_CN.sum(axis=0)
        log_likelihood_G += part.log_likelihood_CG.sum(axis=0)
        exposure_G = exposure_G + part.exposure_CG.sum(axis=0)
    log_G = log_likelihood_G - ((_EXPONENT_G - _EXPONENT) / _SPREAD) ** 2 / 2
    exponent = float(_softmax(log_G) @ _EXPONENT_G)
    # Half an error in one answer, so that nothing is taken for certain.
    level_G = (np.sum(wrong_N) + 0.5) / (exposure_G + 1.0)
    return Trend(-(((_EXPONENT_G - exponent) / _SPREAD) ** 2) / 2, level_G)


def outlook(curve_CN2: NDArray[np.uint8], labels_C: NDArray[np.int64]) -> Outlook:
    """
    Return what is expected of each class.

    Args:
        curve_CN2: answers scored in each bin, and those of them that were right.
        labels_C: labels learnt, at least one.

    Reference: tests/reference/labelling.py, class by class.
    """
    common = trend(curve_CN2)
    parts = []
    for start in range(0, len(curve_CN2), _CLASSES_A_TURN):
        part = slice(start, start + _CLASSES_A_TURN)
        parts.append(_outlook(_Counts.of(curve_CN2[part]), labels_C[part], common))
    return Outlook(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True, slots=True)
class _Counts:
    """Of some classes: wrong answers, answers as far as each exponent expects errors of them."""

    wrong_CN: Numbers
    exposure_CG: Numbers
    log_likelihood_CG: Numbers  # of the exponent, whatever the level

    @classmethod
    def of(cls, curve_CN2: NDArray[np.uint8]) -> _Counts:
        scored_CN = curve_CN2[:, :, 0].astype(np.float64)
        wrong_CN = scored_CN - curve_CN2[:, :, 1]
        exposure_CG = scored_CN @ LABELS_N[:, None] ** -_EXPONENT_G
        # Given how many were wrong, in which bins they were: the level cancels.
        log_CG = -(wrong_CN @ np.log(LABELS_N))[:, None] * _EXPONENT_G
        # Above nothing by less than an answer counts, where nothing was scored.
        log_CG -= wrong_CN.sum(axis=1)[:, None] * np.log(np.maximum(exposure_CG, 1e-9))
        return cls(wrong_CN, exposure_CG, log_CG)


def _outlook(counts: _Counts, labels_C: NDArray[np.int64], common: Trend) -> Outlook:
    wrong_C1 = counts.wrong_CN.sum(axis=1)[:, None]
    weight_CG = _softmax(counts.log_likelihood_CG + common.log_prior_G)
    shape_C1 = _PRIOR_ERRORS + wrong_C1
    level_CG = shape_C1 / (_PRIOR_ERRORS / common.level_G + counts.exposure_CG)
    n_C1 = labels_C.astype(np.float64)[:, None]
    error_CG = np.minimum(1.0, level_CG * n_C1**-_EXPONENT_G)
    next_CG = 1 - (n_C1 / (n_C1 + 1)) ** _EXPONENT_G
    again_CG = 1 - 2.0**-_EXPONENT_G
    low_C1, high_C1 = _gamma_quantile(shape_C1, -_Z), _gamma_quantile(shape_C1, _Z)
    return Outlook(
        (weight_CG * error_CG).sum(axis=1),
        (weight_CG * error_CG * next_CG).sum(axis=1),
        (weight_CG * np.minimum(1.0, low_C1 * error_CG) * again_CG).sum(axis=1),
        (weight_CG * np.minimum(1.0, high_C1 * error_CG) * again_CG).sum(axis=1),
    )


def _gamma_quantile(shape: Numbers, z: float) -> Numbers:
    """
    Return a quantile of the gamma distribution over its mean.

    Source: Wilson and Hilferty, 1931; within 0.07 of the mean from a shape of a half on.
    """
    return np.maximum(0.0, 1 - 1 / (9 * shape) + z / (3 * np.sqrt(shape))) ** 3


def _softmax(log_XG: Numbers) -> Numbers:
    power_XG = np.exp(log_XG - log_XG.max(axis=-1, keepdims=True))
    return np.asarray(power_XG / power_XG.sum(axis=-1, keepdims=True))
