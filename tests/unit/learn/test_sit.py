"""The SIT loss: what it is, whom it moves, and whom it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.reference import sit as reference
from worker.learn.sit import candidates, sit_losses

SCALE = 20.0
# Both sides compute in float64; a few dozen sums of numbers below 100 round by less than this.
ROUNDING = 1e-11


def sit_loss(*arguments: Any) -> Tensor:
    return sit_losses(*arguments).mean()


def units(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(rows, width, dtype=torch.float64, generator=generator)
    return functional.normalize(raw, dim=-1)


shapes = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(0, 10_000))


@given(shape=shapes)
def test_loss_equals_the_loop(shape: tuple[int, int, int]) -> None:
    """The loss is the mean cross-entropy of the pictures over the candidates, on logits."""
    pictures, texts, seed = shape
    image_BE, text_KE = units(pictures, 6, seed), units(texts, 6, seed + 1)
    target_B = torch.randint(texts, (pictures,), generator=torch.Generator().manual_seed(seed))
    expected = reference.loss(image_BE.numpy(), text_KE.numpy(), target_B.tolist(), SCALE)
    assert float(sit_loss(image_BE, text_KE, target_B, SCALE)) == pytest.approx(
        expected, abs=ROUNDING
    )


@given(shape=shapes)
def test_text_gradient_equals_the_formula(shape: tuple[int, int, int]) -> None:
    """The gradient of each text is (s/B) Σ (p - [own]) z."""
    pictures, texts, seed = shape
    image_BE, text_KE = units(pictures, 6, seed), units(texts, 6, seed + 1).requires_grad_()
    target_B = torch.randint(texts, (pictures,), generator=torch.Generator().manual_seed(seed))
    (gradient_KE,) = torch.autograd.grad(sit_loss(image_BE, text_KE, target_B, SCALE), text_KE)
    expected_KE = reference.text_gradient(
        image_BE.numpy(), text_KE.detach().numpy(), target_B.tolist(), SCALE
    )
    np.testing.assert_allclose(gradient_KE.numpy(), expected_KE, atol=ROUNDING, rtol=0)


def test_both_gradients_equal_finite_differences() -> None:
    """What autograd says of pictures and texts is what the loop's loss does when they move."""
    image_BE, text_KE = units(4, 5, 1).requires_grad_(), units(3, 5, 2).requires_grad_()
    target_B = torch.tensor([0, 1, 1, 2])
    found = torch.autograd.grad(sit_loss(image_BE, text_KE, target_B, SCALE), (image_BE, text_KE))
    pictures, texts, targets = image_BE.detach().numpy(), text_KE.detach().numpy(), [0, 1, 1, 2]
    expected = (
        reference.slope(lambda z: reference.loss(z, texts, targets, SCALE), pictures),
        reference.slope(lambda t: reference.loss(pictures, t, targets, SCALE), texts),
    )
    for gradient, slope in zip(found, expected, strict=True):
        # Central differences at 1e-6 are right to about the third derivative times 1e-12.
        np.testing.assert_allclose(gradient.numpy(), slope, atol=1e-6, rtol=0)


def test_a_class_that_is_absent_from_the_batch_is_not_moved() -> None:
    """Texts of absent classes get exactly zero gradient, where the asymmetric loss pushes them."""
    text_CE = units(6, 5, 3).requires_grad_()
    image_BE, class_B = units(4, 5, 4), [1, 4, 4, 1]
    _, target_B, rival_BK = candidates(class_B, [None] * 4)
    candidate_KE = text_CE[sorted(set(class_B))]
    (gradient_CE,) = torch.autograd.grad(
        sit_loss(image_BE, candidate_KE, target_B, SCALE, rival_BK), text_CE
    )
    absent = [0, 2, 3, 5]
    assert torch.equal(gradient_CE[absent], torch.zeros(4, 5, dtype=torch.float64))
    assert bool((gradient_CE[[1, 4]].norm(dim=1) > 0).all())
    asymmetric_CE = reference.text_gradient(
        image_BE.numpy(), text_CE.detach().numpy(), class_B, SCALE
    )
    assert (np.linalg.norm(asymmetric_CE[absent], axis=1) > 1e-3).all()


def test_symmetric_equals_asymmetric_when_the_batch_has_all_classes() -> None:
    """With every class in the batch the two candidate sets are one, and so are the losses."""
    text_CE, image_BE, class_B = units(3, 5, 5), units(5, 5, 6), [2, 0, 1, 1, 0]
    _, target_B, rival_BK = candidates(class_B, [None] * 5)
    symmetric = float(sit_loss(image_BE, text_CE, target_B, SCALE, rival_BK))
    asymmetric = reference.loss(image_BE.numpy(), text_CE.numpy(), class_B, SCALE)
    assert symmetric == pytest.approx(asymmetric, abs=ROUNDING)
    batch_of_two = float(sit_loss(image_BE[3:], text_CE[:2], torch.tensor([1, 0]), SCALE))
    everything = reference.loss(image_BE[3:].numpy(), text_CE.numpy(), [1, 0], SCALE)
    assert batch_of_two < everything


def test_one_candidate_teaches_nothing() -> None:
    """With one class in the batch the loss and all gradients are exactly zero."""
    image_BE, text_KE = units(5, 6, 7).requires_grad_(), units(1, 6, 8).requires_grad_()
    loss = sit_loss(image_BE, text_KE, torch.zeros(5, dtype=torch.int64), 100.0)
    gradients = torch.autograd.grad(loss, (image_BE, text_KE))
    assert float(loss.detach()) == 0.0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
def test_order_of_candidates_is_irrelevant(seed: int, order: list[int]) -> None:
    """Renumbering the candidates leaves the loss alone."""
    image_BE, text_KE, target_B = units(5, 6, seed), units(4, 6, seed + 1), [0, 3, 1, 2, 3]
    expected = float(sit_loss(image_BE, text_KE, torch.tensor(target_B), SCALE))
    renumbered_B = torch.tensor([order.index(target) for target in target_B])
    found = float(sit_loss(image_BE, text_KE[order], renumbered_B, SCALE))
    assert found == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_that_is_no_candidate_is_a_mistake(target: int) -> None:
    """A picture whose text is not among the candidates ends the process, it is not skipped."""
    with pytest.raises(AssertionError):
        sit_loss(units(2, 5, 1), units(3, 5, 2), torch.tensor([0, target]), SCALE)


@pytest.mark.parametrize("classes", [2, 10, 64])
def test_zero_can_be_reached_where_the_doubled_softmax_cannot(classes: int) -> None:
    """Perfect pictures have no loss left; the published code keeps log(1 + (K-1)/e)."""
    text_KE = torch.eye(classes, dtype=torch.float64)
    target_B = torch.arange(classes)
    floor = math.log(1 + (classes - 1) / math.e)
    assert float(sit_loss(text_KE, text_KE, target_B, 100.0)) < 1e-12
    perfect = text_KE.numpy()
    doubled = reference.doubled_loss(perfect, perfect, target_B.tolist(), 100.0)
    assert doubled == pytest.approx(floor, abs=1e-12)


def test_own_captions_do_not_compete() -> None:
    """Another text of a picture's own class is left out of its softmax; other classes' stay."""
    class_B, text_B = [0, 0, 1], ["a cat asleep", None, None]
    image_BE, text_KE = units(3, 6, 9), units(3, 6, 10)
    first_K, target_B, rival_BK = candidates(class_B, text_B)
    assert first_K == [1, 0, 2]
    assert target_B.tolist() == [1, 0, 2]
    found = float(sit_loss(image_BE, text_KE, target_B, SCALE, rival_BK))
    pictures, texts = image_BE.numpy(), text_KE.numpy()
    expected = [
        reference.loss(pictures[[0]], texts, [1], SCALE, candidates=[1, 2]),
        reference.loss(pictures[[1]], texts, [0], SCALE, candidates=[0, 2]),
        reference.loss(pictures[[2]], texts, [2], SCALE, candidates=[0, 1, 2]),
    ]
    assert found == pytest.approx(sum(expected) / 3, abs=ROUNDING)


def test_captions_of_one_class_alone_teach_nothing() -> None:
    """Two captions of one class do not push each other away."""
    image_BE, text_KE = units(2, 6, 11), units(2, 6, 12).requires_grad_()
    _, target_B, rival_BK = candidates([5, 5], ["one", "another"])
    loss = sit_loss(image_BE, text_KE, target_B, SCALE, rival_BK)
    (gradient_KE,) = torch.autograd.grad(loss, text_KE)
    assert float(loss.detach()) == 0.0
    assert torch.equal(gradient_KE, torch.zeros_like(gradient_KE))


@given(
    batch=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, "a", "b"])), min_size=1, max_size=8
    ),
    data=st.data(),
)
def test_candidates_do_not_depend_on_the_order_of_the_batch(
    batch: list[tuple[int, str | None]], data: st.DataObject
) -> None:
    """The distinct pairs of class and text, in an order of their own; each picture finds its."""
    shuffled = data.draw(st.permutations(batch))
    lists = []
    for pairs in (batch, shuffled):
        first_K, target_B, rival_BK = candidates([p[0] for p in pairs], [p[1] for p in pairs])
        listed = [pairs[place] for place in first_K]
        assert [listed[target] for target in target_B.tolist()] == list(pairs)
        expected_BK = [[pair[0] != other[0] for other in listed] for pair in pairs]
        assert rival_BK.tolist() == expected_BK
        lists.append(listed)
    assert lists[0] == lists[1]
    assert len(lists[0]) == len(set(batch))
