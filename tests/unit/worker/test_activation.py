"""Going on from an earlier version: what it brings back, what it sets aside, and that it lasts."""

from __future__ import annotations

import weakref

import pytest
import torch

from everlens.bus.admission import Admittable
from everlens.bus.versions import Publisher
from everlens.records import Activation, EntryKind
from everlens.wire import encode_activation
from tests.unit.worker.conftest import Bench, digit_samples, fresh_bench, run_to
from tests.unit.worker.test_loop import assert_same_bits, everything
from worker.loop import Loop
from worker.tables import vector_of


def activation_of(loop: Loop) -> Activation:
    """Return the wish to go back to the version that a learner has published now."""
    digest = loop.progress.parts.get("adapter")
    adapter = b"" if digest is None else loop.state.saved_parts(["adapter"])["adapter"]
    return Activation(loop.progress.version, loop.progress.cursor, adapter)


def admit(bench: Bench, activation: Activation, name: str = "back") -> None:
    payload = encode_activation(activation)
    bench.admit_payloads([Admittable(name, name, payload, kind=EntryKind.ACTIVATE)])


@pytest.mark.parametrize("tune", ["image", "both", "none"])
def test_next_version_descends_from_the_chosen_one(bench: Bench, tune: str) -> None:
    """Adapter and evidence are those of the chosen version; what came after it is set aside."""
    samples = digit_samples(36)
    bench.admit(samples[:16])
    loop = run_to(bench.loop(tune=tune), 16)
    chosen, before = activation_of(loop), everything(loop)
    means, adapter = loop.snapshot.evidence, loop.learner.tuner.accepted
    bench.admit(samples[16:32])
    run_to(loop, 32)
    version = loop.progress.version
    admit(bench, chosen)
    run_to(loop, 33)

    assert loop.progress.version == version + 1
    assert (version + 1, loop.progress.digest) == Publisher(loop.stream).head()
    manifest = loop.progress
    assert manifest.restored_from == chosen.version
    assert loop.learner.samples == 16
    assert means is not None
    assert loop.snapshot.evidence is not None
    assert int(loop.snapshot.classes.count_C.sum()) == 16
    for name in ("gram_DD", "sum_CD", "count_C"):
        found = everything(loop)[name]
        expected = before[name]
        if name == "sum_CD":
            found = found[: len(expected)]
        torch.testing.assert_close(found[: len(expected)], expected, rtol=0, atol=1e-12)
    for name, tensor in adapter.items():
        if name.startswith("adapter."):
            assert torch.equal(tensor, loop.learner.tuner.state()[name]), name
    assert all(exemplar.seq <= 16 for exemplar in loop.learner.replay)
    bench.admit(samples[32:])
    run_to(loop, 37)
    assert loop.learner.samples == 20
    loop.close()


def test_restart_after_an_activation_gives_the_same_bits(bench: Bench) -> None:
    """What an activation did is committed whole, and the log repeats it."""
    samples = digit_samples(40)
    copy = fresh_bench(bench, "-copy")
    for log in (bench, copy):
        log.admit(samples[:16])
    first = run_to(bench.loop("through"), 16)
    chosen = activation_of(first)
    for log in (bench, copy):
        log.admit(samples[16:28])
        admit(log, chosen)
        log.admit(samples[28:])
    through = run_to(first, 41)
    for cursor in (16, 20, 28, 29, 33, 41):
        loop = run_to(copy.loop("dying"), cursor)
        loop.close()
    survivor = run_to(copy.loop("dying"), 41)

    assert_same_bits(through, survivor)
    ledger = survivor.state.db.execute("SELECT seq, version FROM forgotten").fetchall()
    assert list(range(17, 29)) == [seq for seq, _ in ledger]
    (version,) = {version for _, version in ledger}
    assert list(range(17, 29)) == survivor.state.forgotten(version)
    assert b"28" in copy.client.hkeys(copy.keys.forgotten)
    through.close()
    survivor.close()


def test_class_that_was_set_aside_is_no_candidate(bench: Bench) -> None:
    """A name whose samples are all gone is answered like one that was never labelled."""
    samples = sorted(digit_samples(60), key=lambda sample: sample.label == "nine")
    nines = [sample for sample in samples if sample.label == "nine"]
    others = [sample for sample in samples if sample.label != "nine"][:8]
    bench.admit(others)
    loop = run_to(bench.loop(), 8)
    chosen = activation_of(loop)
    bench.admit(nines[:4])
    run_to(loop, 12)
    assert "nine" in loop.snapshot.classes.names
    admit(bench, chosen)
    run_to(loop, 13)

    assert "nine" not in loop.snapshot.learnt
    assert len(loop.snapshot.learnt) == len({sample.label for sample in others})
    bench.admit(nines[4:5] + digit_samples(64)[60:63])
    run_to(loop, 17)
    assert "nine" in loop.snapshot.learnt
    loop.close()


def test_what_is_set_aside_is_never_in_memory_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many samples came since: as many of their features as are taken out at once."""
    monkeypatch.setattr("worker.learn.learner._ROWS_AT_ONCE", 2)
    bench.admit(digit_samples(24))
    loop = run_to(bench.loop(tune="none"), 24)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def watched(content: bytes) -> torch.Tensor:
        nonlocal most
        feature_D = vector_of(content)
        alive.add(feature_D)
        most = max(most, len(alive))
        return feature_D

    monkeypatch.setattr("worker.commit.vector_of", watched)
    admit(bench, Activation(1, 4, b""))
    run_to(loop, 25)

    assert loop.learner.samples == 4
    assert 0 < most <= 5  # those that are taken out, and the next ones
    loop.close()


def test_version_zero_forgets_everything(bench: Bench) -> None:
    """The frozen base knows no class; teaching goes on from there."""
    bench.admit(digit_samples(16))
    loop = run_to(bench.loop(), 16)
    admit(bench, Activation(0, 0, b""))
    run_to(loop, 17)

    assert loop.learner.samples == 0
    assert len(loop.snapshot.learnt) == 0
    assert "adapter" not in loop.progress.parts
    assert loop.snapshot.tuned_top is None
    bench.admit(digit_samples(20)[16:])
    run_to(loop, 21)
    assert loop.learner.samples == 4
    loop.close()


@pytest.mark.parametrize("what", ["payload", "adapter", "other settings"])
def test_activation_that_cannot_be_is_a_dead_letter(bench: Bench, what: str) -> None:
    """An entry that is no activation, or brings a foreign adapter, changes nothing else."""
    bench.admit(digit_samples(12))
    loop = run_to(bench.loop(), 12)
    chosen = activation_of(loop)
    assert chosen.adapter
    payload = {
        "payload": b"no activation",
        "adapter": encode_activation(Activation(3, 4, b"no adapter")),
        "other settings": encode_activation(
            Activation(3, 4, chosen.adapter.replace(b'"rank": 4', b'"rank": 5'))
        ),
    }[what]
    if what == "other settings":
        spec = bytes(chosen.adapter)
        assert b"rank" in spec
    bench.admit_payloads([Admittable("odd", "odd", payload, kind=EntryKind.ACTIVATE)])
    bench.admit(digit_samples(16)[12:])
    run_to(loop, 17)

    assert loop.learner.samples == 16
    assert [b"13"] == list(bench.client.hgetall(bench.keys.dead))
    loop.close()
