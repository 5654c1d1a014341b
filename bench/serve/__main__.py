"""
How near to the machine's limit it answers, and against what: `python -m bench.serve [--peers]`.

Every figure that is compared is measured beside what it is compared with, in rounds that take
turns. The required figures are ViT-B-32's (random weights take the same time); the starter's first
ones stand beside them. Ends with one JSON line; raw figures lie in the folder of `--out`. Without
flags it ends within five minutes on two cores: where those are slow, without the starter's and
without the plain handler. OpenMP threads wait for each other as they do in the service, so that both sides meet the same machine.
"""

from __future__ import annotations

import os

from everlens.launch.environment import WAITING

os.environ.update(WAITING | dict(os.environ))  # read when torch is loaded

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.measure import DEFAULT_OUT, FAILURES, finish, table
from bench.serve import (
    alone,
    learning,
    many,
    names,
    overtaking,
    publication,
    saturation,
    stalls,
    swapping,
    tops,
)
from bench.serve.findings import HEADER, Findings
from bench.serve.stage import Options, Stage
from everlens.model.backbone import STARTER

Row = Callable[[Stage], Findings]
PEERS = "peers"

# In this order: what looks at memory while there is little of it, then what needs the service, then
# what needs gigabytes, and the others last.
ROWS: Mapping[str, Row] = {
    "stalls": stalls.measure,
    "saturation": saturation.measure,
    "tops": tops.measure,
    "alone": alone.measure,
    "swapping": swapping.measure,
    "learning": learning.measure,
    "names": names.measure,
    "many": many.measure,
    "publication": publication.measure,
    PEERS: overtaking.measure,
}
BESIDE = ("saturation", "alone")  # what the starter is measured by, when it stands beside
# Of a run without other servers: what is begun later would end behind five minutes, and is left out
# if nothing is asked of it, as of the starter and the plain handler.
BESIDE_BEFORE_S = 265.0
PROMISED = ("over_bare_model", "over_best_peer", "added_p50_ms", "swap_p99_ratio", "beside_learner")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows that were asked for; return 1 where one could not be."""
    options, only = _options(arguments)
    begun = time.monotonic()
    rows = measured(options, only, begun)
    every = dict(rows)
    figures: dict[str, float | None] = dict.fromkeys(PROMISED)
    for found in rows.values():
        figures |= found.figures
    if options.model != STARTER and (names := [name for name in only if name in BESIDE]):
        beside = replace(
            options, model=STARTER, pretrained="", rounds=2, seconds=options.seconds / 2
        )
        if _late(options, begun):
            rows = {names[0]: _left_out(STARTER, f"--model {STARTER}")}
        else:
            rows = measured(beside, names, begun)
        for name, found in rows.items():
            every[f"{STARTER} {name}"] = found
            figures |= {f"{STARTER}_{figure}": value for figure, value in found.figures.items()}
    lines = [line.cells() for found in every.values() for line in found.lines]
    print("\n" + table(HEADER, lines))
    print(f"{options.model}, {options.rounds} rounds, {time.monotonic() - begun:.0f} s")
    finish("serve", options.out, {name: found.raw for name, found in every.items()}, figures)
    return 1 if any("not measured" in found.raw for found in every.values()) else 0


def measured(options: Options, only: Sequence[str], run_begun: float) -> dict[str, Findings]:
    """Return what each row found; of one that failed, why it did."""
    rows = {}
    with Stage(options) as stage:
        for name in only:
            if name == PEERS and _late(options, run_begun):
                rows[name] = _left_out("over the plain handler", f"--only {PEERS}")
                continue
            print(f"{options.model}: {name} ...", end=" ", file=sys.stderr, flush=True)
            begun = time.monotonic()
            try:
                rows[name] = ROWS[name](stage)
            except FAILURES as error:  # the other rows can be measured all the same
                rows[name] = Findings()
                reason = " ".join(str(error).split())
                rows[name].add(name, f"not measured: {reason[-300:]}", ok=False)
                rows[name].keep(**{"not measured": reason})
            print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return rows


def _late(options: Options, run_begun: float) -> bool:
    """Whether what nothing is asked of shall not be begun any more."""
    return not options.peers and time.monotonic() - run_begun > BESIDE_BEFORE_S


def _left_out(what: str, flags: str) -> Findings:
    found = Findings()
    found.add(what, f"left out, for the time: {flags} measures it")
    return found


def _options(arguments: Sequence[str] | None) -> tuple[Options, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve", description="How near to the machine's limit it answers."
    )
    parser.add_argument("--model", default="ViT-B-32", help="`starter`, or an open_clip name")
    parser.add_argument("--pretrained", help="as EVERLENS_PRETRAINED; random by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one measurement")
    parser.add_argument("--peers", action="store_true", help="install and measure other servers")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    asked = parser.parse_args(arguments)
    pretrained = asked.pretrained or ("" if asked.model == STARTER else "random")
    options = Options(
        model=asked.model,
        pretrained=pretrained,
        device=asked.device,
        rounds=asked.rounds,
        seconds=asked.seconds,
        peers=asked.peers,
        out=asked.out,
    )
    return options, [name for name in ROWS if name in asked.only]


if __name__ == "__main__":
    sys.exit(main())
