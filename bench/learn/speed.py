"""
Samples a second of the learner, over the limit and over what a user would run instead.

A batch of the peers is as many equal optimisation steps as the learner takes, each over as many
pictures, all of them through the whole model; one such step is timed and counted for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from bench.learn.clock import Contender, Timing, timed
from bench.learn.feed import CLASSES, Feed, Turn
from bench.learn.limit import Limit
from bench.learn.parametrized import ParametrizedLoop
from bench.learn.peers import PATCH_SIZES, peft_loop
from bench.learn.rows import Findings
from bench.measure import Spread, interleaved, ratio_of, spread_of
from bench.serve.peers.environments import PeerError
from everlens.model.backbone import Backbone
from everlens.settings import Settings
from worker.adapter_clock import EXEMPLARS_A_ROUND
from worker.learn.adapter_head import exemplars_seen
from worker.learn.learner import Learner
from worker.publication import adapter_parts

OVER_PEFT, OVER_PEFT_SAME_K, OF_LIMIT = 8.0, 2.2, 0.8

Step = Callable[[int], Timing]  # pictures of one step → its time


class Learning:
    """A feed whose turns are timed, and what the last one asks of its rivals."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.last: Turn

    def turn(self) -> Timing:
        """Learn one batch."""
        self.last = self.feed.turn()
        return self.last.timing

    def by_steps(self, step: Step) -> Callable[[], Timing]:
        """Return a rival's batch: one step timed, and counted as often as ours were."""
        return lambda: step(self.last.company).times(self.last.steps)


def measure(model: str, backbone: Backbone, rounds: int, *, peers: bool) -> Findings:
    """Return the rows of one model; a peer that cannot be run is a row that says why."""
    found = Findings()
    default, whole = Settings(), Settings(top_blocks=len(backbone.image_tower.blocks))
    steps: dict[str, Step] = {}
    reason = "not asked for"
    # As many pictures as a step sees, so that nobody's first one that counts is his first.
    company = default.replay_samples + default.batch_size
    with ExitStack() as stack:
        loop = None
        if peers:
            try:  # first: it starts and warms up beside the others
                loop = stack.enter_context(peft_loop(model, default, backbone.device.type))
                loop.ask(company, CLASSES)
            except PeerError as error:
                loop, reason = None, str(error)
        ours = Learning(Feed(backbone, default).warm())
        limit = Limit(ours.feed)
        limit.run(company, 1)
        contenders = {
            "learner": Contender(ours.turn),
            "limit": Contender(lambda: limit.run(ours.last.company, ours.last.steps)),
        }
        if peers and model in PATCH_SIZES:
            rival = ParametrizedLoop(model, default, backbone.device)
            rival.step(company, CLASSES, half=limit.half)
            steps["parametrize"] = partial(rival.step, classes=CLASSES, half=limit.half)
        if loop is not None:
            try:
                found.raw["peft"] = loop.until_ready()
                loop.answered()
                steps["peft"] = partial(loop.step, classes=CLASSES)
            except PeerError as error:
                reason = str(error)
        if steps:
            deep = Learning(Feed(backbone, whole).ready())
            contenders["learner, all blocks"] = Contender(deep.turn)
        contenders |= {name: Contender(ours.by_steps(step)) for name, step in steps.items()}
        wall = interleaved(contenders, rounds)
        _adapter(found, ours.feed.learner, spread_of(wall["learner"]).median)
    cpu = {name: contender.cpu_s for name, contender in contenders.items()}
    found.raw |= {"wall_s": wall, "cpu_s": cpu, "company": ours.last.company}
    _take_down(found, wall, cpu, default.batch_size, reason)
    return found


def _adapter(found: Findings, learner: Learner, batch_s: float) -> None:
    """
    Take down what making a version of the adapter costs, which no batch here has in it.

    With as many exemplars as rounds pay for; what it costs beside them is counted as if it were
    theirs, so it is at most this.
    """
    exemplars = exemplars_seen(learner)
    _, timing = timed(lambda: adapter_parts(learner), learner.backbone.device)
    share = timing.wall_s / exemplars * EXEMPLARS_A_ROUND / batch_s
    label = "making the adapter's version, at most, over the rounds that pay for it"
    found.note("adapter_share", label, spread_of([share]))


def _take_down(
    found: Findings,
    wall: Mapping[str, Sequence[float]],
    cpu: Mapping[str, Sequence[float]],
    samples: int,
    reason: str,
) -> None:
    def over(slow: str, fast: str = "learner") -> tuple[Spread, str]:
        """Return how often `fast` fits into `slow`, and the same in processor seconds."""
        return ratio_of(wall[slow], wall[fast]), f"{ratio_of(cpu[slow], cpu[fast]).median:.3g} CPU"

    for name, key in (("learner", "samples_per_s"), ("limit", "limit_samples_per_s")):
        found.note(key, f"samples/s, {name}", spread_of([samples / s for s in wall[name]]))
    ratio, by_cpu = over("limit")
    found.at_least("of_limit", f"fraction of the limit ({by_cpu})", ratio, OF_LIMIT)
    found.figures["of_limit_cpu"] = round(ratio_of(cpu["limit"], cpu["learner"]).median, 4)
    if "peft" not in wall:
        found.missing("over_peft", "over the peft loop", reason, f">= {OVER_PEFT:g}")
        found.missing("over_peft_same_k", "likewise, all blocks", reason, f">= {OVER_PEFT_SAME_K}")
    else:
        ratio, by_cpu = over("peft")
        found.at_least("over_peft", f"over the peft loop ({by_cpu})", ratio, OVER_PEFT)
        ratio, by_cpu = over("peft", "learner, all blocks")
        label = f"likewise, all blocks ({by_cpu})"
        found.at_least("over_peft_same_k", label, ratio, OVER_PEFT_SAME_K)
        ratio, by_cpu = over("peft", "limit")
        found.note("limit_over_peft", f"the limit over the peft loop ({by_cpu})", ratio)
    if "parametrize" in wall:
        for fast, suffix in (("learner", ""), ("learner, all blocks", "_same_k")):
            ratio, by_cpu = over("parametrize", fast)
            what = f"over parametrize{', all blocks' if suffix else ''} ({by_cpu})"
            found.note("over_parametrize" + suffix, what, ratio)
