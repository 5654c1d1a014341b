"""
A tower, cut in two: the trunk (frozen, computed once) and the top (frozen, or bent by an adapter).

Every architecture is brought to the same three parts, so that learning and answering need to
know only this file: `stem` turns an input into hidden states, `blocks` are applied in order, and
`head` reads the result out. What the blocks need besides the hidden states (attention mask, where
a text ends) travels unchanged as `context`.

Shape suffixes: B inputs, D features before the projection, E numbers of the joint space.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn


class Encoding(NamedTuple):
    """What a tower says about its input: `feature_BD` before, `embedding_BE` after the projection.

    Neither is normalised.
    """

    feature_BD: Tensor
    embedding_BE: Tensor


class Hidden(NamedTuple):
    """Hidden states between two blocks, with what the following blocks need besides them."""

    states: Tensor
    context: Any = None


def pooled(hidden: Hidden) -> Tensor:
    """Return the float32 mean of hidden states over positions: maps (B, C, H, W), tokens (B, L, C)."""
    states = hidden.states.float()
    return states.mean(dim=(2, 3)) if states.ndim == 4 else states.mean(dim=1)


class Trunk(nn.Module):
    """The frozen lower part of a tower: input → hidden states, a function of the input alone."""

    def __init__(self, stem: nn.Module, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = blocks

    def forward(self, inputs: Tensor) -> Hidden:
        hidden: Hidden = self.stem(inputs)
        states = hidden.states
        for block in self.blocks:
            states = block(states, hidden.context)
        return Hidden(states, hidden.context)


class Top(nn.Module):
    """The last blocks of a tower and its head. An adapter changes the blocks, never the head."""

    def __init__(self, blocks: nn.ModuleList, head: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks
        self.head = head

    def forward(self, hidden: Hidden) -> Encoding:
        states = hidden.states
        for block in self.blocks:
            states = block(states, hidden.context)
        encoding: Encoding = self.head(states, hidden.context)
        return encoding


class Tower(nn.Module):
    """
    One encoder of an image-text model as stem → blocks → head.

    Args:
        stem: `stem(inputs) -> Hidden`.
        blocks: each `block(states, context) -> states`.
        head: `head(states, context) -> Encoding`; holds pooling and projection.
    """

    def __init__(self, stem: nn.Module, blocks: nn.ModuleList, head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = blocks
        self.head = head

    def cut(self, top_blocks: int) -> tuple[Trunk, Top]:
        """
        Return the trunk and the top of `top_blocks` blocks; both share this tower's weights.

        `top_blocks = len(self.blocks)` leaves only the stem in the trunk: full tuning.
        """
        assert 0 <= top_blocks <= len(self.blocks)
        border = len(self.blocks) - top_blocks
        return Trunk(self.stem, self.blocks[:border]), Top(self.blocks[border:], self.head)

    def forward(self, inputs: Tensor) -> Encoding:
        trunk, top = self.cut(0)
        encoding: Encoding = top(trunk(inputs))
        return encoding
