"""
Low-rank adapters of a top: inserted for learning, merged for answering.

For each linear map W of the top's blocks (`nn.Linear`, the fused qkv among them, and 1×1
convolutions) the adapter holds A (rank × in) and B (out × rank) and stands for
W + (alpha / rank) · B·A. B starts at zero, so that step 0 is the frozen model to the bit.

Source: LoRA (arXiv 2106.09685); where SIT puts it, and why B must be zero: learning notes in
`docs/learning.md`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from everlens.errors import PartError
from everlens.model.forms import all_finite
from everlens.model.packed import BothWays, Packed, rows_of, with_product
from everlens.model.tower import Top

Target = nn.Linear | nn.Conv2d

# Rows of a map that are merged together, at most: of 3,072 columns 3 MB.
_STRIP = 256


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What an adapter bends: two adapters fit each other when their specs are equal."""

    tune: str  # image, text, both or none
    top_blocks: int
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The multiplier of B·A."""
        return self.alpha / self.rank

    def tunes(self, tower: str) -> bool:
        """Whether the `image` or the `text` tower is bent."""
        return self.tune in {tower, "both"}


class LowRank(nn.Module):
    """A frozen linear map with a trainable low-rank part beside it."""

    def __init__(
        self,
        base: Target,
        rank: int,
        scale: float,
        generator: Generator,
        product: nn.Module | None = None,
    ) -> None:
        super().__init__()
        fan_out, fan_in = base.weight.shape[:2]
        self.base = base
        self.product = product or base  # what multiplies with the frozen weights
        self.scale = scale
        bound = (1.0 / fan_in) ** 0.5
        a = torch.empty(rank, fan_in).uniform_(-bound, bound, generator=generator)
        self.A = nn.Parameter(a.to(base.weight.device))
        self.B = nn.Parameter(torch.zeros(fan_out, rank, device=base.weight.device))

    def forward(self, inputs: Tensor) -> Tensor:
        if isinstance(self.product, BothWays):
            rounded = inputs.to(self.product.there.dtype)
            bent: Tensor = _Bent.apply(rounded, self.A, self.B, self.scale, self.product)  # type: ignore[no-untyped-call]
            return bent
        result: Tensor = self.product(inputs)
        # Scaled where it is narrow.
        if isinstance(self.base, nn.Linear):
            low = self.scale * functional.linear(inputs, self.A)
            return result + functional.linear(low, self.B)
        low = self.scale * functional.conv2d(
            inputs, self.A[:, :, None, None], stride=self.base.stride
        )
        return result + functional.conv2d(low, self.B[:, :, None, None])


class _Bent(torch.autograd.Function):
    """
    W·x + scale·B·A·x of packed maps; each thin product is added where the wide one lies.

    On their own they are written, mapped, read and added: an eleventh of a SIT step.
    """

    @staticmethod
    def forward(
        context: Any, inputs: Tensor, a: Tensor, b: Tensor, scale: float, product: BothWays
    ) -> Tensor:
        a, b = a.to(inputs.dtype), b.to(inputs.dtype)
        low_NR = (rows_of(inputs) @ a.T).mul_(scale)
        context.save_for_backward(inputs, a, b, low_NR)
        context.scale, context.back = scale, product.back
        return with_product(product.there(inputs), low_NR, b.T)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, a, b, low_NR = context.saved_tensors
        gradient_NO = rows_of(gradients[0])
        low_gradient_NR = (gradient_NO @ b).mul_(context.scale)
        # As few rows by as many columns as there are: the other way round takes up to twice as long.
        of_a, of_b = low_gradient_NR.T @ rows_of(inputs), (low_NR.T @ gradient_NO).T
        of_inputs = None
        if context.needs_input_grad[0]:
            of_inputs = with_product(context.back(gradients[0]), low_gradient_NR, a)
        return of_inputs, of_a.float(), of_b.float(), None, None


def targets(top: Top) -> dict[str, Target]:
    """Return the linear maps of a top's blocks by name, in a fixed order; the head has none."""
    return {
        f"blocks.{name}": module
        for name, module in top.blocks.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and _pointwise(module))
    }


def _pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.groups == 1 and conv.padding in {(0, 0), 0, "valid"}


def insert(top: Top, spec: AdapterSpec, generator: Generator, answering: Top | None = None) -> Top:
    """
    Return a top with a fresh adapter in it; the frozen weights are shared, not copied.

    A is uniform in ±1/√in from `generator`, B is zero.

    Args:
        top: the base in float32.
        spec: what the adapter bends.
        generator: draws A.
        answering: the base as it answers; where its maps are packed, they multiply with the frozen
            weights, which saves a tenth of a step.
    """
    bent = _sharing_copy(top)
    for name, module in targets(bent).items():
        packed = None if answering is None else answering.get_submodule(name)
        product = BothWays(packed) if isinstance(packed, Packed) else None
        _replace(bent, name, LowRank(module, spec.rank, spec.scale, generator, product))
    return bent


def removed(bent: Top) -> Top:
    """Return a bent top without its adapter: the maps that multiply with the frozen weights."""
    frozen = _sharing_copy(bent)
    for name, module in list(frozen.named_modules()):
        if isinstance(module, LowRank):
            _replace(frozen, name, module.product)
    return frozen


def tensors_of(bent: Top) -> dict[str, nn.Parameter]:
    """Return the trainable tensors of a bent top by name: `<map>.A` and `<map>.B`."""
    return {
        f"{name}.{matrix}": getattr(module, matrix)
        for name, module in bent.named_modules()
        if isinstance(module, LowRank)
        for matrix in ("A", "B")
    }


def merged(top: Top, answering: Top, tensors: dict[str, Tensor], spec: AdapterSpec) -> Top:
    """
    Return an answering top with the adapter's product added to its weights.

    Always from the untouched base: adding one small change after another drifts, and in half
    precision it would soon be lost.

    Args:
        top: the base in float32; stays as it is.
        answering: the base as it answers, of any precision; shares what the adapter leaves alone.
        tensors: A and B of each map by name.
        spec: what they fit.

    Raises:
        PartError: a tensor is missing, superfluous, of another shape, or not finite.
    """
    whole = _sharing_copy(answering)
    maps = targets(top)
    expected = {f"{name}.{matrix}" for name in maps for matrix in ("A", "B")}
    if expected != set(tensors):
        raise PartError(f"adapter does not fit the top: {sorted(expected ^ set(tensors))[:3]}")
    for name, module in maps.items():
        a, b = tensors[f"{name}.A"], tensors[f"{name}.B"]
        base = module.weight.detach()
        fan_out, fan_in = base.shape[:2]
        if a.shape != (spec.rank, fan_in) or b.shape != (fan_out, spec.rank):
            raise PartError(f"adapter tensor {name} has shapes {tuple(a.shape)}, {tuple(b.shape)}")
        if not (all_finite(a) and all_finite(b)):
            raise PartError(f"adapter tensor {name} holds a number that is not finite")
        _reweigh(whole, name, partial(_bent, base, b, a, spec.scale))
    return whole


def _bent(base: Tensor, b: Tensor, a: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return W + scale·B·A rounded to `dtype`: strip by strip, so that no sum leaves the cache."""
    bent = torch.empty(base.shape[:2], dtype=dtype, device=base.device)
    exact = base.reshape(bent.shape)
    strips = -(-len(bent) // _STRIP)
    for k in range(strips):  # all about as long: of a single row the bits would be others
        rows = slice(k * len(bent) // strips, (k + 1) * len(bent) // strips)
        bent[rows] = torch.addmm(exact[rows], b[rows], a, alpha=scale)
    return bent.view_as(base)


def _sharing_copy(top: Top) -> Top:
    """
    Return a copy of the modules over the very same parameters and buffers.

    By hand, since `deepcopy` walks through every table of hooks: of four blocks for 4 ms, in which
    no other thread runs Python.
    """
    twins = {module: copy.copy(module) for module in top.modules()}
    for module, twin in twins.items():
        twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
        twin._modules = {
            name: None if child is None else twins[child] for name, child in module._modules.items()
        }
    copied = twins[top]
    assert isinstance(copied, Top)
    return copied


def _reweigh(top: Top, name: str, weight_in: Callable[[torch.dtype], Tensor]) -> None:
    module = top.get_submodule(name)
    if isinstance(module, Packed):
        _replace(top, name, module.with_weight(weight_in(module.dtype)))
    else:
        assert isinstance(module, Target)
        module.weight = nn.Parameter(weight_in(module.weight.dtype), requires_grad=False)


def _replace(top: Top, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(top.get_submodule(parent), leaf, module)
