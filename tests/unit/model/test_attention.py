"""Our attention against its formula and against the stock module."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from everlens.model.attention import Attention
from tests.reference import attention as reference


def stock(*, bias: bool = True) -> nn.MultiheadAttention:
    torch.manual_seed(3)
    module = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True, dtype=torch.float64)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def causal_mask(length: int) -> torch.Tensor:
    return torch.full((length, length), float("-inf"), dtype=torch.float64).triu(1)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_the_loop(causal: bool) -> None:
    """Head by head and token by token it is softmax(q·k / √size)·v."""
    module, states_BLE = stock(), torch.randn(2, 5, 12, dtype=torch.float64)
    ours = Attention.like(module)
    found_BLE = ours(states_BLE, causal_mask(5) if causal else None)
    maps = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in (ours.qkv, ours.out)]
    expected = [
        reference.attend(states.numpy(), maps[0], maps[1], 3, causal=causal)
        for states in states_BLE
    ]
    # Both sides in float64.
    np.testing.assert_allclose(found_BLE.detach().numpy(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_attention_equals_the_stock_module(bias: bool) -> None:
    """Over the very same weights, with and without biases, it is the same function."""
    module, states_BLE = stock(bias=bias), torch.randn(2, 5, 12, dtype=torch.float64)
    ours = Attention.like(module)
    mask = causal_mask(5)
    expected_BLE, _ = module(states_BLE, states_BLE, states_BLE, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(ours(states_BLE, mask), expected_BLE, atol=1e-12, rtol=0)
    assert ours.qkv.weight is module.in_proj_weight
    assert ours.out is module.out_proj


@pytest.mark.parametrize("queries", [None, 1])
def test_learning_attends_alike(queries: int | None) -> None:
    """Where a gradient is asked for, the same is computed in another way, and so is the gradient."""
    ours, mask = Attention.like(stock()).requires_grad_(False), None if queries else causal_mask(5)
    states_BLE = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    learning = ours(states_BLE, mask, queries)
    torch.testing.assert_close(
        learning, ours(states_BLE.detach(), mask, queries), atol=1e-12, rtol=0
    )
    asked = states_BLE.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda states: ours(states, mask, queries), [asked])


@pytest.mark.parametrize("length", [5, 50, 300])
@pytest.mark.parametrize("queries", [None, 1])
def test_half_precision_attends_alike(length: int, queries: int | None) -> None:
    """Product by product or fused, which the length decides, within the roundings of the inputs."""
    exact = Attention.like(stock()).requires_grad_(False)
    states_BLE = torch.randn(2, length, 12, generator=torch.Generator().manual_seed(0)).double()
    mask = None if queries else causal_mask(length)
    expected_BLE = exact(states_BLE, mask, queries)
    half = copy.deepcopy(exact).to(torch.bfloat16)
    found_BLE = half(
        states_BLE.bfloat16(), None if mask is None else mask.bfloat16(), queries
    ).double()
    torch.testing.assert_close(found_BLE, expected_BLE, atol=0.02, rtol=0.02)
