"""The learning bench times what it says: the learner's own pictures and steps on every side."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.learn import commits, growth, peers
from bench.learn.clock import Contender, Timing, timed
from bench.learn.feed import Feed
from bench.learn.limit import Limit
from bench.learn.parametrized import ParametrizedLoop
from bench.learn.rows import Findings, show
from bench.learn.speed import Learning
from bench.measure import Spread
from bench.running import cpu_s
from bench.serve.peers.environments import PeerError
from bench.tiny_clip import write_tiny_clip
from everlens.model.backbone import Backbone
from everlens.settings import Settings
from worker.learn.learner import HOLD_OUT_EVERY

TINY = Settings(top_blocks=2)


@pytest.fixture
def feed(tiny_clip: Backbone) -> Feed:
    return Feed(tiny_clip, TINY).warm()


def batches_through(module: torch.nn.Module, seen: list[int]) -> Any:
    """Take down how many pictures each pass through a module has."""

    def note(_: Any, inputs: tuple[Any, ...]) -> None:
        given = inputs[0]
        seen.append(len(given if isinstance(given, torch.Tensor) else given.states))

    return module.register_forward_pre_hook(note)


def test_a_turn_tells_what_its_steps_saw(feed: Feed) -> None:
    """The rivals are given so many pictures; held-out ones are not among them."""
    short = 0
    for _ in range(6):
        seen: list[int] = []
        hook = batches_through(feed.learner.tuner.image_top, seen)
        turn = feed.turn()
        hook.remove()
        assert [turn.company] * turn.steps == seen
        assert turn.steps == TINY.sit_steps
        short += turn.company < TINY.batch_size + TINY.replay_samples
    assert short, f"one in {HOLD_OUT_EVERY} is held out, and none of 96 was"


def test_a_warm_feed_scores_with_all_three_experts(feed: Feed) -> None:
    """Else `observe` would be timed without the tuned top."""
    assert feed.snapshot.tuned_top is not None
    assert feed.snapshot.evidence is not None


def test_the_limit_passes_what_the_learner_passes_and_no_more(feed: Feed) -> None:
    limit = Limit(feed)
    trunk: list[int] = []
    top: list[int] = []
    hooks = batches_through(limit.trunk, trunk), batches_through(limit.top, top)
    limit.run(company=29, steps=2)
    for hook in hooks:
        hook.remove()

    assert [TINY.batch_size] == trunk
    assert [29, 29] == top
    assert all(p.grad is None for p in limit.top.parameters())


def test_a_rivals_step_counts_as_often_as_ours_were(feed: Feed) -> None:
    asked: list[int] = []

    def step(pictures: int) -> Timing:
        asked.append(pictures)
        return Timing(3.0, 2.0)

    learning = Learning(feed)
    learning.turn()
    rival = Contender(learning.by_steps(step))

    assert rival() == 3.0 * learning.last.steps
    assert [2.0 * learning.last.steps] == rival.cpu_s
    assert [learning.last.company] == asked


@pytest.mark.parametrize("classes", [10, 500])
def test_a_filled_learner_knows_its_classes(tiny_clip: Backbone, classes: int) -> None:
    """At each size as many samples, exemplars and pictures a step; only the classes differ."""
    feed = growth.filled(tiny_clip, classes, exemplars=600)
    learner = feed.learner
    turn = feed.turn()

    assert classes == len(learner.class_names) == len(feed.snapshot.classes.names)
    assert classes == len(learner.replay.classes)
    assert growth.SAMPLES + 16 == learner.samples
    assert turn.company == growth.filled(tiny_clip, 20, exemplars=60).turn().company


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_peak_of_memory_is_seen_and_forgotten() -> None:
    before = growth.settled_bytes()
    bytes(bytearray(b"x" * 64_000_000))
    assert growth.peak_bytes() - before > 60_000_000
    after = growth.settled_bytes()
    assert growth.peak_bytes() - after < 30_000_000


def test_the_parametrized_loop_bends_what_ours_bends(tiny_clip: Backbone, tmp_path: Path) -> None:
    folder = write_tiny_clip(tmp_path / "clip")
    loop = ParametrizedLoop(f"local-dir:{folder}", TINY, torch.device("cpu"))
    base = {n: p.clone() for n, p in loop.model.named_parameters() if not p.requires_grad}
    loop.step(6, 3, half=False)

    ours = Feed(tiny_clip, Settings(top_blocks=3)).learner.tuner.parameters
    assert sum(p.numel() for p in loop.parameters) == sum(p.numel() for p in ours.values())
    assert all(bool(p.any()) for p in loop.parameters)
    assert all(torch.equal(base[n], p) for n, p in loop.model.named_parameters() if n in base)


def test_a_stopwatch_times_a_context_until_its_end() -> None:
    clock = commits.Stopwatch()

    @contextlib.contextmanager
    def transaction() -> Iterator[None]:
        yield

    with clock.around(transaction, "commit")():
        time.sleep(0.2)
    assert clock.around(lambda: 7, "publish")() == 7
    assert clock.spent["commit"] >= 0.2 > clock.spent["publish"]


def test_a_peer_that_cannot_run_says_why() -> None:
    no_twin = pytest.raises(PeerError, match="no CLIPModel that is starter")
    with no_twin, peers.peft_loop("starter", TINY, "cpu"):
        pass
    no_peft = pytest.raises(PeerError, match="ended with 1")  # in the Python of the tests
    with no_peft, peers.peft_loop("ViT-B-32", TINY, "cpu", Path(sys.executable)) as loop:
        loop.until_ready()


def test_a_loop_is_told_over_its_pipe(tmp_path: Path) -> None:
    """Any child that keeps to the protocol will do."""
    script = tmp_path / "child.sh"
    answer = json.dumps({"wall_s": 2.0, "cpu_s": 1.5})
    script.write_text(f"#!/bin/sh\necho '{{}}'\nread line\necho '{answer}'\n")
    script.chmod(0o755)
    with peers.peft_loop("ViT-B-32", TINY, "cpu", script) as loop:
        assert loop.until_ready() == {}
        assert loop.step(29, 8) == Timing(2.0, 1.5)
        with pytest.raises(PeerError, match="the peft loop ended"):
            loop.step(29, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_processs_work_is_seen() -> None:
    before = cpu_s(os.getpid())
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert cpu_s(os.getpid()) - before >= 0.08


def test_time_is_taken_on_both_clocks() -> None:
    made, timing = timed(lambda: time.sleep(0.2), torch.device("cpu"))
    assert made is None
    assert timing.wall_s >= 0.2 > timing.cpu_s


def test_the_table_says_what_was_missed_and_what_is_missing() -> None:
    found = Findings()
    found.at_least("of_limit", "fraction", Spread(0.79, 0.7, 0.9), 0.8)
    found.at_most("flat_step", "flat", Spread(1.01, 1.0, 1.02), 1.05)
    found.missing("over_peft", "over peft", "not installed", ">= 8")
    fraction, flat, peft = show([("tiny", found)]).splitlines()[2:]

    assert "missed" in fraction
    assert flat.endswith("| ok     |")
    assert "not installed" in peft
    assert {"of_limit": 0.79, "flat_step": 1.01, "over_peft": None} == found.figures
