"""Rounds of tuning beside the loop: evidence does not wait, bits do not change, nothing hangs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.worker.conftest import PACE, Bench, digit_samples, finish, fresh_bench, run_to
from tests.unit.worker.test_loop import assert_same_bits
from worker.learn.learner import Learner
from worker.learn.tuning import Draw, Round
from worker.poison import Attempts
from worker.rounds import NICENESS, OWED_MAX, Rounds

STEPS = [Draw(step, [], []) for step in range(2)]
# No adapter is published in these runs.
PATIENT = replace(PACE, adapter_every_rounds=100)


class Gate:
    """Holds the steps of a learner back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        take = Learner.take

        def held(learner: Learner, drawn: Round, *rest: Any) -> list[float]:
            assert self.opened.wait(60)
            return take(learner, drawn, *rest)

        monkeypatch.setattr(Learner, "take", held)


def test_evidence_does_not_wait_for_tuning(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a round is taken, the next samples are learnt, published, and left to the next round."""
    gate = Gate(monkeypatch)
    bench.admit(digit_samples(4))
    loop = bench.loop()
    loop.run(lambda: hasattr(loop, "progress") and loop.progress.cursor >= 4)
    bench.admit(digit_samples(6)[4:])
    loop.run(lambda: loop.progress.cursor >= 7 and loop.unpublished is None)
    assert loop.snapshot.learned_through == 7
    assert (loop.rounds.owed, loop.progress.waiting, loop.learner.samples) == (1, 2, 6)
    gate.opened.set()
    loop.run(lambda: loop.progress.rounds == 2 and loop.rounds.owed == 0)
    assert loop.progress.waiting == 0
    loop.close()


@pytest.mark.parametrize(("behind", "ahead"), [(8, 0), (2, 1)])
def test_a_backlog_is_learnt_no_faster_than_it_is_tuned(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, behind: int, ahead: int
) -> None:
    """So many rounds may be owed and not one more; then the log waits, and for few entries somebody."""
    gate = Gate(monkeypatch)
    monkeypatch.setattr("worker.loop._PATIENCE_S", 0.2)
    bench.admit(digit_samples(4 * OWED_MAX + behind))
    loop = bench.loop(pace=PATIENT)
    looks = iter(range(20))  # at a log that has more, once so many are owed
    loop.run(lambda: loop.rounds.owed >= OWED_MAX and next(looks, None) is None)
    assert (loop.rounds.owed, loop.progress.cursor) == (OWED_MAX, 4 * OWED_MAX)
    assert ahead == loop.rounds.ahead
    gate.opened.set()
    run_to(loop, 4 * OWED_MAX + behind)
    assert loop.rounds.ahead == 0
    loop.close()


def test_a_round_is_the_same_whenever_it_is_taken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken at once, behind five more batches, or after a restart: the same bits."""
    copies = [fresh_bench(bench, suffix) for suffix in ("-late", "-restarted")]
    pace = PATIENT
    for log in (bench, *copies):
        log.admit(digit_samples(24))
    at_once = bench.loop("at-once", pace=pace, replay_bytes=60_000)
    for cursor in range(4, 25, 4):
        run_to(at_once, cursor)

    gate = Gate(monkeypatch)
    late = copies[0].loop("late", pace=pace, replay_bytes=60_000)
    late.run(lambda: hasattr(late, "progress") and late.progress.cursor >= 24)
    assert late.rounds.owed == 6
    assert len(late.learner.replay) < 24  # what the rounds see has left the buffer in part
    late.rounds.ahead = 3  # by one thread, then by the other
    gate.opened.set()
    finish(late)
    assert_same_bits(at_once, late)

    monkeypatch.undo()
    gate = Gate(monkeypatch)
    dying = copies[1].loop("dying", pace=pace, replay_bytes=60_000)
    dying.run(lambda: hasattr(dying, "progress") and dying.progress.cursor >= 24)
    dying.rounds._stopping.set()
    gate.opened.set()
    dying.close()
    monkeypatch.undo()
    survivor = run_to(copies[1].loop("dying", pace=pace, replay_bytes=60_000), 24)
    assert_same_bits(at_once, survivor)
    for loop in (at_once, late, survivor):
        loop.close()


def test_a_round_that_hangs_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Nobody waits for ever: the alarm ends the learner, and a start tries the round aside."""
    monkeypatch.setattr("worker.rounds.allowed_s", lambda _: 0.05)

    class Hanging:
        def take(self, *_: object) -> None:
            time.sleep(60)

    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        rounds = Rounds(Hanging(), Attempts(tmp_path / "attempts"), 1)  # type: ignore[arg-type]
        rounds.put(Round(1, 1, STEPS))
        while True:
            rounds.taken(wait_s=0.02)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGALRM
    assert Attempts(tmp_path / "attempts").begun(1) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a niceness of each thread")
def test_rounds_stand_back(tmp_path: Any) -> None:
    """Rounds are nicer than the thread that asks for them, unless somebody waits for one."""
    found: list[int] = []

    class Learner:
        tuner = type("Tuner", (), {"state": lambda _: {}})()

        def take(self, *_: object) -> list[float]:
            found.append(os.nice(0))
            return [1.0]

    rounds = Rounds(Learner(), Attempts(tmp_path / "attempts"), 1)  # type: ignore[arg-type]
    for ahead in (0, 1):
        rounds.ahead = ahead
        rounds.put(Round(1, 1, STEPS))
        assert [[1.0, 1.0]] == [taken.losses for taken in rounds.taken(wait_s=60)]
    rounds.close()
    assert rounds.ahead == 0  # it was for one
    assert found == [min(19, os.nice(0) + NICENESS)] * 2 + [os.nice(0)] * 2


def test_what_was_taken_before_a_failure_is_not_lost(tmp_path: Any) -> None:
    """The failure of the second round comes behind the first one, and its count is its own."""

    class Learner:
        tuner = type("Tuner", (), {"state": lambda _: {}})()

        def take(self, drawn: Round) -> list[float]:
            if drawn.batch == 2:
                raise RuntimeError("poison")
            return [1.0]

    attempts = Attempts(tmp_path / "attempts")
    rounds = Rounds(Learner(), attempts, 1)  # type: ignore[arg-type]
    for batch in (1, 2):
        rounds.put(Round(batch, 1, STEPS))
    rounds._thread.join(60)  # type: ignore[union-attr]
    assert [taken.batch for taken in rounds.taken(wait_s=60)] == [1]
    attempts.done(1)
    with pytest.raises(RuntimeError, match="poison"):
        rounds.taken(wait_s=60)
    assert (attempts.begun(1), attempts.begun(2)) == (0, 1)
    rounds.close()
