"""
Whether a step knows how many classes there are: 10, 1,000 and 10,000 of them.

The learner's state is filled through its own parts (sums, buffer, text vectors) with random ones;
the text tower is not asked. At each size equally many samples were learnt and are exemplars; the tensors
of these are one, since it is their number that could cost.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch
from torch.nn import functional

from bench.learn.clock import Timing, timed
from bench.learn.feed import Feed
from bench.learn.rows import Findings
from bench.measure import interleaved, ratio_of
from everlens.model.backbone import Backbone
from everlens.model.snapshot import Snapshot
from everlens.settings import Settings
from worker.learn.evidence import EvidenceSums
from worker.learn.randomness import generator_for
from worker.learn.replay import Exemplar
from worker.learn.tuning import Round
from worker.publication import evidence_parts, next_manifest

CLASSES = (10, 1_000, 10_000)
SAMPLES = 10_000  # learnt before, in all: so often is the shared factor made anew at each size
EXEMPLARS = 4_000
FLAT = 1.05
_SEQ = 100_000  # of the first new sample, the same at each size: by it samples are held out
_ROWS = 1_000


def filled(backbone: Backbone, classes: int, exemplars: int = EXEMPLARS) -> Feed:
    """Return a feed whose learner knows so many classes, with a version that does."""
    feed = Feed(backbone)
    learner = feed.learner
    random = torch.Generator().manual_seed(classes)
    views, trunk = _example(feed.snapshot, feed)
    width, joint = views
    learner.class_names = [f"class {k}" for k in range(classes)]
    learner.class_index = {name: k for k, name in enumerate(learner.class_names)}
    learner.text_vectors = list(
        functional.normalize(torch.randn(classes, joint, generator=random), dim=1)
    )
    learner.sums = EvidenceSums(width)
    for start in range(0, SAMPLES, _ROWS):
        rows = [k % classes for k in range(start, start + _ROWS)]
        learner.sums.add(torch.randn(_ROWS, width, generator=random), rows)
    learner.factor, learner.factor_samples = learner.sums.factor(), learner.samples
    learner.scoring.records.make_room(classes)
    image = bytes(1_000)
    learner.replay.add(
        (Exemplar(k + 1, k % classes, None, image, trunk) for k in range(exemplars)),
        generator_for(0, "buffer", 0),
    )
    feed.seq = _SEQ
    parts = evidence_parts(learner, None)
    feed._exchange(next_manifest(learner, feed.progress, parts, cursor=feed.seq), parts)
    return feed


def _example(snapshot: Snapshot, feed: Feed) -> tuple[tuple[int, int], torch.Tensor]:
    """Return the widths of feature and embedding, and a trunk's output as the buffer keeps it."""
    with torch.no_grad():
        hidden = snapshot.trunk(feed.backbone.images(feed.pictures(1)))
        views = snapshot.look(hidden)
    state = hidden.states[0].to("cpu", torch.float16).clone()
    return (views.feature_BD.shape[1], views.embedding_BE.shape[1]), state


class Filled:
    """One filled feed, step by step, with what each step and each observing took."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.observe: list[Timing] = []
        self.step: list[Timing] = []
        self.observe_bytes: list[int] = []
        self.step_bytes: list[int] = []
        self._drawn: list[Round] = []  # steps that are to be taken

    def warm(self) -> None:
        """Take the first step of all, which finds everything cold, and forget what it took."""
        self()
        for kept in (self.observe, self.step, self.observe_bytes, self.step_bytes):
            kept.clear()

    def __call__(self) -> float:
        """Take a step, of a new batch where none is left; return its processor seconds."""
        learner, device = self.feed.learner, self.feed.device
        drawing = Timing(0.0, 0.0)
        if not self._drawn:
            before = settled_bytes()
            self.observe.append(self.feed.take()[1])
            self.observe_bytes.append(peak_bytes() - before)
            drawn, drawing = timed(learner.draw, device)
            assert drawn is not None
            self._drawn = drawn.steps
        before = settled_bytes()
        step = self._drawn.pop(0)
        self.step.append(drawing + timed(lambda: learner.take(step), device)[1])
        self.step_bytes.append(peak_bytes() - before)
        return self.step[-1].cpu_s


def measure(backbone: Backbone, rounds: int) -> Findings:
    """Return the rows of one model."""
    found = Findings()
    sizes = {f"{classes:,}": Filled(filled(backbone, classes)) for classes in CLASSES}
    for size in sizes.values():
        size.warm()
    # The sizes take turns at each step: a machine's pace changes within a round of them. The first
    # one was for warmth, and behind the last one of its batch each observes another.
    seconds = interleaved(sizes, max(2, rounds * Settings().sit_steps - 1))
    few, many = (f"{classes:,}" for classes in (CLASSES[0], CLASSES[-1]))
    for name, size in sizes.items():
        found.raw[name] = {
            "step": [(timing.wall_s, timing.cpu_s) for timing in size.step],
            "observe": [(timing.wall_s, timing.cpu_s) for timing in size.observe],
            "step_bytes": size.step_bytes,
            "observe_bytes": size.observe_bytes,
        }
    middle = ratio_of(seconds[f"{CLASSES[1]:,}"], seconds[few])
    flat = ratio_of(seconds[many], seconds[few])
    found.note("flat_step_1000", f"SIT steps at {CLASSES[1]:,} classes over 10 (CPU)", middle)
    found.at_most("flat_step", f"SIT steps at {many} classes over 10 (CPU)", flat, FLAT)
    first, *_, last = sizes.values()
    observe = ratio_of(*([timing.cpu_s for timing in size.observe] for size in (last, first)))
    found.note("flat_observe", "observe, likewise", observe)
    if sys.platform == "linux" and backbone.device.type == "cpu":
        peaks = ratio_of(last.step_bytes, first.step_bytes)
        found.at_most("flat_memory", "peak memory of the SIT steps, likewise", peaks, FLAT)
        # With the version that comes of it, whose class table is as long as there are classes.
        peaks = ratio_of(last.observe_bytes, first.observe_bytes)
        found.note("flat_observe_memory", "of observe and its publication", peaks)
    return found


def settled_bytes() -> int:
    """Return what the process holds once what is free was given back, and forget its peak (Linux)."""
    if sys.platform != "linux":
        return 0
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the most that the process held since `settled_bytes` (Linux)."""
    return _status("VmHWM") if sys.platform == "linux" else 0


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
