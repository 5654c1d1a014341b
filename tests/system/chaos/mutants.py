"""
The campaign against a broken protocol: what passes there proves nothing here.

Each mutation meets a scenario that makes its fault show. The scenario must hold with the true
system and must fail with the mutation in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from tests.system.chaos.campaign import add
from tests.system.chaos.faults_log import tail_of_the_log_cut
from tests.system.chaos.faults_worker import damaged_state, stopped_learner_is_replaced
from tests.system.chaos.ground import Broken, Ground, must, samples, until


def slow_client(ground: Ground) -> None:
    """Samples that come one by one, so that a worker sees batches half full."""
    ground.server.start()
    ground.create_log()
    ground.start_worker()
    until(ground.begun, "the worker to begin", 20)
    for sample in samples(14):
        ground.admit([sample])
        time.sleep(0.03)
    ground.verify()


def dies_at(ground: Ground, point: str, passage: int = 2) -> None:
    """A worker that is killed once."""
    ground.server.start()
    ground.create_log()
    ground.admit(samples(10))
    ground.start_worker((point, passage))
    ground.verify()
    must(ground.tally["worker_kills"] == 1, f"no worker died {point}")


def lost_exchange(ground: Ground, mode: str) -> None:
    """A client whose exchange is broken once, and who sends its sample until it is accepted."""
    proxy = ground.use_proxy()
    ground.start_all()
    ground.post("before")  # from now on the server knows the script
    proxy.arm(mode, b"the-one")
    until(lambda: ground.post("the-one").status_code < 300, "the sample to be accepted", 20)
    must(proxy.broken[mode] == 1, "nothing was broken")
    ground.post("another", 2)
    ground.verify()


SCENARIOS: dict[str, Callable[[Ground], None]] = {
    "timing-cuts-batches": slow_client,
    "cursor-before-learning": partial(dies_at, point="after:observe"),
    "trim-before-commit": partial(dies_at, point="after:observe"),
    "randomness-of-the-process": partial(dies_at, point="after:commit"),
    "no-fence": stopped_learner_is_replaced,
    "copies-are-not-kept-for": partial(damaged_state, damage="half", copies=True),
    "no-witness": tail_of_the_log_cut,
    "no-idempotency-record": partial(lost_exchange, mode="drop-reply"),
    "unknown-is-accepted": partial(lost_exchange, mode="cut-request"),
}


def is_caught(ground: Ground, mutation: str) -> None:
    """Run a scenario as it should be, and with the mutation."""
    SCENARIOS[mutation](ground)
    mutated = ground.beside("mutated")
    mutated.mutations = [mutation]
    try:
        SCENARIOS[mutation](mutated)
    except Broken as verdict:
        ground.tally.add("mutations_caught")
        ground.notes.append(str(verdict).splitlines()[0][:160])
        return
    raise Broken("the campaign does not notice it")


for _name in SCENARIOS:
    add(
        f"mutation-{_name}",
        partial(is_caught, mutation=_name),
        holds=f"The campaign fails with the mutation {_name}, and only with it.",
        needs=["mutations_caught"],
    )
