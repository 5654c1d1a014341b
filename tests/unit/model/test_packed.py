"""Packed maps give what the plain ones give, in bfloat16 the very bits, and stand where they can."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from everlens.model.adapter import AdapterSpec, insert, merged, tensors_of
from everlens.model.backbone import Backbone
from everlens.model.packed import (
    BothWays,
    Packed,
    PackedConvolution,
    PackedLinear,
    PackedPatches,
    activated,
    can_pack,
    onto,
    pack,
    rectified,
    rows_of,
    with_product,
)
from everlens.model.precision import in_precision
from everlens.model.tower import Hidden

HALF = torch.bfloat16
supported = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN multiplies no bfloat16 here"
)
supported_whole = pytest.mark.skipif(
    not can_pack(torch.float32), reason="float32 is packed on x86 with oneDNN alone"
)
CONVOLUTIONS = {
    "1x1": nn.Conv2d(24, 48, 1),
    "depthwise": nn.Conv2d(24, 24, 5, padding=2, groups=24),
    "strided": nn.Conv2d(24, 40, 3, stride=2, bias=False),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers in half precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(HALF)


def assert_rounded_once(found: Tensor, exact: Tensor) -> None:
    """Assert that numbers of half precision are the exact ones, rounded to it."""
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=2**-8)


def packed_copy(module: nn.Module) -> nn.Module:
    """Return the module with its maps packed."""
    holder = nn.ModuleList([copy.deepcopy(module).to(HALF)]).requires_grad_(False)
    pack(holder)
    return holder[0]


@supported
@pytest.mark.parametrize("rows", [1, 3, 50, 400])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_keeps_its_bits(rows: int, bias: bool) -> None:
    """For one row and for many, however the input is shaped and laid out."""
    linear = nn.Linear(96, 160, bias=bias).to(HALF)
    packed = packed_copy(linear)
    assert isinstance(packed, PackedLinear)
    assert torch.equal(packed.weight, linear.weight)
    for inputs in (drawn(rows, 96), drawn(2, rows, 96), drawn(96, rows).T):
        assert torch.equal(packed(inputs), linear(inputs))


@supported
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_convolution_keeps_its_bits(kind: str, layout: torch.memory_format) -> None:
    """Rectified in one pass or not, in either order of dimensions."""
    plain = copy.deepcopy(CONVOLUTIONS[kind]).to(HALF).requires_grad_(False)
    plain.to(memory_format=layout)  # type: ignore[call-overload]
    packed = packed_copy(plain)
    last = layout == torch.channels_last or kind != "strided"
    assert isinstance(packed, PackedConvolution) == last
    inputs = (5 * drawn(2, 24, 15, 15)).to(memory_format=layout)
    expected = plain(inputs)
    assert torch.equal(packed(inputs), expected)
    assert torch.equal(rectified(packed, inputs), functional.relu6(expected))
    assert torch.equal(rectified(plain, inputs), functional.relu6(expected))
    assert float(expected.min()) < 0
    assert float(expected.max()) > 6


@supported
@pytest.mark.parametrize("rows", [1, 3, 50, 400])
def test_what_follows_a_map_is_taken_before_it_is_rounded(rows: int) -> None:
    """GELU, and the sum with the states: one rounding, where apart there are two."""
    linear = nn.Linear(96, 160).to(HALF)
    packed, inputs, states = packed_copy(linear), drawn(2, rows, 96), drawn(2, rows, 160, seed=1)
    exact = functional.linear(inputs.double(), linear.weight.double(), linear.bias.double())
    assert_rounded_once(activated(nn.GELU(), packed, inputs), functional.gelu(exact))
    before = states.clone()
    assert_rounded_once(onto(states, packed, inputs), states.double() + exact)
    assert torch.equal(states, before)


@supported
def test_what_follows_is_the_module_s_own() -> None:
    """Another activation, or a map that is not packed, is called as it stands."""
    linear, inputs = nn.Linear(8, 12).to(HALF), drawn(5, 8)
    packed = packed_copy(linear)
    tanh = nn.GELU(approximate="tanh")
    for activation in (tanh, nn.SiLU()):
        expected = activation(linear(inputs))
        assert torch.equal(activated(activation, packed, inputs), expected)
    assert torch.equal(activated(nn.GELU(), linear, inputs), nn.GELU()(linear(inputs)))
    assert torch.equal(onto(drawn(5, 12), linear, inputs), drawn(5, 12) + linear(inputs))


@supported
@pytest.mark.parametrize("size", [(32, 24), (35, 30)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_patches_side_by_side_are_one_product(
    size: tuple[int, int], bias: bool, layout: torch.memory_format
) -> None:
    """The convolution's numbers, what is beyond the last whole patch left out as it leaves it out."""
    plain = nn.Conv2d(3, 40, (8, 6), stride=(8, 6), bias=bias).to(HALF)
    packed = packed_copy(plain)
    assert isinstance(packed, PackedPatches)
    inputs = drawn(2, 3, *size).to(memory_format=layout)
    exact = functional.conv2d(
        inputs.double(),
        plain.weight.double(),
        None if plain.bias is None else plain.bias.double(),
        stride=(8, 6),
    )
    assert_rounded_once(packed(inputs), exact)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_product_is_added_row_by_row(layout: torch.memory_format) -> None:
    """A row for each place, its channels together, of tokens and of maps however these lie."""
    maps, tokens = torch.randn(2, 5, 3, 4).to(memory_format=layout), torch.randn(2, 7, 5)
    assert torch.equal(rows_of(maps)[1 * 12 + 2 * 4 + 3], maps[1, :, 2, 3])
    assert torch.equal(rows_of(tokens)[7 + 3], tokens[1, 3])
    for states in (maps, tokens):
        left, right = torch.randn(len(rows_of(states)), 2), torch.randn(2, 5)
        expected = rows_of(states) + left @ right
        found = with_product(states, left, right)
        torch.testing.assert_close(rows_of(found), expected)
        assert found.shape == states.shape
        assert found._base is None


@supported
def test_only_what_computes_the_same_is_packed() -> None:
    """Not float64, no subclass, no other padding; and everything below is looked at."""

    class Doubled(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return 2 * super().forward(inputs)

    modules = nn.ModuleDict(
        {
            "linear": nn.Sequential(nn.Sequential(nn.Linear(8, 8))),
            "doubled": Doubled(8, 8),
            "reflecting": nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
            "same": nn.Conv2d(8, 8, 3, padding="same"),
            "apart": nn.Conv2d(8, 8, 3, stride=4),
        }
    )
    pack(modules.double())
    assert not any(isinstance(module, Packed) for module in modules.modules())
    for dtype in (HALF, torch.float32):
        packed = copy.deepcopy(modules).to(dtype)
        pack(packed)
        if can_pack(dtype):
            assert [name for name, m in packed.named_modules() if isinstance(m, Packed)] == [
                "linear.0.0"
            ]


@supported
def test_a_tower_and_its_adapter_keep_their_bits(
    starter_model: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen and merged, the starter says the same with packed maps and with plain ones."""
    backbone = starter_model
    packed = in_precision(backbone.image_tower, HALF)
    monkeypatch.setattr("everlens.model.precision.pack", lambda _: None)
    plain = in_precision(backbone.image_tower, HALF)
    assert any(isinstance(module, Packed) for module in packed.modules())
    assert not any(isinstance(module, Packed) for module in plain.modules())
    spec = AdapterSpec("image", backbone.top_blocks, rank=4, alpha=4.0)
    _, exact = backbone.image_tower.cut(spec.top_blocks)
    tensors = {
        name: torch.full_like(tensor, 0.01)
        for name, tensor in tensors_of(insert(exact, spec, torch.Generator())).items()
    }
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    said = []
    for tower in (packed, plain):
        trunk, top = tower.cut(spec.top_blocks)
        hidden: Hidden = trunk(images)
        bent = merged(exact, top, tensors, spec)
        said.append([answer for each in (top, bent) for answer in each(hidden)])
    for ours, theirs in zip(*said, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(said[0][0], said[0][2])


@supported
@pytest.mark.parametrize("kind", ["linear", "1x1"])
def test_both_ways_have_the_gradient_of_the_plain_map(kind: str) -> None:
    """The gradient of the input is that of autograd, within one rounding of half precision."""
    plain = nn.Linear(24, 48) if kind == "linear" else copy.deepcopy(CONVOLUTIONS["1x1"])
    plain = plain.to(HALF).requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    packed = packed_copy(plain)
    assert isinstance(packed, Packed)
    inputs = drawn(2, 24, 5, 5) if kind == "1x1" else drawn(7, 24)
    outputs, gradients = [], []
    for module in (plain, BothWays(packed)):
        asked = inputs.float().requires_grad_()
        output = module(asked.to(HALF))
        output.float().square().sum().backward()
        outputs.append(output)
        gradients.append(asked.grad)
    assert torch.equal(*outputs)
    torch.testing.assert_close(gradients[0], gradients[1], atol=0.02, rtol=2**-7)


def whole_copy(module: nn.Module) -> nn.Module:
    """Return the module with its maps packed in float32."""
    holder = nn.ModuleList([copy.deepcopy(module)]).requires_grad_(False)
    pack(holder)
    assert isinstance(holder[0], Packed)
    return holder[0]


def assert_float32(found: Tensor, exact: Tensor) -> None:
    """Assert that numbers of float32 are the exact ones but for the order of some hundred sums."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)


@supported_whole
@pytest.mark.parametrize("rows", [1, 3, 50, 400])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_of_float32(rows: int, bias: bool) -> None:
    """Alone, under a GELU and onto the states: what float64 gives."""
    linear = nn.Linear(96, 160, bias=bias)
    packed = whole_copy(linear)
    inputs, states = drawn(2, rows, 96).float(), drawn(2, rows, 160, seed=1).float()
    exact = copy.deepcopy(linear).double()(inputs.double())
    assert_float32(packed(inputs), exact)
    assert_float32(activated(nn.GELU(), packed, inputs), functional.gelu(exact))
    assert_float32(onto(states, packed, inputs), states.double() + exact)


@supported_whole
@pytest.mark.parametrize("kind", [*CONVOLUTIONS, "patches"])
def test_a_convolution_of_float32(kind: str) -> None:
    """Rectified or not, and of patches side by side: what float64 gives."""
    plain = CONVOLUTIONS.get(kind, nn.Conv2d(24, 32, (5, 3), stride=(5, 3)))
    plain = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    packed = whole_copy(plain)
    inputs = (5 * drawn(2, 24, 15, 15).float()).to(memory_format=torch.channels_last)
    exact = copy.deepcopy(plain).double()(inputs.double())
    assert_float32(packed(inputs), exact)
    assert_float32(rectified(packed, inputs), functional.relu6(exact))


@supported_whole
@pytest.mark.parametrize("kind", ["linear", "1x1"])
def test_both_ways_of_float32(kind: str) -> None:
    """The gradient of the input is that of float64."""
    plain = nn.Linear(24, 48) if kind == "linear" else copy.deepcopy(CONVOLUTIONS["1x1"])
    plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    packed = whole_copy(plain)
    assert isinstance(packed, Packed)
    inputs = (drawn(2, 24, 5, 5) if kind == "1x1" else drawn(7, 24)).float().requires_grad_()
    exact = inputs.detach().double().requires_grad_()
    BothWays(packed)(inputs).square().sum().backward()
    plain.double()(exact).square().sum().backward()
    assert inputs.grad is not None
    assert exact.grad is not None
    assert_float32(inputs.grad, exact.grad)
