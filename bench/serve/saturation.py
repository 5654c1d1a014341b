"""Images a second at saturation over the bare batched model."""

from __future__ import annotations

from functools import partial

from bench.measure import interleaved, ratio_of, spread_of
from bench.serve import bare
from bench.serve.findings import Findings
from bench.serve.stage import BATCHES, Stage

# One short load each cannot choose between them: neighbours move a rate by a third. So it is as many
# connections as the largest batch has pictures.
SATURATED = BATCHES[-1]
OVER_BARE = 0.95


def measure(stage: Stage) -> Findings:
    """Measure a crowd beside the bare model's best batch."""
    found, options, service = Findings(), stage.options, stage.service
    see = partial(stage.passes.see, stage.snapshot())
    bare_rate = partial(bare.rate, see, stage.bodies, stage.backbone.pixels)
    by_batch = {n: bare_rate(n, options.seconds / 2) for n in BATCHES}
    batch = max(by_batch, key=lambda n: by_batch[n])
    rates = interleaved(
        {
            "served": lambda: service.under_load(SATURATED, options.seconds).rate,
            "bare": lambda: bare_rate(batch, options.seconds),
        },
        options.rounds,
    )
    over = ratio_of(rates["served"], rates["bare"])
    found.add(f"images/s served, concurrency {SATURATED}", spread_of(rates["served"]))
    limits = ", ".join(f"{n}: {rate:.3g}" for n, rate in by_batch.items())
    found.add("images/s bare, by batch", limits)
    found.add(f"images/s bare, batches of {batch}, both tops", spread_of(rates["bare"]))
    found.add(
        "served over bare",
        over,
        f">= {OVER_BARE}",
        ok=over.median >= OVER_BARE,
        over_bare_model=over.median,
        served_images_per_s=spread_of(rates["served"]).median,
        bare_images_per_s=spread_of(rates["bare"]).median,
    )
    found.keep(by_batch=by_batch, **rates)
    return found
