"""Images a second while the worker learns on the same cores, over images a second without."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from typing import Any

from bench.load import Load, Stream, http_request, run_load
from bench.measure import interleaved, ratio_of, spread_of
from bench.running import Process, service, until, worker
from bench.serve.findings import Findings
from bench.serve.stage import JPEG, LABELS, Stage
from service.batch_sizes import SMALL

MUST = 0.85
CONCURRENCY = 2 * SMALL
_NAMESPACE = "learning"
_FIRST = 8  # samples a class that the worker has in hand before it is measured
_OFFERED = 8
_OFFER_EVERY_S = 0.5
_WARM_UP_S = 1.0
_SECONDS_MIN = 4.5  # beside answers a batch takes seconds: else none is seen to end
NDJSON = {"Content-Type": "application/x-ndjson"}


def measure(stage: Stage) -> Findings:
    """
    Stop and continue the worker in turn; while it goes on, labelled pictures keep coming.

    A stopped process uses nothing, and goes on where it was: its rate is what it learnt in all over
    the time that it was let.
    """
    found, folder = Findings(), stage.folder / _NAMESPACE
    settings: dict[str, Any] = {
        **stage.options.settings,
        "namespace": _NAMESPACE,
        "device": stage.options.device,
    }
    learnt: list[tuple[int, float]] = []
    with (
        worker(stage.url, folder, wait=False, **settings) as learner,
        service(stage.url, folder, **settings) as process,
    ):
        learner.until_ready()
        first = Stream([http_request("POST", "/samples", _samples(stage.bodies, _FIRST), NDJSON)])
        run_load(process.port, first, 0.0, 0.0)
        until(process, lambda: process.get("/readyz")["version"] > 0)
        learner.pause()

        def without() -> float:
            return _rate(process, stage, learning=False)

        def beside() -> float:
            before, begun = _samples_learnt(process), time.monotonic()
            learner.resume()
            try:
                rate = _rate(process, stage, learning=True)
            finally:
                learner.pause()
            learnt.append((_samples_learnt(process) - before, time.monotonic() - begun))
            return rate

        rates = interleaved({"without": without, "beside": beside}, stage.options.rounds)
    ratio = ratio_of(rates["beside"], rates["without"])
    samples_per_s = sum(n for n, _ in learnt) / sum(s for _, s in learnt)
    found.add(
        f"images/s at concurrency {CONCURRENCY}, the worker stopped", spread_of(rates["without"])
    )
    found.add(
        f"the same while it learns ({samples_per_s:.3g} samples/s), over without",
        ratio,
        f">= {MUST}",
        ok=ratio.median >= MUST and samples_per_s > 0,  # one that starves holds nobody up
        beside_learner=ratio.median,
        learner_samples_per_s=samples_per_s,
    )
    found.keep(rates=rates, learnt=learnt)
    return found


def _rate(process: Process, stage: Stage, *, learning: bool) -> float:
    """Return images a second; while learning, samples come faster than they are learnt."""
    requests = [http_request("POST", "/classify", body, JPEG) for body in stage.bodies]
    streams = [Stream(requests, CONCURRENCY)]
    if learning:
        offers = http_request("POST", "/samples", _samples(stage.bodies, 1), NDJSON)
        streams.append(Stream([offers], pause_s=_OFFER_EVERY_S))
    load = Load(process.port, streams, max(_SECONDS_MIN, 2 * stage.options.seconds), _WARM_UP_S)
    outcomes = [outcome.succeeded() for outcome in load.outcomes()]
    return outcomes[0].rate


def _samples(bodies: Sequence[bytes], each: int) -> bytes:
    """Return so many labelled pictures of each of a few classes, a line each."""
    lines = [
        {"label": LABELS[k % _OFFERED], "image": base64.b64encode(bodies[k % len(bodies)]).decode()}
        for k in range(each * _OFFERED)
    ]
    return b"\n".join(json.dumps(line).encode() for line in lines)


def _samples_learnt(process: Process) -> int:
    learner = process.get("/learning")["learner"]
    return int(learner["samples"]) if learner else 0
