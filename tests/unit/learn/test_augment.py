"""Variety from the trunk's outputs on: mirrors, styles, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from worker.learn.augment import in_style, mirrored, varied
from worker.learn.randomness import generator_for

MAPS, TOKENS = (5, 3, 4, 6), (5, 7, 3)


def states_of(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def test_a_mirrored_map_is_read_from_the_right() -> None:
    """Column by column, of the chosen pictures alone; tokens know their place and stay."""
    maps, mirror_B = states_of(MAPS), torch.tensor([True, False, True, False, False])
    found = mirrored(maps, mirror_B)
    for b, mirror in enumerate(mirror_B.tolist()):
        for column in range(6):
            expected = maps[b, :, :, 5 - column if mirror else column]
            assert torch.equal(found[b, :, :, column], expected)
    tokens = states_of(TOKENS)
    assert torch.equal(mirrored(tokens, mirror_B), tokens)


@pytest.mark.parametrize("shape", [MAPS, TOKENS], ids=["maps", "tokens"])
def test_a_style_is_mean_and_deviation_of_each_channel(shape: tuple[int, ...]) -> None:
    """They are mixed with the partner's; at one the picture keeps its own, at zero it has none."""
    states, partner_B = states_of(shape), torch.tensor([3, 4, 0, 1, 2])
    own_B = torch.tensor([1.0, 0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    found = in_style(states, partner_B, own_B)
    channels = 3

    def channel(of: Tensor, b: int, c: int) -> np.ndarray:
        return (of[b, c] if of.ndim == 4 else of[b, :, c]).numpy().ravel()

    for b in range(len(states)):
        for c in range(channels):
            own, other = channel(states, b, c), channel(states, int(partner_B[b]), c)
            share = float(own_B[b])
            mean = share * own.mean() + (1 - share) * other.mean()
            deviation = share * own.std(ddof=1) + (1 - share) * other.std(ddof=1)
            expected = (own - own.mean()) / own.std(ddof=1) * deviation + mean
            # A millionth stands in the variance, against channels that are all alike.
            np.testing.assert_allclose(channel(found, b, c), expected, atol=1e-5)


def test_channels_without_any_variance_stay_finite() -> None:
    """A channel that is the same everywhere takes on a mean, and divides by no zero."""
    states = torch.zeros(2, 3, 4, 4)
    states[1] = 5.0
    found = in_style(states, torch.tensor([1, 0]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found, torch.full((2, 3, 4, 4), 5.0))


@pytest.mark.parametrize("shape", [MAPS, TOKENS], ids=["maps", "tokens"])
def test_variety_is_a_function_of_the_generator(shape: tuple[int, ...]) -> None:
    """The same place gives the same bits, another place others; nothing is written to."""
    states = states_of(shape).float()
    before = states.clone()
    one, again, other = (varied(states, generator_for(0, "replay", k)) for k in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == states.shape
    assert one.dtype == states.dtype
    assert torch.equal(states, before)


def test_half_of_the_pictures_keep_their_style() -> None:
    """Over 400 draws about half of the tokens are as they were, but for rounding."""
    states = states_of(TOKENS).float()
    kept = 0
    for place in range(400):
        change_B = (varied(states, generator_for(1, place)) - states).abs().amax(dim=(1, 2))
        kept += int((change_B < 1e-4).sum())
    # A partner may be the picture itself, and a Beta of 0.1 is near one in half of the rest.
    assert 0.5 < kept / 2000 < 0.9
