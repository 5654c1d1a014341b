"""Going on without what was lost: what is given up, and that learning and serving go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from everlens.bus.stream import LogState
from everlens.bus.versions import Publisher
from everlens.bus.witness import Witness
from everlens.errors import Fenced, OtherLog, StateError
from tests.unit.worker.conftest import PACE, Bench, digit_samples, run_to
from worker.commit import StateFile
from worker.generations import Generations
from worker.reconcile import Plan, planned, reconcile


def log_at(seq: int, kept: int = 0) -> LogState:
    return LogState("epoch", seq, kept, kept, "")


@pytest.mark.parametrize(
    ("cursor", "log", "acknowledged", "holes_end", "plan"),
    [
        (100, None, 0, 0, Plan([], 100, 100)),  # wiped, all was learnt
        (100, None, 120, 0, Plan([(101, 120)], 120, 120)),  # wiped, some waited
        (100, log_at(80), 0, 0, Plan([], 100, 100)),  # an older copy of the log
        (100, log_at(80), 120, 0, Plan([(101, 120)], 120, 120)),
        (100, log_at(110), 120, 0, Plan([(111, 120)], 100, 110)),  # its tail is gone
        (100, log_at(200, kept=150), 200, 150, Plan([(101, 150)], 150, 200)),  # an older state
        (100, log_at(200), 200, 130, Plan([(101, 130)], 130, 200)),  # a hole in the middle
        (100, log_at(200), 200, 100, Plan([], 100, 200)),  # nothing is wrong
        (0, None, 0, 0, Plan([], 0, 0)),
    ],
)
def test_plan_gives_up_what_is_nowhere(cursor, log, acknowledged, holes_end, plan) -> None:
    """And nothing besides."""
    assert planned(cursor, log, acknowledged, holes_end) == plan
    assert ("nothing" in str(plan)) == (not plan.given_up)


def carried_out(bench: Bench, *, act: bool = True) -> Plan:
    """Reconcile the state and the log of a bench; its lease has run out."""
    bench.client.delete(bench.keys.lease)
    generations = Generations(bench.directory / "state" / "learner.db")
    try:
        return reconcile(
            generations, bench.stream(), [bench.directory / bench.keys.namespace], act=act
        )
    finally:
        generations.close()


def wipe(bench: Bench) -> None:
    for key in bench.client.scan_iter(f"{{{bench.keys.namespace}}}:*"):
        bench.client.delete(key)


def cut_tail(bench: Bench) -> None:
    """Leave the log as a torn file would: the last two entries are gone."""
    for stream in (bench.keys.log, bench.keys.id_order):
        entries: Any = bench.client.xrange(stream, max="10-0")
        bench.client.delete(stream)
        for entry_id, fields in entries:
            bench.client.xadd(stream, fields, id=entry_id)
    bench.client.hset(bench.keys.meta, "seq", 10)


def make_hole(bench: Bench) -> None:
    bench.client.xdel(bench.keys.log, "9-0", "10-0")


def lose_entries(bench: Bench) -> None:
    """As if a newer state had let the log free what this one has not learnt."""
    bench.client.hset(bench.keys.meta, mapping={"kept": 10, "done": 10})
    bench.client.xtrim(bench.keys.log, minid="11-0", approximate=False)


@pytest.mark.parametrize(
    ("damage", "given_up", "samples"),
    [
        (wipe, [(9, 12)], 8),
        (cut_tail, [(11, 12)], 10),
        (make_hole, [(9, 10)], 10),
        (lose_entries, [(9, 10)], 10),
    ],
)
def test_learning_goes_on_after_it(bench: Bench, damage, given_up, samples: int) -> None:
    """A start stops; the command says what is lost; then the same learner goes on with the rest."""
    bench.admit(digit_samples(8))
    loop = run_to(bench.loop(), 8)
    version = loop.progress.version
    loop.close()
    bench.admit(digit_samples(12)[8:])
    damage(bench)
    if damage is not cut_tail:
        broken = bench.loop()
        with pytest.raises((StateError, OtherLog)):
            run_to(broken, 12)
        broken.close()

    before = bench.client.hgetall(bench.keys.meta)
    assert carried_out(bench, act=False).given_up == given_up
    assert before == bench.client.hgetall(bench.keys.meta)
    plan = carried_out(bench)
    assert plan.given_up == given_up

    again = bench.loop()
    receipts = bench.admit(digit_samples(20)[12:])
    run_to(again, receipts[-1].seq)
    assert again.learner.samples == samples + 8
    assert again.progress.version > version
    assert (again.progress.version, again.progress.digest) == Publisher(again.stream).head()
    ledger = again.state.db.execute("SELECT first, last FROM given_up").fetchall()
    assert ledger == given_up
    again.close()


def test_reconciliation_that_was_cut_short_is_made_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has begun an epoch of which the state never heard: the command again, and it goes on."""

    def fail(*_: object) -> None:
        raise OSError("pulled the plug")

    bench.admit(digit_samples(8))
    run_to(bench.loop(), 8).close()
    bench.admit(digit_samples(12)[8:])
    lose_entries(bench)
    monkeypatch.setattr(StateFile, "reconcile", fail)
    with pytest.raises(OSError, match="plug"):
        carried_out(bench)
    monkeypatch.undo()

    assert carried_out(bench).given_up == [(9, 10)]
    receipts = bench.admit(digit_samples(16)[12:])  # as a service that was there all the while
    again = run_to(bench.loop(), receipts[-1].seq)
    assert again.learner.samples == 8 + 2 + 4
    again.close()


def test_running_learner_is_not_overtaken(bench: Bench) -> None:
    """While a learner holds the lease nothing is changed."""
    bench.admit(digit_samples(4))
    run_to(bench.loop(), 4).close()
    generations = Generations(bench.directory / "state" / "learner.db")
    with pytest.raises(Fenced, match="stop it first"):
        reconcile(generations, bench.stream(), [], act=True)
    generations.close()


def test_log_of_another_learner_is_left_alone(bench: Bench) -> None:
    """A log with other entries cannot be gone on with."""
    bench.admit(digit_samples(4))
    run_to(bench.loop(), 4).close()
    bench.client.hset(bench.keys.meta, "epoch", "another")
    with pytest.raises(OtherLog):
        carried_out(bench)


def test_witness_of_another_log_says_nothing(bench: Bench, tmp_path: Path) -> None:
    """A number that was given by another log is none of this one's."""
    bench.admit(digit_samples(4))
    run_to(bench.loop(), 4).close()
    strange = Witness(tmp_path / "strange")
    strange.note("another", 99)
    strange.close()
    bench.client.delete(bench.keys.lease)
    generations = Generations(bench.directory / "state" / "learner.db")
    assert reconcile(generations, bench.stream(), [strange.path], act=False).given_up == []
    generations.close()


def test_log_is_not_begun_where_that_was_not_asked_for(bench: Bench) -> None:
    """With EVERLENS_CREATE=false a learner that finds nothing does not begin anew."""
    wipe(bench)
    loop = bench.loop(pace=replace(PACE, creates=False))
    with pytest.raises(StateError, match="everlens create"):
        run_to(loop, 1)
    loop.close()
