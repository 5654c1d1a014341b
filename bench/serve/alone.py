"""What a single query waits for beyond the bare pass: the latency that the server adds."""

from __future__ import annotations

import statistics
from functools import partial

from bench.measure import interleaved, spread_of
from bench.serve import bare
from bench.serve.findings import Findings
from bench.serve.stage import Stage, milliseconds

ADDED_S, ADDED_SHARE = 0.003, 0.10


def measure(stage: Stage) -> Findings:
    """Measure p50 at concurrency 1 beside one picture at a time in one process."""
    found, snapshot, service = Findings(), stage.snapshot(), stage.service
    model_only: list[float] = []

    def passed() -> float:
        passes = bare.passes_s(
            partial(stage.passes.see, snapshot),
            stage.bodies,
            stage.backbone.pixels,
            stage.options.seconds,
        )
        whole, model = zip(*passes, strict=True)
        model_only.append(statistics.median(model))
        return float(statistics.median(whole))

    p50_s = interleaved(
        {"served": lambda: service.under_load(1, stage.options.seconds).p50_s, "bare": passed},
        stage.options.rounds,
    )
    added = spread_of([s - b for s, b in zip(p50_s["served"], p50_s["bare"], strict=True)])
    most_s = max(ADDED_S, ADDED_SHARE * spread_of(p50_s["bare"]).median)
    found.add("p50 at concurrency 1, served", milliseconds(spread_of(p50_s["served"])))
    found.add(
        "bare pass of one picture, decoding included (the model alone)",
        f"{milliseconds(spread_of(p50_s['bare']))} ({milliseconds(spread_of(model_only))})",
    )
    found.add(
        "added latency",
        milliseconds(added),
        f"<= {1e3 * most_s:.3g} ms (3 ms or 10 %)",
        ok=added.median <= most_s,
        added_p50_ms=1e3 * added.median,
        added_p50_must_ms=1e3 * most_s,
    )
    found.keep(p50_s=p50_s, model_only_s=model_only)
    return found
