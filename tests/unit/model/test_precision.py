"""A tower in half precision says nearly what it says in float32, and is the same one where asked to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from everlens.model.adapter import AdapterSpec, insert, merged, tensors_of
from everlens.model.backbone import Backbone
from everlens.model.precision import in_precision
from everlens.model.runtime import precision_of
from everlens.model.snapshot import base_snapshot
from tests.exact import in_bfloat16, in_float32
from tests.pictures import PHOTOGRAPHS, crops


@pytest.fixture(params=["starter", "vit", "convnext"])
def backbone(
    request: pytest.FixtureRequest,
    small_model: Callable[[str], Backbone],
    starter_model: Backbone,
) -> Backbone:
    """Return a base model of each kind of blocks."""
    return starter_model if request.param == "starter" else small_model(request.param)


def test_half_precision_says_nearly_the_same(backbone: Backbone) -> None:
    """Features and embeddings of photographs turn by less than 0.08 rad, and are float32."""
    pictures = [crops(name, 1, backbone.pixels.size)[0] for name in PHOTOGRAPHS[:3]]
    exact = in_float32(backbone)
    views = [
        base_snapshot(b, backbone.top_blocks).see(pictures) for b in (exact, in_bfloat16(backbone))
    ]
    for name in ("embedding_BE", "feature_BD"):
        in_full, in_half = (getattr(view, name) for view in views)
        assert in_half.dtype == torch.float32
        cosine_B = functional.cosine_similarity(in_full, in_half)
        assert float(cosine_B.min()) > 0.997
        assert not torch.equal(in_full, in_half)


def test_the_base_stays_exact(backbone: Backbone) -> None:
    """Halving and packing copy: the tower that adapters are tuned on keeps its very weights."""
    before = {name: (t.data_ptr(), t.dtype) for name, t in backbone.image_tower.named_parameters()}
    in_precision(backbone.image_tower, torch.float32)
    tower = in_precision(backbone.image_tower, torch.bfloat16)
    after = {name: (t.data_ptr(), t.dtype) for name, t in backbone.image_tower.named_parameters()}
    assert before == after
    tensors = (*tower.blocks.parameters(), *tower.blocks.buffers())
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


def test_packed_in_float32_it_says_the_same(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a processor without bfloat16 answers: the plain tower's numbers but for the order of sums."""
    pictures = [crops(name, 1, backbone.pixels.size)[0] for name in PHOTOGRAPHS[:3]]
    plain = in_float32(backbone)
    packed = replace(plain, answering_tower=in_precision(backbone.image_tower, torch.float32))
    views = [base_snapshot(b, backbone.top_blocks).see(pictures) for b in (plain, packed)]
    for ours, theirs in zip(*views, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr("everlens.model.precision.can_pack", lambda _: False)
    assert in_precision(backbone.image_tower, torch.float32) is backbone.image_tower


def test_an_adapter_is_added_before_it_is_rounded(small_model: Callable[[str], Backbone]) -> None:
    """A change that is lost in half precision one by one is not lost on the way to it."""
    backbone = in_bfloat16(small_model("vit"))
    spec = AdapterSpec(tune="image", top_blocks=2, rank=4, alpha=4.0)
    (_, top), (_, answering) = (
        tower.cut(2) for tower in (backbone.image_tower, backbone.answering_tower)
    )
    bent = insert(top, spec, torch.Generator().manual_seed(0))
    tensors = {name: torch.randn_like(tensor) for name, tensor in tensors_of(bent).items()}
    whole = merged(top, answering, tensors, spec)
    name = "blocks.0.attention.qkv"
    weight = top.get_parameter(f"{name}.weight").double()
    exact = weight + tensors[f"{name}.B"].double() @ tensors[f"{name}.A"].double()
    found = whole.get_submodule(name).weight
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, atol=0, rtol=2**-8)
    shared = "blocks.0.ln_1"
    assert whole.get_submodule(shared).weight is answering.get_submodule(shared).weight


def test_a_processor_without_it_answers_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision that is emulated would be slower; a build that cannot say has none."""
    device = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert precision_of(device) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert precision_of(device) == torch.float32
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert precision_of(device) == torch.float32
