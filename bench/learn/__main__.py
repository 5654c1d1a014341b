"""
How fast it learns: `python -m bench.learn`.

The worker's own learner beside the limit and beside the loops that a user would write instead,
interleaved in one run; whether a step knows how many classes there are; what commits cost; and how
long a label takes until it is answered with. Raw figures go to a file; the last line printed is one
JSON object. Ends within five minutes without flags on two cores: where those are slow, without the
starter's rows.
"""

from __future__ import annotations

import os
import sys

from everlens.launch.environment import WAITING, learner_environment

# As the worker is started: OpenMP reads its part when torch is imported, the allocator its own
# when the process begins.
_WORKERS = learner_environment(1) | WAITING
if __name__ == "__main__" and not _WORKERS.items() <= os.environ.items():
    os.execve(sys.executable, [*sys.orig_argv], os.environ | _WORKERS)  # noqa: S606 - ourselves

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.learn import commits, effect, growth, speed
from bench.learn.rows import Findings, show
from bench.measure import DEFAULT_OUT, FAILURES, finish
from everlens.errors import EverlensError
from everlens.model.backbone import STARTER, Backbone, load_backbone
from everlens.model.runtime import choose_device, make_deterministic, set_threads
from everlens.settings import PREFIX, Settings

MODELS = ("ViT-B-32", STARTER)  # the first one's figures are the required ones
ROWS = ("speed", "growth", "commits", "effect")
ON_DEMAND = ("beside",)
# Of the starter, where it was not asked for by name: what is begun later than so many seconds would
# end behind five minutes, and is left out.
BESIDE_BEFORE_S = {"speed": 270.0, "effect": 235.0}


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the raw figures, print one JSON line; 1 where a kind is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.learn")
    parser.add_argument("--model", action="append", help=f"repeatable; default {MODELS}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=2, help="of whatever is compared")
    parser.add_argument("--labels", type=int, help="taught each way; 4, of the starter 3")
    parser.add_argument("--effect-s", type=float, help="what a label's effect may take")
    parser.add_argument("--no-peers", action="store_true", help="install and run none")
    parser.add_argument("--only", nargs="+", choices=ROWS + ON_DEMAND, default=ROWS)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args(words)
    if ours := sorted(name for name in os.environ if name.startswith(PREFIX)):
        print(f"unset {', '.join(ours)}: the shipped defaults are measured", file=sys.stderr)
        return 2
    begun = time.monotonic()
    try:
        device = choose_device(options.device)
        set_threads(Settings().worker_threads)
        make_deterministic()
        found = [
            (name, _measure(name, _load(name, device), options, begun))
            for name in options.model or MODELS
        ]
    except EverlensError as error:
        print(f"bench.learn: {error}", file=sys.stderr)
        return 2
    print(show(found))
    figures: dict[str, object] = {**found[0][1].figures}
    figures |= {f"{name}_{k}": v for name, f in found[1:] for k, v in f.figures.items()}
    figures |= {"model": found[0][0], "device": str(device)}
    figures["seconds"] = round(time.monotonic() - begun)
    raw = {name: findings.raw for name, findings in found}
    finish("learn", options.out, raw, figures)
    missing = any("not measured" in kind for kinds in raw.values() for kind in kinds.values())
    return 1 if missing else 0


def _load(name: str, device: torch.device) -> Backbone:
    return load_backbone(name, "" if name == STARTER else "random", device=device)


def _measure(
    name: str, backbone: Backbone, options: argparse.Namespace, run_begun: float
) -> Findings:
    required = name != STARTER  # the starter's figures stand beside these, and are read less
    rounds = options.rounds
    labels = options.labels or (4 if required else 3)
    kinds: dict[str, Callable[[], Findings]] = {
        "speed": lambda: speed.measure(name, backbone, rounds, peers=not options.no_peers),
        "growth": lambda: growth.measure(backbone, rounds),
        "commits": lambda: commits.measure(backbone, 2),
        "effect": lambda: effect.measure(name, backbone, labels, options.effect_s),
        "beside": lambda: effect.beside(name, backbone, seconds=6.0),
    }
    whole, beside = Findings(), not (options.model or required)
    for kind, measure in kinds.items():
        if kind not in options.only or (beside and kind not in BESIDE_BEFORE_S):
            continue
        if beside and time.monotonic() - run_begun > BESIDE_BEFORE_S[kind]:
            whole.add(kind, f"left out, for the time: --model {name} measures it")
            continue
        begun = time.monotonic()
        found = _found(kind, measure)
        print(f"{name}: {kind} in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        whole.lines += found.lines
        whole.figures |= found.figures
        whole.raw[kind] = found.raw
    return whole


def _found(kind: str, measure: Callable[[], Findings]) -> Findings:
    """Return what a kind of measurement found, or why it did not: the others can all the same."""
    try:
        return measure()
    except FAILURES as error:
        found = Findings()
        reason = " ".join(str(error).split())
        found.missing(kind, kind, reason[-300:])
        found.keep(**{"not measured": reason})
        return found


if __name__ == "__main__":
    sys.exit(main())
