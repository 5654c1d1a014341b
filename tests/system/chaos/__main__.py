"""
`python -m tests.system.chaos`: run the campaign; one line a case, one JSON line last.

Exits 1 when a case failed, or when a condition that the campaign is about never occurred.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from pathlib import Path

from tests.system.chaos.campaign import Campaign, Case
from tests.system.chaos.cases import CASES
from tests.system.chaos.page import page

RANDOM = "random"

# What must have happened in a whole campaign, or it proved nothing about it.
CONDITIONS = (
    "adapter_entries",
    "cut_entries",
    "dead_letters",
    "failpoints",
    "fences_seen",
    "memory_refusals",
    "mutations_caught",
    "posts_settled",
    "posts_unknown",
    "proxy_cut-request",
    "proxy_drop-reply",
    "proxy_half-reply",
    "proxy_stall",
    "pins",
    "queue_refusals",
    "repeats_after_execution",
    "rewrites",
    "server_exits",
    "server_kills",
    "server_stops",
    "slow_syncs",
    "swaps",
    "worker_kills",
    "wrong_logs_noticed",
)
CONDITIONS_OF_ALL = (
    "shares_refused",
    "activations",
    "service_kills",
    "service_stops",
    "set_aside",
    "states_damaged",
    "worker_stops",
)


def main() -> int:
    """Run what the command line selects; return the exit code."""
    options = _parser().parse_args()
    jobs = selected(options.only, fast=options.fast, seeds=options.seeds, seed=options.seed)
    if options.list:
        for case in CASES.values():
            print(f"{case.fault or '-':4} {case.name}: {case.holds}")
        return 0
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Campaign(options.jobs) as campaign:
        campaign.run(jobs, options.minutes)
    needs = () if options.only else CONDITIONS + (() if options.fast else CONDITIONS_OF_ALL)
    failures = campaign.failures(needs)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.report:
        campaign.report(options.report)
    if options.page:
        made = page(campaign.verdicts, campaign.summary(), campaign.tally.all())
        options.page.write_text(made, encoding="utf-8")
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps(campaign.summary() | {"seconds": seconds}), flush=True)
    return 1 if failures or not campaign.verdicts else 0


def selected(only: str, *, fast: bool, seeds: int, seed: int) -> list[tuple[Case, int]]:
    """Return the cases to run with their seeds; the random ones once for each seed."""
    jobs = []
    for case in CASES.values():
        named = not only or re.search(only, case.name) or re.fullmatch(only, case.fault)
        if not named or case.when == ("full" if fast else "fast"):
            continue
        times = seeds if case.name.startswith(RANDOM) else 1
        jobs += [(case, seed + k) for k in range(times)]
    return jobs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.system.chaos", description=__doc__)
    parser.add_argument("--fast", action="store_true", help="the subset that `make test` runs")
    parser.add_argument(
        "--only", default="", help="cases with such a name or fault (a regular expression)"
    )
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=24, help="runs of each random case")
    parser.add_argument("--minutes", type=float, default=60, help="begin no case after so many")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--report", type=Path, help="write all verdicts to this file, as JSON")
    parser.add_argument("--page", type=Path, help="write the verdicts as a page of the docs")
    parser.add_argument("--list", action="store_true", help="only name the cases")
    return parser


if __name__ == "__main__":
    sys.exit(main())
