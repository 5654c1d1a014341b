"""
What ends the learner: counted, then looked for one sample at a time in a child process. ⑤

A count never condemns: whoever kills the learner from outside five times must not cost a good
sample. It only makes the next start try the batch aside first. A sample is dead when learning it,
with those that were fit before it, fails every time; so one that fails only beside another is found
as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from everlens.model.runtime import use_threads_here
from everlens.records import DeadLetter
from worker.learn.learner import LabelledPixels

# A batch that was begun so often and never finished is tried aside.
ATTEMPTS = 2

# A sample is dead when it fails so often in a row.
_TRIES = 2

_LOOK_S = 0.02
_PDEATHSIG = 1  # of prctl


class Attempts:
    """
    How often something with a number was begun, in a file beside the state.

    Not synced: it has to outlive a process, and to be wrong after a power cut costs nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, number: int) -> int:
        """Count one more beginning; return how many there were before it."""
        before = self.begun(number)
        self.path.write_text(f"{number} {before + 1}", "ascii")
        return before

    def begun(self, number: int) -> int:
        """Return how often it was begun and never done."""
        try:
            last, before = (int(word) for word in self.path.read_text("ascii").split())
        except (FileNotFoundError, ValueError):
            return 0
        return before if last == number else 0

    def done(self, number: int | None = None) -> None:
        """Forget the count, it is committed; that of one number alone, where it is given."""
        if number is None or self.begun(number):
            self.path.unlink(missing_ok=True)


def allowed_s(samples: int) -> float:
    """Return how long a batch of so many samples may take, on the slowest machine we think of."""
    return 60 + 10 * samples


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End this process by SIGALRM where the work inside hangs; a start tries it aside then."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def sorted_out(
    samples: Sequence[LabelledPixels], learn: Callable[[Sequence[LabelledPixels]], None]
) -> tuple[list[LabelledPixels], list[DeadLetter]]:
    """
    Return the samples that can be learnt together, and the others with what happened.

    Args:
        samples: of one batch.
        learn: learns some of them; called in child processes, so that nothing stays of it.
    """

    def failure_of(some: Sequence[LabelledPixels]) -> str | None:
        return failure_aside(partial(learn, some), allowed_s(len(some)))

    if failure_of(samples) is None:
        return list(samples), []
    fit: list[LabelledPixels] = []
    dead: list[DeadLetter] = []
    for sample in samples:
        failure = failure_of([*fit, sample])
        if failure is None:
            fit.append(sample)
        else:
            dead.append(
                DeadLetter(sample.seq, sample.id, f"learning it ends the learner: {failure}")
            )
    return fit, dead


def failure_aside(work: Callable[[], object], seconds: float) -> str | None:
    """
    Return what happens each time that work is done in a child process; None if it went well once.

    Args:
        work: nothing of it stays.
        seconds: how long it may take.
    """
    failure = None
    for _ in range(_TRIES):
        failure = _tried(work, seconds)
        if failure is None:
            return None
    return failure


def _tried(work: Callable[[], object], seconds: float) -> str | None:
    # A fork: the state in memory is what it has to be tried on, and nothing of the child's stays.
    # Safe, since no other thread computes at this moment (see `Loop._settle`), and the child computes
    # on its only one: those that OpenMP has beside it are not there, and would be waited for.
    reading, writing = os.pipe()
    learner = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _die_with(learner)
        _do_and_leave(work, writing)
    os.close(writing)
    status = _waited(child, seconds)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    if status is None:
        return f"it takes over {seconds:.0f} s"
    if os.WIFSIGNALED(status):
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    return None if os.WEXITSTATUS(status) == 0 else said or f"exit {os.WEXITSTATUS(status)}"


def _die_with(parent: int) -> None:
    """A child that hangs must not stay when the learner is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def _do_and_leave(work: Callable[[], object], writing: int) -> None:
    code = 1
    try:
        use_threads_here(1)
        work()
        code = 0
    except BaseException as error:
        said = traceback.format_exception_only(error)[-1].strip()
        os.write(writing, said[:500].encode())
    finally:
        sys.stderr.flush()
        os._exit(code)  # no handler of the parent's may run


def _waited(child: int, seconds: float) -> int | None:
    """Return how a child ended; None when it had to be killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(_LOOK_S)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
