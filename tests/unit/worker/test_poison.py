"""What ends the learner is found; what somebody else ended is not blamed for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import worker.poison
from everlens.pixels import Pixels
from tests.unit.worker.conftest import Bench, digit_samples, run_to
from worker.learn.learner import LabelledPixels, Learner
from worker.learn.tuning import Round
from worker.loop import Loop
from worker.poison import ATTEMPTS, Attempts, deadline, failure_aside, sorted_out

pytestmark = pytest.mark.filterwarnings(
    # The test's process has threads; the learner's own has none while it forks.
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)


def samples(*names: str) -> list[LabelledPixels]:
    pixels: Pixels = np.zeros((1, 1, 3), np.uint8)  # never looked at
    return [LabelledPixels(k, n, n, None, b"", pixels) for k, n in enumerate(names, 1)]


def learn(chosen: Sequence[LabelledPixels]) -> None:
    """Learn like a learner that some of them end, each in its own way."""
    names = [sample.label for sample in chosen]
    if "aborts" in names:
        os.kill(os.getpid(), signal.SIGKILL)
    if "raises" in names:
        raise RuntimeError("no such thing")
    if "hangs" in names:
        time.sleep(60)
    if {"one", "other"} <= set(names):
        os._exit(7)


def test_each_culprit_is_found_with_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """An abort, an exception, a hang, and one that fails only beside another."""
    monkeypatch.setattr(worker.poison, "allowed_s", lambda _: 1.5)
    batch = samples("good", "aborts", "one", "raises", "fine", "other", "hangs", "last")
    fit, dead = sorted_out(batch, learn)
    assert [sample.label for sample in fit] == ["good", "one", "fine", "last"]
    reasons = {letter.id: letter.reason for letter in dead}
    assert list(reasons) == ["aborts", "raises", "other", "hangs"]
    assert "SIGKILL" in reasons["aborts"]
    assert "RuntimeError: no such thing" in reasons["raises"]
    assert "exit 7" in reasons["other"]
    assert "takes over" in reasons["hangs"]


def test_batch_that_somebody_else_ended_is_whole() -> None:
    """What can be learnt in a child is learnt, however often it was interrupted before."""
    batch = samples("good", "fine")
    assert sorted_out(batch, learn) == (batch, [])


def test_failure_once_condemns_nobody(tmp_path: Path) -> None:
    """A sample that fails once and then does not was unlucky."""
    mark = tmp_path / "failed"

    def unlucky(_: Sequence[LabelledPixels]) -> None:
        if not mark.exists():
            mark.touch()
            os._exit(1)

    assert sorted_out(samples("good"), unlucky)[1] == []
    assert mark.exists()


def test_child_of_a_learner_of_several_threads_computes() -> None:
    """It has one of them, and waits for no other; else each good sample would be one that hangs."""
    square_NN = torch.rand(512, 512)
    torch.set_num_threads(2)
    try:
        square_NN @ square_NN  # begins the second thread
        assert failure_aside(lambda: (square_NN @ square_NN).exp().sum(), 60.0) is None
    finally:
        torch.set_num_threads(1)


def test_attempts_are_counted_for_one_batch(tmp_path: Path) -> None:
    """The count is of the batch at hand, and ends with it."""
    attempts = Attempts(tmp_path / "attempts")
    assert [attempts.begin(16), attempts.begin(16), attempts.begin(16)] == [0, 1, 2]
    assert attempts.begin(32) == 0
    attempts.done()
    assert attempts.begin(32) == 0
    attempts.path.write_text("rubbish")
    assert attempts.begin(32) == 0


def test_work_that_hangs_is_ended() -> None:
    """A child that hangs inside the deadline is killed by the alarm; in time nothing happens."""
    with deadline(5):
        pass
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        with deadline(0.1):
            time.sleep(30)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGALRM


def poisoned(monkeypatch: pytest.MonkeyPatch, method: str, name: str = "digit-2") -> None:
    """Let one sample end the learner in a step of it."""
    whole = getattr(Learner, method)
    first = int(name.partition("-")[2]) + 1

    def deadly(self, work, *rest):
        new = [e for draw in work.draws for e in draw.new] if method == "take" else work
        if any(sample.seq == first for sample in new):
            raise RuntimeError("poison")
        return whole(self, work, *rest)

    monkeypatch.setattr(Learner, method, deadly)


def dies_as_often_as_it_may(bench: Bench, samples: int) -> None:
    """Start learners that end over what is poisoned, until the next one tries it aside."""
    for _ in range(ATTEMPTS):
        loop = bench.loop()
        with pytest.raises(RuntimeError, match="poison"):
            run_to(loop, samples)
        loop.close()


def test_poisoned_sample_is_a_dead_letter_and_the_rest_is_learnt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two deaths the third start finds the culprit and learns its neighbours."""
    poisoned(monkeypatch, "observe")
    bench.admit(digit_samples(8))
    dies_as_often_as_it_may(bench, 8)

    loop = run_to(bench.loop(), 8)
    assert loop.learner.samples == 7
    reasons = bench.client.hgetall(bench.keys.dead)
    assert [b"3"] == list(reasons)
    assert b"RuntimeError: poison" in reasons[b"3"]
    loop.close()


def test_round_that_cannot_be_drawn_is_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two deaths a child is asked; its samples stay in evidence, and the next round is drawn."""
    draw = Learner.draw

    def deadly(learner: Learner) -> Round | None:
        if any(exemplar.seq == 3 for exemplar in learner.waiting):
            raise RuntimeError("poison")
        return draw(learner)

    monkeypatch.setattr(Learner, "draw", deadly)
    bench.admit(digit_samples(8))
    dies_as_often_as_it_may(bench, 8)

    loop = run_to(bench.loop(), 8)
    assert loop.learner.samples == 8
    assert (loop.progress.rounds, loop.learner.waiting) == (1, [])
    assert not bench.client.hlen(bench.keys.dead)
    loop.close()


def test_steps_that_end_the_learner_are_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evidence has learnt the batch; where its steps are deadly it goes on without them."""
    poisoned(monkeypatch, "take")
    bench.admit(digit_samples(8))
    deaths = 0
    for _ in range(6):
        loop = bench.loop()
        try:
            run_to(loop, 8)
            break
        except RuntimeError:
            deaths += 1
        finally:
            loop.close()
    assert 1 <= deaths <= ATTEMPTS + 1
    assert loop.learner.samples == 8
    assert loop.rounds.owed == 0
    assert bench.client.hlen(bench.keys.dead) == 0


def test_adapter_that_ends_the_learner_is_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two deaths a child is asked; learning goes on, and the next adapter is tried as ever."""

    def deadly(*_: object) -> dict[str, bytes]:
        raise RuntimeError("poison")

    with monkeypatch.context() as poisoned:
        poisoned.setattr("worker.adapter_clock.adapter_parts", deadly)
        bench.admit(digit_samples(16))
        dies_as_often_as_it_may(bench, 16)
        loop = run_to(bench.loop(), 16)
        assert loop.learner.samples == 16
        assert "adapter" not in loop.progress.parts
        loop.close()
    bench.admit(digit_samples(24)[16:])
    loop = run_to(bench.loop(), 24)
    assert "adapter" in loop.progress.parts
    loop.close()


def test_batch_that_is_interrupted_from_outside_keeps_its_samples(bench: Bench) -> None:
    """Five kills on one batch leave no dead letter and the same bits."""
    bench.admit(digit_samples(8))
    loop = bench.loop()
    for _ in range(5):
        loop.attempts.begin(4)
    run_to(loop, 8)
    assert loop.learner.samples == 8
    assert bench.client.hlen(bench.keys.dead) == 0
    loop.close()


def test_only_computing_has_a_deadline(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm is set while the learner learns, and never while it talks to the log."""
    left: dict[str, set[bool]] = {}

    def watched(owner: type, method: str) -> None:
        whole = getattr(owner, method)

        def looking(*args, **kwargs):
            armed = signal.getitimer(signal.ITIMER_REAL)[0] > 0
            left.setdefault(method, set()).add(armed)
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, method, looking)

    for owner, method in ((Learner, "observe"), (Loop, "_publish_before_next")):
        watched(owner, method)
    bench.admit(digit_samples(16))
    loop = run_to(bench.loop(), 16)
    assert loop.snapshot.adapter is not None
    assert left == {"observe": {True}, "_publish_before_next": {False}}
    loop.close()
