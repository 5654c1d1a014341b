"""Directed: the worker dies at every named point, at its first passage, its second, and so on."""

from __future__ import annotations

import signal
from functools import partial

from everlens.records import Activation, EntryKind, Forgetting
from everlens.wire import encode_activation, encode_forgetting
from tests.system.chaos.campaign import add
from tests.system.chaos.ground import Ground, must, samples, until
from tests.system.chaos.points import POINTS

# A full batch, back to the beginning, a full batch, one that is cut by its age, one of them
# forgotten, and the adapter of an idle learner; a copy of the state after each.
SAMPLES = 10
_PASSAGES_MAX = 40
_FAST_PASSAGES = 1

_FAULTS = {
    "after:observe": "F19",
    "inside:commit": "F19",
    "after:tune": "F19",
    "after:commit": "F20",
    "after:publish": "F21",
}


def dies_everywhere(ground: Ground, point: str, passages: int = _PASSAGES_MAX) -> None:
    """Die at the n-th passage, n rising until the worker comes to rest without passing."""
    ground.settings["copy_every_entries"] = "1"
    ground.server.start()
    for passage in range(1, passages + 1):
        ground.begin_anew(f"{point.replace(':', '-')}-{passage}")
        ground.create_log()
        ground.admit(samples(SAMPLES)[:4])
        back = {"back": encode_activation(Activation(0, 0, b""))}
        ground.inject(back, kind=EntryKind.ACTIVATE.value)
        ground.admit(samples(SAMPLES)[4:])
        gone = {"gone": encode_forgetting(Forgetting(seq=7))}
        ground.inject(gone, kind=EntryKind.FORGET.value)
        ground.start_worker((point, passage))
        died = dies(ground)
        ground.verify()
        ground.end_worker()  # not in order: armed, it may pass its point while it is idle
        if not died:
            must(passage > 1, f"{point} is never passed")
            return
        ground.tally.add("failpoints")
    must(passages < _PASSAGES_MAX, f"{point} is passed more than {_PASSAGES_MAX} times")


def dies(ground: Ground) -> bool:
    """Return whether the armed worker died, or came to rest alive."""
    worker = ground.worker
    assert worker is not None

    def over() -> bool:
        return worker.code is not None or ground.rests()

    until(over, "the worker to die or to come to rest")
    if worker.code is None:
        return False
    must(worker.code == -signal.SIGKILL, f"the worker ended with {worker.code}\n{worker.said()}")
    return True


for _point in POINTS:
    _name = f"dies-{_point.replace(':', '-')}"
    _what = f"A worker killed {_point.replace(':', ' ')}, at any passage, changes nothing."
    _fault = _FAULTS.get(_point, "")
    add(
        _name,
        partial(dies_everywhere, point=_point),
        holds=_what,
        fault=_fault,
        when="full",
        needs=["failpoints"],
    )
    add(
        f"{_name}-early",
        partial(dies_everywhere, point=_point, passages=_FAST_PASSAGES),
        holds=_what,
        fault=_fault,
        when="fast",
        needs=["failpoints"],
    )
