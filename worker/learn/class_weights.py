"""
Class weights: a replayed class counts by its loss, the worst ones most, none beyond a cap. ⑤

The weights are the inner maximum of distributionally robust optimisation over classes:

    min_θ max_p  Σ_c p_c L_c(θ) - λ KL(p ‖ 1/C)   with   p_c ≤ κ / C

λ → ∞ weighs all classes alike, λ → 0 the worst ones alone.

Shape suffixes: B samples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.learn.room import lengthened

# Nats added to a relative λ: classes whose losses are closer than this count as equally hard.
SPREAD_MIN = 1e-3

# A weight that exceeds the cap by no more than its own rounding does not exceed it.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class ClassWeightConfig:
    """
    How losses become weights.

    `momentum` is γ, what a new measurement counts in the moving average, and not what the old ones
    do; `cap` is κ, how many times the mean weight a class may have.
    """

    temperature: float  # λ in nats; infinite: all classes alike
    relative: bool = True  # λ is in standard deviations of the classes' losses instead
    momentum: float = 0.2
    cap: float = 6.0

    def __post_init__(self) -> None:
        assert self.temperature > 0
        assert 0 <= self.momentum <= 1
        assert self.cap >= 1


class ClassLosses:
    """
    The moving average of each class's mean loss, in float64; NaN for a class never measured.

    A class that is absent from a batch keeps its number. Replay goes round the classes that have an
    exemplar, so their numbers are never older than classes / draws steps; none is led back towards
    the mean with age.
    """

    def __init__(self, config: ClassWeightConfig) -> None:
        self.config = config
        self.loss_C = torch.zeros(0, dtype=torch.float64)

    def update(self, loss_B: Tensor, class_B: Sequence[int]) -> None:
        """
        Take in the losses of a batch, made before the step that they lead to.

        A class index beyond the known ones makes room for it. A batch with a loss that is not
        finite moves nothing, as its step does not either.
        """
        assert loss_B.shape == (len(class_B),)
        assert len(class_B) > 0
        assert min(class_B) >= 0
        loss_B = loss_B.detach().to("cpu", torch.float64)
        if not loss_B.isfinite().all():
            return
        self.make_room(max(class_B) + 1)
        present_C, place_B = torch.unique(torch.tensor(list(class_B)), return_inverse=True)
        sum_C = loss_B.new_zeros(len(present_C)).index_add_(0, place_B, loss_B)
        new_C = sum_C / torch.bincount(place_B)
        old_C = self.loss_C[present_C]
        # Class by class: one that is new starts at its own loss beside known ones, too, and not
        # at zero, from where it would count as solved for 1/γ turns.
        share = self.config.momentum
        moved_C = (1 - share) * old_C + share * new_C
        self.loss_C[present_C] = torch.where(old_C.isnan(), new_C, moved_C)

    def weights(self) -> Tensor:
        """Return the weight of each class, float64, with sum one."""
        temperature = effective_temperature(self.loss_C, self.config)
        return robust_weights(self.loss_C, temperature, self.config.cap)

    def make_room(self, classes: int) -> None:
        """Know at least so many classes; new ones are not measured."""
        self.loss_C = lengthened(self.loss_C, classes, math.nan)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a commit saves."""
        return {"loss_C": self.loss_C}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], config: ClassWeightConfig) -> ClassLosses:
        """Return the losses that `tensors` saved."""
        losses = cls(config)
        losses.loss_C = tensors["loss_C"].clone()
        return losses


def effective_temperature(loss_C: Tensor, config: ClassWeightConfig) -> float:
    """
    Return λ in nats; a relative one follows the spread of the losses that were measured.

    So the weights stay as uneven as they were while all losses shrink.
    """
    measured_C = loss_C[~loss_C.isnan()].double()
    # ∞ · 0 is no number.
    if not config.relative or math.isinf(config.temperature) or len(measured_C) == 0:
        return config.temperature
    return config.temperature * float(measured_C.std(correction=0)) + SPREAD_MIN


def robust_weights(loss_C: Tensor, temperature: float, cap: float) -> Tensor:
    """
    Return the weight of each class, float64, with sum one.

        p_c = min(κ/C, s · exp(u_c / λ)),  s such that Σ_c p_c = 1

    What the cap takes from a class goes to those below it in proportion to their weights, which is
    the maximum of the objective above under the cap. With C ≤ κ classes nothing is capped.

    Args:
        loss_C: u, the loss of each class; NaN for one that was never measured.
        temperature: λ in nats, above zero, may be infinite.
        cap: κ ≥ 1.

    Source: group DRO as a saddle point, arXiv 2302.09267, with the KL penalty and so the weights of
    ABSGD, arXiv 2012.06951, over class means instead of samples: one wrong label tells less.
    Reference: tests/reference/class_weights.py, where surplus is handed on round by round.
    """
    assert loss_C.ndim == 1
    assert temperature > 0
    assert cap >= 1
    classes = len(loss_C)
    # A class never measured weighs the mean, as if its loss were what leaves the objective as it
    # is: nothing is known for or against it, and how the others compare does not depend on it. The
    # mean of the others' losses would make it weigh less than most of them at a low λ.
    weight_C = torch.full((classes,), 1 / max(classes, 1), dtype=torch.float64)
    measured_C = ~loss_C.isnan()
    measured = int(measured_C.sum())
    if measured > 0:
        alone_C = _capped_softmax(loss_C[measured_C].double(), temperature, cap / measured)
        weight_C[measured_C] = alone_C * (measured / classes)
    return weight_C


def presence(classes_drawn: int, classes_known: int) -> float:
    """
    Return π, the probability that a class is in a batch of so many classes of those there are.

    It is that of uniform draws, and of a round robin in the long run. A class that is there for
    another reason, with a new sample, has π = 1.
    """
    assert classes_drawn >= 0
    assert classes_known > 0
    return min(1.0, classes_drawn / classes_known)


def weighted_loss(
    loss_B: Tensor, class_B: Sequence[int], weight_C: Tensor, presence_C: Tensor
) -> Tensor:
    """
    Return Σ_c (p_c / π_c) · L̂_c over the classes of the batch, L̂_c the mean of its samples.

    Divided by π its gradient is, on average over batches, that of Σ_c p_c L_c over all classes
    (Horvitz and Thompson). To let p sum to one within each batch instead would be biased: a batch
    of easy classes would count as much as one of hard ones.

    Args:
        loss_B: the loss of each sample; the gradient goes through it alone.
        class_B: class index of each sample.
        weight_C: p.
        presence_C: π, above zero for the classes of the batch.
    """
    assert loss_B.shape == (len(class_B),)
    assert weight_C.shape == presence_C.shape
    index_B = torch.tensor(list(class_B), dtype=torch.int64)
    count_C = torch.bincount(index_B, minlength=len(weight_C))
    factor_B = weight_C.detach()[index_B] / (presence_C.detach()[index_B] * count_C[index_B])
    return (factor_B.to(loss_B) * loss_B).sum()


def _capped_softmax(loss_C: Tensor, temperature: float, limit: float) -> Tensor:
    """Return softmax(u / λ) with no weight above `limit`; the sum stays one."""
    weight_C = _softmax(loss_C, temperature)
    if limit >= 1:
        return weight_C
    capped_C = torch.zeros_like(loss_C, dtype=torch.bool)
    # Each turn caps a class at least, and never the last one: `limit` is no less than 1/C.
    while bool((over_C := weight_C > limit * (1 + _ROUNDING)).any()):
        capped_C |= over_C
        rest = max(0.0, 1 - limit * int(capped_C.sum()))
        # The softmax anew, and not the old weights stretched: at a low λ those are all zero.
        weight_C[capped_C] = limit
        weight_C[~capped_C] = rest * _softmax(loss_C[~capped_C], temperature)
    return weight_C


def _softmax(loss_C: Tensor, temperature: float) -> Tensor:
    # The maximum is taken off before λ divides: no overflow at any λ, and zeros where λ is ∞.
    power_C = ((loss_C - loss_C.max()) / temperature).exp()
    return power_C / power_C.sum()
