"""Evidence: sums that do not care for order, and the closed form they make."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from everlens.errors import StateError
from everlens.model.classes import table
from everlens.model.heads import EvidenceHead, class_vectors, evidence_scores
from tests.pictures import digits
from tests.reference import evidence as reference
from worker.learn.evidence import REFUSAL, RIDGE, EvidenceSums, Head, head_of

SAMPLES = 120
# Float64 sums of up to 120 products below one, added in another order.
REORDERED = 1e-12
# The head is float32, and its factor is a triangular inverse of a matrix of condition ~ 1e2.
SINGLE = 2e-5


def digit_features(count: int = SAMPLES) -> tuple[Tensor, list[int]]:
    """The grey levels of written digits stand for features: real, positive and far from unit."""
    features, classes = digits()
    return torch.from_numpy(features[:count]).float(), classes[:count]


def sums_of(feature_BD: Tensor, class_B: list[int]) -> EvidenceSums:
    sums = EvidenceSums(feature_BD.shape[1])
    sums.add(feature_BD, class_B)
    return sums


def served(head: Head) -> EvidenceHead:
    return EvidenceHead(head.factor_DD, table(class_vectors(head.factor_DD, head.mean_CD)))


def assert_same(found: EvidenceSums, expected: EvidenceSums, atol: float = REORDERED) -> None:
    assert found.count_C.tolist() == expected.count_C.tolist()
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(found.tensors()[name], tensor, atol=atol, rtol=0)


@settings(max_examples=20)
@given(
    borders=st.sets(st.integers(1, SAMPLES - 1), max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_blocks_of_any_size_and_order_give_the_batch_solution(borders, order) -> None:
    """However the samples are cut into blocks and shuffled, the sums are the same."""
    feature_BD, class_B = digit_features()
    places = list(range(SAMPLES))
    order.shuffle(places)
    sums = EvidenceSums(feature_BD.shape[1])
    ends = [0, *sorted(borders), SAMPLES]
    for start, end in pairwise(ends):
        block = places[start:end]
        sums.add(feature_BD[block], [class_B[k] for k in block])
    assert_same(sums, sums_of(feature_BD, class_B))


@settings(max_examples=20)
@given(taken=st.sets(st.integers(0, SAMPLES - 1), min_size=1, max_size=40))
def test_subtracting_a_sample_forgets_it(taken: set[int]) -> None:
    """Sums after adding and subtracting samples are those of a learner that never saw them."""
    feature_BD, class_B = digit_features()
    gone, kept = sorted(taken), [k for k in range(SAMPLES) if k not in taken]
    sums = sums_of(feature_BD, class_B)
    sums.subtract(feature_BD[gone], [class_B[k] for k in gone])
    assert_same(sums, sums_of(feature_BD[kept], [class_B[k] for k in kept]))


class Course:
    """What was learnt, refused and forgotten, as the sums have it and as plain lists."""

    def __init__(self) -> None:
        self.feature_BD, self.class_B = digit_features()
        self.sums = EvidenceSums(self.feature_BD.shape[1])
        self.learnt: list[int] = []
        self.refused: list[tuple[int, int]] = []

    def learn(self, places: list[int]) -> None:
        new = [k for k in places if k not in self.learnt]
        if new:
            self.sums.add(self.feature_BD[new], [self.class_B[k] for k in new])
            self.learnt += new

    def refuse(self, place: int, index: int) -> None:
        if index in {self.class_B[k] for k in self.learnt}:
            self.sums.refuse(self.feature_BD[[place]], [index])
            self.refused.append((place, index))

    def forget(self, places: list[int]) -> None:
        old = [k for k in self.learnt if k in places]
        if old:
            self.sums.subtract(self.feature_BD[old], [self.class_B[k] for k in old])
            self.learnt = [k for k in self.learnt if k not in places]
        for place, index in [pair for pair in self.refused if pair[0] in places]:
            self.sums.readmit(self.feature_BD[[place]], [index])
            self.refused.remove((place, index))


places = st.lists(st.integers(0, SAMPLES - 1), min_size=1, max_size=30, unique=True)
courses = st.lists(
    st.tuples(st.just("learn"), places)
    | st.tuples(st.just("refuse"), st.integers(0, SAMPLES - 1), st.integers(0, 9))
    | st.tuples(st.just("forget"), places),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(steps=courses)
def test_whatever_was_forgotten_might_never_have_been(steps: list[tuple[Any, ...]]) -> None:
    """After any course of learning, refusing and forgetting, what is left decides alone."""
    course = Course()
    for how, *what in steps:
        getattr(course, how)(*what)
    features = course.feature_BD.double().numpy()
    left = [course.class_B[k] for k in course.learnt]
    expected = np.zeros((64, 64))
    for k in course.learnt:
        expected += np.outer(reference.unit(features[k]), reference.unit(features[k]))
    assert np.abs(course.sums.gram_DD.numpy() - expected).max() < REORDERED * max(1, len(left))
    for c in range(len(course.sums.count_C)):
        own = [features[k] for k in course.learnt if course.class_B[k] == c]
        assert course.sums.count_C[c] == len(own)
        if own:
            refused = [features[k] for k, index in course.refused if index == c]
            centre = reference.led_away(own, refused)
            total_D = course.sums.total_CD([c])[0].numpy() / len(own)
            assert np.abs(total_D - centre).max() < REORDERED
            assert np.abs(course.sums.mean_CD()[c].numpy() - centre).max() < SINGLE
        else:
            assert not course.sums.mean_CD()[c].any()  # not even what rounding leaves


def test_refused_picture_is_less_of_its_class_and_as_much_of_the_others() -> None:
    """A class is led away from a picture that is not of it; many of them are no more than one label."""
    feature_BD, class_B = digit_features()
    sums, before = sums_of(feature_BD, class_B), head_of(sums_of(feature_BD, class_B))
    scored = []
    for _ in range(3):
        sums.refuse(feature_BD[[7]], [2])
        scored.append(evidence_scores(served(head_of(sums)), feature_BD[[7]], [2, 5]))
    first_BK = evidence_scores(served(before), feature_BD[[7]], [2, 5])
    falling = [float(score_BK[0, 0]) for score_BK in [first_BK, *scored]]
    assert falling == sorted(falling, reverse=True)
    assert all(torch.equal(score_BK[:, 1], first_BK[:, 1]) for score_BK in scored)
    assert torch.equal(sums.gram_DD, sums_of(feature_BD, class_B).gram_DD)
    assert sums.samples == SAMPLES
    sums.refuse(feature_BD[[7]].repeat(500, 1), [2] * 500)
    away = torch.linalg.vector_norm(sums.mean_CD()[2] - before.mean_CD[2])
    assert float(away) < REFUSAL


def test_saved_sums_remember_refusals() -> None:
    """What a commit saves is all of it, and two learners add theirs."""
    feature_BD, class_B = digit_features()
    sums = sums_of(feature_BD, class_B)
    sums.refuse(feature_BD[:5], [4, 4, 1, 2, 4])
    again = EvidenceSums.of(sums.tensors())
    assert torch.equal(again.mean_CD(), sums.mean_CD())
    again.merge(sums)
    assert again.refused[4].count == 6
    assert {c: r.count for c, r in sums.refused.items()} == {4: 3, 1: 1, 2: 1}
    torch.testing.assert_close(again.refused[4].sum_D, 2 * sums.refused[4].sum_D)


@settings(max_examples=20)
@given(border=st.integers(1, SAMPLES - 1))
def test_merging_two_learners_is_learning_all(border: int) -> None:
    """The sums of two learners, added, are those of one that saw both streams."""
    feature_BD, class_B = digit_features()
    one = sums_of(feature_BD[:border], class_B[:border])
    other = sums_of(feature_BD[border:], class_B[border:])
    before = {name: tensor.clone() for name, tensor in other.tensors().items()}
    one.merge(other)
    assert_same(one, sums_of(feature_BD, class_B))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.tensors().items())


def test_merging_makes_room_for_classes_of_either_side() -> None:
    """It does not matter which of the two learners knows more classes."""
    feature_BD, _ = digit_features(4)
    for few, many in ((0, 3), (3, 0)):
        sums = sums_of(feature_BD[:2], [few, few])
        sums.merge(sums_of(feature_BD[2:], [many, many]))
        assert sums.count_C.tolist() == [2, 0, 0, 2]
        assert sums.sum_CD[1:3].abs().sum() == 0


def test_learning_leaves_the_batch_alone() -> None:
    """Features handed over are neither changed nor kept."""
    feature_BD, class_B = digit_features()
    before = feature_BD.clone()
    sums = sums_of(feature_BD, class_B)
    assert torch.equal(feature_BD, before)
    saved = {name: tensor.clone() for name, tensor in sums.tensors().items()}
    feature_BD.zero_()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in sums.tensors().items())


def test_saved_sums_are_the_same_sums() -> None:
    """What a commit saves gives back sums of the same bits, which live on their own."""
    feature_BD, class_B = digit_features()
    sums = sums_of(feature_BD, class_B)
    restored = EvidenceSums.of(sums.tensors())
    assert_same(restored, sums, atol=0)
    restored.add(feature_BD[:1], class_B[:1])
    assert restored.samples == sums.samples + 1 == SAMPLES + 1


def test_factor_is_the_root_of_the_inverse() -> None:
    """PᵀP = (G + I)⁻¹, with P lower triangular."""
    feature_BD, class_B = digit_features()
    factor_DD = sums_of(feature_BD, class_B).factor()
    assert torch.equal(factor_DD, factor_DD.tril())
    assert factor_DD.dtype == torch.float32
    expected_DD = reference.metric(feature_BD.double().numpy())
    found_DD = (factor_DD.double().T @ factor_DD.double()).numpy()
    # Entries of the inverse are at most one; the factor was rounded to float32.
    np.testing.assert_allclose(found_DD, expected_DD, atol=1e-6, rtol=0)


def test_scores_equal_the_inverse_matrix() -> None:
    """The score is the cosine of picture and class mean in the metric of (G + I)⁻¹."""
    feature_BD, class_B = digit_features()
    head = served(head_of(sums_of(feature_BD, class_B)))
    features, queries = feature_BD.double().numpy(), digits()[0][SAMPLES : SAMPLES + 20]
    inverse = reference.metric(features)
    centres = [reference.mean(features, class_B, c) for c in range(10)]
    expected = [[reference.score(q, centre, inverse) for centre in centres] for q in queries]
    found_BC = evidence_scores(head, torch.from_numpy(queries).float(), None)
    np.testing.assert_allclose(found_BC.numpy(), expected, atol=SINGLE, rtol=0)


def test_scores_do_not_depend_on_the_length_of_a_feature() -> None:
    """A feature counts by its direction, when it is learnt and when it is asked about."""
    feature_BD, class_B = digit_features()
    lengths = torch.linspace(0.01, 100, SAMPLES)[:, None]
    head = served(head_of(sums_of(feature_BD, class_B)))
    stretched = served(head_of(sums_of(feature_BD * lengths, class_B)))
    expected_BC = evidence_scores(head, feature_BD, None)
    found_BC = evidence_scores(stretched, feature_BD * lengths, None)
    torch.testing.assert_close(found_BC, expected_BC, atol=SINGLE, rtol=0)


def test_a_count_is_no_advantage() -> None:
    """In one metric, a class that was shown each of its pictures ten times scores as before."""
    feature_BD, class_B = digit_features()
    sums = sums_of(feature_BD, class_B)
    factor_DD = sums.factor()
    expected_BC = evidence_scores(served(head_of(sums, factor_DD)), feature_BD, None)
    sevens = [k for k, c in enumerate(class_B) if c == 7]
    for _ in range(9):
        sums.add(feature_BD[sevens], [7] * len(sevens))
    found_BC = evidence_scores(served(head_of(sums, factor_DD)), feature_BD, None)
    torch.testing.assert_close(found_BC, expected_BC, atol=SINGLE, rtol=0)


def test_rare_classes_are_found_where_ridge_gives_them_away() -> None:
    """With 2 labels against 100, rare digits keep a recall that plain ridge regression loses."""
    features, classes = digits()
    learnt, asked, seen = [], [], dict.fromkeys(range(10), 0)
    for k, c in enumerate(classes):
        seen[c] += 1
        if seen[c] <= (2 if c < 5 else 100):
            learnt.append(k)
        elif c < 5 and seen[c] > 100:
            asked.append(k)
    own = [classes[k] for k in learnt]
    head = served(head_of(sums_of(torch.from_numpy(features[learnt]).float(), own)))
    found_BC = evidence_scores(head, torch.from_numpy(features[asked]).float(), None)
    answers = found_BC.argmax(dim=1).numpy()
    ridge = reference.ridge_scores(features[learnt], own, features[asked]).argmax(axis=1)
    right = np.array([classes[k] for k in asked])
    recall, ridge_recall = float((answers == right).mean()), float((ridge == right).mean())
    assert recall > 0.6
    assert recall > ridge_recall + 0.2


def test_a_class_that_was_never_learnt_scores_nan() -> None:
    """A name without an index, beyond the table, or without a sample here has no score."""
    feature_BD, _ = digit_features(4)
    sums = sums_of(feature_BD, [0, 0, 2, 2])
    head = served(head_of(sums))
    assert torch.equal(head_of(sums).mean_CD[1], torch.zeros(64))
    score_BK = evidence_scores(head, feature_BD, [0, 1, 2, -1, 99])
    assert score_BK.isnan().tolist() == [[False, True, False, True, True]] * 4
    all_BC = evidence_scores(head, feature_BD, None)
    # A product with fewer columns may add in another order.
    torch.testing.assert_close(score_BK[:, [0, 2]], all_BC[:, [0, 2]], atol=1e-6, rtol=0)


def test_a_forgotten_class_scores_nan() -> None:
    """When the last sample of a class is subtracted, the class is unknown again."""
    feature_BD, class_B = digit_features(5)
    sums = sums_of(feature_BD, class_B)
    sums.subtract(feature_BD[[3]], [3])
    assert sums.count_C.tolist() == [1, 1, 1, 0, 1]
    # The difference of two equal float64 numbers is zero, and so is the mean.
    assert evidence_scores(served(head_of(sums)), feature_BD, [3]).isnan().all()


def test_one_class_alone_works() -> None:
    """With a single sample its own picture scores one."""
    feature_BD, _ = digit_features(1)
    head = served(head_of(sums_of(feature_BD, [0])))
    assert float(evidence_scores(head, feature_BD, [0])) == pytest.approx(1.0, abs=SINGLE)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0), (5, 5), (63, 63), (2, 40), (40, 2)])
def test_a_damaged_metric_is_refused(number: float, place: tuple[int, int]) -> None:
    """A number that is not finite anywhere in G stops learning."""
    sums = sums_of(*digit_features())
    sums.gram_DD[place] = number
    with pytest.raises(StateError, match="not finite"):
        sums.factor()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_damaged_sum_is_refused(number: float) -> None:
    """A number that is not finite in a class's sum stops learning too."""
    sums = sums_of(*digit_features())
    sums.sum_CD[3, 17] = number
    with pytest.raises(StateError, match="not finite"):
        head_of(sums)


def test_a_metric_that_is_not_positive_definite_is_refused() -> None:
    """Sums from which more was subtracted than added stop learning."""
    feature_BD, class_B = digit_features()
    sums = EvidenceSums(64)
    sums.subtract(feature_BD, class_B)
    with pytest.raises(StateError, match="positive definite"):
        sums.factor()


@pytest.mark.parametrize("width", [1, 128, 129, 333])
def test_the_factor_is_the_inverse_at_any_width(width: int) -> None:
    """Halves that do not come out even are inverted as well."""
    generator = torch.Generator().manual_seed(0)
    feature_BD = torch.randn(50, width, generator=generator)
    sums = sums_of(feature_BD, [0] * 50)
    factor_DD = sums.factor().double()
    damped_DD = sums.gram_DD + RIDGE * torch.eye(width, dtype=torch.float64)
    identity_DD = factor_DD @ damped_DD @ factor_DD.T
    torch.testing.assert_close(
        identity_DD, torch.eye(width, dtype=torch.float64), atol=SINGLE, rtol=0
    )
    assert torch.equal(factor_DD, factor_DD.tril())
