"""Findings of which one thing is asked: not to be below a bound, or not above it."""

from __future__ import annotations

from collections.abc import Iterable

from bench.measure import Spread, table
from bench.serve import findings

HEADER = ("model", "figure", "median (quartiles or range)", "must", "")


class Findings(findings.Findings):
    """What one kind of measurement found."""

    def at_least(self, key: str, figure: str, spread: Spread, bound: float) -> None:
        """Take down a figure that must not be below a bound."""
        met = spread.median >= bound
        self.add(figure, spread, f">= {bound:g}", ok=met, **{key: spread.median})

    def at_most(self, key: str, figure: str, spread: Spread, bound: float) -> None:
        """Take down a figure that must not be above a bound."""
        met = spread.median <= bound
        self.add(figure, spread, f"<= {bound:.3g}", ok=met, **{key: spread.median})

    def note(self, key: str, figure: str, spread: Spread) -> None:
        """Take down a figure of which nothing is asked."""
        self.add(figure, spread, "", ok=None, **{key: spread.median})

    def missing(self, key: str, figure: str, reason: str, must: str = "") -> None:
        """Take down why there is no figure."""
        self.add(figure, f"not measured: {reason}", must, **{key: None})


def show(found: Iterable[tuple[str, Findings]]) -> str:
    """Return one table over the findings of several models."""
    return table(HEADER, [(model, *line.cells()) for model, f in found for line in f.lines])
