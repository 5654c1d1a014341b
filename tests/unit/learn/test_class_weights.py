"""Class weights: what they are, that they mislead no step on average, and that none runs away."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.nn import functional

from tests.reference import class_weights as reference
from worker.learn.class_weights import (
    SPREAD_MIN,
    ClassLosses,
    ClassWeightConfig,
    effective_temperature,
    presence,
    robust_weights,
    weighted_loss,
)
from worker.learn.replay import Exemplar, ReplayBuffer

# Both sides compute in float64; a few dozen sums and exponentials of order one round by less.
ROUNDING = 1e-11
NO_CAP = 1e9
ALIKE = ClassWeightConfig(temperature=1.0, relative=False)
RANGE = st.floats(0, 10)
measured = st.lists(RANGE, min_size=1, max_size=20)
temperatures = st.floats(0.05, 100)
caps = st.floats(1, 12)
streams = st.lists(
    st.lists(st.tuples(RANGE, st.integers(0, 5)), min_size=1, max_size=8), min_size=1, max_size=12
)


def vector(numbers: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if n is None else n for n in numbers], dtype=torch.float64)


def after(batches: Sequence[Sequence[tuple[float, int]]], config: ClassWeightConfig) -> ClassLosses:
    losses = ClassLosses(config)
    for batch in batches:
        losses.update(vector([loss for loss, _ in batch]), [c for _, c in batch])
    return losses


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int64), other.view(torch.int64))


# The weights


@given(
    losses=st.lists(st.none() | RANGE, min_size=1, max_size=20).filter(
        lambda losses: any(loss is not None for loss in losses)
    ),
    temperature=temperatures,
    cap=caps,
)
def test_weights_equal_the_rounds(
    losses: list[float | None], temperature: float, cap: float
) -> None:
    """They are the softmax of the losses, with surplus handed on until no class has too much."""
    found = robust_weights(vector(losses), temperature, cap).tolist()
    assert found == pytest.approx(reference.weights(losses, temperature, cap), abs=ROUNDING)


@given(losses=measured, temperature=temperatures, cap=caps, seed=st.integers(0, 1000))
def test_weights_are_the_maximum_under_the_cap(
    losses: list[float], temperature: float, cap: float, seed: int
) -> None:
    """No other weights under the cap make Σ p u - λ KL larger; without a cap it is F itself."""
    free = robust_weights(vector(losses), temperature, NO_CAP).tolist()
    assert reference.penalised(free, losses, temperature) == pytest.approx(
        reference.objective(losses, temperature), abs=1e-9
    )
    found = robust_weights(vector(losses), temperature, cap).tolist()
    best = reference.penalised(found, losses, temperature)
    random = Generator().manual_seed(seed)
    for _ in range(5):
        numbers = 10 * torch.rand(len(losses), dtype=torch.float64, generator=random)
        other = robust_weights(numbers, 1.0, cap).tolist()
        assert reference.penalised(other, losses, temperature) <= best + 1e-9


def test_a_high_temperature_weighs_all_alike() -> None:
    """λ → ∞ is the plain mean over classes, exactly so at infinity."""
    losses = [0.0, 0.3, 1.0, 2.0]
    for temperature, tolerance in ((1e3, 1e-3), (math.inf, 0.0)):
        weight_C = robust_weights(vector(losses), temperature, 6)
        assert float((weight_C - 0.25).abs().max()) <= tolerance
    assert reference.objective(losses, 1e3) == pytest.approx(np.mean(losses), abs=1e-3)


def test_a_low_temperature_weighs_the_worst() -> None:
    """λ → 0 is the worst class alone, and under a cap as many of the worst as fill it."""
    losses = vector([0.0, 3.0, 1.0, 2.0])
    assert robust_weights(losses, 1e-3, NO_CAP).tolist() == [0, 1, 0, 0]
    assert robust_weights(losses, 1e-3, 2.0).tolist() == [0, 0.5, 0, 0.5]
    assert robust_weights(losses, 1e-3, 1.6).tolist() == pytest.approx(
        [0, 0.4, 0.2, 0.4], abs=ROUNDING
    )
    assert reference.objective(losses.tolist(), 1e-3) == pytest.approx(3.0, abs=2e-3)


@given(losses=measured, cap=caps)
def test_the_worst_classes_weigh_more_as_the_temperature_falls(
    losses: list[float], cap: float
) -> None:
    """The weighted loss and F rise from the mean to the maximum, and never fall on the way."""
    steps = (math.inf, 30, 3, 1, 0.3, 0.05)
    weighed = [float(robust_weights(vector(losses), t, cap) @ vector(losses)) for t in steps]
    objectives = [reference.objective(losses, t) for t in steps[1:]]
    for numbers in (weighed, objectives):
        assert all(one <= other + ROUNDING for one, other in pairwise(numbers))
        assert np.mean(losses) - ROUNDING <= numbers[0]
        assert numbers[-1] <= max(losses) + ROUNDING


@given(
    losses=st.lists(st.none() | st.sampled_from([0.0, 1e-9, 1.0, 1e3]), min_size=1, max_size=40),
    temperature=st.sampled_from([1e-306, 1e-3, 1.0, 1e3, math.inf]),
    cap=st.sampled_from([1.0, 1.5, 4.0, 6.0, 39.0, 40.0, NO_CAP]),
)
def test_weights_are_shares_under_the_cap(
    losses: list[float | None], temperature: float, cap: float
) -> None:
    """At any losses, λ and κ the weights are between zero and κ/C, and sum to one."""
    weight_C = robust_weights(vector(losses), temperature, cap)
    assert weight_C.dtype == torch.float64
    assert bool((weight_C >= 0).all())
    assert float(weight_C.sum()) == pytest.approx(1.0, abs=ROUNDING)
    assert float(weight_C.max()) <= cap / len(losses) + ROUNDING


def test_few_classes_are_not_capped() -> None:
    """With C ≤ κ one class may have all; with one more it may not."""
    assert robust_weights(vector([5.0, 0.0, 0.0]), 1e-3, 3.0).tolist() == [1, 0, 0]
    assert robust_weights(vector([5.0]), 0.01, 1.0).tolist() == [1]
    assert float(robust_weights(vector([5.0, 0, 0, 0]), 1e-3, 3.0)[0]) == 0.75
    assert robust_weights(vector([]), 1.0, 6.0).tolist() == []


@given(losses=measured, temperature=temperatures, cap=caps, by=st.floats(-100, 100))
def test_only_differences_count(
    losses: list[float], temperature: float, cap: float, by: float
) -> None:
    """A number added to all losses changes no weight, with λ in nats or relative."""
    for relative in (False, True):
        config = ClassWeightConfig(temperature, relative, cap=cap)
        here_C, there_C = (
            robust_weights(loss_C, effective_temperature(loss_C, config), cap)
            for loss_C in (vector(losses), vector(losses) + by)
        )
        # Adding and taking off a hundred rounds a loss by 1e-14; λ is no less than SPREAD_MIN.
        torch.testing.assert_close(there_C, here_C, atol=1e-10, rtol=0)


@given(
    losses=st.lists(st.none() | RANGE, min_size=1, max_size=20),
    temperature=temperatures,
    cap=caps,
    order=st.randoms(use_true_random=False),
)
def test_the_number_of_a_class_does_not_count(losses, temperature, cap, order) -> None:
    """Classes in another order have the same weights in that order."""
    places = list(range(len(losses)))
    order.shuffle(places)
    weight_C = robust_weights(vector(losses), temperature, cap)
    shuffled_C = robust_weights(vector([losses[k] for k in places]), temperature, cap)
    torch.testing.assert_close(shuffled_C, weight_C[places], atol=ROUNDING, rtol=0)


def test_a_class_never_measured_weighs_the_mean() -> None:
    """It has 1/C at any λ, and the others compare as they would without it."""
    for temperature in (1e-3, 0.5, math.inf):
        alone_C = robust_weights(vector([0.2, 1.0, 3.0]), temperature, 2.0)
        weight_C = robust_weights(vector([0.2, None, 1.0, 3.0, None]), temperature, 2.0)
        assert weight_C[[1, 4]].tolist() == [0.2, 0.2]
        torch.testing.assert_close(weight_C[[0, 2, 3]], alone_C * 0.6, atol=ROUNDING, rtol=0)
    assert robust_weights(vector([None, None]), 1.0, 6.0).tolist() == [0.5, 0.5]


@given(losses=st.lists(RANGE, min_size=1, max_size=20), temperature=temperatures, cap=caps)
def test_a_wrongly_labelled_class_takes_no_more_than_the_cap(
    losses: list[float], temperature: float, cap: float
) -> None:
    """However large its loss, the others keep their shares of what the cap leaves them."""
    limit = min(1.0, cap / (len(losses) + 1))
    weight_C = robust_weights(vector([*losses, 1e6]), temperature, cap)
    assert float(weight_C[-1]) <= limit + ROUNDING
    share_C = robust_weights(vector(losses), temperature, NO_CAP)
    assert bool((weight_C[:-1] >= ((1 - limit) * share_C).clamp(max=limit) - ROUNDING).all())


# The temperature


def test_a_relative_temperature_follows_the_spread() -> None:
    """Losses ten times smaller, as unlike one another as before, have the same weights."""
    config = ClassWeightConfig(temperature=1.5)
    loss_C = vector([2.0, 4.0, None, 9.0])
    spread = float(np.std([2.0, 4.0, 9.0]))
    assert effective_temperature(loss_C, config) == pytest.approx(1.5 * spread + SPREAD_MIN)
    large_C, small_C = (
        robust_weights(factor * loss_C, effective_temperature(factor * loss_C, config), NO_CAP)
        for factor in (1.0, 0.1)
    )
    # All that is left is the constant, a thousandth of a nat in a λ of half a nat.
    torch.testing.assert_close(small_C, large_C, atol=2e-3, rtol=0)
    in_nats_C = robust_weights(0.1 * loss_C, 1.5, NO_CAP)
    assert float((in_nats_C - large_C).abs().max()) > 0.1


@pytest.mark.parametrize("losses", [[], [None], [1.0], [1.0, 1.0], [0.1 + 0.2, 0.3]])
@pytest.mark.parametrize("temperature", [0.01, 1.0, math.inf])
def test_a_relative_temperature_without_a_spread_weighs_all_alike(
    losses: list[float | None], temperature: float
) -> None:
    """Classes that are equally hard weigh the same, whatever their rounding."""
    config = ClassWeightConfig(temperature)
    found = effective_temperature(vector(losses), config)
    assert found > 0
    weight_C = robust_weights(vector(losses), found, 6.0)
    torch.testing.assert_close(weight_C, torch.full_like(weight_C, 1 / max(len(losses), 1)))


def test_a_temperature_in_nats_stays_what_it_is() -> None:
    """The spread of the losses does not touch it."""
    assert effective_temperature(vector([0.0, 9.0]), ALIKE) == 1.0


@pytest.mark.parametrize(
    "dials", [{"temperature": 0.0}, {"temperature": math.nan}, {"cap": 0.9}, {"momentum": 1.1}]
)
def test_settings_without_a_meaning_are_refused(dials: dict[str, float]) -> None:
    """λ above zero, γ a share, κ at least the mean weight."""
    with pytest.raises(AssertionError):
        ClassWeightConfig(**{"temperature": 1.0, **dials})  # type: ignore[arg-type]


# The loss


def gradient(loss_of: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    parameter = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss_of(parameter), parameter)
    return found


class Lesson:
    """Six classes of one to three samples, each with a loss of its own slope in θ."""

    def __init__(self) -> None:
        self.class_N = [0, 1, 1, 2, 2, 2, 3, 4, 4, 5]
        self.parameter = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
        random = Generator().manual_seed(5)
        self.slope_ND = torch.randn(10, 3, dtype=torch.float64, generator=random)
        self.weight_C = robust_weights(vector([0.1, 2.0, 0.5, 1.0, 0.2, 1.4]), 0.7, 4.0)

    def losses(self, parameter: Tensor) -> Tensor:
        return functional.softplus(self.slope_ND @ parameter)

    def wanted(self) -> Tensor:
        """Return Σ p_c ∇L_c over all classes."""
        everywhere = torch.ones(6, dtype=torch.float64)
        return self.gradient_of(range(6), everywhere, self.weight_C)

    def gradient_of(
        self, classes: Sequence[int], presence_C: Tensor, weight_C: Tensor | None = None
    ) -> Tensor:
        """Return the gradient of a batch that holds all samples of some classes."""
        places = [k for k, c in enumerate(self.class_N) if c in classes]
        own = [self.class_N[k] for k in places]
        weights = self.weight_C if weight_C is None else weight_C
        return gradient(
            lambda parameter: weighted_loss(
                self.losses(parameter)[places], own, weights, presence_C
            ),
            self.parameter,
        )

    def renormalised(self, classes: Sequence[int]) -> Tensor:
        """Return the same where the weights sum to one within the batch."""
        share_C = self.weight_C / self.weight_C[list(classes)].sum()
        return self.gradient_of(classes, torch.ones(6, dtype=torch.float64), share_C)


def mean(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(gradients)).mean(dim=0)


@pytest.mark.parametrize("drawn", [1, 2, 5, 6])
def test_a_step_follows_all_classes_on_average(drawn: int) -> None:
    """Over all batches of so many classes the mean gradient is Σ p_c ∇L_c, to the rounding."""
    lesson = Lesson()
    presence_C = torch.full((6,), presence(drawn, 6), dtype=torch.float64)
    batches = list(combinations(range(6), drawn))
    found = mean([lesson.gradient_of(batch, presence_C) for batch in batches])
    torch.testing.assert_close(found, lesson.wanted(), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("drawn", [1, 2, 5])
def test_weights_that_sum_to_one_in_each_batch_would_mislead(drawn: int) -> None:
    """The check of the test above tells the renormalised weights from the right ones."""
    lesson = Lesson()
    found = mean([lesson.renormalised(batch) for batch in combinations(range(6), drawn)])
    assert float((found - lesson.wanted()).norm()) > 0.01 * float(lesson.wanted().norm())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, lesson.wanted(), atol=ROUNDING, rtol=0)


def test_new_samples_that_are_always_there_count_as_such() -> None:
    """Classes 4 and 5 are in every batch, two of the other four in turn."""
    lesson = Lesson()
    presence_C = torch.tensor([presence(2, 4)] * 4 + [1.0] * 2, dtype=torch.float64)
    batches = [(*replayed, 4, 5) for replayed in combinations(range(4), 2)]
    found = mean([lesson.gradient_of(batch, presence_C) for batch in batches])
    torch.testing.assert_close(found, lesson.wanted(), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("draws", [1, 3, 4, 7, 10])
def test_presence_is_how_often_replay_shows_a_class(draws: int) -> None:
    """In the round robin of the buffer each class is in that share of the batches."""
    classes, turns = 7, 70
    buffer = ReplayBuffer(1 << 20)
    kept = [Exemplar(c, c, None, b"", torch.zeros(1, dtype=torch.half)) for c in range(classes)]
    random = Generator().manual_seed(1)
    buffer.add(kept, random)
    shown = [0] * classes
    for _ in range(turns):
        for c in {exemplar.class_index for exemplar in buffer.draw(draws, random)}:
            shown[c] += 1
    assert [count / turns for count in shown] == pytest.approx([presence(draws, classes)] * classes)


samples = st.lists(st.tuples(RANGE, st.integers(0, 5)), min_size=1, max_size=12)


@given(batch=samples, seed=st.integers(0, 1000))
def test_loss_equals_the_loop(batch: list[tuple[float, int]], seed: int) -> None:
    """It is the sum over the classes that are there of (p / π) times the mean of each."""
    random = Generator().manual_seed(seed)
    weight_C = torch.rand(6, dtype=torch.float64, generator=random)
    presence_C = 0.1 + torch.rand(6, dtype=torch.float64, generator=random)
    losses, classes = [loss for loss, _ in batch], [c for _, c in batch]
    found = weighted_loss(vector(losses), classes, weight_C, presence_C)
    assert found.shape == ()
    expected = reference.weighted_loss(losses, classes, weight_C.tolist(), presence_C.tolist())
    assert float(found) == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)


def test_samples_of_one_class_count_by_their_mean() -> None:
    """A sample that is there twice changes nothing; nor do two that differ, from their mean."""
    weight_C, presence_C = vector([0.3, 0.7]), vector([0.5, 0.5])
    once = weighted_loss(vector([1.0, 4.0]), [0, 1], weight_C, presence_C)
    twice = weighted_loss(vector([1.0, 4.0, 1.0]), [0, 1, 0], weight_C, presence_C)
    apart = weighted_loss(vector([0.5, 4.0, 1.5]), [0, 1, 0], weight_C, presence_C)
    assert float(once) == pytest.approx(0.6 * 1 + 1.4 * 4)
    assert float(twice) == pytest.approx(float(once), abs=ROUNDING)
    assert float(apart) == pytest.approx(float(once), abs=ROUNDING)


def test_the_gradient_goes_through_the_losses_alone() -> None:
    """Weights and presence are numbers to a step, though they were made from losses."""
    losses = ClassLosses(ALIKE)
    loss_B = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    losses.update(loss_B, [0, 1, 1])
    assert not losses.loss_C.requires_grad
    assert not losses.weights().requires_grad
    weight_C = vector([0.25, 0.75]).requires_grad_()
    presence_C = vector([1.0, 0.5]).requires_grad_()
    found = weighted_loss(loss_B, [0, 1, 1], weight_C, presence_C)
    assert found.dtype == torch.float32
    found.backward()  # type: ignore[no-untyped-call]
    assert loss_B.grad is not None
    assert loss_B.grad.tolist() == [0.25, 0.75, 0.75]
    assert weight_C.grad is None
    assert presence_C.grad is None


# The losses of classes


@given(stream=streams, momentum=st.floats(0, 1))
def test_losses_equal_the_loop(stream: list[list[tuple[float, int]]], momentum: float) -> None:
    """They are moving averages of each class's own means, from the first one on."""
    losses = after(stream, ClassWeightConfig(1.0, momentum=momentum))
    batches = [([loss for loss, _ in b], [c for _, c in b]) for b in stream]
    expected = reference.averages(batches, len(losses.loss_C), momentum)
    assert len(losses.loss_C) == 1 + max(c for batch in stream for _, c in batch)
    torch.testing.assert_close(
        losses.loss_C, vector(expected), atol=ROUNDING, rtol=0, equal_nan=True
    )


def test_an_absent_class_keeps_its_loss_and_counts() -> None:
    """Its number stays to the bit, and takes its part in the sum of the weights."""
    losses = after([[(1 / 3, 0), (0.7, 1), (2.1, 3)]], ALIKE)
    before_C = losses.loss_C.clone()
    losses.update(vector([1.9]), [1])
    assert same_bits(losses.loss_C[[0, 2, 3]], before_C[[0, 2, 3]])
    assert losses.loss_C[1] != before_C[1]
    powers = [math.exp(float(u)) for u in losses.loss_C[[0, 1, 3]]]
    assert losses.weights()[[0, 1, 3]].tolist() == pytest.approx(
        [0.75 * power / sum(powers) for power in powers], abs=ROUNDING
    )


def test_a_new_class_starts_at_its_first_loss() -> None:
    """Beside known classes in one batch, too; the others' weights keep their ratios."""
    losses = after([[(2.0, 0), (1.0, 1)]], ALIKE)
    before_C = losses.weights()
    losses.update(vector([3.0, 5.0, 2.0]), [2, 2, 0])
    assert losses.loss_C.tolist() == [2.0, 1.0, 4.0]
    weight_C = losses.weights()
    assert bool((weight_C[:2] < before_C).all())
    assert float(weight_C[0] / weight_C[1]) == pytest.approx(float(before_C[0] / before_C[1]))
    assert int(weight_C.argmax()) == 2


@given(stream=streams)
def test_momentum_one_knows_the_last_batch_alone_and_zero_the_first(
    stream: list[list[tuple[float, int]]],
) -> None:
    """γ is what the new measurement counts."""
    last = after(stream, ClassWeightConfig(1.0, momentum=1.0)).loss_C
    first = after(stream, ClassWeightConfig(1.0, momentum=0.0)).loss_C
    for c in range(len(last)):
        means = [
            reference.class_mean([loss for loss, _ in batch], [k for _, k in batch], c)
            for batch in stream
            if c in [k for _, k in batch]
        ]
        if means:
            assert [float(first[c]), float(last[c])] == [means[0], means[-1]]
        else:
            assert bool(first[c].isnan() and last[c].isnan())


@given(stream=streams, momentum=st.floats(0, 1))
def test_a_loss_stays_among_those_observed(
    stream: list[list[tuple[float, int]]], momentum: float
) -> None:
    """No class has a number beyond the smallest and largest of its samples."""
    losses = after(stream, ClassWeightConfig(1.0, momentum=momentum))
    for c, number in enumerate(losses.loss_C.tolist()):
        own = [loss for batch in stream for loss, k in batch if k == c]
        assert math.isnan(number) == (not own)
        assert not own or min(own) - ROUNDING <= number <= max(own) + ROUNDING


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_moves_nothing(number: float) -> None:
    """A step that goes wrong leaves no trace, and makes no class unmeasured."""
    losses = after([[(2.0, 0), (1.0, 1)]], ALIKE)
    losses.update(vector([number, 5.0, 5.0]), [0, 1, 7])
    assert losses.loss_C.tolist() == [2.0, 1.0]


def test_room_is_made_once() -> None:
    """New classes are not measured, known ones stay, and less room than there is takes none."""
    losses = after([[(2.0, 0), (1.0, 1)]], ALIKE)
    losses.make_room(4)
    losses.make_room(3)
    assert losses.loss_C[:2].tolist() == [2.0, 1.0]
    assert losses.loss_C[2:].isnan().tolist() == [True, True]
    assert losses.weights()[2:].tolist() == [0.25, 0.25]


def test_weights_follow_the_settings() -> None:
    """λ, whether it is relative, and κ are those of the configuration."""
    loss_C = vector([0.5, 1.0, 4.0, None])
    for config, temperature in (
        (ClassWeightConfig(2.0, relative=False, cap=1.5), 2.0),
        (ClassWeightConfig(2.0, relative=True, cap=1.5), None),
        (ClassWeightConfig(0.1, relative=False, cap=3.0), 0.1),
    ):
        own = effective_temperature(loss_C, config) if temperature is None else temperature
        losses = ClassLosses.of({"loss_C": loss_C}, config)
        expected = reference.weights([0.5, 1.0, 4.0, None], own, config.cap)
        assert losses.weights().tolist() == pytest.approx(expected, abs=ROUNDING)


def test_saved_losses_are_the_same_losses() -> None:
    """What a commit saves gives back the same bits, which live on their own."""
    losses = after([[(1 / 3, 0), (0.7, 3)], [(0.1, 0)]], ALIKE)
    saved = {name: tensor.clone() for name, tensor in losses.tensors().items()}
    restored = ClassLosses.of(losses.tensors(), ALIKE)
    assert same_bits(restored.loss_C, losses.loss_C)
    assert same_bits(restored.weights(), losses.weights())
    restored.update(vector([9.0]), [0])
    assert same_bits(losses.loss_C, saved["loss_C"])


class Course:
    """A linear classifier that learns from a stream of pseudo-random batches with the weights."""

    def __init__(self, config: ClassWeightConfig) -> None:
        self.losses = ClassLosses(config)
        self.weight_CD = torch.zeros(5, 4)

    def learn(self, batches: range) -> None:
        for number in batches:
            random = Generator().manual_seed(number)
            class_B = torch.randperm(min(5, 2 + number), generator=random)[:3].tolist()
            picture_BD = torch.randn(len(class_B), 4, generator=random)
            parameter = self.weight_CD.clone().requires_grad_()
            loss_B = functional.cross_entropy(
                picture_BD @ parameter.T, torch.tensor(class_B), reduction="none"
            )
            self.losses.update(loss_B, class_B)
            weight_C = self.losses.weights()
            presence_C = torch.full_like(weight_C, presence(len(class_B), len(weight_C)))
            loss = weighted_loss(loss_B, class_B, weight_C, presence_C)
            (slope_CD,) = torch.autograd.grad(loss, parameter)
            self.weight_CD = self.weight_CD - 0.3 * slope_CD

    def restarted(self) -> Course:
        course = Course(self.losses.config)
        course.losses = ClassLosses.of(self.losses.tensors(), self.losses.config)
        course.weight_CD = self.weight_CD.clone()
        return course

    def same_as(self, other: Course) -> bool:
        return (
            same_bits(self.losses.loss_C, other.losses.loss_C)
            and same_bits(self.losses.weights(), other.losses.weights())
            and torch.equal(self.weight_CD, other.weight_CD)
        )


@pytest.mark.parametrize("stop", [1, 2, 7, 19])
def test_the_same_stream_gives_the_same_bits(stop: int) -> None:
    """Losses, weights and parameters repeat to the bit, restarted mid-stream or not."""
    config = ClassWeightConfig(0.5)
    course, again, halted = Course(config), Course(config), Course(config)
    course.learn(range(20))
    again.learn(range(20))
    assert course.same_as(again)
    halted.learn(range(stop))
    assert not course.same_as(halted)
    resumed = halted.restarted()
    resumed.learn(range(stop, 20))
    assert course.same_as(resumed)
