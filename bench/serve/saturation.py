"""Images a second at saturation over the bare batched model, and what the second top costs."""

from __future__ import annotations

from functools import partial

from bench.measure import interleaved, ratio_of, spread_of
from bench.serve import bare
from bench.serve.findings import Findings
from bench.serve.stage import BATCHES, Stage
from everlens.model.snapshot import base_snapshot
from service.batch_sizes import SMALL

# One short load each cannot choose between them: neighbours move a rate by a third. So it is as many
# connections as the largest batch has pictures.
SATURATED = BATCHES[-1]
CONCURRENCIES = (SMALL, SATURATED)
OVER_BARE, SECOND_TOP = 0.95, 1.25
_THIN_TOP = 2


def measure(stage: Stage) -> Findings:
    """Measure a crowd beside the bare model's best batch; then the tops beside each other."""
    found, options = Findings(), stage.options
    service = stage.service
    curve = {c: service.under_load(c, options.seconds / 2).rate for c in CONCURRENCIES}
    by_batch = {n: _bare(stage, frozen=False, batch=n, share=0.5) for n in BATCHES}
    batch = max(by_batch, key=lambda n: by_batch[n])
    rates = interleaved(
        {
            "served": lambda: service.under_load(SATURATED, options.seconds).rate,
            "bare": partial(_bare, stage, frozen=False, batch=batch),
        },
        options.rounds,
    )
    over = ratio_of(rates["served"], rates["bare"])
    served = ", ".join(f"{c}: {rate:.3g}" for c, rate in curve.items())
    found.add("images/s served, by concurrency", served)
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
    tops = _tops(stage)
    for k in sorted({k for k, _ in tops}):
        price = ratio_of(tops[k, True], tops[k, False])
        must = k == _THIN_TOP
        found.add(
            f"second top, k = {k}: price over the frozen model ({spread_of(tops[k, True])}/s)",
            price,
            f"<= {SECOND_TOP}" if must else "",
            ok=price.median <= SECOND_TOP if must else None,
            **{f"second_top_price_k{k}": price.median},
        )
    found.keep(
        curve=curve,
        by_batch=by_batch,
        **rates,
        tops={f"k{k} {'frozen' if frozen else 'both'}": v for (k, frozen), v in tops.items()},
    )
    return found


def _tops(stage: Stage) -> dict[tuple[int, bool], list[float]]:
    """Return rates by k and whether the frozen model is alone, of shorter measurements."""
    most = len(stage.backbone.image_tower.blocks)
    for k in {min(_THIN_TOP, most), stage.backbone.top_blocks}:
        stage.snapshot(k)  # made, and on a device recorded, before anything is timed
    cases = {
        f"{k} {frozen}": (k, frozen)
        for k in {min(_THIN_TOP, most), stage.backbone.top_blocks}
        for frozen in (True, False)
    }
    rates = interleaved(
        {
            name: partial(_bare, stage, frozen=frozen, top_blocks=k, share=0.6)
            for name, (k, frozen) in cases.items()
        },
        stage.options.rounds,
    )
    return {cases[name]: values for name, values in rates.items()}


def _bare(
    stage: Stage,
    *,
    frozen: bool,
    top_blocks: int | None = None,
    batch: int = SMALL,
    share: float = 1.0,
) -> float:
    k = top_blocks or stage.backbone.top_blocks
    snapshot = base_snapshot(stage.backbone, k) if frozen else stage.snapshot(k)
    see, seconds = partial(stage.passes.see, snapshot), share * stage.options.seconds
    return bare.rate(see, stage.bodies, stage.backbone.pixels, batch, seconds)
