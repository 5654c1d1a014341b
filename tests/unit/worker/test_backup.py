"""A backup is refused where a learner would not go on from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from everlens.bus.stream import LogState
from everlens.errors import StateError
from worker.backup import Places, _check_fit, back_up

LOG = LogState(epoch="e", seq=12, done=9, kept=4, paused="")


@pytest.mark.parametrize("cursor", [4, 9, 12])
def test_state_and_log_that_fit(cursor: int) -> None:
    """The state lies anywhere between what the log has freed and where it ends."""
    _check_fit({"epoch": "e", "cursor": cursor}, LOG)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (replace(LOG, epoch="other"), "another one"),
        (replace(LOG, seq=8), "ends at entry 8, behind"),
        (replace(LOG, kept=10), "freed up to entry 10.*back up again"),
    ],
)
def test_state_and_log_that_do_not_fit(log: LogState, said: str) -> None:
    """Another log, an older one, or one that freed what the state still lacks."""
    with pytest.raises(StateError, match=said):
        _check_fit({"epoch": "e", "cursor": 9}, log)


def test_nothing_is_left_where_nothing_can_be_copied(tmp_path: Path) -> None:
    """Without a state there is a sentence and no directory; one that is there is left alone."""
    places = Places(tmp_path / "data", tmp_path / "data", tmp_path / "log", "everlens")
    with pytest.raises(StateError, match="EVERLENS_DATA_DIR"):
        back_up(places, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StateError, match="is there already"):
        back_up(places, tmp_path)
