"""The evidence in the state: a row for each class, written where it changed."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import torch

from everlens.records import Forgetting
from tests.unit.worker.conftest import PACE, Bench, digit_samples, fresh_bench, run_to
from tests.unit.worker.test_forgetting import forget
from tests.unit.worker.test_loop import assert_same_bits
from worker.commit import SUMS_EVERY_BATCHES, StateFile
from worker.learn.evidence import EvidenceSums
from worker.saved_sums import save_sums, saved_sums

WIDTH = 64


def sums_of(classes: int) -> EvidenceSums:
    """Return sums of two samples a class, some of which have refused pictures."""
    generator = torch.Generator().manual_seed(0)
    sums = EvidenceSums(WIDTH)
    sums.add(torch.rand(2 * classes, WIDTH, generator=generator), [*range(classes)] * 2)
    sums.refuse(torch.rand(3, WIDTH, generator=generator), [1, 7, 1])
    return sums


def assert_read(state: StateFile, sums: EvidenceSums) -> None:
    """What is read is what was written, to the bit."""
    read = saved_sums(state)
    assert read is not None
    expected, found = sums.tensors(), read.tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_more_classes_than_one_value_holds_are_read_back(tmp_path: Path) -> None:
    """However many there are, no row grows: SQLite takes a gigabyte in one, and no more."""
    state, sums = StateFile(tmp_path / "state.db"), sums_of(400)
    state.db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 8 * WIDTH * WIDTH + 1024)  # the gram's
    assert saved_sums(state) is None
    with state.transaction():
        save_sums(state, sums, range(400))
    assert_read(state, sums)
    state.close()


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    """Of four hundred classes three: each a row out and a row in, and the gram."""
    state, sums = StateFile(tmp_path / "state.db"), sums_of(400)
    with state.transaction():
        save_sums(state, sums, range(400))
    changed = torch.ones(2, WIDTH)
    sums.add(changed, [3, 400])
    sums.readmit(sums_of(400).refused[7].sum_D[None], [7])
    before = state.db.total_changes
    with state.transaction():
        save_sums(state, sums, [3, 7, 400])
    assert state.db.total_changes - before == 2 + 2 + 2 + 1
    assert 7 not in sums.refused
    assert_read(state, sums)
    state.close()


def test_rows_that_a_learner_saves_are_its_sums(bench: Bench) -> None:
    """Past two saves and with forgettings between, a restart has the bits of one that ran through."""
    pace = replace(PACE, batch_size=1)
    copy = fresh_bench(bench, "-copy")
    for log in (bench, copy):
        log.admit(digit_samples(40))
        forget(log, Forgetting(seq=36), Forgetting(label=digit_samples(1)[0].label))
        log.admit(digit_samples(80)[40:])
    through = run_to(bench.loop("through", tune="none", pace=pace), 83)
    restarted = run_to(copy.loop("again", tune="none", pace=pace), SUMS_EVERY_BATCHES + 2)
    for cursor in (43, 44, 60, 83):
        restarted.close()
        restarted = run_to(copy.loop("again", tune="none", pace=pace), cursor)

    assert 0 < restarted.progress.sums_batch < restarted.learner.batch
    assert_same_bits(through, restarted)
    assert through.learner.sums is not None
    (rows,) = through.state.db.execute("SELECT count(*) FROM sums").fetchone()
    assert rows == len(through.learner.sums.count_C)
    through.close()
    restarted.close()
