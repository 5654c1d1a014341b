"""
Things measured side by side: A B A B, medians, and ratios taken round by round.

A machine is never quiet: neighbours come and go within seconds. What was measured in the same
round met the same neighbours, so a ratio is taken within each round, and the median of those told.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everlens.errors import EverlensError

DEFAULT_OUT = Path("build/bench")
# With which a row cannot be measured, and the others can: errors of ours; of a process that does not
# answer; of torch, where memory is short.
FAILURES = (EverlensError, OSError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the quartiles around it; of fewer than four values, the least and the greatest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} - {self.high:.3g})"


def spread_of(values: Sequence[float]) -> Spread:
    """Return median and quartiles of at least one value."""
    if len(values) < 4:
        return Spread(statistics.median(values), min(values), max(values))
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def interleaved(
    contenders: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Return what each contender gave in each round; every second round runs them backwards."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        order = list(contenders.items())
        for name, measure in order if turn % 2 == 0 else reversed(order):
            figures[name].append(measure())
    return figures


def ratio_of(upper: Sequence[float], lower: Sequence[float]) -> Spread:
    """Return upper / lower, taken round by round."""
    return spread_of([a / b for a, b in zip(upper, lower, strict=True)])


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, its columns as wide as their longest cell."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def finish(name: str, out: Path, raw: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Write the raw figures of a bench to `<out>/<name>.json` and print its one JSON line."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps({**figures, "raw": raw}, indent=1) + "\n")
    print(f"raw figures: {path}")
    print(json.dumps(figures), flush=True)
