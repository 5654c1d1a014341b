"""`everlens status --watch`: learning as it goes, drawn on a terminal, in lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from everlens.client import Client, Event, Learning, RefusedVersion, VersionRecord
from everlens.client.results import counted, percent
from everlens.commands.standing import notes, standing

_VERSIONS_SHOWN = 8
_RATE_OVER_S = 10.0
_DRAWN_PER_S = 2


@dataclass
class Seen:
    """What was heard so far, as much of it as is shown."""

    url: str
    clock: Callable[[], float] = time.time
    learning: Learning | None = None
    refused: RefusedVersion | None = None
    versions: deque[VersionRecord] = field(default_factory=lambda: deque(maxlen=_VERSIONS_SHOWN))
    _learnt: deque[tuple[float, int]] = field(default_factory=deque)  # when, and through what

    def take(self, event: Event) -> None:
        """Note an event."""
        match event:
            case VersionRecord():
                self.versions.appendleft(event)
            case RefusedVersion():
                self.refused = event
            case Learning():
                self.learning = event
                now = self.clock()
                self._learnt.append((now, event.learned_through))
                while self._learnt[0][0] < now - _RATE_OVER_S:
                    self._learnt.popleft()

    @property
    def rate_per_s(self) -> float:
        """Entries learnt in a second, of late; 0 where nothing was heard for long."""
        if not self._learnt:
            return 0.0
        (since, first), (_, last) = self._learnt[0], self._learnt[-1]
        past_s = self.clock() - since
        return (last - first) / past_s if 1.0 <= past_s < 2 * _RATE_OVER_S else 0.0

    def figures(self) -> dict[str, str]:
        """Return what is said, by name, in the order of a line."""
        if self.learning is None:
            return {}
        rate = {"rate": f"{self.rate_per_s:.1f}/s"}
        figures = standing(self.learning) | rate | notes(self.learning)
        if self.refused is not None:
            figures["refused"] = f"{self.refused.name}: {self.refused.reason}"
        return figures

    def drawn(self) -> Group:
        """Return it as a terminal shows it."""
        table = Table(show_header=False, box=None)
        table.add_row("service", Text(self.url))
        for name, value in self.figures().items():
            table.add_row(name, Text(value))
        return Group(table, *([self._lineage()] if self.versions else []))

    def _lineage(self) -> Table:
        table = Table(box=None, padding=(0, 1))
        for heading in ("version", "age", "learnt", "samples", "classes"):
            table.add_column(heading, justify="right", style="dim" if heading == "age" else "")
        table.add_column("")
        for each in tuple(self.versions):  # drawn by a thread, while more are heard
            table.add_row(
                str(each.version),
                _age(self.clock() - (each.published_at or self.clock())),
                str(each.learned_through),
                str(each.samples),
                str(each.classes),
                _note(each),
            )
        return table


def watch(client: Client, console: Console) -> int:
    """Show what changes until Ctrl-C, which is how it ends; return the exit code."""
    seen = Seen(client.url)
    try:
        if not console.is_terminal:
            for event in client.events():
                seen.take(event)
                console.print(Text(line_of(seen, event)), soft_wrap=True)
            return 0
        with Live(get_renderable=seen.drawn, console=console, refresh_per_second=_DRAWN_PER_S):
            for event in client.events():
                seen.take(event)
    except KeyboardInterrupt:
        pass
    return 0


def line_of(seen: Seen, event: Event) -> str:
    """Return an event as a line."""
    match event:
        case VersionRecord():
            about = f"{counted(event.samples, 'sample')}, learnt through {event.learned_through}"
            return f"version {event.version}: {about}{_after(_note(event))}"
        case RefusedVersion():
            return f"refused {event.name}: {event.reason}"
    return ", ".join(f"{name} {value}" for name, value in seen.figures().items())


def _after(words: str) -> str:
    return f", {words}" if words else ""


def _note(record: VersionRecord) -> str:
    """Return what there is to say of a version: what the gate said, and where it goes on from."""
    notes = []
    gate = record.gate
    if gate is not None:
        notes.append("adapter taken" if gate.published else "adapter not taken")
        if gate.before is not None and gate.after is not None:
            notes.append(f"{percent(gate.before)} → {percent(gate.after)}")
    if record.restored_from is not None:
        notes.append(f"goes on from version {record.restored_from}")
    return ", ".join(notes)


def _age(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
