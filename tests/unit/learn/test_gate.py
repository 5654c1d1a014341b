"""The gate: a picture left out again, a paired test, and who may be published."""

from __future__ import annotations

import math
from statistics import mean, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from everlens.model.classes import table
from everlens.model.fusion import Fusion, Scores, fuse
from everlens.model.heads import EvidenceHead, class_vectors, evidence_scores
from tests.pictures import digits
from worker.learn.evidence import EvidenceSums, head_of
from worker.learn.gate import Comparison, Verdict, Z, compare, right_names, without_itself

FUSION = Fusion(text_center=3.0, text_slope=0.25)


def digit_sums(count: int) -> tuple[torch.Tensor, list[int], EvidenceSums]:
    features, classes = digits()
    feature_BD, class_B = torch.from_numpy(features[:count]).float(), classes[:count]
    sums = EvidenceSums(feature_BD.shape[1])
    sums.add(feature_BD, class_B)
    return feature_BD, class_B, sums


@settings(max_examples=20)
@given(taken=st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True))
def test_leaving_a_picture_out_is_never_having_learnt_it(taken: list[int]) -> None:
    """In the same metric, the class mean without the picture is that of sums without it."""
    feature_BD, class_B, sums = digit_sums(100)
    head = head_of(sums)
    served = EvidenceHead(head.factor_DD, table(class_vectors(head.factor_DD, head.mean_CD)))
    own = [class_B[k] for k in taken]
    found_N = without_itself(served, feature_BD[taken], sums.sum_CD[own], sums.count_C[own])
    for found, place, c in zip(found_N, taken, own, strict=True):
        rest = [k for k in range(100) if k != place]
        refitted = EvidenceSums(64)
        refitted.add(feature_BD[rest], [class_B[k] for k in rest])
        vectors = class_vectors(head.factor_DD, refitted.mean_CD())
        expected = evidence_scores(
            EvidenceHead(head.factor_DD, table(vectors)), feature_BD[place : place + 1], [c]
        )
        # Float32 in another order, after a difference of float64 sums.
        assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_a_picture_flatters_its_own_class() -> None:
    """With itself in the mean a rare class is nearer than without: that is why it is left out."""
    feature_BD, class_B, sums = digit_sums(30)
    head = head_of(sums)
    served = EvidenceHead(head.factor_DD, table(class_vectors(head.factor_DD, head.mean_CD)))
    with_B = evidence_scores(served, feature_BD, None)[torch.arange(30), class_B]
    without_B = without_itself(served, feature_BD, sums.sum_CD[class_B], sums.count_C[class_B])
    assert bool((without_B < with_B).all())


@given(
    pairs=st.lists(
        st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=2, max_size=40
    )
)
def test_the_comparison_is_a_paired_t_statistic(pairs: list[tuple[float, float]]) -> None:
    """Means and standard error are those of the differences, picture by picture."""
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    found = compare(torch.tensor(before).double(), torch.tensor(after).double())
    differences = [a - b for b, a in pairs]
    error = stdev(differences) / math.sqrt(len(pairs))
    assert found.before == pytest.approx(mean(before), abs=1e-12)
    assert found.after == pytest.approx(mean(after), abs=1e-12)
    assert found.error == pytest.approx(error, abs=1e-12)
    if error > 1e-6:
        t = mean(differences) / error
        assert found.worse == (t < -Z) or t == pytest.approx(-Z, abs=1e-6)


def test_pairs_see_what_two_samples_would_not() -> None:
    """A small loss on every picture is worse, however much the pictures differ."""
    before = torch.linspace(0.05, 0.95, 20)
    wobble = torch.tensor([0.01, 0.03] * 10)
    assert compare(before, before - wobble).worse
    assert not compare(before, before + wobble).worse
    assert not compare(before, before).worse


@pytest.mark.parametrize(
    ("test", "worse"),
    [
        (Comparison(0.50, 0.40, 0.05), True),
        (Comparison(0.50, 0.40, 0.0608), False),
        (Comparison(0.50, 0.40, 0.0607), True),
        (Comparison(0.40, 0.50, 0.001), False),
        (Comparison(0.50, 0.50, 0.0), False),
        (Comparison(0.50, 0.4999, 0.0), True),
    ],
)
def test_worse_is_more_than_chance_explains(test: Comparison, worse: bool) -> None:
    """Below by 1.645 standard errors is worse and not published; equal or better never is."""
    assert test.worse is worse
    assert Verdict(20, test).passed is not worse
    assert Verdict(20, test).report() == {
        "published": not worse,
        "held_out": 20,
        "before": test.before,
        "after": test.after,
        "error": test.error,
    }


def test_a_version_that_is_as_good_is_held_back_once_in_twenty_times() -> None:
    """Over 4,000 pairs of equal versions the share is five percent, within chance."""
    generator = torch.Generator().manual_seed(0)
    runs = 4000
    worse = 0
    for _ in range(runs):
        before_N, after_N = torch.rand((2, 40), generator=generator).double()
        worse += compare(before_N, after_N).worse
    # Four standard deviations of a binomial, and what a t of 39 is wider than a normal.
    assert worse / runs == pytest.approx(0.05, abs=0.02)


def test_too_few_pictures_hold_nothing_back() -> None:
    """Without a test the adapter is published, and the record says how many there were."""
    verdict = Verdict(7)
    assert verdict.passed
    assert verdict.report() == {"published": True, "held_out": 7}


@given(seed=st.integers(0, 999), pictures=st.integers(1, 6))
def test_right_names_are_asked_one_picture_at_a_time(seed: int, pictures: int) -> None:
    """Each gets the probability of its class, with its own cosine where its class stands."""
    generator = torch.Generator().manual_seed(seed)
    text_NC, evidence_NC, adapter_NC = torch.rand(
        (3, pictures, 4), generator=generator, dtype=torch.float64
    )
    count_C = torch.tensor([3, 9, 2, 5])
    class_N = torch.randint(4, (pictures,), generator=generator).tolist()
    own_N = torch.rand(pictures, generator=generator, dtype=torch.float64) - 0.5
    scores = Scores(9 * text_NC, evidence_NC, adapter_NC, None, count_C)
    before = evidence_NC.clone()
    found_N = right_names(scores, FUSION, class_N, own_N)
    assert torch.equal(evidence_NC, before)
    for n, c in enumerate(class_N):
        alone = scores.picture(n)
        assert alone.evidence_BK is not None
        changed = alone.evidence_BK.clone()
        changed[0, c] = own_N[n]
        answer = fuse(alone._replace(evidence_BK=changed), FUSION).probability_BK[0, c]
        assert float(found_N[n]) == pytest.approx(float(answer), abs=1e-14)


def test_leaving_out_needs_no_unit_features() -> None:
    """Features of any norm say the same, as they do where they are learnt."""
    feature_BD, class_B, sums = digit_sums(60)
    head = head_of(sums)
    served = EvidenceHead(head.factor_DD, table(class_vectors(head.factor_DD, head.mean_CD)))
    own = (sums.sum_CD[class_B], sums.count_C[class_B])
    unit_BD = functional.normalize(feature_BD, dim=-1)
    torch.testing.assert_close(
        without_itself(served, 7 * unit_BD, *own), without_itself(served, unit_BD, *own)
    )
