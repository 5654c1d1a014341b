"""
Attention as two linear layers on contiguous (B, L, E), for open_clip's towers.

`nn.MultiheadAttention` keeps its fused projection as a bare parameter, where no adapter finds it,
and with frozen weights feeds it a transposed input that is copied once a token (up to twenty
times slower under autocast). Same weights, same result, other shape.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional


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
        batch, length, width = states_BLE.shape
        qkv = self.qkv(states_BLE).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query = query[:, :, :queries]
        # On a CPU the fused kernel's gradient takes six times its forward, a seventh of a SIT step.
        learning = qkv.requires_grad and qkv.device.type == "cpu"
        attend = _attended if learning else functional.scaled_dot_product_attention
        attended = attend(query, key, value, mask)
        result: Tensor = self.out(attended.transpose(1, 2).reshape(batch, -1, width))
        return result


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(q·kᵀ / √size + mask)·v, product by product."""
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(value.dtype) @ value
