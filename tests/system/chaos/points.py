"""
Named points of the worker's way, and how a victim dies at the n-th passage of one.

The worker's own functions are wrapped in the forked child. A point is `before:` or `after:` a
function, or `inside:` a transaction, where everything is written and nothing committed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from everlens.bus.stream import Stream
from everlens.bus.versions import Publisher
from worker.commit import StateFile
from worker.learn.learner import Learner
from worker.loop import Loop

_FUNCTIONS: dict[str, tuple[type, str]] = {
    "create": (Stream, "create"),
    "restore": (StateFile, "restore"),
    "hold": (Stream, "hold"),
    "resume": (Loop, "_resume"),
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
    "tune": (Learner, "tune"),
    "save-tuning": (StateFile, "save_tuning"),
}

# What lies between two effects; both sides of what has none would be the same point twice.
POINTS = (
    "after:create",
    "after:restore",
    "after:hold",
    "after:resume",
    "after:read",
    "before:control",
    "after:control",
    "after:observe",
    "after:save-observation",
    "inside:commit",
    "after:commit",
    "before:store",
    "after:store",
    "after:publish",
    "after:collect",
    "before:trim",
    "after:trim",
    "after:report",
    "after:tune",
    "after:save-tuning",
)


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

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
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
