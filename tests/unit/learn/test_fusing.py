"""Learning the fusion: the grid against the fusion itself, and what it makes of a stream."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from everlens.model.fusion import Fusion, Scores
from tests.reference import fusing as reference
from tests.reference.fusion import Constants
from worker.learn import fusing
from worker.learn.fusing import (
    HALF_LIFE,
    KAPPA,
    NOISE,
    SHARPNESS,
    TEXT_POWER,
    TEXT_SLOPE,
    FusionLearner,
    grid_losses,
    prior,
    unravel,
)

BEGIN = Fusion()
CLIP = Fusion(text_power=0.3)  # what an open_clip model begins with
AXES = (KAPPA, TEXT_POWER, SHARPNESS, NOISE)


def random_scores(seed: int, classes: int, *, tuned: bool = False, pictures: int = 1) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    shape = (pictures, classes)
    text, evidence, adapter, tuned_text = (
        torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    count = torch.randint(1, 40, (classes,), generator=generator)
    adapter[:, 0] = math.nan  # a class that came after the adapter was fitted
    if not tuned:
        return Scores(12 * text, evidence - 0.2, None, None, count)
    return Scores(12 * text, evidence - 0.2, adapter - 0.2, 12 * tuned_text, count)


def stream(
    samples: int, *, right: str, flipped: float = 0.0, classes: int = 6, count: int = 4
) -> tuple[Scores, list[int]]:
    """
    Return scores of one expert that is right and another that is random, and the labels.

    Args:
        samples: how many pictures.
        right: `text`, `evidence` or `both`.
        flipped: the share of labels that are drawn from all classes alike.
        classes, count: how many classes, and how many labels of each are learnt.
    """
    generator = torch.Generator().manual_seed(0)
    text, evidence = torch.randn((2, samples, classes), generator=generator, dtype=torch.float64)
    class_B = torch.randint(classes, (samples,), generator=generator)
    own_BC = torch.nn.functional.one_hot(class_B, classes)
    text = 2 * text + 6 * own_BC * (right != "evidence")
    evidence = 0.1 * evidence + 0.4 * own_BC * (right != "text")
    other_B = torch.randint(classes, (samples,), generator=generator)
    flip_B = torch.rand(samples, generator=generator) < flipped
    label_B = torch.where(flip_B, other_B, class_B)
    return Scores(text, evidence, None, None, torch.full((classes,), count)), label_B.tolist()


def learnt(scores: Scores, label_B: list[int], begin: Fusion = BEGIN) -> FusionLearner:
    learner = FusionLearner(begin)
    learner.record(scores, label_B)
    return learner


def best_noise(learner: FusionLearner) -> float:
    cost_KPSN = learner.loss_KPSN + prior(learner.begin)
    return NOISE[unravel(int(cost_KPSN.argmin()))[3]]


@settings(max_examples=6)
@given(
    seed=st.integers(0, 999),
    classes=st.integers(2, 5),
    tuned=st.booleans(),
    begin=st.sampled_from([BEGIN, CLIP, Fusion(scale=12.0, adapter=0.8)]),
)
def test_grid_equals_the_fusion_choice_by_choice(
    seed: int, classes: int, tuned: bool, begin: Fusion
) -> None:
    """Each cell is what that choice of constants costs, asked of the fusion itself."""
    scores = random_scores(seed, classes, tuned=tuned)
    own = seed % classes
    found = grid_losses(scores, own, begin)
    expected = reference.grid(
        scores.text_BK[0].tolist(),
        scores.evidence_BK[0].tolist() if scores.evidence_BK is not None else [],
        None if scores.adapter_BK is None else scores.adapter_BK[0].tolist(),
        None if scores.tuned_text_BK is None else scores.tuned_text_BK[0].tolist(),
        scores.count_K.tolist(),
        own,
        Constants(*astuple(begin)),
        AXES,
    )
    # Both sides in float64.
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("begin", [BEGIN, CLIP, Fusion(kappa=4.0, text_power=0.6, sharpness=1.0)])
def test_prior_is_zero_at_the_constants_to_begin_with(begin: Fusion) -> None:
    """It costs what is away from them, and any noise at twenty nats for all of it."""
    cost_KPSN = prior(begin)
    k, p, s, n = unravel(int(cost_KPSN.argmin()))
    assert (KAPPA[k], TEXT_POWER[p], SHARPNESS[s]) == (
        begin.kappa,
        begin.text_power,
        begin.sharpness,
    )
    assert n == 0
    noise_N = torch.tensor(NOISE, dtype=torch.float64)
    # The logarithm of the beginning is a float32.
    torch.testing.assert_close(cost_KPSN[k, p, s], 20 * noise_N, atol=1e-12, rtol=0)
    assert bool((cost_KPSN >= cost_KPSN[k, p, s]).all())


@given(
    k=st.integers(0, len(KAPPA) - 1),
    p=st.integers(0, len(TEXT_POWER) - 1),
    s=st.integers(0, len(SHARPNESS) - 1),
    n=st.integers(0, len(NOISE) - 1),
)
def test_a_place_of_the_flat_grid_is_its_indices(k: int, p: int, s: int, n: int) -> None:
    """The lowest cell is found where it is."""
    grid = torch.ones(len(KAPPA), len(TEXT_POWER), len(SHARPNESS), len(NOISE))
    grid[k, p, s, n] = 0
    assert unravel(int(grid.argmin())) == (k, p, s, n)


@pytest.mark.parametrize("begin", [BEGIN, CLIP])
def test_without_a_sample_the_constants_are_those_to_begin_with(begin: Fusion) -> None:
    """Before anything was scored the gate stands at 0.20, and no text moves it."""
    found = FusionLearner(begin).fusion()
    assert found.threshold == pytest.approx(0.20, abs=1e-12)
    assert found.slope == pytest.approx(28.17, abs=0.01)
    assert (found.text_center, found.text_slope) == (0.0, 0.0)
    same = ("kappa", "text_power", "sharpness", "scale", "adapter")
    assert [getattr(found, name) for name in same] == [getattr(begin, name) for name in same]


def test_the_better_expert_gets_the_weight() -> None:
    """Right texts with random evidence raise kappa or the text's power; the reverse lowers them."""
    by_text = learnt(*stream(300, right="text")).fusion()
    by_evidence = learnt(*stream(300, right="evidence")).fusion()
    assert by_text.kappa >= 8
    assert by_evidence.kappa <= 0.5
    assert by_text.text_power > by_evidence.text_power == 0.0
    # Where a base model's texts were thought to be good, evidence that is better ends that.
    assert learnt(*stream(300, right="evidence"), begin=CLIP).fusion().text_power == 0.0


def test_flipped_labels_are_noise_and_no_reason_to_be_less_sure() -> None:
    """A third of the labels drawn at random moves the noise, and the sharpness by a step at most."""
    clean = learnt(*stream(400, right="both"))
    noisy = learnt(*stream(400, right="both", flipped=0.3))
    assert best_noise(clean) == NOISE[0]
    assert best_noise(noisy) >= 0.2
    place = [SHARPNESS.index(one.fusion().sharpness) for one in (clean, noisy)]
    assert place[1] >= place[0] - 1
    assert noisy.fusion().sharpness >= BEGIN.sharpness
    # Without the noise to take them in, the same labels do make the answer softer.
    cost_KPS = (noisy.loss_KPSN + prior(BEGIN))[..., 0]
    _, _, softest = (int(i) for i in torch.unravel_index(cost_KPS.argmin(), cost_KPS.shape))
    assert SHARPNESS[softest] < noisy.fusion().sharpness


def test_learning_helps_answers_to_come() -> None:
    """The constants learnt on the first half give the second half a lower loss than those before."""
    for right in ("text", "evidence"):
        scores, label_B = stream(400, right=right)
        fusion = learnt(Scores(*(part(scores, 0, 200))), label_B[:200]).fusion()
        losses = {}
        for name, constants in (("before", BEGIN), ("learnt", fusion)):
            losses[name] = sum(
                reference.loss(
                    scores.text_BK[b].tolist(),
                    evidence_of(scores)[b].tolist(),
                    None,
                    None,
                    scores.count_K.tolist(),
                    label_B[b],
                    0.0,
                    Constants(*astuple(constants)),
                )
                for b in range(200, 400)
            )
        assert losses["learnt"] < losses["before"]


def evidence_of(scores: Scores) -> Tensor:
    assert scores.evidence_BK is not None
    return scores.evidence_BK


def part(scores: Scores, start: int, end: int) -> tuple[Tensor, Tensor, None, None, Tensor]:
    evidence_BK = evidence_of(scores)[start:end]
    return scores.text_BK[start:end], evidence_BK, None, None, scores.count_K


def test_an_old_sample_counts_half_after_the_half_life() -> None:
    """Sums are those of a loop in which the n-th last sample weighs 2^(-n / half-life)."""
    scores, label_B = stream(40, right="both")
    label_B[3] = label_B[17] = -1  # of a class that the version did not know: no loss, no pair
    found = learnt(scores, label_B)
    loss = torch.zeros_like(found.loss_KPSN)
    near = np.zeros(4)
    text = np.zeros(2)
    decay = 2 ** (-1 / HALF_LIFE)
    for b, own in enumerate(label_B):
        text = decay * text + [1, max(scores.text_BK[b].tolist())]
        if own < 0:
            continue
        cosines = evidence_of(scores)[b].tolist()
        nearest = max(cosines)
        hidden = max(cosine for k, cosine in enumerate(cosines) if k != own)
        near = decay * near + [1, nearest, hidden, nearest**2 + hidden**2]
        loss = decay * loss + grid_losses(scores.picture(b), own, BEGIN)
    torch.testing.assert_close(found.loss_KPSN, loss, atol=1e-9, rtol=0)
    # The best logit is handed on in float32, the constants to begin with are decimal fractions.
    np.testing.assert_allclose(found.near.numpy(), near, atol=1e-9, rtol=0)
    np.testing.assert_allclose(found.text.numpy(), text, atol=1e-4, rtol=0)


def test_what_was_long_ago_is_forgotten() -> None:
    """After as many samples of the other kind as four half-lives the other expert is trusted."""
    learner = learnt(*stream(300, right="text"))
    assert learner.fusion().kappa >= 8
    learner.record(*stream(1200, right="evidence"))
    assert learner.fusion().kappa <= 1
    assert learner.fusion().text_power <= 0.15


def test_the_gate_is_a_linear_discriminant_of_its_pairs() -> None:
    """Threshold and slope are those of two classes of equal variance, worked out directly."""
    scores, label_B = stream(1500, right="both")
    fusion = learnt(scores, label_B).fusion()
    weight = 0.5 ** (np.arange(1500)[::-1] / HALF_LIFE)
    cosines = evidence_of(scores).numpy()
    hidden = cosines.copy()
    hidden[np.arange(1500), label_B] = -np.inf
    near, far = cosines.max(axis=1), hidden.max(axis=1)
    weight = np.append(weight, 20)  # the pairs to begin with, which do not decay
    means = [np.average(np.append(x, m), weights=weight) for x, m in ((near, 0.30), (far, 0.10))]
    squares = [
        np.average(np.append((x - mean) ** 2, 0.0071 + (m - mean) ** 2), weights=weight)
        for x, m, mean in ((near, 0.30, means[0]), (far, 0.10, means[1]))
    ]
    assert fusion.threshold == pytest.approx(sum(means) / 2, abs=1e-9)
    assert fusion.slope == pytest.approx((means[0] - means[1]) / (sum(squares) / 2), rel=1e-6)
    best = scores.text_BK.max(dim=1).values.numpy()
    # Float32 in between.
    assert fusion.text_center == pytest.approx(np.average(best, weights=weight[:-1]), abs=1e-4)
    assert fusion.text_slope == TEXT_SLOPE


def test_pictures_all_alike_leave_room_for_others() -> None:
    """Without any variance the slope is at its bound: a nearer class may still be another one."""
    scores = Scores(
        torch.zeros(1, 3),
        torch.tensor([[0.5, 0.1, 0.0]]),
        None,
        None,
        torch.ones(3, dtype=torch.int64),
    )
    learner = FusionLearner(BEGIN)
    for _ in range(9000):
        learner.near = fusing._DECAY * learner.near + fusing._pair(scores, 0)
    fusion = learner.fusion()
    # The prior's twenty pairs stay beside the four hundred that count after so many.
    assert fusion.threshold == pytest.approx(0.3, abs=0.01)
    assert 28 < fusion.slope <= fusing.SLOPE_MAX


def test_a_single_class_and_a_version_without_evidence_teach_nothing() -> None:
    """Nothing can be told from one candidate, nor from text alone."""
    learner = FusionLearner(BEGIN)
    fresh = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    scores = random_scores(1, 3, pictures=2)
    learner.record(scores._replace(evidence_BK=None), [0, 1])
    assert all(torch.equal(learner.tensors()[name], tensor) for name, tensor in fresh.items())
    learner.record(random_scores(1, 1, pictures=2), [0, 0])
    assert torch.equal(learner.loss_KPSN, fresh["loss_KPSN"])
    assert torch.equal(learner.near, fresh["near"])
    assert float(learner.text[0]) == pytest.approx(2, abs=0.01)


def test_saved_and_loaded_it_goes_on_with_the_same_bits() -> None:
    """Through a safetensors blob, as a commit saves it; the copy shares no memory with it."""
    from safetensors.torch import load, save

    scores, label_B = stream(60, right="both")
    one = learnt(Scores(*part(scores, 0, 30)), label_B[:30])
    other = FusionLearner(BEGIN)
    blob = save(one.tensors())
    other.load(load(blob))
    for learner in (one, other):
        learner.record(Scores(*part(scores, 30, 60)), label_B[30:])
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(other.tensors()[name], tensor), name
    assert one.fusion() == other.fusion()
    saved = one.tensors()
    third = FusionLearner(BEGIN)
    third.load(saved)
    third.loss_KPSN += 1
    third.near += 1
    third.text += 1
    assert torch.equal(one.loss_KPSN, other.loss_KPSN)
    assert torch.equal(one.near, other.near)
    assert torch.equal(one.text, other.text)


@pytest.mark.parametrize("own", [0, 599])
def test_many_classes_are_close_to_exact(monkeypatch: pytest.MonkeyPatch, own: int) -> None:
    """Against the likeliest of 600 classes the losses are those against all, nearly."""
    scores = random_scores(7, 600)
    text_BK, evidence_BK = 2 * scores.text_BK, evidence_of(scores).clone()
    text_BK[0, own] = 30.0 if own else 10.0  # the best, and one that neither expert would name
    evidence_BK[0, own] = 0.9 if own else -0.1
    scores = scores._replace(text_BK=text_BK, evidence_BK=evidence_BK)
    few = grid_losses(scores, own, BEGIN)
    assert len(fusing._candidates(text_BK[0], evidence_BK[0], own)) <= fusing.CANDIDATES_MAX + 1
    monkeypatch.setattr(fusing, "CANDIDATES_MAX", 600)
    whole = grid_losses(scores, own, BEGIN)
    assert bool((few <= whole + 1e-12).all())
    # At the constants served to begin with; the softest corner of the grid is half a nat off.
    k, p, s = KAPPA.index(1.0), TEXT_POWER.index(0.0), SHARPNESS.index(1.5)
    torch.testing.assert_close(few[k, p, s], whole[k, p, s], atol=0.02, rtol=0)
    assert float((whole - few).max()) < 0.7
