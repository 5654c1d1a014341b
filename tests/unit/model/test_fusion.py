"""The fusion: one answer of three experts, and what it never does to a name without a label."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from everlens.model.fusion import Fusion, fuse
from tests.reference import fusion as reference

FUSION = Fusion(kappa=4.0, scale=28.0, threshold=0.2, adapter=0.35)
CONSTANTS = (4.0, 28.0, 0.2, 0.35)


def query(seed: int, pictures: int, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return zero-shot logits, and cosines of evidence and adapter, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (pictures, candidates)
    text, evidence, adapter = (
        torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    return 30 * text, 2 * evidence - 1, 2 * adapter - 1


counts = st.lists(st.sampled_from([0, 0, 1, 2, 7, 5000]), min_size=1, max_size=7)


@given(
    seed=st.integers(0, 10_000),
    count=counts,
    unknown=st.integers(0, 6),
    has=st.sampled_from(["nothing", "adapter", "adapter and text"]),
)
def test_answer_equals_the_loop(seed: int, count: list[int], unknown: int, has: str) -> None:
    """Each row is the answer worked out candidate by candidate, and sums to one."""
    text_BK, evidence_BK, adapter_BK = query(seed, 3, len(count))
    tuned_text_BK, _, _ = query(seed + 1, 3, len(count))
    evidence_BK[:, [k for k, n in enumerate(count) if n == 0]] = math.nan
    for tuned_BK in (adapter_BK, tuned_text_BK):
        tuned_BK[:, unknown % len(count)] = math.nan
    adapter = adapter_BK if "adapter" in has else None
    tuned_text = tuned_text_BK if "text" in has else None
    found_BK = fuse(text_BK, evidence_BK, adapter, tuned_text, torch.tensor(count), FUSION)
    expected = [
        reference.fuse(
            text_BK[b].tolist(),
            evidence_BK[b].tolist(),
            None if adapter is None else adapter[b].tolist(),
            None if tuned_text is None else tuned_text[b].tolist(),
            count,
            CONSTANTS,
        )
        for b in range(3)
    ]
    # Both sides in float64.
    np.testing.assert_allclose(found_BK.numpy(), expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(found_BK.sum(dim=1), torch.ones(3, dtype=torch.float64))


@given(seed=st.integers(0, 10_000), candidates=st.integers(1, 8))
def test_without_a_learnt_class_it_is_zero_shot(seed: int, candidates: int) -> None:
    """Where no candidate has a label the answer is the frozen model's, to the bit."""
    text_BK, evidence_BK, adapter_BK = query(seed, 2, candidates)
    zero_shot_BK = text_BK.softmax(dim=-1)
    none_K = torch.zeros(candidates, dtype=torch.int64)
    assert torch.equal(fuse(text_BK, None, None, None, none_K, FUSION), zero_shot_BK)
    evidence_BK[:] = math.nan
    assert torch.equal(
        fuse(text_BK, evidence_BK, adapter_BK, text_BK, none_K, FUSION), zero_shot_BK
    )


@given(seed=st.integers(0, 10_000), count=st.lists(st.integers(0, 9), min_size=3, max_size=8))
def test_unseen_names_keep_the_ratios_of_the_frozen_model(seed: int, count: list[int]) -> None:
    """Whatever was learnt, names without a label stand to each other as before."""
    unseen = [k for k, n in enumerate(count) if n == 0]
    text_BK, evidence_BK, adapter_BK = query(seed, 2, len(count))
    before_BK = text_BK.softmax(dim=-1)[:, unseen]
    after_BK = fuse(text_BK, evidence_BK, adapter_BK, 2 * text_BK, torch.tensor(count), FUSION)[
        :, unseen
    ]
    expected_BK = before_BK / before_BK.sum(dim=1, keepdim=True)
    found_BK = after_BK / after_BK.sum(dim=1, keepdim=True)
    torch.testing.assert_close(found_BK, expected_BK, atol=1e-12, rtol=1e-9)


def test_unseen_names_keep_their_order_below_a_sure_answer() -> None:
    """In float32, too, names without a label are ranked when a learnt class is all but certain."""
    text_BK = torch.tensor([[30.0, 20.0, 25.0, 15.0]])
    evidence_BK = torch.tensor([[0.9, math.nan, math.nan, math.nan]])
    found_BK = fuse(text_BK, evidence_BK, None, None, torch.tensor([50, 0, 0, 0]), FUSION)
    assert found_BK[0].argsort(descending=True).tolist() == [0, 2, 1, 3]
    assert float(found_BK[0, 3]) > 0


def test_many_labels_mean_evidence_and_few_mean_text() -> None:
    """Among learnt candidates the weight n / (n + κ) leads from the text to the evidence."""
    text_BK, evidence_BK, _ = query(1, 2, 4)
    by_text_BK = text_BK.softmax(dim=-1)
    by_evidence_BK = (FUSION.scale * evidence_BK).softmax(dim=-1)
    many_BK = fuse(text_BK, evidence_BK, None, None, torch.full((4,), 10**12), FUSION)
    torch.testing.assert_close(many_BK, by_evidence_BK, atol=1e-9, rtol=0)
    patient = Fusion(kappa=1e12)
    few_BK = fuse(text_BK, evidence_BK, None, None, torch.ones(4, dtype=torch.int64), patient)
    torch.testing.assert_close(few_BK, by_text_BK, atol=1e-9, rtol=0)
    half_BK = fuse(text_BK, evidence_BK, None, None, torch.full((4,), 4), FUSION)
    torch.testing.assert_close(half_BK, (by_text_BK + by_evidence_BK) / 2)


@given(seed=st.integers(0, 10_000), count=st.lists(st.integers(1, 99), min_size=1, max_size=6))
def test_experts_that_agree_are_the_answer(seed: int, count: list[int]) -> None:
    """When text, evidence and adapter say the same, so does the fusion, at any counts."""
    _, evidence_BK, _ = query(seed, 2, len(count))
    text_BK = FUSION.scale * evidence_BK
    found_BK = fuse(text_BK, evidence_BK, evidence_BK, text_BK, torch.tensor(count), FUSION)
    torch.testing.assert_close(found_BK, text_BK.softmax(dim=-1), atol=1e-12, rtol=0)


def test_a_class_the_adapter_does_not_know_keeps_its_evidence() -> None:
    """NaN from the adapter means the evidence alone, and not a lower score."""
    text_BK, evidence_BK, adapter_BK = query(2, 2, 3)
    count_K = torch.tensor([3, 3, 3])
    adapter_BK[:, 1] = math.nan
    same_BK = adapter_BK.clone()
    same_BK[:, 1] = evidence_BK[:, 1]
    expected_BK = fuse(text_BK, evidence_BK, same_BK, None, count_K, FUSION)
    found_BK = fuse(text_BK, evidence_BK, adapter_BK, None, count_K, FUSION)
    # A share of a number and the rest of it are that number but for a rounding.
    torch.testing.assert_close(found_BK, expected_BK, atol=1e-14, rtol=0)
    adapter_BK[:] = math.nan
    alone_BK = fuse(text_BK, evidence_BK, None, None, count_K, FUSION)
    found_BK = fuse(text_BK, evidence_BK, adapter_BK, adapter_BK, count_K, FUSION)
    assert torch.equal(found_BK, alone_BK)


@given(seed=st.integers(0, 10_000), order=st.permutations(range(5)))
def test_permuting_the_candidates_permutes_the_answer(seed: int, order: list[int]) -> None:
    """The place of a name in the request has no influence."""
    text_BK, evidence_BK, adapter_BK = query(seed, 2, 5)
    count_K = torch.tensor([0, 1, 20, 0, 300])
    expected_BK = fuse(text_BK, evidence_BK, adapter_BK, -text_BK, count_K, FUSION)[:, order]
    found_BK = fuse(
        text_BK[:, order],
        evidence_BK[:, order],
        adapter_BK[:, order],
        -text_BK[:, order],
        count_K[order],
        FUSION,
    )
    torch.testing.assert_close(found_BK, expected_BK, atol=1e-14, rtol=0)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4, -1e4, 1e30])
@pytest.mark.parametrize("count", [[1, 0, 3], [1, 1, 10**9], [0, 0, 1], [0, 0, 0]])
def test_no_logit_is_too_large(size: float, count: list[int]) -> None:
    """Logits of any size in float32 give probabilities: no NaN, none negative, one in all."""
    text_BK = size * torch.tensor([[1.0, -1.0, 0.5], [0.0, 1.0, -1.0]])
    evidence_BK = torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
    found_BK = fuse(
        text_BK, evidence_BK, evidence_BK, text_BK, torch.tensor(count), Fusion(kappa=1.0)
    )
    assert bool((found_BK >= 0).all())
    torch.testing.assert_close(found_BK.sum(dim=1), torch.ones(2))


def test_the_gate_opens_with_nearness() -> None:
    """What goes to learnt classes rises with the nearest one; at the threshold it is M itself."""
    text_BK = torch.tensor([[3.0, 2.0, 4.0]], dtype=torch.float64).expand(3, 3)
    evidence_BK = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64) - torch.tensor(
        [[0.0, 0.05, math.nan]], dtype=torch.float64
    )
    learnt_B = fuse(text_BK, evidence_BK, None, None, torch.tensor([5, 5, 0]), FUSION)[:, :2].sum(
        dim=1
    )
    assert learnt_B[0] < learnt_B[1] < learnt_B[2]
    mass = math.exp(3) + math.exp(2)
    assert float(learnt_B[1]) == pytest.approx(mass / (mass + math.exp(4)), abs=1e-12)


def test_nothing_that_was_handed_over_is_changed() -> None:
    """The experts' scores are read, never written to."""
    text_BK, evidence_BK, adapter_BK = query(3, 2, 4)
    count_K = torch.tensor([0, 1, 2, 0])
    copies = [t.clone() for t in (text_BK, evidence_BK, adapter_BK, count_K)]
    fuse(text_BK, evidence_BK, adapter_BK, text_BK, count_K, FUSION)
    for tensor, copy in zip((text_BK, evidence_BK, adapter_BK, count_K), copies, strict=True):
        assert torch.equal(tensor, copy)
