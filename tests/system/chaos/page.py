"""The campaign's verdicts as a page of the docs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tests.system.chaos.campaign import HELD, Verdict

FAULTS = {
    "F1": "server killed before it executes",
    "F2": "server killed between disk and reply",
    "F3": "half a reply",
    "F4": "a reply never comes",
    "F5": "server killed under load",
    "F6": "the same with a slow disk",
    "F7": "server stopped",
    "F8": "server restarted in order",
    "F9": "the log's disk is full",
    "F10": "the log's disk fails",
    "F11": "memory limit of the server",
    "F12": "backlog at its limit",
    "F13": "log wiped",
    "F14": "manifest of the log missing",
    "F15": "tail of the log cut",
    "F16": "middle of the log damaged",
    "F17": "older copy of the log",
    "F18": "another learner's log",
    "F19": "worker killed before its commit",
    "F20": "worker killed after its commit",
    "F21": "worker killed after it published",
    "F22": "worker stopped for longer than its lease",
    "F23": "two workers over one state",
    "F24": "the state's disk is full",
    "F25": "state damaged",
    "F26": "poison among the samples",
    "F27": "one batch killed five times",
    "F28": "published part damaged",
    "F29": "clocks that jump",
    "F30": "replica started without the log",
    "F31": "one id from two replicas at once",
}

_HEAD = """# Faults, and what held

Written by `make chaos CHAOS_ARGS="--page docs/faults.md"`; a test holds that it names every case. The
campaign kills, stops, cuts and damages real processes and files over real HTTP, and judges by a
ledger of the clients and a checker that shares no code with the system (`tests/system/chaos`).

- *Nothing lost*: every acknowledged sample is learnt, dead with a reason, or set aside by an
  activation.
- *Nothing double*: one of these, once.
- *Identical*: state and published bytes are those of an undisturbed run over the same log.

A condition that never occurred was not tested: the campaign counts each, and fails where one is
missing. Power loss is not played: that is as good as the disk's own flush.
"""


def page(
    verdicts: Sequence[Verdict], summary: Mapping[str, object], counts: Mapping[str, int]
) -> str:
    """Return the page of one campaign."""
    kills = ", ".join(
        f"{counts.get(f'{who}_kills', 0)} of the {who}" for who in ("worker", "server", "service")
    )
    result = (
        f"{summary['cases']} cases; kills: {kills}. Of {summary['acked']} acknowledged samples "
        f"{summary['lost']} were lost and {summary['double']} double; identical: "
        f"{'yes' if summary['identical'] else 'no'}. Questions answered: "
        f"{_share(summary['classify_success'])}. Mutations of the protocol caught: "
        f"{summary['mutations_caught']} of {summary['mutations']}."
    )
    lines = [
        _HEAD,
        "## The last whole campaign",
        "",
        result,
        "",
        "## Faults",
        "",
        *_table([v for v in verdicts if v.fault]),
        "",
        "## Everything else",
        "",
        *_table([v for v in verdicts if not v.fault]),
        "",
        "## What occurred",
        "",
        "| condition | times |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {count} |" for name, count in sorted(counts.items())),
        "",
    ]
    return "\n".join(lines)


def _share(value: object) -> str:
    return f"{100 * value:.3f} %" if isinstance(value, float) else "none asked"


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    found: dict[str, list[Verdict]] = {}
    for verdict in sorted(verdicts, key=lambda v: (int(v.fault[1:] or 0), v.name)):
        found.setdefault(verdict.name, []).append(verdict)
    rows = [
        f"| {_fault(of_one[0])} | `{name}` | {of_one[0].holds} | {_together(of_one)} |"
        for name, of_one in found.items()
    ]
    return ["| fault | case | what holds | verdict |", "|---|---|---|---|", *rows]


def _fault(verdict: Verdict) -> str:
    return f"{verdict.fault} {FAULTS[verdict.fault]}" if verdict.fault else ""


def _together(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(verdict.verdict for verdict in verdicts)
    if counts == {HELD: len(verdicts)}:
        return HELD if len(verdicts) == 1 else f"{HELD}, {len(verdicts)} seeds"
    return ", ".join(f"{verdict} {times}" for verdict, times in counts.items())
