"""
Go on where log and state do not belong together any more, knowing what is lost. ⑥

A start never does this: it stops and says why. Whoever cannot restore what is missing gives it up
here, once, by name: the numbers go into the state's ledger, the log begins a new epoch that names
the one before, and services take it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from everlens.bus.stream import LogState, Stream
from everlens.bus.versions import Publisher
from everlens.bus.witness import Witness
from everlens.errors import OtherLog, StateError
from worker.commit import StateFile
from worker.generations import Generations


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How state and log come together.

    Args:
        given_up: first and last number of each range that will never be learnt.
        cursor: where learning goes on.
        seq: the highest number that was ever given.
    """

    given_up: list[tuple[int, int]]
    cursor: int
    seq: int

    def __str__(self) -> str:
        ranges = ", ".join(f"{first} to {last}" for first, last in self.given_up)
        lost = f"entries {ranges} are given up" if ranges else "nothing is given up"
        return f"learning goes on behind entry {self.cursor}; {lost}"


def planned(cursor: int, log: LogState | None, acknowledged: int, holes_end: int) -> Plan:
    """
    Return the plan that gives up least.

    Args:
        cursor: of the state.
        log: as it is; None where it was wiped.
        acknowledged: the highest number that a client got an answer for, as far as known here.
        holes_end: the last missing number behind the cursor that the log still has a later one for.
    """
    log_seq, kept = (log.seq, log.kept) if log is not None else (0, 0)
    goes_on = max(cursor, kept, holes_end)
    given_up = [(cursor + 1, goes_on)] if goes_on > cursor else []
    last = max(log_seq, goes_on)
    if acknowledged > last:
        given_up.append((last + 1, acknowledged))
    if log_seq > goes_on:
        # Entries wait: numbers go on right behind them, so those of the lost ones are given again.
        return Plan(given_up, goes_on, log_seq)
    end = max(last, acknowledged)
    return Plan(given_up, end, end)


def reconcile(
    generations: Generations, stream: Stream, witnesses: list[Path], *, act: bool
) -> Plan:
    """
    Return the plan; carry it out if `act`.

    Args:
        generations: of the state that learning goes on from.
        stream: the log.
        witnesses: files of services on this machine.

    Raises:
        StateError: there is no state to go on from.
        OtherLog: the log is another learner's.
        Fenced: a learner is at work.
    """
    state = generations.open()
    try:
        return _reconcile(generations, state, stream, witnesses, act=act)
    finally:
        state.close()


def _reconcile(
    generations: Generations,
    state: StateFile,
    stream: Stream,
    witnesses: list[Path],
    *,
    act: bool,
) -> Plan:
    record = state.record()
    if record is None:
        raise StateError("there is no state to go on from; `everlens create` begins anew")
    saved, log = record["progress"], stream.state()
    ours = {saved["epoch"]}
    # The log knows more of them than the state where it was told alone: the last time was cut short.
    if log is not None and saved["epoch"] in (log.epoch, *log.former):
        ours |= {log.epoch, *log.former}
    elif log is not None and log.seq:
        raise OtherLog(
            "this log is another one, and holds entries of its own; point EVERLENS_REDIS_URL "
            "or EVERLENS_NAMESPACE at the log of this state, or at an empty place"
        )
    else:
        log = None
    acknowledged = [Witness(path).read() for path in witnesses]
    plan = planned(
        saved["cursor"],
        log,
        max((known.seq for known in acknowledged if known.epoch in ours), default=0),
        stream.end_of_holes(max(saved["cursor"], log.kept if log else 0)) if log else 0,
    )
    if not act:
        return plan
    former = " ".join(ours | {known.epoch for known in acknowledged if known.epoch})
    head = Publisher(stream).head()
    epoch = stream.reconcile(former, plan.seq, plan.cursor, (saved["version"], saved["digest"]))
    changes = {"epoch": epoch, "cursor": plan.cursor}
    if head[0]:  # whatever it is: the next version descends from it
        changes |= {"version": head[0], "digest": head[1]}
    state.reconcile(changes, plan.given_up)
    generations.forget()
    return plan
