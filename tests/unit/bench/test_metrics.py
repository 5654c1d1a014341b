"""Metrics, against slow and obvious twins."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.lab import metrics

ANSWERS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


def probabilities(pictures: int, classes: int, seed: int) -> NDArray[np.float64]:
    powers = np.exp(np.random.default_rng(seed).normal(0, 2, (pictures, classes)))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


@given(answers=ANSWERS)
def test_recalls_by_counting(answers: list[tuple[int, int]]) -> None:
    """Class by class, and their mean."""
    best, label = zip(*answers, strict=True)
    expected = []
    for c in range(6):
        own = [given == c for given, truth in answers if truth == c]
        expected.append(sum(own) / len(own) if own else math.nan)
    found = metrics.class_recalls(best, label, 6)
    np.testing.assert_allclose(found, expected, atol=1e-15)
    known = [recall for recall in expected if not math.isnan(recall)]
    assert metrics.class_mean_accuracy(best, label) == pytest.approx(sum(known) / len(known))


def test_an_answer_outside_the_classes_is_wrong() -> None:
    """Say -1, or the index of a name that no picture has."""
    assert metrics.class_recalls([-1, 7, 1], [0, 1, 1], 2).tolist() == [0.0, 0.5]


@given(
    rows=st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan]), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    )
)
def test_forgetting_class_by_class(rows: list[list[float]]) -> None:
    """Best earlier minus final, where it was ever right and is still asked."""
    lost = []
    for c in range(3):
        earlier = [row[c] for row in rows[:-1] if not math.isnan(row[c])]
        final = rows[-1][c]
        if earlier and max(earlier) > 0 and not math.isnan(final):
            lost.append(max(earlier) - final)
    found = metrics.forgetting(rows)
    if lost:
        assert found == pytest.approx(sum(lost) / len(lost))
    else:
        assert math.isnan(found)


def test_forgetting_by_hand() -> None:
    """Two classes were right before; the third is new, and a gain counts against a loss."""
    assert metrics.forgetting([[0.8, 0.0, 0.0], [0.6, 0.5, 0.0], [0.4, 0.7, 1.0]]) == pytest.approx(
        (0.4 - 0.2) / 2
    )


def test_figures_of_a_stream() -> None:
    """Any time, and at the ends of tasks."""
    accuracy, exam = [0.1, 0.2, 0.6, 0.7], [5, 10, 15, 20]
    assert metrics.any_time(accuracy) == pytest.approx(0.4)
    assert metrics.average_at(accuracy, exam, [10, 20]) == pytest.approx(0.45)


def test_harmonic_mean() -> None:
    """2ab / (a + b), and nothing where either is nothing."""
    assert metrics.harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert metrics.harmonic_mean(0.0, 1.0) == metrics.harmonic_mean(0.0, 0.0) == 0.0


def test_agreement() -> None:
    """The same answer, whatever the truth."""
    assert metrics.agreement([1, 2, 3, 4], [1, 2, 4, 3]) == 0.5


def test_log_loss() -> None:
    """In nats, and finite where a true class was given up."""
    assert metrics.log_loss([[0.5, 0.5], [0.25, 0.75]], [0, 1]) == pytest.approx(
        -(math.log(0.5) + math.log(0.75)) / 2
    )
    assert metrics.log_loss([[0.0, 1.0]], [0]) == pytest.approx(12 * math.log(10))


@given(seed=st.integers(0, 200), bins=st.sampled_from([1, 5, 15]))
def test_calibration_error_bin_by_bin(seed: int, bins: int) -> None:
    """Σ over bins of n/N · |accuracy - confidence|."""
    probability = probabilities(60, 5, seed)
    label = np.random.default_rng(seed + 1).integers(0, 5, 60)
    expected = 0.0
    for k in range(bins):
        inside = [p for p in range(60) if k / bins < probability[p].max() <= (k + 1) / bins]
        if inside:
            right = np.mean([probability[p].argmax() == label[p] for p in inside])
            expected += (
                len(inside) / 60 * abs(right - np.mean([probability[p].max() for p in inside]))
            )
    assert metrics.calibration_error(probability, label, bins) == pytest.approx(expected, abs=1e-12)


def test_a_bin_holds_its_upper_border() -> None:
    """One half belongs to the lower of two bins, where its gap is not evened out."""
    found = metrics.calibration_error([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]], [0, 1], bins=2)
    assert found == pytest.approx((0.5 + 0.9) / 2)


def test_calibration_error_at_its_limits() -> None:
    """Sure and right, sure and wrong, and a score that rounding put above one."""
    sure = np.eye(4)
    assert metrics.calibration_error(sure, [0, 1, 2, 3]) == 0.0
    assert metrics.calibration_error(sure, [1, 2, 3, 0]) == 1.0
    assert metrics.calibration_error(sure * (1 + 1e-15), [0, 1, 2, 3]) == pytest.approx(0.0)


@given(
    scores=st.lists(
        st.tuples(st.sampled_from([-2.0, 0.0, 0.5, 0.5000001, 3.0]), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_auroc_by_counting_pairs(scores: list[tuple[float, bool]]) -> None:
    """Over all pairs of a positive and a negative; a tie is half."""
    positive = [score for score, yes in scores if yes]
    negative = [score for score, yes in scores if not yes]
    found = metrics.auroc([s for s, _ in scores], [yes for _, yes in scores])
    if not positive or not negative:
        assert math.isnan(found)
        return
    wins = [(p > n) + 0.5 * (p == n) for p, n in product(positive, negative)]
    assert found == pytest.approx(sum(wins) / len(wins))


@pytest.mark.parametrize(
    ("freedom", "expected"),
    # Two-sided 5 % points, from printed tables.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)],
)
def test_student_quantile(freedom: int, expected: float) -> None:
    assert metrics.student_quantile(freedom) == pytest.approx(expected, abs=6e-4)


def test_student_quantile_of_another_level() -> None:
    """99 % with one and five degrees of freedom."""
    assert metrics.student_quantile(1, 0.99) == pytest.approx(63.657, abs=6e-4)
    assert metrics.student_quantile(5, 0.99) == pytest.approx(4.032, abs=6e-4)


def test_paired_interval_by_hand() -> None:
    """Mean 2, standard error 1/√3, t of two degrees of freedom; one pair says nothing of spread."""
    mean, half = metrics.paired_interval([1.0, 2.0, 3.0])
    assert mean == pytest.approx(2.0)
    assert half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    mean, half = metrics.paired_interval([1.5])
    assert mean == 1.5
    assert math.isnan(half)


def test_paired_interval_covers_the_mean() -> None:
    """Of many samples of five, about 95 % hold the true mean in their interval."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        mean, half = metrics.paired_interval(generator.normal(0.3, 2.0, 5))
        held += abs(mean - 0.3) <= half
    assert 0.935 < held / 2000 < 0.965
