"""Prequential accuracy and records of classes, against the sums they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlens.model.snapshot import CURVE_BINS
from worker.learn.prequential import BEST_AFTER, EXPERTS, ClassRecords, Prequential


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


def test_no_class_has_a_record_before_its_first_sample() -> None:
    """Recall is not a number then, and not zero; the means over classes are unknown."""
    records = ClassRecords()
    assert (records.forgetting, records.expert_recall) == (None, dict.fromkeys(EXPERTS))
    records.make_room(2)
    assert (records.forgetting, records.expert_recall) == (None, dict.fromkeys(EXPERTS))
    records.record(3, right=True, experts=[True, False, True], labels=1)
    assert records.recall_C.isnan().tolist() == [True, True, True, False]
    assert records.expert_CX.isnan().tolist() == [[True] * 3] * 3 + [[False] * 3]
    assert records.forgetting_C.isnan().all()
    assert records.expert_recall == {"zero_shot": 1.0, "evidence": 0.0, "adapter": 1.0}


answers = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.lists(st.booleans(), min_size=3, max_size=3)),
    min_size=1,
    max_size=60,
)


@given(scored=answers)
def test_class_records_equal_a_loop(scored: list[tuple[int, bool, list[bool]]]) -> None:
    """Each class apart: the answer n samples of it ago weighs 0.9 to the n, the best is kept."""
    records = ClassRecords()
    of_class: dict[int, list[tuple[bool, list[bool]]]] = {}
    best: dict[int, float] = {}

    def recall(history: list[bool]) -> float:
        weights = [0.9**age for age in range(len(history))][::-1]
        return sum(w for w, right in zip(weights, history, strict=True) if right) / sum(weights)

    for c, right, experts in scored:
        records.record(c, right=right, experts=experts, labels=len(of_class.get(c, [])) + 1)
        of_class.setdefault(c, []).append((right, experts))
        if len(of_class[c]) >= BEST_AFTER:
            best[c] = max(best.get(c, 0.0), recall([r for r, _ in of_class[c]]))
    for c in range(len(records.record_CK)):
        if c not in of_class:
            assert records.recall_C[c].isnan()
            continue
        present = recall([right for right, _ in of_class[c]])
        assert float(records.recall_C[c]) == pytest.approx(present, abs=1e-12)
        for x in range(len(EXPERTS)):
            alone = recall([experts[x] for _, experts in of_class[c]])
            assert float(records.expert_CX[c, x]) == pytest.approx(alone, abs=1e-12)
        if c in best:
            assert float(records.forgetting_C[c]) == pytest.approx(best[c] - present, abs=1e-12)
        else:
            assert records.forgetting_C[c].isnan()
    for c, history in of_class.items():
        for place in range(CURVE_BINS):
            in_bin = [r for n, (r, _) in enumerate(history, 1) if 2**place <= n < 2 ** (place + 1)]
            assert records.curve_CN2[c, place].tolist() == [len(in_bin), sum(in_bin)]
    if best:
        forgotten = [float(records.forgetting_C[c]) for c in best]
        assert records.forgetting == pytest.approx(sum(forgotten) / len(best), abs=1e-4)
    else:
        assert records.forgetting is None


def test_a_lucky_first_answer_is_not_forgotten() -> None:
    """A best counts from the fifth sample on: before that a wrong answer forgets nothing."""
    records = ClassRecords()
    forgotten = []
    for right in (True, False, False, False, False, False):
        records.record(0, right=right, experts=[right] * 3, labels=1)
        forgotten.append(records.forgetting)
    # The fifth sample's recall is the best so far.
    assert forgotten[:5] == [None, None, None, None, 0.0]
    assert forgotten[5] == pytest.approx(1.0 * 0.9**4 / 4.0951 - 0.9**5 / 4.68559, abs=1e-4)


def test_what_was_known_and_is_no_longer_counts_as_forgotten() -> None:
    """After ten right answers and many wrong ones the class has lost all it had."""
    records = ClassRecords()
    for right in [True] * 10 + [False] * 60:
        records.record(0, right=right, experts=[right, True, False], labels=1)
    assert records.forgetting == pytest.approx(1.0, abs=0.01)
    assert records.expert_recall["evidence"] == 1.0
    assert records.expert_recall["adapter"] == 0.0


def test_a_curve_keeps_its_recall_however_many_answers_there_were() -> None:
    """The last bin has no end: its two numbers are halved, and stay within a byte."""
    records = ClassRecords()
    for k in range(3000):
        records.record(0, right=k % 4 != 0, experts=[True] * 3, labels=512 + k)
    scored, right = records.curve_CN2[0, -1].tolist()
    assert 128 <= scored <= 255
    assert right / scored == pytest.approx(0.75, abs=0.02)
    assert int(records.curve_CN2[0, :-1].sum()) == 0
    records.record(0, right=False, experts=[True] * 3, labels=511)
    assert records.curve_CN2[0, -2].tolist() == [1, 0]


def test_what_is_committed_of_a_class_is_taken_over() -> None:
    """Record and curve of one class come back, and those of others stay."""
    records, other = ClassRecords(), ClassRecords()
    for labels in (1, 2, 5):
        records.record(1, right=labels > 1, experts=[True, False, True], labels=labels)
    other.make_room(2)
    other.load(1, records.tensors(1))
    assert other.record_CK.equal(records.record_CK)
    assert other.curve_CN2.equal(records.curve_CN2)


def test_a_class_that_begins_anew_keeps_nothing() -> None:
    """Neither figures nor curve of a deleted class are those of the next with its name."""
    records, fresh = ClassRecords(), ClassRecords()
    records.record(0, right=True, experts=[True, False, True], labels=1)
    records.forget(0)
    fresh.make_room(1)
    assert records.record_CK.equal(fresh.record_CK)
    assert records.curve_CN2.equal(fresh.curve_CN2)
