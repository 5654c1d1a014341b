"""
The thread that takes rounds of tuning, one after the other, beside the loop. ⑤

A round was drawn when its samples were observed and depends on nothing that comes later, so the
bits are the same whenever it is computed; but a sample that comes meanwhile is learnt by evidence at
once, and does not wait for seconds of gradients. Only the publication of an adapter waits for all.

It stands back: where cores are short, answers go first, and so does the loop, which brings a label into
the answers. But a label that waits for a round has it taken as an answer would be.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from everlens.model.runtime import use_threads_here
from everlens.niceness import stand_back
from worker.learn.learner import Learner
from worker.learn.tuning import Round
from worker.poison import Attempts, allowed_s

# Rounds that may wait: while so many do, no further batch is learnt. A burst is known by evidence
# in seconds, and a stream that never ends is learnt at the pace of tuning.
OWED_MAX = 8

# Of what may wait, beside answers at 0: a twelfth of their share of a core (docs/performance.md).
NICENESS = 11

_LOOK_S = 0.1  # at a step that must end


@dataclass(frozen=True, slots=True)
class Taken:
    """What a round led to, to be committed."""

    batch: int
    losses: list[float]
    tuner: dict[str, Tensor]  # its state behind the round


class Rounds:
    """
    Rounds that were drawn and whose result is not committed yet.

    Args:
        learner: whose tuner takes them; nobody else may touch that while any is owed.
        attempts: counts a round that was begun and never ended.
        threads: of torch.

    Attributes:
        ahead: how many of those that are owed do not stand back, since somebody waits for them.
    """

    def __init__(self, learner: Learner, attempts: Attempts, threads: int) -> None:
        self.learner = learner
        self.attempts = attempts
        self.threads = threads
        self.owed = 0
        self.ahead = 0
        self._waiting: queue.SimpleQueue[Round | None] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[Taken | BaseException] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._deadline = float("inf")
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, drawn: Round) -> None:
        """Let the thread take a round behind those that it has."""
        if self._thread is None:  # not before: a process that forks is better off without
            self._thread = threading.Thread(target=self._run, name="tuning", daemon=True)
            self._thread.start()
        self.owed += 1
        self._waiting.put(drawn)

    def taken(self, wait_s: float = 0.0) -> list[Taken]:
        """
        Return the rounds that were finished since this was asked last.

        A round that hangs ends this process by SIGALRM; a start tries it aside then.

        Args:
            wait_s: how long to wait for one.

        Raises:
            Exception: what a round raised, once those before it were returned.
        """
        found: list[Taken] = []
        until = time.monotonic() + wait_s
        while self.owed > len(found) and self._failure is None:
            self._look_at_the_clock()
            left_s = 0.0 if found else max(0.0, until - time.monotonic())
            try:
                result = self._taken.get(block=left_s > 0, timeout=left_s or None)
            except queue.Empty:
                break
            if isinstance(result, BaseException):
                self._failure = result
            else:
                found.append(result)
        if self._failure is not None and not found:
            raise self._failure
        self.owed -= len(found)
        return found

    def close(self) -> None:
        """End the thread behind the step that it is at; what was not finished is owed on."""
        self._stopping.set()
        self._waiting.put(None)
        while self._thread is not None and self._thread.is_alive():
            self._look_at_the_clock()
            self._thread.join(_LOOK_S)

    def _look_at_the_clock(self) -> None:
        if time.monotonic() > self._deadline:
            signal.raise_signal(signal.SIGALRM)

    def _run(self) -> None:
        try:
            use_threads_here(self.threads)
            with ThreadPoolExecutor(
                1, "patient tuning", initializer=partial(stand_back_with, self.threads)
            ) as patient:
                while (drawn := self._waiting.get()) is not None and not self._stopping.is_set():
                    self.attempts.begin(drawn.batch)
                    losses = self._stepped(drawn, patient)
                    if self._stopping.is_set():
                        return
                    self.ahead = max(0, self.ahead - 1)
                    self._taken.put(Taken(drawn.batch, losses, self.learner.tuner.state()))
        except BaseException as error:
            self._taken.put(error)

    def _stepped(self, drawn: Round, patient: Executor) -> list[float]:
        """Take the steps of a round, as far as nobody stops it; return the losses."""
        losses: list[float] = []
        try:
            for step in drawn.steps:
                if self._stopping.is_set():
                    break
                self._deadline = time.monotonic() + allowed_s(drawn.pictures)
                take = partial(self.learner.take, step)
                losses += take() if self.ahead else patient.submit(take).result()
        finally:
            self._deadline = float("inf")
        return losses


def stand_back_with(threads: int) -> None:
    """Let the calling thread, which computes what may wait, take so many threads of torch, and last."""
    stand_back(NICENESS)
    use_threads_here(threads)
