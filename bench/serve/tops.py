"""What the second top costs: images a second of both tops over those of the frozen model alone."""

from __future__ import annotations

from functools import partial

from bench.measure import interleaved, ratio_of, spread_of
from bench.serve import bare
from bench.serve.findings import Findings
from bench.serve.stage import Stage
from everlens.model.snapshot import Snapshot, base_snapshot
from service.batch_sizes import SMALL

SECOND_TOP = 1.25
_THIN = 2  # blocks
_SHARE = 0.6  # of a measurement's time
_FROZEN = "frozen"


def measure(stage: Stage) -> Findings:
    """Measure the frozen model, and with it a tuned top of two blocks and one as it is shipped."""
    found = Findings()
    backbone, seconds = stage.backbone, _SHARE * stage.options.seconds
    cuts = sorted({min(_THIN, len(backbone.image_tower.blocks)), backbone.top_blocks})
    snapshots = {_FROZEN: base_snapshot(backbone, backbone.top_blocks)}
    # Made, and on a device recorded, before anything is timed.
    snapshots |= {f"k = {k}": stage.snapshot(k) for k in cuts}

    def rate(snapshot: Snapshot) -> float:
        see = partial(stage.passes.see, snapshot)
        return bare.rate(see, stage.bodies, backbone.pixels, SMALL, seconds)

    rates = interleaved(
        {name: partial(rate, snapshot) for name, snapshot in snapshots.items()},
        stage.options.rounds,
    )
    found.add("images/s of the frozen model alone, in process", spread_of(rates[_FROZEN]))
    for k in cuts:
        price = ratio_of(rates[_FROZEN], rates[f"k = {k}"])
        must = k == _THIN
        found.add(
            f"second top, k = {k}: price over the frozen model",
            price,
            f"<= {SECOND_TOP}" if must else "",
            ok=price.median <= SECOND_TOP if must else None,
            **{f"second_top_price_k{k}": price.median},
        )
    found.keep(**rates)
    return found
