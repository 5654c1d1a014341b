"""Images a second at saturation over the bare batched model."""

from __future__ import annotations

from functools import partial

from bench.measure import interleaved, ratio_of, spread_of
from bench.serve import bare
from bench.serve.findings import Findings
from bench.serve.stage import BATCHES, Stage
from service.batch_sizes import SMALL, doubling

# One short load each could not choose between numbers of connections: neighbours move a rate by a
# third. So it is as many as the largest batch has pictures: while some pass the others are too few for
# another one, and the service takes them by sixteen.
SATURATED = BATCHES[-1]
OVER_BARE = 0.95
# Pictures before anything counts: the service tries each size of a batch four times, and of those
# that get filled here, 8 and 16, these are 96 (`service.batch_sizes`).
_WARM = 100
_FILLS_A_DEVICE = 256  # pictures: there 32 leave the bare model far from its limit
_SERVED = "served"


def measure(stage: Stage) -> Findings:
    """Measure a crowd beside the bare model, and compare it with the batch that is best for that."""
    found, options, service = Findings(), stage.options, stage.service
    seen = 0
    while seen < _WARM:
        seen += len(service.under_load(SATURATED, options.seconds).latencies_s)
    see = partial(stage.passes.see, stage.snapshot())
    bare_rate = partial(bare.rate, see, stage.bodies, stage.backbone.pixels)
    sizes = BATCHES if stage.backbone.device.type == "cpu" else doubling(SMALL, _FILLS_A_DEVICE)
    contenders = {_SERVED: lambda: service.under_load(SATURATED, options.seconds).rate}
    contenders |= {f"batches of {n}": partial(bare_rate, n, options.seconds) for n in sizes}
    rates = interleaved(contenders, options.rounds)
    medians = {name: spread_of(those).median for name, those in rates.items() if name != _SERVED}
    best = max(medians, key=lambda name: medians[name])
    over = ratio_of(rates[_SERVED], rates[best])
    found.add(f"images/s served, concurrency {SATURATED}", spread_of(rates[_SERVED]))
    for name in medians:
        found.add(f"images/s bare, {name}, both tops", spread_of(rates[name]))
    found.add(
        f"served over the best of them, {best}",
        over,
        f">= {OVER_BARE}",
        ok=over.median >= OVER_BARE,
        over_bare_model=over.median,
        served_images_per_s=spread_of(rates[_SERVED]).median,
        bare_images_per_s=medians[best],
    )
    found.keep(**rates)
    return found
