"""
How a victim dies, or stops, at the n-th passage of a named point (see `points`).

The worker's own functions are wrapped in the forked child, never in their files.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import worker.loop
import worker.poison
from everlens.bus.stream import Stream
from everlens.bus.versions import Publisher
from worker.commit import StateFile
from worker.generations import Generations
from worker.learn.learner import Learner
from worker.outbox import Outbox

_FUNCTIONS: dict[str, tuple[object, str]] = {
    "create": (Stream, "create"),
    "restore": (worker.loop, "restore"),
    "hold": (Stream, "hold"),
    "resume": (Outbox, "resume"),
    "read": (Stream, "read"),
    "control": (Stream, "append_control"),
    "observe": (Learner, "observe"),
    "save-observation": (StateFile, "save_observation"),
    "commit": (StateFile, "transaction"),
    "store": (Publisher, "store"),
    "publish": (Publisher, "publish"),
    "collect": (Publisher, "collect"),
    "trim": (Stream, "trim"),
    "report": (Stream, "report"),
    "tune": (Learner, "take"),
    "go-back": (Learner, "go_back"),
    "save-forgotten": (StateFile, "save_forgotten"),
    "copy": (Generations, "_copy"),
    "try-aside": (worker.poison, "_waited"),
    "save-round": (StateFile, "save_round"),
    "save-tuning": (StateFile, "save_tuning"),
    "save-accepted": (StateFile, "save_accepted"),
}


def arm(at: tuple[str, int] | None, number: signal.Signals) -> None:
    """Let this process send itself a signal at the n-th passage of a point, (name, n)."""
    if at is None:
        return
    point, passage = at
    side, _, name = point.partition(":")
    owner, method = _FUNCTIONS[name]
    passed = _Countdown(passage, number)
    original = getattr(owner, method)
    wrap = _transaction if name == "commit" else _call
    setattr(owner, method, wrap(original, side, passed))


class _Countdown:
    def __init__(self, passage: int, number: signal.Signals) -> None:
        self.left = passage
        self.number = number
        self.pid = os.getpid()

    def __call__(self) -> None:
        self.left -= 1
        # Not a child in which the worker tries a batch aside: that would look like poison.
        if self.left == 0 and os.getpid() == self.pid:
            os.kill(os.getpid(), self.number)


def _call(original: Callable[..., Any], side: str, passed: _Countdown) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if side == "before":
            passed()
        result = original(*args, **kwargs)
        if side == "after":
            passed()
        return result

    return call


def _transaction(original: Callable[..., Any], side: str, passed: _Countdown) -> Callable[..., Any]:
    @contextlib.contextmanager
    def transaction(*args: Any) -> Iterator[None]:
        with original(*args):
            yield
            if side == "inside":
                passed()
        if side == "after":
            passed()

    return transaction
