"""Baselines: sums and closed forms against twins that go sample by sample, or see all at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from bench.lab import baselines
from bench.lab.baselines import (
    Baseline,
    ClassMeans,
    RandomRidge,
    Ridge,
    StreamingLDA,
    by_rail,
    closed_forms,
    oas_share,
    standardised,
    with_zero_shot,
    zero_shot_ladder,
)
from tests.pictures import digits

Array = NDArray[np.float64]

WIDTH, RANDOM = 64, 96
# Float64 against float64 through an inverse of condition up to 1e7 (unit features, λ = 0.01).
SAME = 1e-8
KINDS: dict[str, Callable[[], Baseline]] = {
    "class means": lambda: ClassMeans(WIDTH),
    "streaming LDA": lambda: StreamingLDA(WIDTH),
    "ridge": lambda: Ridge(WIDTH),
    "random-feature ridge": lambda: RandomRidge(WIDTH, 3, RANDOM),
}
# Fewer samples than features, so that the samples themselves are kept, and more.
SIZES = (40, 300)


def samples(count: int, start: int = 0) -> tuple[Tensor, list[int]]:
    """The grey levels of written digits stand for features."""
    features, classes = digits()
    rows = torch.from_numpy(features[start : start + count]).float()
    return rows, classes[start : start + count]


def fed(kind: str, count: int) -> Baseline:
    baseline = KINDS[kind]()
    baseline.add(*samples(count))
    return baseline


def unit(rows: Array) -> Array:
    unit_rows: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit_rows


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = SAME) -> None:
    assert list(found) == list(expected)
    for setting, score_BC in expected.items():
        torch.testing.assert_close(found[setting], score_BC, atol=atol, rtol=atol)


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=8)
@given(
    count=st.sampled_from(SIZES),
    block=st.integers(1, 120),
    order=st.randoms(use_true_random=False),
    asked=st.booleans(),
)
def test_blocks_and_order_do_not_matter(kind, count, block, order, asked) -> None:
    """However samples are cut and shuffled, and whether it is asked meanwhile: the same scores."""
    feature_BD, class_B = samples(count)
    places = list(range(count))
    order.shuffle(places)
    baseline = KINDS[kind]()
    for start in range(0, count, block):
        chosen = places[start : start + block]
        baseline.add(feature_BD[chosen], [class_B[k] for k in chosen])
        if asked:
            baseline.scores(feature_BD[:2])
    query, _ = samples(20, 1000)
    # The projection of random features is in float32, whose sums depend on the block.
    atol = 1e-4 if kind == "random-feature ridge" else 1e-6
    assert_same(baseline.ladder(query), fed(kind, count).ladder(query), atol)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_classes_without_a_sample(kind: str) -> None:
    """No class at all, one class, and a gap in the table, which scores -inf."""
    feature_BD, _ = samples(6)
    baseline = KINDS[kind]()
    assert all(scores.shape == (6, 0) for scores in baseline.ladder(feature_BD).values())
    baseline.add(feature_BD[:1], [0])
    assert all(scores.isfinite().all() for scores in baseline.ladder(feature_BD).values())
    baseline.add(feature_BD[1:3], [3, 3])
    for scores in baseline.ladder(feature_BD).values():
        assert scores.dtype == torch.float64
        assert scores.shape == (6, 4)
        assert (scores[:, 1:3] == float("-inf")).all()
        assert scores[:, [0, 3]].isfinite().all()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_learning_leaves_the_batch_alone(kind: str) -> None:
    """Features handed over are neither changed nor kept."""
    feature_BD, class_B = samples(30)
    query, _ = samples(5, 1000)
    expected = fed(kind, 30).ladder(query)
    for rows in (feature_BD, feature_BD.double()):
        baseline, before = KINDS[kind](), rows.clone()
        baseline.add(rows, class_B)
        assert torch.equal(rows, before)
        rows.zero_()
        assert_same(baseline.ladder(query), expected)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("count", SIZES)
def test_digits_are_told_apart(kind: str, count: int) -> None:
    """By the best setting, which is all that counts."""
    query, label = samples(300, 1000)
    accuracies = [
        float((scores.argmax(dim=1) == torch.tensor(label)).float().mean())
        for scores in fed(kind, count).ladder(query).values()
    ]
    assert max(accuracies) > (0.6 if count == SIZES[0] else 0.8)


def test_class_means_one_by_one() -> None:
    """The cosine of a picture and the mean of its class."""
    feature_BD, class_B = samples(100)
    query, _ = samples(20, 1000)
    features = feature_BD.double().numpy()
    means = np.stack(
        [
            np.mean([x for x, k in zip(features, class_B, strict=True) if k == c], axis=0)
            for c in range(10)
        ]
    )
    expected = unit(query.double().numpy()) @ unit(means).T
    found = fed("class means", 100).scores(query)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def lda_twin(features: Array, classes: list[int], query: Array, oas: bool) -> tuple[Array, Array]:
    """Return scatter and scores, one sample after the other, by the inverse itself."""
    count, mean = np.zeros(10), np.zeros((10, WIDTH))
    scatter = np.zeros((WIDTH, WIDTH))
    for x, c in zip(features, classes, strict=True):
        delta = x - mean[c]
        scatter += count[c] / (count[c] + 1) * np.outer(delta, delta)
        mean[c] += delta / (count[c] + 1)
        count[c] += 1
    freedom = len(features) - int((count > 0).sum())
    sigma = scatter / freedom
    if oas:
        square, trace = np.trace(sigma @ sigma), np.trace(sigma)
        above = (1 - 2 / WIDTH) * square + trace**2
        share = min(1, above / ((freedom + 1 - 2 / WIDTH) * (square - trace**2 / WIDTH)))
        shrunk = (1 - share) * sigma + share * trace / WIDTH * np.eye(WIDTH)
    else:
        shrunk = (1 - 1e-4) * sigma + 1e-4 * np.eye(WIDTH)
    precision = np.linalg.inv(shrunk)
    scores = [[m @ precision @ x - m @ precision @ m / 2 for m in mean] for x in query]
    return scatter, np.array(scores)


@pytest.mark.parametrize("count", SIZES)
def test_lda_one_by_one(count: int) -> None:
    """The corrected recurrence gives the scatter of the sums, and both shrinkages its scores."""
    feature_BD, class_B = samples(count)
    query, _ = samples(20, 1000)
    baseline = StreamingLDA(WIDTH)
    baseline.add(feature_BD, class_B)
    found = baseline.ladder(query)
    for setting, oas in (("0.0001", False), ("OAS", True)):
        scatter, scores = lda_twin(
            feature_BD.double().numpy(), class_B, query.double().numpy(), oas
        )
        np.testing.assert_allclose(baseline.scatter().numpy(), scatter, atol=1e-8)
        # With a nearly singular covariance scores are large, up to 1e8, and only so exact.
        np.testing.assert_allclose(found[setting].numpy(), scores, rtol=1e-6, atol=1e-3)


def test_scatter_in_two_passes() -> None:
    """First the means, then the distances from them."""
    feature_BD, class_B = samples(200)
    baseline = StreamingLDA(WIDTH)
    for start in range(0, 200, 16):
        baseline.add(feature_BD[start : start + 16], class_B[start : start + 16])
    features, labels = feature_BD.double().numpy(), np.array(class_B)
    expected = np.zeros((WIDTH, WIDTH))
    for c in range(10):
        apart = features[labels == c] - features[labels == c].mean(axis=0)
        expected += apart.T @ apart
    np.testing.assert_allclose(baseline.scatter().numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("repeats", [1, 3])
def test_lda_without_scatter_is_the_nearest_mean(repeats: int) -> None:
    """One sample a class, or copies of one: distance by Euclid, whatever the rounding."""
    feature_BD, _ = samples(10)
    feature_BD = feature_BD * 0.37 + 0.1
    baseline = StreamingLDA(WIDTH)
    for _ in range(repeats):
        baseline.add(feature_BD, list(range(10)))
    query, _ = samples(50, 1000)
    nearest = torch.cdist(query.double(), feature_BD.double()).argmin(dim=1)
    for scores in baseline.ladder(query).values():
        assert torch.equal(scores.argmax(dim=1), nearest)


def test_oas_share_at_its_limits() -> None:
    """All of it for a multiple of I or hardly any samples; less and less of it with many."""
    assert oas_share(3 * torch.eye(5, dtype=torch.float64), 10) == 1.0
    assert oas_share(torch.zeros(5, 5, dtype=torch.float64), 1) == 1.0
    uneven = torch.diag(torch.tensor([9.0, 1.0, 0.1, 0.1, 0.1], dtype=torch.float64))
    shares = [oas_share(uneven, samples) for samples in (1, 10, 100, 1000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.01


def rls_twin(x_ND: Array, classes: list[int], ridge: float) -> Array:
    """Return W by recursive least squares, one rank-one update a sample."""
    inverse = np.eye(x_ND.shape[1]) / ridge
    weight = np.zeros((x_ND.shape[1], 10))
    for x, c in zip(x_ND, classes, strict=True):
        target = np.eye(10)[c]
        gain = inverse @ x / (1 + x @ inverse @ x)
        weight += np.outer(gain, target - x @ weight)
        inverse -= np.outer(gain, x @ inverse)
    return weight


@pytest.mark.parametrize("count", SIZES)
def test_ridge_is_recursive_least_squares(count: int) -> None:
    """From the samples and from the sums, at every λ of the ladder."""
    feature_BD, class_B = samples(count)
    query, _ = samples(20, 1000)
    x_ND, q_BD = (unit(rows.double().numpy()) for rows in (feature_BD, query))
    found = fed("ridge", count).ladder(query)
    assert list(found) == ["λ=1", "λ=0.1", "λ=10", "λ=0.01", "λ=100"]
    for ridge, scores in zip(baselines.RIDGES, found.values(), strict=True):
        expected = q_BD @ rls_twin(x_ND, class_B, ridge)
        np.testing.assert_allclose(scores.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("count", SIZES)
def test_random_features_by_hand(count: int) -> None:
    """Relu of the projected unit feature, then ridge regression by least squares."""
    feature_BD, class_B = samples(count)
    query, _ = samples(20, 1000)
    baseline = RandomRidge(WIDTH, 3, RANDOM, (0.1,))
    baseline.add(feature_BD, class_B)
    projection = baseline.projection_DM.double().numpy()
    h_ND, h_BD = (
        np.maximum(unit(rows.double().numpy()) @ projection, 0) for rows in (feature_BD, query)
    )
    # Length one on average over draws of R, as unit features have.
    assert np.mean(np.square(h_ND).sum(axis=1)) == pytest.approx(1.0, abs=0.25)
    stacked = np.vstack([h_ND, np.sqrt(0.1) * np.eye(RANDOM)])
    target = np.vstack([np.eye(10)[class_B], np.zeros((RANDOM, 10))])
    expected = h_BD @ np.linalg.lstsq(stacked, target, rcond=None)[0]
    np.testing.assert_allclose(baseline.scores(query).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("class means", ""),
        ("streaming LDA", "OAS"),
        ("ridge", "λ=1"),
        ("random-feature ridge", "λ=1"),
    ],
)
def test_the_default_setting(kind: str, setting: str) -> None:
    """What to take without hindsight is the first of the ladder."""
    query, _ = samples(5, 1000)
    baseline = fed(kind, 40)
    assert torch.equal(baseline.scores(query), baseline.ladder(query)[setting])


def test_random_features_follow_the_seed() -> None:
    """The same seed draws the same projection, and another one another."""
    one, same, other = (RandomRidge(WIDTH, seed, RANDOM).projection_DM for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_all_closed_forms_are_there() -> None:
    """One of each, fresh."""
    assert [baseline.name for baseline in closed_forms(WIDTH, 0)] == list(KINDS)


def scored() -> tuple[Tensor, Tensor]:
    """Scores of three classes, the second without a sample, and zero-shot logits of five names."""
    generator = torch.Generator().manual_seed(1)
    score_BC = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    score_BC[:, 1] = float("-inf")
    return score_BC, 3 * torch.randn(30, 5, generator=generator, dtype=torch.float64)


def test_standardised_scores() -> None:
    """Mean zero in each row, one scale over all, -inf where there is no sample."""
    score_BC, _ = scored()
    z_BK = standardised(score_BC, 5)
    assert (z_BK[:, [1, 3, 4]] == float("-inf")).all()
    seen = z_BK[:, [0, 2]]
    torch.testing.assert_close(seen.mean(dim=1), torch.zeros(30, dtype=torch.float64))
    assert float(seen.square().mean()) == pytest.approx(1.0)
    torch.testing.assert_close(standardised(7 * score_BC + 100, 5)[:, [0, 2]], seen)
    # A sure row is wider than a doubtful one.
    gap = (score_BC[:, 0] - score_BC[:, 2]).abs()
    assert torch.equal(gap.argsort(), (seen[:, 0] - seen[:, 1]).abs().argsort())


def test_one_class_alone_is_standardised() -> None:
    """Nothing to compare with: zero."""
    assert torch.equal(standardised(torch.rand(4, 1), 1), torch.zeros(4, 1))


def test_with_zero_shot_by_hand() -> None:
    """Both forms, picture by picture and name by name."""
    score_BC, text_BK = scored()
    z_BK = standardised(score_BC, 5).numpy()
    mixture = with_zero_shot(score_BC, text_BK, 0.3, "mixture", 2.0).numpy()
    summed = with_zero_shot(score_BC, text_BK, 3.0, "sum").numpy()
    for b in range(30):
        text = np.exp(text_BK[b].numpy())
        powers = [0.0 if np.isinf(z) else np.exp(2 * z) for z in z_BK[b]]
        expected = 0.7 * text / text.sum() + 0.3 * np.array(powers) / sum(powers)
        np.testing.assert_allclose(mixture[b], expected, atol=1e-12)
        powers = text * [1.0 if np.isinf(z) else np.exp(3 * z) for z in z_BK[b]]
        np.testing.assert_allclose(summed[b], powers / powers.sum(), atol=1e-12)


def test_every_weight_gives_probabilities() -> None:
    """Of each form; without any label all of them are zero-shot."""
    score_BC, text_BK = scored()
    ladder = zero_shot_ladder(score_BC, text_BK)
    count = len(baselines.SHARES) * len(baselines.SCALES) + len(baselines.MULTIPLIERS)
    assert len(ladder) == count
    for probability_BK in ladder.values():
        assert (probability_BK >= 0).all()
        torch.testing.assert_close(probability_BK.sum(dim=1), torch.ones(30, dtype=torch.float64))
    for empty in (score_BC[:, :0], score_BC[:, 1:2]):
        for probability_BK in zero_shot_ladder(empty, text_BK).values():
            torch.testing.assert_close(probability_BK, text_BK.softmax(dim=1))


def test_rail_asks_zero_shot_whether_the_name_has_a_label() -> None:
    """Then zero-shot answers, or the baseline among labelled names; picture by picture."""
    score_BC, text_BK = scored()
    labelled_K = torch.tensor([True, False, True, False, False])
    answer_BK = with_zero_shot(score_BC, text_BK, 0.5)
    found = by_rail(answer_BK, text_BK, labelled_K)
    stood = 0
    for b in range(30):
        if labelled_K[int(text_BK[b].argmax())]:
            among = answer_BK[b] * labelled_K
            torch.testing.assert_close(found[b], among / among.sum())
        else:
            stood += 1
            torch.testing.assert_close(found[b], text_BK[b].softmax(dim=0))
    assert 0 < stood < 30


def test_rail_never_loses_a_name_without_a_label() -> None:
    """What zero-shot had right among those stays right."""
    score_BC, text_BK = scored()
    labelled_K = torch.tensor([True, False, True, False, False])
    best = text_BK.argmax(dim=1)
    unlabelled = ~labelled_K[best]
    for probability_BK in zero_shot_ladder(100 * score_BC, text_BK).values():
        answer = by_rail(probability_BK, text_BK, labelled_K).argmax(dim=1)
        assert torch.equal(answer[unlabelled], best[unlabelled])
        assert labelled_K[answer[~unlabelled]].all()
