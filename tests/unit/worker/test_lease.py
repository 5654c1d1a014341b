"""The lease is held through work that takes longer than it lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from everlens.bus.stream import LEASE_MS
from everlens.model.tower import Hidden
from tests.unit.worker.conftest import PACE, Bench, digit_samples, run_to
from tests.unit.worker.test_activation import activation_of, admit
from worker.learn.gate import HELD_OUT_MIN
from worker.learn.learner import Learner
from worker.learn.replay import Exemplar


@pytest.mark.parametrize("by", ["publication", "activation"])
def test_lease_is_held_while_an_adapter_is_made(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Its closed form and the gate look at thousands of exemplars; nobody takes the log over."""
    monkeypatch.setattr("worker.learn.learner.HOLD_OUT_EVERY", 2)
    monkeypatch.setattr("worker.learn.gate.Z", 100.0)  # whatever eight rounds lead to
    bench.admit(digit_samples(48))
    loop = run_to(bench.loop(pace=replace(PACE, adapter_every_rounds=8)), 48)
    assert "adapter" in loop.progress.parts
    admit(bench, activation_of(loop))
    batch = loop._next_batch()
    assert batch is not None
    assert batch.activation is not None
    monkeypatch.setattr("worker.lease._RENEWAL_S", 0.0)
    in_parts, left_ms = Learner.in_parts, list[int]()

    def slowly(
        learner: Learner, exemplars: Sequence[Exemplar]
    ) -> Iterator[tuple[Sequence[Exemplar], Hidden]]:
        for part in in_parts(learner, exemplars):
            bench.client.pexpire(bench.keys.lease, 50)  # as if much of it had gone by
            yield part
            left_ms.append(bench.client.pttl(bench.keys.lease))

    monkeypatch.setattr(Learner, "in_parts", slowly)
    if by == "publication":
        assert len(loop.learner.replay.held_out(100)) >= HELD_OUT_MIN
        loop.adapter_clock.publish()
        assert len(left_ms) >= 3  # its closed form, the version that serves, and the one that would
    else:
        loop.evidence_clock.activate(batch, batch.activation)
        assert left_ms
    assert min(left_ms) > LEASE_MS - 5000
    loop.close()
