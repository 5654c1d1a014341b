"""
Attention as two linear layers on contiguous (B, L, E), for open_clip's towers.

`nn.MultiheadAttention` keeps its fused projection as a bare parameter, where no adapter finds it,
and with frozen weights feeds it a transposed input that is copied once a token (up to twenty
times slower under autocast). Same weights, same result, other shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# Positions whose scores, product by product, stay in the processor's cache.
_POSITIONS_MAX = 256


class Attention(nn.Module):
    """Self-attention with one fused `qkv` and one `out` projection, both `nn.Linear`."""

    def __init__(self, qkv: nn.Linear, out: nn.Linear, heads: int) -> None:
        super().__init__()
        assert qkv.out_features == 3 * qkv.in_features == 3 * out.in_features
        self.qkv = qkv
        self.out = out
        self.heads = heads

    @classmethod
    def like(cls, stock: nn.MultiheadAttention) -> Attention:
        """Return the same function over the same weights as the stock module."""
        width = stock.embed_dim
        biased = stock.in_proj_bias is not None
        qkv = nn.Linear(width, 3 * width, bias=biased, device="meta")
        assert stock.in_proj_weight is not None
        qkv.weight = stock.in_proj_weight
        if biased:
            qkv.bias = stock.in_proj_bias
        return cls(qkv, stock.out_proj, stock.num_heads)

    def forward(
        self, states_BLE: Tensor, mask: Tensor | None, queries: int | None = None
    ) -> Tensor:
        """
        Return the attended states.

        Args:
            states_BLE: the input.
            mask: added to the scores (0 or -inf).
            queries: how many positions ask and are returned, from the first on; None for all.
        """
        result: Tensor = self.out(self.heads_of(states_BLE, mask, queries))
        return result

    def heads_of(
        self, states_BLE: Tensor, mask: Tensor | None, queries: int | None = None
    ) -> Tensor:
        """Return what the heads read, side by side, before `out`; arguments as of `forward`."""
        batch, length, width = states_BLE.shape
        qkv = self.qkv(states_BLE).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query = query[:, :, :queries]
        attend = _by_products if _products_win(qkv) else functional.scaled_dot_product_attention
        return attend(query, key, value, mask).transpose(1, 2).reshape(batch, -1, width)


def _products_win(qkv_BL3HD: Tensor) -> bool:
    """
    Whether the fused kernel is the slower one.

    On a CPU its gradient takes six times its forward, a seventh of a SIT step; and in half
    precision its forward takes 1.3 times the products of 50 positions, 1.8 times those of 197.
    """
    half = qkv_BL3HD.dtype == torch.bfloat16 and qkv_BL3HD.shape[1] <= _POSITIONS_MAX
    return qkv_BL3HD.device.type == "cpu" and (qkv_BL3HD.requires_grad or half)


def _by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(q·kᵀ / √size + mask)·v, product by product."""
    shape = query.shape
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    added = query.new_zeros(1) if mask is None else mask.to(query.dtype)
    scores = torch.baddbmm(
        added, query, key.mT, beta=int(mask is not None), alpha=1 / math.sqrt(query.shape[-1])
    )
    return (scores.softmax(dim=-1).to(value.dtype) @ value).view(shape)
