"""Copies of the state: what is damaged falls back, and ends at the same bits."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from everlens.bus.versions import Publisher
from everlens.errors import Diverged, StateError
from tests.unit.worker.conftest import PACE, Bench, Spoilt, digit_samples, fresh_bench, run_to
from tests.unit.worker.test_loop import assert_same_bits
from worker.commit import FORMAT, StateFile
from worker.generations import Generations
from worker.loop import Loop

COPIES = replace(PACE, copy_every_entries=8)


def overwritten(path: Path, at: float, count: int = 4096) -> None:
    content = bytearray(path.read_bytes())
    place = int(at * len(content))
    content[place : place + count] = bytes(count)
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "head": lambda path: overwritten(path, 0.0),
    "middle": lambda path: overwritten(path, 0.5, 100_000),
    "half": halved,
    "empty": emptied,
    "gone": Path.unlink,
}


def learnt(bench: Bench, count: int, pace=COPIES) -> Loop:
    """Return a learner with copies, that has learnt so many samples and stopped."""
    loop = bench.loop(pace=pace)
    for cursor in range(8, count + 1, 8):  # a copy is of one of these
        run_to(loop, cursor)
        loop.generations._copier.submit(int).result()  # the copy asked for before is made
        loop.generations.tend()
    run_to(loop, count)
    loop.close()
    return loop


def test_log_keeps_what_the_older_copy_has_not_learnt(bench: Bench) -> None:
    """Entries are freed behind the older of two copies, and count as learnt at once."""
    bench.admit(digit_samples(36))
    loop = learnt(bench, 36)
    state = loop.stream.state()
    assert state is not None
    kept = state.kept
    assert 0 < kept < 36 == state.done
    assert kept + 1 == loop.stream.read(kept, 1)[0].seq
    assert bench.client.xlen(bench.keys.log) == 36 - kept
    cursors = []
    for copy in loop.generations.copies:
        generation = Generations(copy)
        file = generation.open()
        cursors.append(file.cursor)
        file.close()
        generation.close()
    assert min(cursors) >= kept
    assert cursors[0] > cursors[1]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_falls_back_to_the_same_bits(bench: Bench, damage: str) -> None:
    """A copy takes the place of what was damaged, and the log brings it to the same bits."""
    bench.admit(digit_samples(36))
    copy = fresh_bench(bench, "-copy")
    copy.admit(digit_samples(48))
    through = run_to(copy.loop("through"), 48)
    loop = learnt(bench, 36)
    version, _ = Publisher(loop.stream).head()
    DAMAGES[damage](loop.generations.path)

    again = bench.loop(pace=COPIES)
    assert again.state.cursor < 36
    bench.admit(digit_samples(48)[36:])
    run_to(again, 48)
    assert_same_bits(through, again)
    assert Publisher(again.stream).head()[0] > version
    again.close()


def test_what_was_published_is_compared_again_where_the_log_went_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.admit(digit_samples(36))
    loop = learnt(bench, 36)
    Path.unlink(loop.generations.path)
    head = Publisher(loop.stream).head()

    again = bench.loop(pace=COPIES)
    exchange = Spoilt(again.outbox.publisher.check_again, 1, executed=False)
    monkeypatch.setattr(again.outbox.publisher, "check_again", exchange)
    run_to(again, 36)
    assert exchange.calls > 1
    assert Publisher(again.stream).head() == head
    again.close()


def test_damage_of_state_and_newest_copy_falls_back_twice(bench: Bench) -> None:
    """The older copy is as good; the log still has what it lacks."""
    bench.admit(digit_samples(36))
    copy = fresh_bench(bench, "-copy")
    copy.admit(digit_samples(48))
    through = run_to(copy.loop("through"), 48)
    loop = learnt(bench, 36)
    overwritten(loop.generations.path, 0.5, 100_000)
    newest, older = loop.generations.copies
    overwritten(newest, 0.5, 100_000)  # its cursor can be read, and counts for nothing

    again = bench.loop(pace=COPIES)
    assert 0 == again.generations.kept
    assert older.exists()  # the next copy pushes no whole one out
    assert not newest.exists()
    assert newest.with_suffix(".damaged").exists()
    bench.admit(digit_samples(48)[36:])
    run_to(again, 48)
    assert_same_bits(through, again)
    again.close()


def test_a_failing_disk_says_nothing_of_a_copy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older copy is taken, and the newest is left for a better day."""
    bench.admit(digit_samples(36))
    loop = learnt(bench, 36)
    path = loop.generations.path
    overwritten(path, 0.5, 100_000)
    newest, older = loop.generations.copies
    verify, files = StateFile.verify, []

    def failing_once(file: StateFile, tally: dict[str, int]) -> None:
        files.append(file.path)
        if len(files) == 2:  # the newest copy in the place of what was damaged
            raise sqlite3.OperationalError("disk I/O error")
        verify(file, tally)

    monkeypatch.setattr(StateFile, "verify", failing_once)
    again = bench.loop(pace=COPIES)
    assert files == [path] * 3
    assert older.exists()
    assert newest.exists()
    assert again.generations.kept > 0
    run_to(again, 36)
    again.close()


def test_state_without_a_copy_begins_the_log_again(bench: Bench) -> None:
    """Before there are two copies the log holds its first entry: it is the copy."""
    bench.admit(digit_samples(16))
    loop = run_to(bench.loop(), 12)
    loop.close()
    digest = loop.progress.digest
    overwritten(loop.generations.path, 0.5, 100_000)
    bench.client.delete(bench.keys.lease)  # expires: the new state's learner is another holder

    again = run_to(bench.loop(), 12)
    assert digest == again.progress.digest
    again.close()


def test_learner_that_comes_to_other_bits_stops(bench: Bench) -> None:
    """What is learnt again must be what was published."""
    bench.admit(digit_samples(36))
    loop = learnt(bench, 36)
    loop.generations.path.unlink()
    fallen = bench.loop(pace=COPIES)
    record = fallen.state.record()
    assert record is not None
    version = record["progress"]["version"]
    row = bench.client.hget(bench.keys.lineage, str(version + 1))
    assert row is not None
    before = bench.client.hget(bench.keys.lineage, str(version))
    bench.client.hset(bench.keys.lineage, str(version + 1), before)

    with pytest.raises(Diverged, match="other bits"):
        run_to(fallen, 36)
    fallen.close()


def test_copy_of_another_everlens_is_not_overwritten(bench: Bench) -> None:
    """A state of another format is no damage: it stays where it is."""
    bench.admit(digit_samples(36))
    loop = learnt(bench, 36)
    generations = Generations(loop.generations.path)
    file = generations.open()
    record = file.db.execute("SELECT record FROM head").fetchone()[0]
    other = record.replace(f'"format": {FORMAT}', '"format": 99')
    assert other != record
    digest = hashlib.sha256(other.encode()).hexdigest()
    file.db.execute("UPDATE head SET record = ?, digest = ?", (other, digest))
    file.close()
    with pytest.raises(StateError, match="format 99"):
        generations.open()
    generations.close()
    assert not generations.path.with_suffix(".damaged").exists()
