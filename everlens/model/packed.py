"""
Linear maps whose weights lie as the processor multiplies them. ⑨

oneDNN brings a layer's weights into an order of its own in every call, which for a single picture is
a fifth of the pass. Here it is done once. The products are the same to the bit; a `relu6` that
follows is taken before they are written, which changes none either.

The operators are those that torch's own compiler calls. They have no gradient: `BothWays` gives
them one, with the weights packed a second time, transposed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_PLAIN: tuple[str, list[float], str] = ("none", [], "")
_RELU6 = ("hardtanh", [0.0, 6.0], "")


class _Weights(nn.Module):
    """Packed weights and a plain bias."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, packed: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        # Buffers, so that a copy of the modules around them can share them.
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    @property
    def weight(self) -> Tensor:
        """A copy of the weights in their usual order."""
        return self.packed.to_dense()


class PackedLinear(_Weights):
    """What `nn.Linear` computes."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None), bias)

    def with_weight(self, weight: Tensor) -> PackedLinear:
        """Return a map of another weight and the same bias."""
        return PackedLinear(weight, self.bias)

    def transposed(self) -> PackedLinear:
        """Return the map of the gradient: x·W instead of x·Wᵀ."""
        return PackedLinear(self.weight.T.contiguous(), None)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, *_PLAIN)
        return result


class PackedConvolution(_Weights):
    """What `nn.Conv2d` computes, padded with zeros."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __init__(
        self, like: nn.Conv2d | PackedConvolution, weight: Tensor, bias: Tensor | None
    ) -> None:
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight.detach(), like.padding, like.stride, like.dilation, like.groups, []
        )
        super().__init__(packed, bias)
        self.kernel_size, self.stride, self.padding = like.kernel_size, like.stride, like.padding
        self.dilation, self.groups = like.dilation, like.groups

    def with_weight(self, weight: Tensor) -> PackedConvolution:
        """Return a map of another weight and the same bias."""
        return PackedConvolution(self, weight, self.bias)

    def transposed(self) -> PackedConvolution:
        """Return the map of the gradient, of a convolution of single pixels."""
        assert set(self.kernel_size) == set(self.stride) == {1} == {self.groups}
        return PackedConvolution(self, self.weight.transpose(0, 1).contiguous(), None)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._then(inputs, *_PLAIN)

    def rectified(self, inputs: Tensor) -> Tensor:
        """Return relu6 of what the convolution gives."""
        return self._then(inputs, *_RELU6)

    def _then(self, inputs: Tensor, *operation: Any) -> Tensor:
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            inputs,
            self.packed,
            self.bias,
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
            *operation,
        )
        return result


Packed = PackedLinear | PackedConvolution


class BothWays(nn.Module):
    """A packed map whose input has a gradient; the map itself is frozen."""

    def __init__(self, there: Packed) -> None:
        super().__init__()
        self.there = there
        self.back = there.transposed()

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = _BothWays.apply(  # type: ignore[no-untyped-call]
            inputs.to(torch.bfloat16), self.there, self.back
        )
        return result


class _BothWays(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: Tensor, there: Packed, back: Packed) -> Tensor:
        context.back = back
        result: Tensor = there(inputs)
        return result

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return context.back(gradients[0]), None, None


def rectified(convolution: nn.Module, inputs: Tensor) -> Tensor:
    """Return relu6 of what a convolution gives, in one pass where it is packed."""
    if isinstance(convolution, PackedConvolution):
        return convolution.rectified(inputs)
    return functional.relu6(convolution(inputs), inplace=True)


def pack(module: nn.Module) -> None:
    """Put packed maps into the place of those below a module that can be: of bfloat16, on a CPU."""
    for name, child in list(module.named_children()):
        if _can_be_packed(child):
            setattr(module, name, _packed(child))
        else:
            pack(child)


def _can_be_packed(module: nn.Module) -> bool:
    # A subclass computes something else, but for the one that attention has for its output.
    if type(module) not in {nn.Linear, NonDynamicallyQuantizableLinear, nn.Conv2d}:
        return False
    weight = module.weight
    assert isinstance(weight, Tensor)
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    # In the other order of dimensions oneDNN adds some products up in another order.
    fitting = not isinstance(module, nn.Conv2d) or (
        weight.is_contiguous(memory_format=torch.channels_last)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
    return fitting and _supported()


def _supported() -> bool:
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed(module: nn.Module) -> Packed:
    if isinstance(module, nn.Conv2d):
        return PackedConvolution(module, module.weight, module.bias)
    assert isinstance(module, nn.Linear)
    return PackedLinear(module.weight, module.bias)
