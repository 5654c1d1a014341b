"""The contrastive loss: against its loop, and what it pulls where."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.reference import contrast as reference
from worker.learn.contrast import TEMPERATURE, contrastive_loss


def units(seed: int, count: int, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    feature_BD = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return functional.normalize(feature_BD, dim=-1)


@given(seed=st.integers(0, 9999), class_B=st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_loss_equals_the_loop(seed: int, class_B: list[int]) -> None:
    """Pair by pair; pictures without company of their class are company of others alone."""
    feature_BD = units(seed, len(class_B))
    found = float(contrastive_loss(feature_BD, class_B))
    expected = reference.loss(feature_BD.tolist(), class_B, TEMPERATURE)
    assert found == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("class_B", [[0], [0, 1, 2], [2, 0]])
def test_without_company_there_is_nothing_to_learn(class_B: list[int]) -> None:
    """Where no class has two pictures the loss is zero and so is its gradient, not NaN."""
    feature_BD = units(1, len(class_B)).requires_grad_()
    loss = contrastive_loss(feature_BD, class_B)
    (gradient_BD,) = torch.autograd.grad(loss, feature_BD)
    assert float(loss.detach()) == 0.0
    assert not gradient_BD.any()


def test_gradient_is_finite_and_draws_a_class_together() -> None:
    """A step along it brings pictures of one class nearer and takes others apart."""
    feature_BD, class_B = units(2, 6).requires_grad_(), [0, 0, 0, 1, 1, 1]
    (gradient_BD,) = torch.autograd.grad(contrastive_loss(feature_BD, class_B), feature_BD)
    assert bool(gradient_BD.isfinite().all())
    before_BB = (feature_BD @ feature_BD.T).detach()
    moved_BD = functional.normalize((feature_BD - 0.05 * gradient_BD).detach(), dim=-1)
    after_BB = moved_BD @ moved_BD.T
    same_BB = torch.eye(2).repeat_interleave(3, 0).repeat_interleave(3, 1).bool()
    off_BB = ~torch.eye(6, dtype=torch.bool)
    assert after_BB[same_BB & off_BB].mean() > before_BB[same_BB & off_BB].mean()
    assert after_BB[~same_BB].mean() < before_BB[~same_BB].mean()


def test_classes_that_are_points_far_apart_cost_next_to_nothing() -> None:
    """Two pictures of each of two classes, all at one point and its opposite."""
    feature_BD = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert float(contrastive_loss(feature_BD, [0, 0, 1, 1])) < 1e-6
    assert float(contrastive_loss(feature_BD, [0, 1, 0, 1])) > 19
