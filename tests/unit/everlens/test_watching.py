"""What `everlens status --watch` says of the events that it heard."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from everlens.client import Backlog, Gate, Learning, RefusedVersion, VersionRecord
from everlens.commands.watching import Seen, line_of

LEARNING = Learning(
    version=4,
    learned_through=100,
    accepted_through=130,
    backlog=Backlog(30, 3 * 2**20),
    paused=None,
    pinned=None,
    learner={"prequential_accuracy_recent": 0.912},
)


def heard(*learnt: tuple[float, int]) -> Seen:
    """Return what is seen after these moments, each with what was learnt by then."""
    seen = Seen("http://h", clock=lambda: now[0])
    now = [0.0]
    for moment, through in learnt:
        now[0] = moment
        seen.take(replace(LEARNING, learned_through=through))
    return seen


def test_figures_are_those_of_the_last_event() -> None:
    """Lag, backlog and accuracy as they are; what is not so is not said."""
    figures = heard((0.0, 100)).figures()

    assert figures == {
        "version": "4",
        "learnt": "100 of 130",
        "lag": "30 entries",
        "rate": "0.0/s",
        "backlog": "30 (3.0 MB)",
        "accuracy": "91.2 %",
    }
    assert Seen("http://h").figures() == {}


def test_notes_are_said_while_they_hold() -> None:
    """A pin, a pause, a hold and a refused version are what somebody has to know."""
    seen = heard()
    seen.take(replace(LEARNING, pinned=3, held="lunch", paused="restore the log"))
    seen.take(RefusedVersion(5, "damaged", 2))

    figures = seen.figures()

    assert (figures["pinned"], figures["held"]) == ("3", "lunch")
    assert figures["paused"] == "restore the log"
    assert figures["refused"] == "version 5: damaged"


def test_rate_is_that_of_late() -> None:
    """Over the last ten seconds; a burst of long ago is none."""
    assert heard((0.0, 0), (2.0, 10), (4.0, 20)).rate_per_s == 5.0
    assert heard((0.0, 0), (1.0, 1000), (50.0, 1000), (52.0, 1004)).rate_per_s == 2.0


def test_lines_say_one_event_each() -> None:
    """Where there is no terminal, a version and a change of learning are a line."""
    seen = heard((0.0, 100))
    gate = Gate(published=True, held_out=40, before=0.9, after=0.93)

    assert line_of(seen, VersionRecord(5, 1.0, 120, 1, 2, gate=gate)) == (
        "version 5: 1 sample, learnt through 120, adapter taken, 90.0 % → 93.0 %"
    )
    assert line_of(seen, LEARNING).startswith("version 4, learnt 100 of 130, lag 30 entries")


def test_terminal_shows_the_newest_versions_first() -> None:
    """The last eight, with their age; a reason with brackets is text."""
    seen = heard((1000.0, 100))
    for number in range(1, 12):
        seen.take(VersionRecord(number, 1000.0 - 90 * (12 - number), number, number, 1))
    seen.take(replace(LEARNING, held="[red]lunch[/red]"))
    page = io.StringIO()

    Console(file=page, width=100).print(seen.drawn())

    rows = [line.split() for line in page.getvalue().splitlines()]
    begin = next(i for i, row in enumerate(rows) if row[:2] == ["version", "age"])
    assert [row[0] for row in rows[begin + 1 :] if row] == [str(n) for n in range(11, 3, -1)]
    assert rows[begin + 1][1:3] == ["90", "s"]
    assert ["held", "[red]lunch[/red]"] in rows
