"""
open_clip's models as towers: its own ViT and text transformer, and timm trunks.

Whatever else open_clip knows (a text encoder of Hugging Face, a CoCa pooler) is taken whole as a
frozen stem: it serves and gives evidence, only an adapter cannot bend it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from everlens.model.attention import Attention
from everlens.model.packed import activated, onto
from everlens.model.tower import Encoding, Hidden, Tower

Ends = Callable[[Tensor], Tensor]  # tokens_BL → where each text is read out


class TextContext(NamedTuple):
    """What text blocks and head need besides the states."""

    mask: Tensor | None  # added to the attention scores
    end_B: Tensor  # where each text is read out


class ResidualBlock(nn.Module):
    """open_clip's residual attention block over our attention."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = block.ln_1, block.ln_2
        self.attention = Attention.like(block.attn)
        self.scale_1, self.scale_2 = block.ls_1, block.ls_2
        self.mlp = block.mlp

    def forward(self, states: Tensor, context: TextContext | None) -> Tensor:
        mask = context.mask if context is not None else None
        return self._above(states, self.attention.heads_of(self.ln_1(states), mask))

    def _above(self, states: Tensor, heads: Tensor) -> Tensor:
        """Return the block's result from what its heads read on."""
        states = _onto(states, self.scale_1, self.attention.out, heads)
        wide = activated(self.mlp.gelu, self.mlp.c_fc, self.ln_2(states))
        return _onto(states, self.scale_2, self.mlp.c_proj, wide)


class ReadOutBlock(ResidualBlock):
    """
    The last block before a head that reads the class token alone: nothing else is computed.

    Saves three quarters of a block, a fifth of a top of four.
    """

    def forward(self, states: Tensor, context: TextContext | None) -> Tensor:
        heads_B1E = self.attention.heads_of(self.ln_1(states), None, queries=1)
        return self._above(states[:, :1].contiguous(), heads_B1E)


def _onto(states: Tensor, scale: nn.Module, linear: nn.Module, inputs: Tensor) -> Tensor:
    if isinstance(scale, nn.Identity):
        return onto(states, linear, inputs)
    result: Tensor = states + scale(linear(inputs))
    return result


class PlainBlock(nn.Module):
    """A block that takes the states and nothing else (of timm)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, states: Tensor, context: None) -> Tensor:
        result: Tensor = self.block(states)
        return result


class VitStem(nn.Module):
    """Patches, class token, positions."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.conv1, self.ln_pre = visual.conv1, visual.ln_pre
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding

    def forward(self, images_B3HW: Tensor) -> Hidden:
        patches_BLE = self.conv1(images_B3HW).flatten(2).transpose(1, 2)
        token_B1E = self.class_embedding.expand(len(images_B3HW), 1, -1)
        states_BLE = torch.cat([token_B1E, patches_BLE], dim=1) + self.positional_embedding
        return Hidden(self.ln_pre(states_BLE))


class VitHead(nn.Module):
    """Pooling and projection of open_clip's ViT."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.ln_post = visual.ln_post
        self.proj = visual.proj
        self.pool_type = visual.pool_type
        self.normalise_after = visual.final_ln_after_pool

    def forward(self, states_BLE: Tensor, context: None) -> Encoding:
        if not self.normalise_after:
            states_BLE = self.ln_post(states_BLE)
        feature_BD = states_BLE[:, 1:].mean(dim=1) if self.pool_type == "avg" else states_BLE[:, 0]
        if self.normalise_after:
            feature_BD = self.ln_post(feature_BD)
        return Encoding(feature_BD, feature_BD if self.proj is None else feature_BD @ self.proj)


class TimmVitStem(nn.Module):
    """Patches and positions of a timm ViT (SigLIP's trunk)."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = _without(trunk, ("blocks", "norm", "attn_pool", "fc_norm", "head"))

    def forward(self, images_B3HW: Tensor) -> Hidden:
        states = self.trunk.patch_embed(images_B3HW)
        return Hidden(self.trunk.norm_pre(self.trunk._pos_embed(states)))


class TimmConvStem(nn.Module):
    """The stem of a timm ConvNeXt."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.stem = trunk.stem

    def forward(self, images_B3HW: Tensor) -> Hidden:
        return Hidden(self.stem(images_B3HW))


class TimmHead(nn.Module):
    """Last norm, pooling and projection of a timm trunk."""

    def __init__(self, visual: Any, norm: nn.Module, lower: tuple[str, ...]) -> None:
        super().__init__()
        self.norm = norm
        self.trunk = _without(visual.trunk, lower)
        self.projection = visual.head

    def forward(self, states: Tensor, context: None) -> Encoding:
        feature_BD = self.trunk.forward_head(self.norm(states))
        return Encoding(feature_BD, self.projection(feature_BD))


class TextStem(nn.Module):
    """Token and position embeddings of open_clip's text transformer."""

    causal_mask: Tensor | None

    def __init__(self, text: Any, causal_mask: Tensor | None, pool_type: str, eos_id: int) -> None:
        super().__init__()
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.pool_type, self.eos_id = pool_type, eos_id
        self.register_buffer("causal_mask", causal_mask, persistent=False)

    def forward(self, tokens_BL: Tensor) -> Hidden:
        length = tokens_BL.shape[1]
        states_BLE = self.token_embedding(tokens_BL) + self.positional_embedding[:length]
        mask = None if self.causal_mask is None else self.causal_mask[:length, :length]
        return Hidden(states_BLE, TextContext(mask, self.ends(tokens_BL)))

    def ends(self, tokens_BL: Tensor) -> Tensor:
        """Return where each text is read out."""
        match self.pool_type:
            case "first":
                return torch.zeros_like(tokens_BL[:, 0])
            case "last":
                return torch.full_like(tokens_BL[:, 0], tokens_BL.shape[1] - 1)
            case "eos":
                return (tokens_BL == self.eos_id).int().argmax(dim=-1)
        return tokens_BL.argmax(dim=-1)  # the end-of-text token has the highest number


class TextHead(nn.Module):
    """Last norm, read-out at the end of the text, projection."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.ln_final = text.ln_final
        self.projection = text.text_projection

    def forward(self, states_BLE: Tensor, context: TextContext) -> Encoding:
        rows_B = torch.arange(len(states_BLE), device=states_BLE.device)
        feature_BD = self.ln_final(states_BLE[rows_B, context.end_B])
        if self.projection is None:
            return Encoding(feature_BD, feature_BD)
        if isinstance(self.projection, nn.Linear):
            return Encoding(feature_BD, self.projection(feature_BD))
        return Encoding(feature_BD, feature_BD @ self.projection)


class WholeStem(nn.Module):
    """A tower that we do not know how to cut; `method` is what it is called by."""

    def __init__(self, tower: nn.Module, method: str = "forward") -> None:
        super().__init__()
        self.tower = tower
        self.method = method

    def forward(self, inputs: Tensor) -> Hidden:
        result = getattr(self.tower, self.method)(inputs)
        # CoCa's towers give their tokens away beside the embedding.
        return Hidden(result[0] if isinstance(result, tuple) else result)


class WholeHead(nn.Module):
    """Its embedding is all that there is."""

    def forward(self, states_BE: Tensor, context: None) -> Encoding:
        return Encoding(states_BE, states_BE)


def image_tower(model: Any) -> Tower:
    """Return the image half of an open_clip model as a tower."""
    visual = model.visual
    kind = type(visual).__name__
    # By name and not by what it has: timm's relatives of these two (EVA, FastViT) have attributes
    # of the same names that mean something else. A custom pool gives no feature before the head.
    timm_kind = type(visual.trunk).__name__ if kind == "TimmModel" else ""
    if hasattr(getattr(visual, "head", None), "pool"):
        timm_kind = ""
    if kind == "VisionTransformer" and visual.attn_pool is None and _stock(visual.transformer):
        blocks = [ResidualBlock(block) for block in visual.transformer.resblocks]
        if visual.pool_type == "tok":
            blocks[-1] = ReadOutBlock(visual.transformer.resblocks[-1])
        return Tower(VitStem(visual), nn.ModuleList(blocks), VitHead(visual))
    if timm_kind == "VisionTransformer":
        blocks_of = nn.ModuleList(PlainBlock(block) for block in visual.trunk.blocks)
        lower = ("patch_embed", "blocks", "norm")
        head = TimmHead(visual, visual.trunk.norm, lower)
        return Tower(TimmVitStem(visual.trunk), blocks_of, head)
    if timm_kind == "ConvNeXt":
        parts = [
            part for stage in visual.trunk.stages for part in (stage.downsample, *stage.blocks)
        ]
        blocks_of = nn.ModuleList(
            PlainBlock(part) for part in parts if not isinstance(part, nn.Identity)
        )
        head = TimmHead(visual, visual.trunk.norm_pre, ("stem", "stages", "norm_pre"))
        return Tower(TimmConvStem(visual.trunk), blocks_of, head)
    return Tower(WholeStem(visual), nn.ModuleList(), WholeHead())


def text_tower(model: Any) -> tuple[Tower, Ends | None]:
    """Return the text half as a tower, and where its texts end if nothing after that matters."""
    text = getattr(model, "text", None)
    if text is None:  # CLIP keeps the parts of its text transformer on the model itself
        if not _stock(model.transformer):
            thin = WholeStem(_without(model, ("visual",)), "encode_text")
            return Tower(thin, nn.ModuleList(), WholeHead()), None
        stem = TextStem(model, model.attn_mask, model.text_pool_type, model.text_eos_id)
        return _cut_anywhere(stem, model)
    plain = type(text).__name__ == "TextTransformer" and text.cls_emb is None
    if plain and not text.use_pad_mask and _stock(text.transformer):
        return _cut_anywhere(TextStem(text, text.attn_mask, text.pool_type, text.eos_id), text)
    return Tower(WholeStem(text), nn.ModuleList(), WholeHead()), None


def _cut_anywhere(stem: TextStem, text: Any) -> tuple[Tower, Ends | None]:
    blocks = nn.ModuleList(ResidualBlock(block) for block in text.transformer.resblocks)
    causal = stem.causal_mask is not None and stem.pool_type in {"argmax", "eos"}
    return Tower(stem, blocks, TextHead(text)), stem.ends if causal else None


def _stock(transformer: Any) -> bool:
    """Whether all blocks are open_clip's plain residual attention blocks."""
    return all(type(b).__name__ == "ResidualAttentionBlock" for b in transformer.resblocks)


def _without(module: Any, names: tuple[str, ...]) -> Any:
    """Return a shallow copy of a module in which some children are identities."""
    thin = module.__class__.__new__(module.__class__)
    thin.__dict__.update(module.__dict__)
    thin.__dict__["_modules"] = dict(module._modules)
    for name in names:
        if thin._modules.get(name) is not None:
            thin._modules[name] = nn.Identity()
    return thin
