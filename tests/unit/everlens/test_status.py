"""What `everlens status` says of a service, and that nobody has to read a dictionary."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from everlens.cli import main
from everlens.client import Backlog, Client, Learning, RefusedVersion
from everlens.commands.standing import of_learner
from everlens.commands.status import table_of

REPORT: dict[str, Any] = {
    "reported_at": 1750000000.0,
    "version": 12,
    "batch": 11,
    "samples": 96,
    "classes": 10,
    "exemplars": 90,
    "exemplar_bytes": 3 << 20,
    "prequential_accuracy": 0.8,
    "prequential_accuracy_recent": 0.912,
    "prequential_samples": 86,
    "forgetting": 0.0123,
    "fusion": {"kappa": 1.0, "text_power": 0.123456},
    "expert_recall": {"zero_shot": 0.45, "evidence": 0.9, "adapter": None},
    "class_weight_max": 1.0,
    "samples_per_s": 38.21,
    "adapter_batch": 8,
    "rounds_owed": 2,
    "counts": {"samples": 96, "dead": 0},
    "disk_free_bytes": 1 << 40,
    "numerics": "torch 2.13, 1 thread",
}
LEARNING = Learning(
    version=12,
    learned_through=103,
    accepted_through=104,
    backlog=Backlog(1, 1 << 20),
    paused=None,
    pinned=3,
    learner=REPORT,
    refused_versions=(RefusedVersion(13, "a part is damaged"), RefusedVersion(None, "torn")),
)


def printed(learning: Learning, *, ready: bool) -> list[str]:
    """Return the lines that a narrow terminal shows."""
    console = Console(file=io.StringIO(), width=80)
    console.print(table_of(Client("http://h"), learning, ready=ready))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_every_figure_is_said_in_words() -> None:
    """A line each, aligned; no braces, and shares are per cent."""
    lines = printed(LEARNING, ready=True)

    assert not any(mark in line for line in lines for mark in "{}[]")
    width = lines[0].index("http://h, ready")
    assert all(line[width - 1] == " " and line[width] != " " for line in lines if line.strip())
    said = {line[:width].strip(): line[width:] for line in lines}
    assert said["version"] == "12"
    assert said["learnt"] == "103 of 104"
    assert said["accuracy"] == "91.2 %"
    assert said["pinned"] == "3"
    assert said["refused version 13"] == "a part is damaged"
    assert said["refused the head"] == "torn"
    assert said["classes"] == "10, of 96 labels"
    assert said["accuracy in all"] == "80.0 % of 86 answers"
    assert said["recall of each expert"].startswith("zero-shot 45.0 %, evidence 90.0 %")
    assert said["fusion"] == "kappa 1, text power 0.123"
    assert said["adapter"] == "published after batch 8 of 11"
    assert said["replay buffer"] == "90 pictures (3.0 MB)"


def test_what_is_not_known_yet_is_not_said() -> None:
    """Of a learner that has just begun, and of one that never reported."""
    assert of_learner({}) == {}
    fresh = REPORT | {
        "prequential_accuracy": None,
        "forgetting": None,
        "class_weight_max": None,
        "expert_recall": {"zero_shot": None, "evidence": None, "adapter": None},
        "adapter_batch": 0,
        "samples_per_s": 0.0,
    }
    said = of_learner(fresh)
    assert said.keys().isdisjoint({"adapter", "recall of each expert"})
    assert not any("None" in words for words in said.values())
    assert said.keys() >= {"classes", "replay buffer", "numerics"}


def test_it_is_said_once_or_as_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    """--watch and --json exclude each other."""
    with pytest.raises(SystemExit):
        main(["status", "--json", "--watch"])
    assert "not allowed with" in capsys.readouterr().err
