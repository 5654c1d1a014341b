"""The fusion: one answer of three experts, and what it never does to a name without a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from everlens.model.fusion import Fused, Fusion, Scores, expert_shares, fuse
from tests.reference import fusion as reference

FUSION = Fusion(
    kappa=4.0,
    text_power=0.3,
    sharpness=1.5,
    scale=28.0,
    adapter=0.35,
    threshold=0.2,
    slope=20.0,
    text_center=12.0,
    text_slope=0.25,
)
# A mixture of the experts and nothing else.
PLAIN = replace(FUSION, text_power=0.0, sharpness=1.0)


def query(seed: int, pictures: int, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return zero-shot logits, and cosines of evidence and adapter, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (pictures, candidates)
    text, evidence, adapter = (
        torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    return 30 * text, 2 * evidence - 1, 2 * adapter - 1


def answered(
    text_BK: Tensor,
    evidence_BK: Tensor | None,
    adapter_BK: Tensor | None,
    tuned_text_BK: Tensor | None,
    count: Sequence[int],
    fusion: Fusion = FUSION,
) -> Fused:
    count_K = torch.tensor(list(count), dtype=torch.int64)
    return fuse(Scores(text_BK, evidence_BK, adapter_BK, tuned_text_BK, count_K), fusion)


def probabilities(
    text_BK: Tensor,
    evidence_BK: Tensor | None,
    adapter_BK: Tensor | None,
    tuned_text_BK: Tensor | None,
    count: Sequence[int],
    fusion: Fusion = FUSION,
) -> Tensor:
    fused = answered(text_BK, evidence_BK, adapter_BK, tuned_text_BK, count, fusion)
    return fused.probability_BK


counts = st.lists(st.sampled_from([0, 0, 1, 2, 7, 5000]), min_size=1, max_size=7)
fusions = st.builds(
    Fusion,
    kappa=st.floats(0.25, 16),
    text_power=st.sampled_from([0.0, 0.3, 1.0]),
    sharpness=st.floats(0.5, 2.8),
    scale=st.floats(5, 40),
    adapter=st.floats(0, 1),
    threshold=st.floats(-0.2, 0.6),
    slope=st.floats(-5, 60),
    text_center=st.floats(0, 40),
    text_slope=st.sampled_from([0.0, 0.25]),
)


@given(
    seed=st.integers(0, 10_000),
    count=counts,
    unknown=st.integers(0, 6),
    has=st.sampled_from(["nothing", "adapter", "adapter and text"]),
    fusion=fusions,
)
def test_answer_equals_the_loop(
    seed: int, count: list[int], unknown: int, has: str, fusion: Fusion
) -> None:
    """Each row is the answer worked out candidate by candidate, and sums to one."""
    text_BK, evidence_BK, adapter_BK = query(seed, 3, len(count))
    tuned_text_BK, _, _ = query(seed + 1, 3, len(count))
    evidence_BK[:, [k for k, n in enumerate(count) if n == 0]] = math.nan
    for tuned_BK in (adapter_BK, tuned_text_BK):
        tuned_BK[:, unknown % len(count)] = math.nan
    adapter = adapter_BK if "adapter" in has else None
    tuned_text = tuned_text_BK if "text" in has else None
    found = answered(text_BK, evidence_BK, adapter, tuned_text, count, fusion)
    expected = [
        reference.fuse(
            text_BK[b].tolist(),
            evidence_BK[b].tolist(),
            None if adapter is None else adapter[b].tolist(),
            None if tuned_text is None else tuned_text[b].tolist(),
            count,
            reference.Constants(*astuple(fusion)),
        )
        for b in range(3)
    ]
    # Both sides in float64; a hundred nats of slope and cosine make its rounding ten times larger.
    answer = [probability for probability, _ in expected]
    np.testing.assert_allclose(found.probability_BK.numpy(), answer, atol=1e-12, rtol=1e-9)
    known = [known for _, known in expected]
    np.testing.assert_allclose(found.known_B.numpy(), known, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(
        found.probability_BK.sum(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0
    )


@given(seed=st.integers(0, 10_000), candidates=st.integers(1, 8))
def test_without_a_learnt_class_it_is_zero_shot(seed: int, candidates: int) -> None:
    """Where no candidate has a label the answer is the frozen model's, to the bit."""
    text_BK, evidence_BK, adapter_BK = query(seed, 2, candidates)
    zero_shot_BK = text_BK.softmax(dim=-1)
    none = [0] * candidates
    assert torch.equal(probabilities(text_BK, None, None, None, none), zero_shot_BK)
    evidence_BK[:] = math.nan
    found = answered(text_BK, evidence_BK, adapter_BK, text_BK, none)
    assert torch.equal(found.probability_BK, zero_shot_BK)
    assert found.known_B.tolist() == [0.0, 0.0]


@given(seed=st.integers(0, 10_000), count=st.lists(st.integers(0, 9), min_size=3, max_size=8))
def test_unseen_names_keep_the_ratios_of_the_frozen_model(seed: int, count: list[int]) -> None:
    """Whatever was learnt, names without a label stand to each other as before."""
    unseen = [k for k, n in enumerate(count) if n == 0]
    text_BK, evidence_BK, adapter_BK = query(seed, 2, len(count))
    before_BK = text_BK.softmax(dim=-1)[:, unseen]
    after_BK = probabilities(text_BK, evidence_BK, adapter_BK, 2 * text_BK, count)[:, unseen]
    expected_BK = before_BK / before_BK.sum(dim=1, keepdim=True)
    found_BK = after_BK / after_BK.sum(dim=1, keepdim=True)
    torch.testing.assert_close(found_BK, expected_BK, atol=1e-12, rtol=1e-9)


def test_unseen_names_keep_their_order_below_a_sure_answer() -> None:
    """In float32, too, names without a label are ranked when a learnt class is all but certain."""
    text_BK = torch.tensor([[30.0, 20.0, 25.0, 15.0]])
    evidence_BK = torch.tensor([[0.9, math.nan, math.nan, math.nan]])
    found_BK = probabilities(text_BK, evidence_BK, None, None, [50, 0, 0, 0])
    assert found_BK[0].argsort(descending=True).tolist() == [0, 2, 1, 3]
    assert float(found_BK[0, 3]) > 0


def test_many_labels_mean_evidence_and_few_mean_text() -> None:
    """Among learnt candidates the weight n / (n + κ) leads from the text to the evidence."""
    text_BK, evidence_BK, _ = query(1, 2, 4)
    by_text_BK = text_BK.softmax(dim=-1)
    by_evidence_BK = (PLAIN.scale * evidence_BK).softmax(dim=-1)
    many_BK = probabilities(text_BK, evidence_BK, None, None, [10**12] * 4, PLAIN)
    torch.testing.assert_close(many_BK, by_evidence_BK, atol=1e-9, rtol=0)
    patient = replace(PLAIN, kappa=1e12)
    few_BK = probabilities(text_BK, evidence_BK, None, None, [1] * 4, patient)
    torch.testing.assert_close(few_BK, by_text_BK, atol=1e-9, rtol=0)
    hasty = replace(PLAIN, kappa=1e-12)
    one_BK = probabilities(text_BK, evidence_BK, None, None, [1] * 4, hasty)
    torch.testing.assert_close(one_BK, by_evidence_BK, atol=1e-9, rtol=0)
    half_BK = probabilities(text_BK, evidence_BK, None, None, [4] * 4, PLAIN)
    torch.testing.assert_close(half_BK, (by_text_BK + by_evidence_BK) / 2)


def test_the_text_has_a_say_at_any_count() -> None:
    """With evidence alone in the mixture, the power multiplies p0^b into it; a huge one decides."""
    text_BK, evidence_BK, _ = query(5, 2, 4)
    evidence_logit_BK = PLAIN.scale * evidence_BK
    # Kappa is lost in rounding: the mixture is the evidence to the last bit.
    evidence_only = replace(PLAIN, kappa=1e-12)
    for power in (0.15, 1.0):
        fusion = replace(evidence_only, text_power=power)
        found_BK = probabilities(text_BK, evidence_BK, None, None, [10**12] * 4, fusion)
        expected_BK = (evidence_logit_BK + power * text_BK).softmax(dim=-1)
        torch.testing.assert_close(found_BK, expected_BK, atol=1e-9, rtol=0)
    fusion = replace(evidence_only, text_power=1e6)
    found_BK = probabilities(text_BK, evidence_BK, None, None, [10**12] * 4, fusion)
    assert found_BK.argmax(dim=1).tolist() == text_BK.argmax(dim=1).tolist()
    assert found_BK.max(dim=1).values.tolist() == [1.0, 1.0]


def test_sharpness_leads_from_all_alike_to_the_best_alone() -> None:
    """It is a power of the answer among learnt classes: the order stays, zero makes all alike."""
    text_BK, evidence_BK, _ = query(6, 3, 4)
    plain_BK = probabilities(text_BK, evidence_BK, None, None, [1, 2, 3, 4], PLAIN)
    for sharpness in (0.5, 2.8):
        fusion = replace(PLAIN, sharpness=sharpness)
        found_BK = probabilities(text_BK, evidence_BK, None, None, [1, 2, 3, 4], fusion)
        power_BK = plain_BK**sharpness
        torch.testing.assert_close(found_BK, power_BK / power_BK.sum(dim=1, keepdim=True))
        assert torch.equal(found_BK.argsort(dim=1), plain_BK.argsort(dim=1))
    flat = replace(PLAIN, sharpness=0.0)
    found_BK = probabilities(text_BK, evidence_BK, None, None, [1, 2, 3, 4], flat)
    torch.testing.assert_close(found_BK, torch.full((3, 4), 0.25, dtype=torch.float64))
    sure = replace(PLAIN, sharpness=1e9)
    found_BK = probabilities(text_BK, evidence_BK, None, None, [1, 2, 3, 4], sure)
    assert found_BK.max(dim=1).values.tolist() == [1.0, 1.0, 1.0]


@given(seed=st.integers(0, 10_000), count=st.lists(st.integers(1, 99), min_size=1, max_size=6))
def test_experts_that_agree_are_the_answer(seed: int, count: list[int]) -> None:
    """When text, evidence and adapter say the same, so does their mixture, at any counts."""
    _, evidence_BK, _ = query(seed, 2, len(count))
    text_BK = PLAIN.scale * evidence_BK
    found_BK = probabilities(text_BK, evidence_BK, evidence_BK, text_BK, count, PLAIN)
    torch.testing.assert_close(found_BK, text_BK.softmax(dim=-1), atol=1e-12, rtol=0)
    # With a power of the text and a sharpness it is that answer to the power of both.
    found_BK = probabilities(text_BK, evidence_BK, evidence_BK, text_BK, count)
    power = FUSION.sharpness * (1 + FUSION.text_power)
    torch.testing.assert_close(found_BK, (power * text_BK).softmax(dim=-1), atol=1e-12, rtol=0)


@given(seed=st.integers(0, 10_000), count=counts, fusion=fusions)
def test_no_adapter_reaches_names_without_a_label(
    seed: int, count: list[int], fusion: Fusion
) -> None:
    """What they get, and that the picture is of a learnt class, is the same bits without one."""
    text_BK, evidence_BK, adapter_BK = query(seed, 2, len(count))
    unseen = [k for k, n in enumerate(count) if n == 0]
    without = answered(text_BK, evidence_BK, None, None, count, fusion)
    adapter_BK[0] = 1e3
    for adapter, tuned_text in ((adapter_BK, None), (adapter_BK, -9 * text_BK)):
        found = answered(text_BK, evidence_BK, adapter, tuned_text, count, fusion)
        assert torch.equal(found.probability_BK[:, unseen], without.probability_BK[:, unseen])
        if unseen:
            assert torch.equal(found.known_B, without.known_B)


@given(seed=st.integers(0, 10_000), count=counts)
def test_known_is_what_learnt_names_get_where_others_are_asked_for(
    seed: int, count: list[int]
) -> None:
    """Beside names without a label it is the sum over the learnt ones; without any it is none."""
    text_BK, evidence_BK, adapter_BK = query(seed, 2, len(count))
    found = answered(text_BK, evidence_BK, adapter_BK, None, count)
    learnt = [k for k, n in enumerate(count) if n > 0]
    if 0 < len(learnt) < len(count):
        share_B = found.probability_BK[:, learnt].sum(dim=1)
        torch.testing.assert_close(found.known_B, share_B, atol=1e-12, rtol=0)
    elif not learnt:
        assert found.known_B.tolist() == [0.0, 0.0]
    else:
        assert bool((found.known_B < 1).all())
        torch.testing.assert_close(
            found.probability_BK.sum(dim=1), torch.ones(2, dtype=torch.float64)
        )


def test_known_without_other_names_goes_by_nearness_and_the_best_text() -> None:
    """Among learnt names alone: a half at threshold and centre, and more with either of both."""
    best_and_nearest = [(12.0, 0.2), (12.0, 0.3), (14.0, 0.2), (12.0, 0.1)]
    text_BK = torch.tensor([[3.0, best] for best, _ in best_and_nearest], dtype=torch.float64)
    evidence_BK = torch.tensor(
        [[nearest, nearest - 0.1] for _, nearest in best_and_nearest], dtype=torch.float64
    )
    known_B = answered(text_BK, evidence_BK, None, None, [3, 1]).known_B
    for found, logit in zip(known_B.tolist(), (0.0, 20 * 0.1, 0.25 * 2, -20 * 0.1), strict=True):
        assert found == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12)
    blind = replace(FUSION, text_slope=0.0)
    known_B = answered(text_BK, evidence_BK, None, None, [3, 1], blind).known_B
    assert known_B[0] == known_B[2] == 0.5


def test_a_class_the_adapter_does_not_know_keeps_its_evidence() -> None:
    """NaN from the adapter means the evidence alone, and not a lower score."""
    text_BK, evidence_BK, adapter_BK = query(2, 2, 3)
    count = [3, 3, 3]
    adapter_BK[:, 1] = math.nan
    same_BK = adapter_BK.clone()
    same_BK[:, 1] = evidence_BK[:, 1]
    expected_BK = probabilities(text_BK, evidence_BK, same_BK, None, count)
    found_BK = probabilities(text_BK, evidence_BK, adapter_BK, None, count)
    # A share of a number and the rest of it are that number but for a rounding.
    torch.testing.assert_close(found_BK, expected_BK, atol=1e-14, rtol=0)
    adapter_BK[:] = math.nan
    alone_BK = probabilities(text_BK, evidence_BK, None, None, count)
    found_BK = probabilities(text_BK, evidence_BK, adapter_BK, adapter_BK, count)
    assert torch.equal(found_BK, alone_BK)


@given(seed=st.integers(0, 10_000), order=st.permutations(range(5)))
def test_permuting_the_candidates_permutes_the_answer(seed: int, order: list[int]) -> None:
    """The place of a name in the request has no influence."""
    text_BK, evidence_BK, adapter_BK = query(seed, 2, 5)
    count = [0, 1, 20, 0, 300]
    expected = answered(text_BK, evidence_BK, adapter_BK, -text_BK, count)
    found = answered(
        text_BK[:, order],
        evidence_BK[:, order],
        adapter_BK[:, order],
        -text_BK[:, order],
        [count[k] for k in order],
    )
    expected_BK = expected.probability_BK[:, order]
    torch.testing.assert_close(found.probability_BK, expected_BK, atol=1e-14, rtol=0)
    torch.testing.assert_close(found.known_B, expected.known_B, atol=1e-14, rtol=0)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4, -1e4, 1e30])
@pytest.mark.parametrize("count", [[1, 0, 3], [1, 1, 10**9], [0, 0, 1], [0, 0, 0]])
def test_no_logit_is_too_large(size: float, count: list[int]) -> None:
    """Logits of any size in float32 give probabilities: no NaN, none negative, one in all."""
    text_BK = size * torch.tensor([[1.0, -1.0, 0.5], [0.0, 1.0, -1.0]])
    evidence_BK = torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
    found = answered(text_BK, evidence_BK, evidence_BK, text_BK, count)
    assert bool((found.probability_BK >= 0).all())
    torch.testing.assert_close(found.probability_BK.sum(dim=1), torch.ones(2))
    assert bool(((found.known_B >= 0) & (found.known_B <= 1)).all())


def test_the_gate_opens_with_nearness() -> None:
    """What goes to learnt classes rises with the nearest one; at the threshold it is M itself."""
    text_BK = torch.tensor([[3.0, 2.0, 4.0]], dtype=torch.float64).expand(3, 3)
    evidence_BK = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64) - torch.tensor(
        [[0.0, 0.05, math.nan]], dtype=torch.float64
    )
    learnt_B = answered(text_BK, evidence_BK, None, None, [5, 5, 0]).known_B
    assert learnt_B[0] < learnt_B[1] < learnt_B[2]
    mass = math.exp(3) + math.exp(2)
    assert float(learnt_B[1]) == pytest.approx(mass / (mass + math.exp(4)), abs=1e-12)


def test_nothing_that_was_handed_over_is_changed() -> None:
    """The experts' scores are read, never written to."""
    text_BK, evidence_BK, adapter_BK = query(3, 2, 4)
    copies = [t.clone() for t in (text_BK, evidence_BK, adapter_BK)]
    answered(text_BK, evidence_BK, adapter_BK, text_BK, [0, 1, 2, 0])
    for tensor, copy in zip((text_BK, evidence_BK, adapter_BK), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_one_picture_of_a_batch_has_its_scores() -> None:
    """A row of the scores answers as it did among the others, whatever experts there are."""
    text_BK, evidence_BK, adapter_BK = query(4, 3, 4)
    count_K = torch.tensor([2, 0, 5, 1])
    for scores in (
        Scores(text_BK, evidence_BK, adapter_BK, 2 * text_BK, count_K),
        Scores(text_BK, evidence_BK, None, None, count_K),
        Scores(text_BK, None, None, None, count_K),
    ):
        whole = fuse(scores, FUSION)
        for row in range(3):
            alone = fuse(scores.picture(row), FUSION)
            assert torch.equal(alone.probability_BK[0], whole.probability_BK[row])
            assert torch.equal(alone.known_B[0], whole.known_B[row])


def shared(
    text_BK: Tensor,
    evidence_BK: Tensor | None,
    adapter_BK: Tensor | None,
    tuned_text_BK: Tensor | None,
    count: Sequence[int],
    fusion: Fusion = FUSION,
) -> Tensor:
    count_K = torch.tensor(list(count), dtype=torch.int64)
    return expert_shares(Scores(text_BK, evidence_BK, adapter_BK, tuned_text_BK, count_K), fusion)


@given(
    seed=st.integers(0, 10_000),
    count=counts,
    unknown=st.integers(0, 6),
    has=st.sampled_from(["nothing", "adapter", "adapter and text"]),
    fusion=fusions,
)
def test_a_share_is_what_a_rise_of_one_expert_does_to_the_score(
    seed: int, count: list[int], unknown: int, has: str, fusion: Fusion
) -> None:
    """Each is the rise that the loop finds over the rises of all; together they are one."""
    text_BK, evidence_BK, adapter_BK = query(seed, 2, len(count))
    tuned_text_BK, _, _ = query(seed + 1, 2, len(count))
    evidence_BK[:, [k for k, n in enumerate(count) if n == 0]] = math.nan
    for tuned_BK in (adapter_BK, tuned_text_BK):
        tuned_BK[:, unknown % len(count)] = math.nan
    adapter = adapter_BK if "adapter" in has else None
    tuned_text = tuned_text_BK if "text" in has else None
    found_BKX = shared(text_BK, evidence_BK, adapter, tuned_text, count, fusion)
    expected = [
        reference.shares(
            text_BK[b].tolist(),
            evidence_BK[b].tolist(),
            None if adapter is None else adapter[b].tolist(),
            None if tuned_text is None else tuned_text[b].tolist(),
            count,
            reference.Constants(*astuple(fusion)),
        )
        for b in range(2)
    ]
    # The loop's are finite differences: a millionth of curvature, and rounding over a millionth.
    np.testing.assert_allclose(found_BKX.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(found_BKX.sum(dim=-1).numpy(), 1.0, atol=1e-12)
    assert bool((found_BKX >= 0).all())


def test_shares_are_the_mixtures_where_the_text_has_no_second_say() -> None:
    """With b = 0 the text's share is its part of the mixture; a name without a label is all text."""
    text_BK, evidence_BK, adapter_BK = query(7, 2, 4)
    count = [1, 0, 20, 3]
    share_BKX = shared(text_BK, evidence_BK, adapter_BK, None, count, PLAIN)
    assert share_BKX[:, 1].tolist() == [[1.0, 0.0, 0.0]] * 2
    learnt = [0, 2, 3]
    cosine_BK = (1 - PLAIN.adapter) * evidence_BK + PLAIN.adapter * adapter_BK
    by_text_BK = text_BK[:, learnt].softmax(dim=-1)
    by_cosine_BK = (PLAIN.scale * cosine_BK[:, learnt]).softmax(dim=-1)
    weight_K = torch.tensor([count[k] / (count[k] + PLAIN.kappa) for k in learnt])
    text_part_BK = (1 - weight_K) * by_text_BK
    expected_BK = text_part_BK / (text_part_BK + weight_K * by_cosine_BK)
    torch.testing.assert_close(share_BKX[:, learnt, 0], expected_BK)
    rest_BK = 1 - expected_BK
    torch.testing.assert_close(share_BKX[:, learnt, 2], PLAIN.adapter * rest_BK)
    # Without anything learnt, and before there is an adapter, nobody else has a share.
    assert shared(text_BK, None, None, None, [0] * 4)[..., 0].min() == 1
    assert shared(text_BK, evidence_BK, None, None, count)[..., 2].max() == 0


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4, -1e4, 1e30])
def test_no_logit_is_too_large_to_be_shared(size: float) -> None:
    """Logits of any size in float32 give shares: no NaN, none negative, one in all."""
    text_BK = size * torch.tensor([[1.0, -1.0, 0.5], [0.0, 1.0, -1.0]])
    evidence_BK = torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
    for fusion in (FUSION, replace(FUSION, kappa=0.0)):
        share_BKX = shared(text_BK, evidence_BK, evidence_BK, text_BK, [1, 0, 3], fusion)
        assert bool((share_BKX >= 0).all())
        torch.testing.assert_close(share_BKX.sum(dim=-1), torch.ones(2, 3))
