"""
Passes that are recorded: whatever is played, the views are those of the pass itself.

Where there is no CUDA device, what was recorded is played by making the pass once more, from the same
places into the same places: all but the recording itself is what a device does.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from everlens.model.adapter import AdapterSpec, insert, merged, tensors_of
from everlens.model.backbone import Backbone, load_backbone
from everlens.model.snapshot import Snapshot, Views, base_snapshot
from everlens.model.tower import Top
from service import graphs as module
from service.batch_sizes import doubling
from service.graphs import GraphError, Graphs, OnDevice, Replay, recorded
from service.passes import Passes
from service.probe import probe_picture


def by_passing(see: Callable[[], Views]) -> tuple[Views, Replay]:
    """Play a pass by making it, into the places of the first one."""
    views = see()

    def replay() -> None:
        for place, view in zip(views, see(), strict=True):
            if place is not None and view is not None:
                place.copy_(view)

    return views, replay


@pytest.fixture(scope="module")
def exact(tiny_clip: Backbone) -> Backbone:
    """A base model as a device has it: with no weights packed for a processor."""
    return replace(tiny_clip, answering_tower=tiny_clip.image_tower, precision=torch.float32)


@pytest.fixture(scope="module")
def tuned(exact: Backbone) -> list[Snapshot]:
    """Three versions, each with an adapter of its own."""
    return [bent(exact, seed) for seed in range(3)]


def bent(backbone: Backbone, seed: int) -> Snapshot:
    """Return the base with an adapter that nobody could overlook."""
    base, random = base_snapshot(backbone, backbone.top_blocks), torch.Generator().manual_seed(seed)
    spec = AdapterSpec("image", backbone.top_blocks, 4, 4.0)
    _, top = backbone.image_tower.cut(backbone.top_blocks)
    tensors = {
        name: torch.randn(tensor.shape, generator=random).to(backbone.device) / 4
        for name, tensor in tensors_of(insert(top, spec, random)).items()
    }
    return replace(base, tuned_top=merged(top, base.frozen_top, tensors, spec))


def pictures(backbone: Backbone, count: int) -> list[np.ndarray]:
    rng, size = np.random.default_rng(count), backbone.pixels.size
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def assert_same(views: Views, expected: Views) -> None:
    for view, wanted in zip(views, expected, strict=True):
        assert (view is None) == (wanted is None)
        if view is not None:
            torch.testing.assert_close(view, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_a_batch_is_filled_up(exact: Backbone, tuned: list[Snapshot], count: int) -> None:
    """A batch between two sizes takes the larger one; only its own pictures come back."""
    base = base_snapshot(exact, exact.top_blocks)
    graphs = Graphs(base, doubling(1, 6), by_passing)
    for snapshot in (base, tuned[0]):
        graphs.see(snapshot, pictures(exact, 6))  # whose rest lies in the places above
        shown = pictures(exact, count)
        assert_same(graphs.see(snapshot, shown), snapshot.see(shown))


def test_adapters_take_turns(exact: Backbone, tuned: list[Snapshot], monkeypatch) -> None:
    """Of three adapters in two places each answers for itself, and none is copied without need."""
    graphs = Graphs(base_snapshot(exact, exact.top_blocks), [2], by_passing)
    copied: list[Top] = []
    slot_of = graphs._slot_of

    def watched(top: Top) -> Any:
        if all(slot.holds is not top for slot in graphs._slots):
            copied.append(top)
        return slot_of(top)

    monkeypatch.setattr(graphs, "_slot_of", watched)
    shown = pictures(exact, 2)
    seen = [snapshot.see(shown).tuned_feature_BD for snapshot in tuned]
    for one, other in itertools.combinations(seen, 2):
        with pytest.raises(AssertionError):  # else it would not matter which one answers
            torch.testing.assert_close(one, other, atol=0.05, rtol=0)
    order = [0, 1, 0, 1, 2, 1, 0, 0, 2]
    for number in order:
        assert_same(graphs.see(tuned[number], shown), tuned[number].see(shown))
    assert copied == [tuned[number].tuned_top for number in (0, 1, 2, 0, 2)]


def test_views_stay(exact: Backbone, tuned: list[Snapshot]) -> None:
    """What a batch was answered with is not written over by the next one, nor is the base by a copy."""
    base = base_snapshot(exact, exact.top_blocks)
    graphs = Graphs(base, [2], by_passing)
    first, second = pictures(exact, 4)[:2], pictures(exact, 4)[2:]
    expected = tuned[0].see(first)
    kept = graphs.see(tuned[0], first)
    graphs.see(tuned[1], second)
    graphs.see(tuned[0], second)
    assert_same(kept, expected)
    assert_same(graphs.see(base, first), base.see(first))


def test_only_what_fits_is_played(exact: Backbone, tuned: list[Snapshot]) -> None:
    """Another cut, another base model and a batch that is too large pass as they do without."""
    graphs = Graphs(base_snapshot(exact, exact.top_blocks), [1, 2], by_passing)
    assert graphs.fits(tuned[0], 2)
    assert not graphs.fits(tuned[0], 3)
    assert not graphs.fits(base_snapshot(exact, exact.top_blocks - 1), 1)
    assert not graphs.fits(replace(tuned[0], backbone=replace(exact)), 1)


def test_a_recording_that_gives_something_else_is_not_played(exact: Backbone) -> None:
    """What cannot be recorded may go unnoticed until it is played; so each is compared."""

    def forgetful(see: Callable[[], Views]) -> tuple[Views, Replay]:
        return see(), lambda: None  # what is played leaves the first results where they are

    base = base_snapshot(exact, exact.top_blocks)
    Graphs(base, [1, 2], by_passing).check(probe_picture(exact))
    with pytest.raises(GraphError, match="a batch of 1 has cosine"):
        Graphs(base, [1, 2], forgetful).check(probe_picture(exact))


def test_a_processor_has_nothing_to_record(tiny_clip: Backbone) -> None:
    """On a CPU a pass is a pass."""
    base = base_snapshot(tiny_clip, tiny_clip.top_blocks)
    assert recorded(base, 2, probe_picture(tiny_clip)) is None


def test_a_device_that_cannot_record_serves_all_the_same(
    exact: Backbone, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passes are made one kernel after the other, and the log says so."""

    def refused(device: object) -> OnDevice:
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(module, "OnDevice", refused)
    base = replace(
        base_snapshot(exact, exact.top_blocks),
        backbone=replace(exact, device=torch.device("cuda")),
    )
    with caplog.at_level(logging.WARNING):
        assert recorded(base, 2, probe_picture(exact)) is None
    assert "not recorded as CUDA graphs, which is slower: the driver is too old" in caplog.text


def test_passes_are_played_where_they_are_recorded(
    exact: Backbone, tuned: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who passes a batch does not ask whether it was recorded."""
    base = base_snapshot(exact, exact.top_blocks)
    made = Graphs(base, [1, 2], by_passing)
    monkeypatch.setattr("service.passes.recorded", lambda *_: made)
    played: list[int] = []
    see = Graphs.see

    def watched(graphs: Graphs, snapshot: Snapshot, pixels: Sequence[np.ndarray]) -> Views:
        played.append(len(pixels))
        return see(graphs, snapshot, pixels)

    monkeypatch.setattr(Graphs, "see", watched)
    passes = Passes(1)
    passes.record(base, 2, probe_picture(exact))
    for count in (1, 2, 3):
        shown = pictures(exact, count)
        assert_same(passes.see(tuned[0], shown), tuned[0].see(shown))
    passes.close()
    assert played == [1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_a_device_plays_what_it_recorded(tiny_folder: str) -> None:
    """On a real device: recorded, compared, and played for one adapter after the other."""
    backbone = load_backbone(tiny_folder, "random", device=torch.device("cuda"))
    base = base_snapshot(backbone, backbone.top_blocks)
    graphs = recorded(base, 4, probe_picture(backbone))
    assert graphs is not None
    shown = pictures(backbone, 3)
    for seed in (0, 1, 2, 0):
        snapshot = bent(backbone, seed)
        for view, wanted in zip(graphs.see(snapshot, shown), snapshot.see(shown), strict=True):
            assert view is not None
            assert wanted is not None
            torch.testing.assert_close(view, wanted, atol=2e-2, rtol=0)
