"""Prequential accuracy, against the sum it stands for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.learn.prequential import Prequential


def test_nothing_is_claimed_before_the_first_sample() -> None:
    """Without a scored sample there is no accuracy, not even zero."""
    assert Prequential().accuracy is None
    assert Prequential().recent_accuracy is None


@given(answers=st.lists(st.booleans(), min_size=1, max_size=200))
def test_accuracy_equals_the_weighted_mean(answers: list[bool]) -> None:
    """Overall each sample weighs the same, lately the one n steps ago weighs 0.99 to the n."""
    prequential = Prequential()
    for right in answers:
        prequential.record(right=right)
    assert prequential.accuracy == sum(answers) / len(answers)
    weights = [0.99 ** (len(answers) - 1 - k) for k in range(len(answers))]
    recent = sum(w for w, right in zip(weights, answers, strict=True) if right) / sum(weights)
    # Two hundred float64 additions in another order.
    assert prequential.recent_accuracy == pytest.approx(recent, abs=1e-12)
