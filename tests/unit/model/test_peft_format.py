"""Adapters as `peft` reads them: by the library's names, the same function."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Generator, Tensor, nn

from everlens.model.adapter import AdapterSpec, merged, targets
from everlens.model.backbone import Backbone
from everlens.model.peft_format import CONFIG, WEIGHTS, peft_files
from everlens.model.tower import Top
from tests.pictures import PHOTOGRAPHS, squashed

SPEC = AdapterSpec(tune="both", top_blocks=2, rank=4, alpha=6.0)
KINDS = ("vit", "siglip", "convnext", "starter")

Model = Callable[[str], tuple[Backbone, nn.Module]]


@pytest.fixture(scope="module")
def model(
    small_model: Callable[[str], Backbone],
    model_folder: Callable[[str], Path],
    request: pytest.FixtureRequest,
) -> Model:
    """A function: a base model, and the library's own over the same weights."""

    def of(kind: str) -> tuple[Backbone, nn.Module]:
        import open_clip

        if kind == "starter":
            starter: Backbone = request.getfixturevalue("starter_model")
            towers = {"image_tower": starter.image_tower, "text_tower": starter.text_tower}
            return starter, nn.ModuleDict(towers)
        library = open_clip.create_model(f"local-dir:{model_folder(kind)}")
        return small_model(kind), library.eval()

    return of


def drawn(backbone: Backbone) -> dict[str, Tensor]:
    """Return an adapter of both towers with numbers that matter."""
    generator = Generator().manual_seed(3)
    tensors = {}
    for name, top in tops(backbone).items():
        for place, module in targets(top).items():
            fan_out, fan_in = module.weight.shape[:2]
            for matrix, shape in (("A", (SPEC.rank, fan_in)), ("B", (fan_out, SPEC.rank))):
                numbers = 0.1 * torch.randn(shape, generator=generator)
                tensors[f"{name}.{place}.{matrix}"] = numbers
    return tensors


def tops(backbone: Backbone) -> dict[str, Top]:
    return {
        "image": backbone.image_tower.cut(SPEC.top_blocks)[1],
        "text": backbone.text_tower.cut(SPEC.top_blocks)[1],
    }


@torch.no_grad()
def ours(backbone: Backbone, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the embeddings of photographs and names through the merged towers."""
    seen = []
    for name, inputs in zip(("image", "text"), inputs_of(backbone), strict=True):
        tower = backbone.image_tower if name == "image" else backbone.text_tower
        trunk, top = tower.cut(SPEC.top_blocks)
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key[:4] == name[:4]}
        seen.append(merged(top, top, own, SPEC)(trunk(inputs)).embedding_BE)
    return seen[0], seen[1]


def inputs_of(backbone: Backbone) -> tuple[Tensor, Tensor]:
    size = backbone.pixels.size
    pictures = backbone.images([squashed(name, size) for name in PHOTOGRAPHS])
    return pictures, backbone.tokenize(["a photo of a cat.", "rocket"])


@torch.no_grad()
def theirs(library: Any, backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Return the embeddings of the library's model."""
    pictures, tokens = inputs_of(backbone)
    if hasattr(library, "encode_image"):
        length = library.context_length
        padded = nn.functional.pad(tokens, (0, length - tokens.shape[1]))
        return library.encode_image(pictures), library.encode_text(padded)
    return library["image_tower"](pictures).embedding_BE, library["text_tower"](tokens).embedding_BE


def check(expected: tuple[Tensor, Tensor], got: tuple[Tensor, Tensor], frozen: Any) -> None:
    """Return when both agree, and the adapter changed what comes out."""
    for one, other, before in zip(expected, got, frozen, strict=True):
        assert torch.allclose(one, other, atol=2e-4), (one - other).abs().max()
        assert not torch.allclose(before, other, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_arithmetic_are_those_of_the_library(model: Model, kind: str) -> None:
    """Added to the library's weights by the names of the file, it is the same function."""
    backbone, library = model(kind)
    tensors = drawn(backbone)
    files = peft_files(backbone, tensors, SPEC, added_twice=False)
    config, weights = json.loads(files[CONFIG]), load(files[WEIGHTS])
    assert len(weights) == len(tensors)
    # Before the weights change: those of the starter are the library's own.
    expected, frozen = ours(backbone, tensors), theirs(library, backbone)
    kept = {name: tensor.clone() for name, tensor in library.state_dict().items()}
    for key in weights:
        if ".lora_A." in key:
            b, a = weights[key.replace("lora_A", "lora_B")], weights[key]
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            path = path.replace(".base_layer.", ".")
            target = path.removesuffix(".out_proj")
            assert re.fullmatch(config["target_modules"], target)
            change = config["lora_alpha"] / config["r"] * b.flatten(1) @ a.flatten(1)
            weight = weight_of(library.get_submodule(path))
            weight.data += change.view_as(weight)
    got = theirs(library, backbone)
    library.load_state_dict(kept)
    check(expected, got, frozen)


def weight_of(module: nn.Module) -> Tensor:
    fused = getattr(module, "in_proj_weight", None)
    weight = module.weight if fused is None else fused
    assert isinstance(weight, Tensor)
    return weight


@pytest.mark.parametrize("kind", KINDS)
def test_peft_itself_loads_it(model: Model, kind: str, tmp_path: Path) -> None:
    """`PeftModel.from_pretrained` takes the files without a complaint; the embeddings are ours."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    backbone, library = model(kind)
    tensors = drawn(backbone)
    for name, content in peft_files(backbone, tensors, SPEC).items():
        (tmp_path / name).write_bytes(content)
    expected, frozen = ours(backbone, tensors), theirs(library, backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of keys that are missing or not expected
        bent = peft.PeftModel.from_pretrained(library, str(tmp_path))
    check(expected, theirs(bent.base_model.model, backbone), frozen)
    # Undone, since the starter is shared with other tests.
    bent.unload()
