"""
An adapter as `peft` reads it: `adapter_config.json` and `adapter_model.safetensors`.

Our towers are made of the modules of a library's model, with names of our own; `peft` knows only
the library's. So each map remembers where it came from, found by the very weights that both share.

Of `nn.MultiheadAttention`, `peft` up to 0.21.2 adds the change of the output projection twice, in
answering and in merging (huggingface/peft#3774). Halved in the file it is right there; a test loads
it with the `peft` that is pinned, and fails on the day when that is mended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from safetensors.torch import save
from torch import Tensor, nn

from everlens.errors import PartError
from everlens.model.adapter import AdapterSpec, targets
from everlens.model.tower import Tower

if TYPE_CHECKING:
    from everlens.model.backbone import Backbone

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_OUTPUT = ".base_layer.out_proj"  # where `peft` keeps the second projection of attention


class Origin(NamedTuple):
    """Where a linear map is in the library's model: what `peft` replaces, and what it calls it."""

    target: str
    name: str


def origins(model: nn.Module, towers: Mapping[str, Tower]) -> dict[str, Origin]:
    """
    Return where each linear map of the towers' blocks comes from, by `<tower>.<map>`.

    Args:
        model: of the library, over the same weights.
        towers: `image` and `text`.
    """
    by_weight: dict[int, Origin] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            # `peft` bends both projections or none.
            by_weight[id(module.in_proj_weight)] = Origin(name, name)
            by_weight[id(module.out_proj.weight)] = Origin(name, name + _OUTPUT)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            by_weight.setdefault(id(module.weight), Origin(name, name))
    return {
        f"{tower}.{name}": by_weight[id(module.weight)]
        for tower, whole in towers.items()
        for name, module in targets(whole.cut(len(whole.blocks))[1]).items()
    }


def peft_files(
    backbone: Backbone,
    tensors: Mapping[str, Tensor],
    spec: AdapterSpec,
    *,
    added_twice: bool = True,
) -> dict[str, bytes]:
    """
    Return the files of an adapter, by their names.

    `peft.PeftModel.from_pretrained` loads them on the library's model; of the starter on
    `nn.ModuleDict({"image_tower": …, "text_tower": …})`.

    Args:
        backbone: that it belongs to.
        tensors: A and B of each map by `<tower>.<map of the top>.<A or B>`.
        spec: what they fit.
        added_twice: whether they are for a `peft` that adds what it should add once.

    Raises:
        PartError: the tensors are not of this base model.
    """
    weights: dict[str, Tensor] = {}
    replaced = set()
    for name, a, b in _maps(tensors):
        origin, module = _found(backbone, name, spec)
        replaced.add(origin.target)
        share = 0.5 if added_twice and origin.name.endswith(_OUTPUT) else 1.0
        prefix = f"base_model.model.{origin.name}"
        # A convolution's have two more sides, of one pixel each.
        sides = (1, 1) if isinstance(module, nn.Conv2d) else ()
        weights[f"{prefix}.lora_A.weight"] = a.reshape(*a.shape, *sides).contiguous()
        weights[f"{prefix}.lora_B.weight"] = (share * b).reshape(*b.shape, *sides).contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": backbone.name,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        # A pattern fits whole names; a list would also fit the same name in the other tower.
        "target_modules": "|".join(sorted(map(re.escape, replaced))),
    }
    return {
        CONFIG: json.dumps(config, indent=2, sort_keys=True).encode(),
        WEIGHTS: save(weights, metadata={"format": "pt"}),
    }


def _maps(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name in sorted(tensors):
        if name.endswith(".A"):
            whole = name.removesuffix(".A")
            yield whole, tensors[name], tensors[f"{whole}.B"]


def _found(backbone: Backbone, name: str, spec: AdapterSpec) -> tuple[Origin, nn.Module]:
    """Return where a map of the top, `<tower>.blocks.<N>.…`, comes from, and the map itself."""
    try:
        kind, blocks, number, rest = name.split(".", 3)
        tower = backbone.image_tower if kind == "image" else backbone.text_tower
        below = max(len(tower.blocks) - spec.top_blocks, 0)
        path = f"{blocks}.{below + int(number)}.{rest}"
        return backbone.origins[f"{kind}.{path}"], tower.get_submodule(path)
    except (KeyError, ValueError) as error:
        raise PartError(f"the adapter bends {name}, which the base model does not have") from error
