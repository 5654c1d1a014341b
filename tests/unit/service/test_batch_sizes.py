"""How large a batch is where many wait: what was fastest, as long as it stays so."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from service.batch_sizes import BatchSizes, doubling


def passed(
    sizes: BatchSizes, waiting: int, picture_s: Mapping[int, float], times: int
) -> list[int]:
    """Let batches pass that take so much a picture; return their sizes."""
    chosen = []
    for _ in range(times):
        size = sizes.choose(waiting)
        sizes.timed(size, size * picture_s[size])
        chosen.append(size)
    return chosen


@pytest.mark.parametrize(
    ("least", "most", "sizes"),
    [
        (1, 1, [1]),
        (1, 8, [1, 2, 4, 8]),
        (1, 9, [1, 2, 4, 8, 9]),
        (8, 32, [8, 16, 32]),
        (8, 20, [8, 16, 20]),
        (5, 5, [5]),
    ],
)
def test_sizes_double(least: int, most: int, sizes: list[int]) -> None:
    """Every number up to the most has a size that is at most twice as large, and none is above."""
    assert doubling(least, most) == sizes


@pytest.mark.parametrize("fastest", [8, 16, 32])
def test_the_fastest_is_taken(fastest: int) -> None:
    """Each size passes four times, of which the first is not timed; then the best one stays."""
    picture_s = {size: 1.0 + 0.2 * (size != fastest) for size in (8, 16, 32)}
    chosen = passed(BatchSizes(32), 40, picture_s, 32)
    assert chosen[:12] == [8] * 4 + [16] * 4 + [32] * 4
    assert set(chosen[12:]) == {fastest}


@pytest.mark.parametrize("slow", range(4))
def test_a_slow_first_pass_condemns_nobody(slow: int) -> None:
    """The first chooses kernels and takes memory; one of the next may have met anything."""
    sizes = BatchSizes(16)
    for _ in range(4):
        sizes.timed(8, 8.0)
    for turn in range(4):
        assert sizes.choose(16) == 16
        sizes.timed(16, 1600.0 if turn == slow else 12.8)
    assert sizes.choose(16) == 16


def test_only_what_can_be_filled_is_taken() -> None:
    """No batch waits to become larger: fewer than a size are taken as they are."""
    sizes = BatchSizes(32)
    passed(sizes, 64, {8: 1.0, 16: 0.8, 32: 0.6}, 20)
    assert [sizes.choose(n) for n in (1, 7, 8, 15, 16, 31, 32, 500)] == [1, 7, 8, 8, 16, 16, 32, 32]
    assert BatchSizes(3).choose(5) == 3


def test_what_was_slower_is_tried_again() -> None:
    """A machine changes: a size that was a tenth slower is back within a hundred passes, if it pays."""
    sizes = BatchSizes(16)
    assert passed(sizes, 16, {8: 1.0, 16: 1.1}, 30)[-22:] == [8] * 22
    later = passed(sizes, 16, {8: 1.0, 16: 0.8}, 100)
    assert later[-20:].count(16) >= 18
    assert later.index(16) > 10


@pytest.mark.parametrize("slower", [1.05, 1.1, 1.5, 3.0])
@pytest.mark.parametrize("most", [16, 32, 256])
def test_looking_again_is_cheap(slower: float, most: int) -> None:
    """What is tried again costs a hundredth of the time, however slow and large it is."""
    sizes = BatchSizes(most)
    picture_s = dict.fromkeys(doubling(8, most), slower) | {8: 1.0}
    passed(sizes, most, picture_s, 4 * len(picture_s))
    chosen = passed(sizes, most, picture_s, 20_000)
    assert len(set(chosen)) > 1
    took_s = sum(size * picture_s[size] for size in chosen)
    assert took_s / sum(chosen) < 1.012


def test_a_single_slow_pass_does_not_decide() -> None:
    """A neighbour that took the core for one pass moves what is remembered by a quarter of it."""
    sizes = BatchSizes(16)
    passed(sizes, 16, {8: 1.2, 16: 1.0}, 10)
    sizes.timed(16, 1.5 * 16)
    assert sizes.choose(16) == 16
