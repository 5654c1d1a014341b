"""Whether a log and a state belong together: a start learns on from there, or says why not. ⑥"""

from __future__ import annotations

from everlens.bus.stream import Stream
from everlens.errors import OtherLog, StateError
from worker.commit import Progress


def epoch_of(stream: Stream, saved: Progress | None, *, creates: bool) -> str:
    """
    Return the epoch of the log to learn from.

    Args:
        stream: the log; it is begun where there is neither a log nor a state.
        saved: where the state is; None where there is none.
        creates: whether a log may be begun.

    Raises:
        StateError, OtherLog: they are not of each other, and how that is mended.
    """
    found = stream.state()
    if saved is None:
        if found is not None and found.kept > 0:
            raise StateError(
                f"the log was learnt and freed up to entry {found.kept}, but there is no "
                "state; restore the state file, or begin anew with another namespace"
            )
        if found is None and not creates:
            raise StateError(
                "there is neither a log nor a state; restore them, or begin with `everlens create`"
            )
        return stream.create()  # or go on with one that still holds its first entry
    if found is None:
        raise StateError("the log is empty, but the state is not; restore the log")
    if found.epoch != saved.epoch:
        raise OtherLog("the log is another one than the state was learnt from")
    if found.seq < saved.cursor:
        raise StateError(
            f"the log ends at entry {found.seq}, behind the state's {saved.cursor}: accepted "
            "samples were lost; restore the newest copy of the log"
        )
    if found.kept > saved.cursor:
        raise StateError(
            f"the log was freed up to entry {found.kept}, the state ends at {saved.cursor}; "
            "restore a newer copy of the state"
        )
    return saved.epoch
