"""Low-rank adapters: nothing at first, the same merged as beside, never in the base."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from everlens.errors import PartError
from everlens.model.adapter import AdapterSpec, LowRank, insert, merged, targets, tensors_of
from everlens.model.backbone import Backbone
from everlens.model.packed import BothWays, Packed, can_pack, pack
from everlens.model.tower import Hidden, Top
from tests.pictures import PHOTOGRAPHS, squashed
from tests.reference import adapter as reference

SPEC = AdapterSpec(tune="image", top_blocks=2, rank=4, alpha=2.0)
KINDS = ("vit", "text", "siglip", "convnext", "starter")

Halves = tuple[Top, Hidden]


@pytest.fixture(scope="module")
def halves(
    small_model: Callable[[str], Backbone], request: pytest.FixtureRequest
) -> Callable[[str], Halves]:
    """A function: the top of a tower of that kind, and what its trunk says of real inputs."""

    def of(kind: str) -> Halves:
        if kind == "starter":
            backbone: Backbone = request.getfixturevalue("starter_model")
        else:
            backbone = small_model("vit" if kind == "text" else kind)
        tower = backbone.text_tower if kind == "text" else backbone.image_tower
        trunk, top = tower.cut(2)
        with torch.no_grad():
            if kind == "text":
                return top, trunk(backbone.tokenize(["a photo of a cat.", "rocket"]))
            size = backbone.pixels.size
            return top, trunk(backbone.images([squashed(n, size) for n in PHOTOGRAPHS]))

    return of


def drawn(bent: Top, size: float = 0.05) -> dict[str, Tensor]:
    """Fill A and B with numbers that matter, and return copies of them."""
    generator = Generator().manual_seed(5)
    for parameter in tensors_of(bent).values():
        parameter.data = size * torch.randn(parameter.shape, generator=generator)
    return {name: tensor.detach().clone() for name, tensor in tensors_of(bent).items()}


def weights(top: Top) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in top.state_dict().items()}


EXPECTED_TARGETS = {
    "vit": ("attention.qkv", "attention.out", "mlp.c_fc", "mlp.c_proj"),
    "text": ("attention.qkv", "attention.out", "mlp.c_fc", "mlp.c_proj"),
    "siglip": ("block.attn.qkv", "block.attn.proj", "block.mlp.fc1", "block.mlp.fc2"),
    "convnext": ("block.mlp.fc1", "block.mlp.fc2"),
}


@pytest.mark.parametrize("kind", EXPECTED_TARGETS)
def test_all_linear_maps_of_the_blocks_are_found(
    halves: Callable[[str], Halves], kind: str
) -> None:
    """Fused qkv, output, both maps of the MLP; depthwise convolutions and the head are none."""
    top, _ = halves(kind)
    expected = [f"blocks.{block}.{name}" for block in (0, 1) for name in EXPECTED_TARGETS[kind]]
    assert sorted(targets(top)) == sorted(expected)


def test_pointwise_convolutions_of_the_starter_are_found(halves: Callable[[str], Halves]) -> None:
    """In the starter's last two blocks an adapter bends both 1×1 maps and the head's widening."""
    found = targets(halves("starter")[0])
    assert sorted(found) == ["blocks.0.expand", "blocks.0.project", "blocks.1.widen"]
    assert all(isinstance(module, nn.Conv2d) for module in found.values())


def test_convolutions_of_convnext_are_found(halves: Callable[[str], Halves]) -> None:
    """ConvNeXt-Atto's MLPs are 1×1 convolutions; its 7×7 depthwise ones are left alone."""
    found = targets(halves("convnext")[0])
    assert {m.kernel_size for m in found.values() if isinstance(m, nn.Conv2d)} == {(1, 1)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_no_bit(halves: Callable[[str], Halves], kind: str) -> None:
    """B is zero: linear, fused and convolutional maps give the frozen model's very bits."""
    top, hidden = halves(kind)
    bent = insert(top, SPEC, Generator().manual_seed(0))
    with torch.no_grad():
        frozen, found = top(hidden), bent(hidden)
    assert torch.equal(found.feature_BD, frozen.feature_BD)
    assert torch.equal(found.embedding_BE, frozen.embedding_BE)
    for name, tensor in tensors_of(bent).items():
        assert bool(tensor.any()) is name.endswith(".A")


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged(halves: Callable[[str], Halves], kind: str) -> None:
    """Answering with merged weights is learning with the product beside them."""
    top, hidden = halves(kind)
    bent = insert(top, SPEC, Generator().manual_seed(0))
    tensors = drawn(bent)
    with torch.no_grad():
        beside, within = bent(hidden), merged(top, top, tensors, SPEC)(hidden)
        frozen = top(hidden)
    # Float32 maps of up to 1,280 inputs, added in another order, through two blocks.
    torch.testing.assert_close(within.feature_BD, beside.feature_BD, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(within.embedding_BE, beside.embedding_BE, atol=1e-4, rtol=1e-4)
    assert float((beside.feature_BD - frozen.feature_BD).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_equal_the_loop(halves: Callable[[str], Halves], kind: str) -> None:
    """Each weight becomes W + (alpha / rank)·B·A, computed in float64 and rounded once."""
    top, _ = halves(kind)
    tensors = drawn(insert(top, SPEC, Generator().manual_seed(0)))
    name = min(targets(top), key=lambda target: targets(top)[target].weight.numel())
    weight = targets(top)[name].weight
    expected = reference.merge(
        weight.flatten(1).double().numpy(),
        tensors[f"{name}.A"].double().numpy(),
        tensors[f"{name}.B"].double().numpy(),
        SPEC.alpha,
    )
    found = targets(merged(top, top, tensors, SPEC))[name].weight
    assert found.shape == weight.shape
    # One rounding of the product and one of the sum to float32.
    np.testing.assert_allclose(found.flatten(1).double().numpy(), expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("rows", [600, 513])
def test_merging_strip_by_strip_has_the_bits_of_one_product(rows: int) -> None:
    """Also where the rows of a map do not fill the strips."""
    random = Generator().manual_seed(rows)
    linear = nn.Linear(96, rows).requires_grad_(False)
    top = Top(nn.ModuleList([linear]), nn.Identity())
    (name,) = targets(top)
    a, b = torch.randn(4, 96, generator=random), torch.randn(rows, 4, generator=random)
    found = targets(merged(top, top, {f"{name}.A": a, f"{name}.B": b}, SPEC))[name]
    assert torch.equal(found.weight, torch.addmm(linear.weight, b, a, alpha=SPEC.scale))


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_stays_as_it_was(halves: Callable[[str], Halves], kind: str) -> None:
    """Merging twice adds once: every weight of the base is bit-equal afterwards."""
    top, hidden = halves(kind)
    before = weights(top)
    tensors = drawn(insert(top, SPEC, Generator().manual_seed(0)))
    with torch.no_grad():
        once, twice = (
            merged(top, top, tensors, SPEC)(hidden),
            merged(top, top, tensors, SPEC)(hidden),
        )
    assert torch.equal(once.embedding_BE, twice.embedding_BE)
    assert before.keys() == top.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in top.state_dict().items())


def test_frozen_weights_are_shared_and_not_copied(halves: Callable[[str], Halves]) -> None:
    """An inserted adapter costs its own tensors; a merged top those maps that it bends."""
    top, _ = halves("vit")
    own = {tensor.data_ptr() for tensor in top.parameters()}
    bent = insert(top, SPEC, Generator().manual_seed(0))
    trained = {tensor.data_ptr() for tensor in tensors_of(bent).values()}
    assert {t.data_ptr() for t in bent.parameters()} == own | trained
    whole = merged(top, top, drawn(bent), SPEC)
    fresh = {t.data_ptr() for t in whole.parameters()} - own
    assert len(fresh) == len(targets(top))
    assert not any(parameter.requires_grad for parameter in whole.parameters())


def test_only_the_adapter_asks_for_gradients(halves: Callable[[str], Halves]) -> None:
    """A backward pass reaches B, and no weight of the base."""
    top, hidden = halves("vit")
    bent = insert(top, SPEC, Generator().manual_seed(0))
    bent(hidden).embedding_BE.sum().backward()
    for name, parameter in bent.named_parameters():
        assert (parameter.grad is not None) is name.endswith((".A", ".B"))
    assert all(
        t.grad is not None and bool(t.grad.any())
        for n, t in tensors_of(bent).items()
        if n.endswith("B")
    )


def test_the_seed_decides_the_start(halves: Callable[[str], Halves]) -> None:
    """A is uniform in ±1/√in and a function of the generator."""
    top, _ = halves("vit")
    first, again, other = (
        tensors_of(insert(top, SPEC, Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    a = first["blocks.0.attention.qkv.A"]
    assert not torch.equal(a, other["blocks.0.attention.qkv.A"])
    assert a.shape == (4, 64)
    assert 0.9 / 8 < float(a.detach().abs().max()) <= 1 / 8


def broken(tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    name = "blocks.1.mlp.c_fc.A"
    a, b = tensors[name], tensors["blocks.1.mlp.c_fc.B"]
    yield "missing", {k: t for k, t in tensors.items() if k != name}
    yield "nothing", {}
    yield "superfluous", {**tensors, "blocks.2.mlp.c_fc.A": a}
    yield "renamed", {**{k: t for k, t in tensors.items() if k != name}, name + "x": a}
    yield "rank", {**tensors, name: a[:3], "blocks.1.mlp.c_fc.B": b[:, :3]}
    yield "width", {**tensors, name: a[:, :-1]}
    yield "transposed", {**tensors, name: a.T}
    yield "height", {**tensors, "blocks.1.mlp.c_fc.B": b[:-1]}
    for number in ("nan", "inf", "-inf"):
        for matrix in ("A", "B"):
            damaged = tensors[f"blocks.1.mlp.c_fc.{matrix}"].clone()
            damaged[1, 2] = float(number)
            yield f"{number} in {matrix}", {**tensors, f"blocks.1.mlp.c_fc.{matrix}": damaged}


def test_what_does_not_fit_is_refused(halves: Callable[[str], Halves]) -> None:
    """Missing, superfluous, misshapen and damaged tensors are refused by name."""
    top, _ = halves("vit")
    tensors = drawn(insert(top, SPEC, Generator().manual_seed(0)))
    for what, wrong in broken(tensors):
        with pytest.raises(PartError, match="adapter"):
            pytest.fail(f"{what} was taken: {merged(top, top, wrong, SPEC)}")
    merged(top, top, tensors, SPEC)


@pytest.mark.parametrize("layout", [None, torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_packed_map_and_its_adapter_are_one_function(
    layout: torch.memory_format | None, asked: bool, dtype: torch.dtype
) -> None:
    """Its value and all its gradients are those of the formula in float64, tokens and maps alike."""
    base: nn.Linear | nn.Conv2d = nn.Linear(24, 40) if layout is None else nn.Conv2d(24, 40, 1)
    base = base.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    if not can_pack(dtype):
        pytest.skip(f"nothing of {dtype} is packed here")
    holder = nn.ModuleList([copy.deepcopy(base).to(dtype)])
    pack(holder)
    assert isinstance(holder[0], Packed)
    bent = LowRank(base, 4, 0.5, Generator().manual_seed(1), BothWays(holder[0]))
    generator = Generator().manual_seed(2)
    bent.B.data = torch.randn(40, 4, generator=generator)
    shape = (3, 7, 24) if layout is None else (3, 24, 2, 5)
    inputs = torch.randn(shape, generator=generator)
    if layout is not None:
        inputs = inputs.to(memory_format=layout)
    inputs = inputs.requires_grad_(asked)
    outputs = bent(inputs)
    weight = torch.randn(outputs.shape, generator=generator)
    (weight * outputs.float()).sum().backward()

    assert base.bias is not None
    exact = [t.detach().to(dtype).double() for t in (inputs, base.weight, bent.A, bent.B)]
    x, w, a, b = (t.requires_grad_() for t in exact)
    whole = w.flatten(1) + 0.5 * b @ a
    bias = base.bias.double()
    if layout is None:
        expected = functional.linear(x, whole, bias)
    else:
        expected = functional.conv2d(x, whole[:, :, None, None], bias)
    (weight.to(dtype).double() * expected).sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.dtype == dtype
    roundings = 0.01 if dtype == torch.bfloat16 else 1e-6
    for found, wanted in ((outputs, expected), (bent.A.grad, a.grad), (bent.B.grad, b.grad)):
        _assert_near(found, wanted, roundings)
    if asked:
        _assert_near(inputs.grad, x.grad, roundings)
    else:
        assert inputs.grad is None
    if layout is not None:  # the starter's blocks write over what a convolution gives
        functional.relu6(bent(inputs), inplace=True).sum().backward()  # type: ignore[no-untyped-call]


def _assert_near(found: Tensor | None, wanted: Tensor | None, roundings: float) -> None:
    """Assert that numbers differ by a few roundings, given as a share of the largest."""
    assert found is not None
    assert wanted is not None
    most = float(wanted.detach().abs().max())
    torch.testing.assert_close(found.double(), wanted, atol=roundings * most, rtol=roundings)
