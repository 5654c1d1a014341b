"""A batch on all cores: whoever passes beside whom, the views are those of one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from everlens.model.backbone import Backbone
from everlens.model.snapshot import Snapshot, base_snapshot
from service.passes import Passes
from service.probe import probe_picture, warm_up


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("pictures", "seen"),
    [
        (1, [(1, 4, True)]),
        (2, [(1, 2, False)] * 2),
        (3, [(3, 4, False)]),
        (4, [(1, 1, False)] * 4),
        (6, [(3, 2, False)] * 2),
        (8, [(2, 1, False)] * 4),
    ],
)
def test_a_batch_is_cut_evenly(
    tiny_clip: Backbone, threads: int, monkeypatch, pictures: int, seen: list[tuple[int, int, bool]]
) -> None:
    """All cores have the same to do; the views come in the order of the pictures."""
    snapshot = base_snapshot(tiny_clip, tiny_clip.top_blocks)
    rng, size = np.random.default_rng(3), tiny_clip.pixels.size
    shown = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(pictures)]
    expected = snapshot.see(shown)
    found = []
    see = Snapshot.see

    def watched(snapshot: Snapshot, pixels: Sequence[np.ndarray], **how: Any):
        found.append((len(pixels), torch.get_num_threads(), how.get("beside") is not None))
        return see(snapshot, pixels, **how)

    monkeypatch.setattr(Snapshot, "see", watched)
    passes = Passes(threads)
    views = passes.see(snapshot, shown)
    passes.close()
    assert found == seen
    assert torch.get_num_threads() == threads
    torch.testing.assert_close(views.embedding_BE, expected.embedding_BE, atol=1e-5, rtol=0)
    torch.testing.assert_close(views.feature_BD, expected.feature_BD, atol=1e-5, rtol=0)


def test_what_is_warm_is_what_is_passed(tiny_clip: Backbone, threads: int, monkeypatch) -> None:
    """Nobody's batch is the first of its size on so many threads."""
    snapshot, passes = base_snapshot(tiny_clip, tiny_clip.top_blocks), Passes(threads)
    found = set()
    see = Snapshot.see

    def watched(snapshot: Snapshot, pixels: Sequence[np.ndarray], **how: Any):
        found.add((len(pixels), torch.get_num_threads()))
        return see(snapshot, pixels, **how)

    monkeypatch.setattr(Snapshot, "see", watched)
    warm_up(passes, snapshot, batch_max=8)
    warm = found.copy()
    found.clear()
    for pictures in range(1, 9):
        passes.see(snapshot, [probe_picture(tiny_clip)] * pictures)
    passes.close()
    assert found == warm == {(1, 4), (1, 2), (3, 4), (1, 1), (5, 4), (3, 2), (7, 4), (2, 1)}


def test_one_core_is_not_shared(tiny_clip: Backbone, monkeypatch) -> None:
    """With one thread a batch is one pass."""
    snapshot = base_snapshot(tiny_clip, tiny_clip.top_blocks)
    size = tiny_clip.pixels.size
    shown = [np.zeros((size, size, 3), np.uint8)] * 4
    sizes = []
    see = Snapshot.see

    def watched(snapshot: Snapshot, pixels: Sequence[np.ndarray]):
        sizes.append(len(pixels))
        return see(snapshot, pixels)

    monkeypatch.setattr(Snapshot, "see", watched)
    passes = Passes(1)
    passes.see(snapshot, shown)
    passes.close()
    assert sizes == [4]
