"""Tensors that get longer by a class now and then. ⑤"""

from __future__ import annotations

from torch import Tensor


def lengthened(tensor_CX: Tensor, length: int, fill: float = 0.0) -> Tensor:
    """
    Return the tensor with rows of `fill` at its end, where its own memory has room for them.

    Elsewhere it moves to twice the memory, so that a new class costs its row and not all others.
    The tensor given is no longer to be used.
    """
    known, row_shape = len(tensor_CX), tensor_CX.shape[1:]
    if length <= known:
        return tensor_CX
    row_bytes = row_shape.numel() * tensor_CX.element_size()
    room = tensor_CX.untyped_storage().nbytes() // row_bytes
    if room < length:
        roomy_CX = tensor_CX.new_empty(max(length, 2 * known), *row_shape)
        roomy_CX[:known] = tensor_CX
        tensor_CX = roomy_CX
    longer_CX = tensor_CX.as_strided((length, *row_shape), tensor_CX.stride())
    longer_CX[known:] = fill
    return longer_CX
