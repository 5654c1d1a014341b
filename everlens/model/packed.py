"""
Linear maps whose weights lie as the processor multiplies them. ⑨

oneDNN brings a layer's weights into an order of its own in every call, which for a single picture is
a fifth of the pass. Here it is done once, and what follows a product is taken before it is written: a
`relu6`, a GELU, the sum with the states.

In bfloat16 products and `relu6` are the same to the bit; a GELU and a sum are rounded once instead of
twice. In float32 another library multiplies the plain maps, and adds up in another order, as the
product of patches side by side does in both.

The operators are those that torch's own compiler calls. They have no gradient: `BothWays` gives
them one, with the weights packed a second time, transposed.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_PLAIN: tuple[str, list[float], str] = ("none", [], "")
_RELU6 = ("hardtanh", [0.0, 6.0], "")
_GELU: tuple[str, list[float], str] = ("gelu", [], "none")


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
    def dtype(self) -> torch.dtype:
        """What is multiplied."""
        return self.packed.dtype

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
        return self._then(inputs, *_PLAIN)

    def gelu(self, inputs: Tensor) -> Tensor:
        """Return GELU of what the map gives."""
        return self._then(inputs, *_GELU)

    def onto(self, states: Tensor, inputs: Tensor) -> Tensor:
        """Return the states with what the map gives added."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            inputs, states, self.packed, self.bias, "add"
        )
        return result

    def _then(self, inputs: Tensor, *operation: Any) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self.packed, self.bias, *operation
        )
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


class PackedPatches(PackedLinear):
    """
    What an `nn.Conv2d` computes that takes patches side by side, as a vision transformer's first map.

    One product of all patches takes half as long as the convolution; its sums are added up in another
    order. Numbers of a patch lie as in a picture of channels last.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__(like.weight.permute(0, 2, 3, 1).flatten(1).contiguous(), like.bias)
        self.kernel_size = like.kernel_size

    def forward(self, inputs_BCHW: Tensor) -> Tensor:
        (high, wide), (batch, channels, height, width) = self.kernel_size, inputs_BCHW.shape
        rows, columns = height // high, width // wide
        image_BHWC = inputs_BCHW[..., : rows * high, : columns * wide].permute(0, 2, 3, 1)
        patch_BRCN = image_BHWC.reshape(batch, rows, high, columns, wide * channels).transpose(2, 3)
        return super().forward(patch_BRCN.flatten(3)).permute(0, 3, 1, 2)


Packed = PackedLinear | PackedConvolution


class BothWays(nn.Module):
    """A packed map whose input has a gradient; the map itself is frozen."""

    def __init__(self, there: Packed) -> None:
        super().__init__()
        self.there = there
        self.back = there.transposed()

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = _BothWays.apply(  # type: ignore[no-untyped-call]
            inputs.to(self.there.dtype), self.there, self.back
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


def rows_of(states: Tensor) -> Tensor:
    """Return row_NC of tokens (…, C) or of maps (B, C, H, W); no copy where channels lie last."""
    if states.ndim == 4:
        states = states.permute(0, 2, 3, 1)
    return states.reshape(-1, states.shape[-1])


def with_product(states: Tensor, left_NR: Tensor, right_RC: Tensor) -> Tensor:
    """Return states to whose rows a product is added, in their place unless they lie otherwise."""
    lying = torch.channels_last if states.ndim == 4 else torch.contiguous_format
    states = states.contiguous(memory_format=lying)  # whose rows are a view
    rows_of(states).addmm_(left_NR, right_RC)
    return states


def rectified(convolution: nn.Module, inputs: Tensor) -> Tensor:
    """Return relu6 of what a convolution gives, in one pass where it is packed."""
    if isinstance(convolution, PackedConvolution):
        return convolution.rectified(inputs)
    return functional.relu6(convolution(inputs), inplace=True)


def activated(activation: nn.Module, linear: nn.Module, inputs: Tensor) -> Tensor:
    """Return the activation of what a linear map gives, in one pass where that is packed."""
    exact = type(activation) is nn.GELU and activation.approximate == "none"
    if exact and isinstance(linear, PackedLinear):
        return linear.gelu(inputs)
    result: Tensor = activation(linear(inputs))
    return result


def onto(states: Tensor, linear: nn.Module, inputs: Tensor) -> Tensor:
    """Return the states with what a linear map gives added, in one pass where it is packed."""
    if isinstance(linear, PackedLinear):
        return linear.onto(states, inputs)
    result: Tensor = states + linear(inputs)
    return result


def pack(module: nn.Module) -> None:
    """Put packed maps into the place of those below a module that can be packed, on a CPU."""
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
    if weight.device.type != "cpu" or not can_pack(weight.dtype):
        return False
    # In the other order of dimensions oneDNN adds some products up in another order.
    fitting = not isinstance(module, nn.Conv2d) or (
        weight.is_contiguous(memory_format=torch.channels_last)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
    return fitting or _takes_patches(module)


def _takes_patches(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride != (1, 1)
        and module.padding in {(0, 0), "valid"}
        and module.dilation == (1, 1)
        and module.groups == 1
    )


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether oneDNN has maps of this precision here that are worth packing."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # Elsewhere other libraries lie beneath it, with which nothing here was tried.
    return dtype == torch.float32 and platform.machine() in {"x86_64", "AMD64"}


def _packed(module: nn.Module) -> Packed:
    if isinstance(module, nn.Conv2d):
        if _takes_patches(module):
            return PackedPatches(module)
        return PackedConvolution(module, module.weight, module.bias)
    assert isinstance(module, nn.Linear)
    return PackedLinear(module.weight, module.bias)
