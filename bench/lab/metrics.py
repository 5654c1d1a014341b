"""
What is measured along a stream and over seeds: pure arithmetic on answers, labels and scores.

Accuracies, recalls, shares and forgetting lie in [0, 1] (forgetting may be below zero: a gain).

Shape suffixes: P test pictures, C classes, R readings along a stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Figures = NDArray[np.float64]
Numbers = NDArray[np.int64]

# Below this a probability is taken for a rounding error of zero; it costs 27.6 nats.
_LEAST_PROBABILITY = 1e-12


def class_recalls(best_P: ArrayLike, label_P: ArrayLike, classes: int) -> Figures:
    """Return recall_C: the share of each class's pictures answered right; NaN without a picture."""
    label = np.asarray(label_P, np.int64)
    right = np.asarray(best_P) == label
    count_C = np.bincount(label, minlength=classes)
    hit_C = np.bincount(label, weights=right, minlength=classes)
    recall_C: Figures = np.divide(
        hit_C, count_C, out=np.full(len(count_C), np.nan), where=count_C > 0
    )
    return recall_C


def class_mean_accuracy(best_P: ArrayLike, label_P: ArrayLike) -> float:
    """Return the mean recall of the classes that have pictures (balanced accuracy)."""
    return float(np.nanmean(class_recalls(best_P, label_P, 0)))


def forgetting(recall_RC: ArrayLike) -> float:
    """
    Return how much was lost: the mean over classes of the best earlier recall less the final one.

    Classes that were never right before are left out, and so are NaN: a class without a picture,
    or one that the caller does not count yet at a reading. NaN where no class is left.

    Source: F_last of Si-Blurry's protocol, where rows are the ends of tasks.
    """
    recall = np.asarray(recall_RC, np.float64)
    best_C = np.nan_to_num(recall[:-1], nan=0.0).max(axis=0, initial=0.0)
    counted_C = (best_C > 0) & ~np.isnan(recall[-1])
    lost_C = (best_C - recall[-1])[counted_C]
    return float(lost_C.mean()) if lost_C.size else math.nan


def any_time(accuracy_R: ArrayLike) -> float:
    """Return A_auc: the mean of all readings, the accuracy at a moment taken at random."""
    return float(np.asarray(accuracy_R, np.float64).mean())


def average_at(accuracy_R: ArrayLike, exam_R: Sequence[int], ends: Sequence[int]) -> float:
    """Return A_avg: the mean of the readings at the ends of tasks (`exam_R` says where each is)."""
    accuracy = np.asarray(accuracy_R, np.float64)
    return float(np.mean([accuracy[list(exam_R).index(end)] for end in ends]))


def harmonic_mean(one: float, other: float) -> float:
    """Return the harmonic mean, of accuracy among labelled and unlabelled names; 0 if either is."""
    return 2 * one * other / (one + other) if one > 0 and other > 0 else 0.0


def agreement(best_P: ArrayLike, other_P: ArrayLike) -> float:
    """Return the share of pictures to which both gave the same answer, right or wrong."""
    return float(np.mean(np.asarray(best_P) == np.asarray(other_P)))


def log_loss(probability_PC: ArrayLike, label_P: ArrayLike) -> float:
    """Return the mean of -log p(true class) over pictures, in nats; p is at least 1e-12."""
    probability = np.asarray(probability_PC, np.float64)
    given_P = probability[np.arange(len(probability)), np.asarray(label_P, np.int64)]
    return float(-np.log(np.maximum(given_P, _LEAST_PROBABILITY)).mean())


def calibration_error(probability_PC: ArrayLike, label_P: ArrayLike, bins: int = 15) -> float:
    """
    Return the expected calibration error: how far the top score is from the share of right answers.

    Pictures fall into bins of equal width by their top score, (0, 1/bins] the first; the gap
    between mean score and accuracy of a bin counts by how many pictures it has.

    Source: Guo and others, 2017 (arXiv 1706.04599).
    """
    probability = np.asarray(probability_PC, np.float64)
    top_P = probability.max(axis=1)
    right_P = probability.argmax(axis=1) == np.asarray(label_P, np.int64)
    # A score that rounding put just above one belongs to the last bin.
    bin_P = np.clip(np.ceil(top_P * bins) - 1, 0, bins - 1).astype(int)
    gap_B = np.bincount(bin_P, weights=right_P - top_P, minlength=bins)
    return float(np.abs(gap_B).sum() / len(top_P))


def auroc(score_P: ArrayLike, positive_P: ArrayLike) -> float:
    """
    Return the chance that a positive scores above a negative, half of it where they tie.

    Area under the ROC curve by the rank sum (Mann and Whitney, 1947). NaN without both kinds.
    """
    score, positive = np.asarray(score_P, np.float64), np.asarray(positive_P, bool)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return math.nan
    _, group_P, count_G = np.unique(score, return_inverse=True, return_counts=True)
    # The mean rank of each group of equal scores, from one.
    rank_G = np.cumsum(count_G) - (count_G - 1) / 2
    surplus = rank_G[group_P][positive].sum() - positives * (positives + 1) / 2
    return float(surplus / (positives * negatives))


def paired_interval(differences: ArrayLike) -> tuple[float, float]:
    """
    Return mean and half-width of the 95 % confidence interval of paired differences (Student's t).

    In the unit of the differences, say points between two systems on the same seed and stream.
    The half-width is NaN for fewer than two. Differences over orders of one test set say how sure
    a figure is on *that* test set, and nothing of other pictures.
    """
    difference = np.asarray(differences, np.float64)
    mean, freedom = float(difference.mean()), len(difference) - 1
    if freedom < 1:
        return mean, math.nan
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return mean, student_quantile(freedom) * error


def student_quantile(freedom: int, inside: float = 0.95) -> float:
    """Return t with P(|T| ≤ t) = `inside` for Student's T of so many degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < inside else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """
    Return P(|T| ≤ t) at the angle arctan(t / √freedom), by a finite sum.

    Source: Abramowitz and Stegun, 26.7.3 (odd) and 26.7.4 (even degrees of freedom).
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    # Odd: cos + 2/3 cos³ + 2·4/(3·5) cos⁵ ...; even: 1 + 1/2 cos² + 1·3/(2·4) cos⁴ ...
    term, total = cosine if odd else 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
