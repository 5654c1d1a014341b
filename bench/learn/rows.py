"""Rows of the bench's table, and what each kind of measurement gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bench.measure import Spread, table


@dataclass(frozen=True, slots=True)
class Row:
    """
    One line of the table.

    Args:
        figure: what was measured.
        measured: with its spread, or why there is nothing.
        must: what is asked for; empty where nothing is.
        met: whether it is; None where nothing is asked for, or nothing could be measured.
    """

    figure: str
    measured: str
    must: str = ""
    met: bool | None = None


@dataclass(slots=True)
class Findings:
    """What one kind of measurement found: lines to read, figures to compare, and what lies behind."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, float | None] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)

    def at_least(self, key: str, figure: str, spread: Spread, bound: float) -> None:
        """Take down a figure that must not be below a bound."""
        self._take(key, figure, spread, f">= {bound:g}", met=spread.median >= bound)

    def at_most(self, key: str, figure: str, spread: Spread, bound: float) -> None:
        """Take down a figure that must not be above a bound."""
        self._take(key, figure, spread, f"<= {bound:.3g}", met=spread.median <= bound)

    def note(self, key: str, figure: str, spread: Spread) -> None:
        """Take down a figure of which nothing is asked."""
        self._take(key, figure, spread, "", met=None)

    def missing(self, key: str, figure: str, reason: str, must: str = "") -> None:
        """Take down why there is no figure."""
        self.rows.append(Row(figure, f"- ({reason})", must))
        self.figures[key] = None

    def _take(self, key: str, figure: str, spread: Spread, must: str, *, met: bool | None) -> None:
        self.rows.append(Row(figure, str(spread), must, met))
        self.figures[key] = round(spread.median, 4)


def show(found: Iterable[tuple[str, Findings]]) -> str:
    """Return one table over the findings of several models."""
    verdicts = {True: "ok", False: "missed", None: ""}
    lines = [
        (model, row.figure, row.measured, row.must, verdicts[row.met])
        for model, findings in found
        for row in findings.rows
    ]
    return table(("model", "figure", "median (quartiles)", "must", ""), lines)
