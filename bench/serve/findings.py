"""What a row of a bench found: lines for people, figures for the JSON line, raw ones for the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Line(NamedTuple):
    """One line of the table; `ok` None where nothing must be so."""

    figure: str
    measured: str
    must: str = ""
    ok: bool | None = None

    def cells(self) -> tuple[str, str, str, str]:
        """Return what stands in the table."""
        return self.figure, self.measured, self.must, _WORDS[self.ok]


_WORDS = {True: "ok", False: "missed", None: ""}
HEADER = ("figure", "measured", "must", "")


@dataclass(slots=True)
class Findings:
    """What one row found."""

    lines: list[Line] = field(default_factory=list)
    figures: dict[str, float | None] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)

    def add(
        self,
        figure: str,
        measured: object,
        must: str = "",
        *,
        ok: bool | None = None,
        **figures: float | None,
    ) -> None:
        """Add a line, and what of it goes into the JSON line."""
        self.lines.append(Line(figure, str(measured), must, ok))
        self.figures |= {
            name: None if value is None else round(value, 4) for name, value in figures.items()
        }

    def keep(self, **raw: Any) -> None:
        """Keep raw figures for the file."""
        self.raw |= raw
