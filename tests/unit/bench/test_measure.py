"""What every bench counts with: turns, ratios of rounds, spreads, and where figures go."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bench.measure import Spread, finish, interleaved, ratio_of, spread_of, table
from bench.running import plain_environment
from everlens.launch.environment import WAITING


def test_contenders_take_turns_forwards_and_backwards() -> None:
    """A B, then B A: who is second meets what a neighbour does no more often than who is first."""
    asked: list[str] = []

    def turn(name: str) -> float:
        asked.append(name)
        return float(len(asked))

    found = interleaved({"a": lambda: turn("a"), "b": lambda: turn("b")}, 3)
    assert asked == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_a_ratio_is_taken_within_each_round() -> None:
    """The median of ratios, not a ratio of medians: here the machine had a third of its pace once."""
    assert ratio_of([10.0, 3.0, 12.0], [10.0, 2.0, 8.0]) == Spread(1.5, 1.0, 1.5)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_a_spread_has_quartiles_or_the_ends(count: int) -> None:
    """As numpy has them; of fewer than four values the least and the greatest."""
    values = np.random.default_rng(count).normal(size=count)
    ends = [25, 75] if count >= 4 else [0, 100]
    median, low, high = np.percentile(values, [50, *ends])
    found = spread_of(values.tolist())
    assert (found.median, found.low, found.high) == pytest.approx((median, low, high))


def test_a_table_is_markdown() -> None:
    """Its columns are as wide as their longest cell."""
    assert (
        table(["a", "long"], [["cell", 1]]) == "| a    | long |\n|------|------|\n| cell | 1    |"
    )


def test_figures_are_written_and_printed_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line is JSON; the file has the raw figures beside them."""
    finish("serve", tmp_path / "new", {"rates": [1.0, 2.0]}, {"over_bare_model": 0.97})
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"over_bare_model": 0.97}
    written = json.loads((tmp_path / "new" / "serve.json").read_text())
    assert written == {"over_bare_model": 0.97, "raw": {"rates": [1.0, 2.0]}}


def test_what_we_set_for_ourselves_no_peer_inherits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither how threads wait nor what somebody set for everlens."""
    for name in (*WAITING, "EVERLENS_MODEL", "MALLOC_ARENA_MAX", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    assert plain_environment() == {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EVERLENS_", "MALLOC_", "MKL_")) and name not in WAITING
    }
    assert "PATH" in plain_environment()
