"""The probe lets a version answer once, and computes only what the version brought."""

from __future__ import annotations

from typing import Any

import pytest

from bench.versions import Versions, served
from everlens.model.backbone import Backbone
from everlens.model.snapshot import base_snapshot
from everlens.model.tower import Top, Trunk
from service.probe import Probe


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[Trunk | Top]:
    """The halves of towers that were passed, in order."""
    passed: list[Trunk | Top] = []

    def watch(half: type[Trunk | Top]) -> None:
        forward = half.forward

        def watched(self: Any, inputs: Any) -> Any:
            passed.append(self)
            return forward(self, inputs)

        monkeypatch.setattr(half, "forward", watched)

    watch(Trunk)
    watch(Top)
    return passed


def test_a_tower_is_passed_once(tiny_clip: Backbone, passed: list[Trunk | Top]) -> None:
    """The trunk and the frozen top once for ever, each tuned top once, and none for a label."""
    versions, probe = Versions(tiny_clip, 10, top_blocks=2), Probe(tiny_clip)
    snapshot = base = base_snapshot(tiny_clip, 2)
    expected: list[Trunk | Top | None] = [base.trunk, base.frozen_top]
    passed.clear()
    for make in (versions.first, lambda: versions.learnt(3), versions.tuned, versions.tuned):
        before, snapshot = snapshot, served(tiny_clip, make(), snapshot)
        probe.ask(snapshot)
        if snapshot.tuned_top is not before.tuned_top:
            expected.append(snapshot.tuned_top)
        assert list(map(id, passed)) == list(map(id, expected))
    assert len(passed) == 2 + 3


def test_another_cut_is_seen_anew(tiny_clip: Backbone, passed: list[Trunk | Top]) -> None:
    """What was kept belongs to the blocks that it was seen by."""
    probe = Probe(tiny_clip)
    for top_blocks in (1, 2, 1):
        snapshot = served(tiny_clip, Versions(tiny_clip, 3, top_blocks=top_blocks).first())
        passed.clear()
        probe.ask(snapshot)
        assert passed[-2:] == [snapshot.frozen_top, snapshot.tuned_top]
