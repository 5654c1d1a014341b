"""Latency while a new version is published every second, over latency without."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.load import Load, Outcome, percentile
from bench.measure import interleaved
from bench.serve.findings import Findings
from bench.serve.stage import Service, Stage
from bench.versions import Version

RATIO = 1.1
EVERY_S = 1.0
CONCURRENCY = 8  # a full batch, so that neither the queue nor an idle machine hides a stall
_WARM_UP_S = 0.5
_MORE = 4  # versions: a load takes longer than it measures
_ANSWERS = 300  # below them p99 is one answer or two, which say nothing


def measure(stage: Stage) -> Findings:
    """
    Compare p99 without publications, with another adapter each second, and with one more label.

    A round has too few answers for a p99, so the answers of all rounds are taken together; the
    rounds take turns, and their own p50s stand beside it.
    """
    found, service = Findings(), stage.service
    kinds: dict[str, Callable[[], Version] | None] = {
        "none": None,
        "adapter": service.versions.tuned,
        "evidence": lambda: service.versions.learnt(0),
    }
    answers: dict[str, list[float]] = {kind: [] for kind in kinds}
    published = dict.fromkeys(kinds, 0)

    def turn(kind: str) -> Callable[[], float]:
        def one() -> float:
            outcome, count = _loaded(service, kinds[kind], 2 * stage.options.seconds)
            answers[kind] += outcome.latencies_s
            published[kind] += count
            return outcome.p50_s

        return one

    p50_s = interleaved({kind: turn(kind) for kind in kinds}, stage.options.rounds)
    p99_s = {kind: percentile(sorted(values), 0.99) for kind, values in answers.items()}
    found.add(
        f"p99 at concurrency {CONCURRENCY} without swaps, of {len(answers['none'])} answers",
        f"{1e3 * p99_s['none']:.3g} ms",
        swap_answers=len(answers["none"]),
    )
    enough = min(map(len, answers.values())) >= _ANSWERS
    for kind in ("adapter", "evidence"):
        ratio = p99_s[kind] / p99_s["none"]
        # None published in a short run disturbs nobody.
        ok = (ratio <= RATIO and published[kind] > 0) if enough else None
        found.add(
            f"p99 with a new {kind} every second ({published[kind]} swaps) over without",
            f"{ratio:.3g}" if enough else f"{ratio:.3g}, of too few answers for a verdict",
            f"<= {RATIO}",
            ok=ok,
            **{"swap_p99_ratio" if kind == "adapter" else "evidence_swap_p99_ratio": ratio},
        )
    found.keep(latencies_s=answers, p50_s=p50_s, published=published)
    return found


def _loaded(
    service: Service, make: Callable[[], Version] | None, seconds: float
) -> tuple[Outcome, int]:
    """Return what became of the load, and how many versions were published meanwhile."""
    # Made before: what a learner computes has a row of its own.
    versions = [] if make is None else [make() for _ in range(int(seconds / EVERY_S) + _MORE)]
    published = 0
    load = Load(service.process.port, [service.stream(CONCURRENCY)], seconds, _WARM_UP_S)
    try:
        for version in versions:
            if load.running:
                time.sleep(EVERY_S)
            published += load.running
            service.head.publish(version)  # also behind the load: the next one continues it
    finally:
        outcome = load.outcomes()[0]
    if versions:
        service.until_answering(versions[-1])
    return outcome.succeeded(), published
