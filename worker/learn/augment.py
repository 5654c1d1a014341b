"""
Variety from the trunk's outputs on, where the pictures themselves are not seen again. ⑤

Shape suffixes: B pictures; states are maps (B, C, H, W) or tokens (B, L, C).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

# Share of pictures that take on another's style, and the shape of the Beta distribution of how much.
MIX_SHARE = 0.5
MIX_BETA = 0.1


def varied(states: Tensor, generator: Generator) -> Tensor:
    """Return the hidden states of a batch, some mirrored, some in the style of another picture."""
    pictures = len(states)
    mirror_B = torch.rand(pictures, generator=generator) < 0.5
    partner_B = torch.randperm(pictures, generator=generator)
    mixing_B = torch.rand(pictures, generator=generator) < MIX_SHARE
    beta = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    own_B = torch.from_numpy(beta.beta(MIX_BETA, MIX_BETA, pictures)).float()
    own_B = torch.where(mixing_B, own_B, torch.ones(pictures))
    states = mirrored(states, mirror_B.to(states.device))
    return in_style(states, partner_B.to(states.device), own_B.to(states.device))


def mirrored(states: Tensor, mirror_B: Tensor) -> Tensor:
    """
    Return maps with some pictures mirrored; tokens as they are.

    The map of a mirrored picture is the mirrored map, but for the border of strided convolutions.
    Tokens carry their place inside, and would not be those of the mirrored picture.
    """
    if states.ndim != 4:
        return states
    return torch.where(mirror_B[:, None, None, None], states.flip(-1), states)


def in_style(states: Tensor, partner_B: Tensor, own_B: Tensor) -> Tensor:
    """
    Return the states with mean and deviation of each channel mixed with those of a partner.

    A channel's statistics over positions carry style (photograph, drawing, light) more than
    content, so that a picture is seen as if it came from the partner's domain.

    Args:
        states: of a batch.
        partner_B: whose statistics are mixed in.
        own_B: how much of its own a picture keeps, in [0, 1].

    Source: MixStyle (arXiv 2104.02008).
    """
    positions = (2, 3) if states.ndim == 4 else (1,)
    own = own_B.view(-1, *[1] * (states.ndim - 1))
    mean = states.mean(dim=positions, keepdim=True)
    centred = states - mean  # torch's own variance takes five times as long across such dimensions
    deviation = (centred.square().mean(dim=positions, keepdim=True) + 1e-6).sqrt()
    mixed_mean = own * mean + (1 - own) * mean[partner_B]
    mixed_deviation = own * deviation + (1 - own) * deviation[partner_B]
    return centred * (mixed_deviation / deviation) + mixed_mean
