"""What one label more costs to publish and to swap in, by the number of learnt classes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.measure import spread_of
from bench.serve.findings import Findings
from bench.serve.stage import Stage, milliseconds
from bench.versions import Versions
from everlens.artifact import Manifest, digest_of
from everlens.model.parts import build_snapshot
from everlens.settings import load_settings
from service.probe import Probe
from worker.__main__ import learner_config
from worker.commit import Progress
from worker.learn.evidence import EvidenceSums
from worker.learn.learner import Learner, LearntRow, Observation
from worker.learn.replay import BufferChange
from worker.publication import evidence_parts, next_manifest

COUNTS = (100, 10_000, 100_000)
FLAT = 1.5  # ten times as many classes, in chunks of the same size
_REPEATS = 7


@dataclass(slots=True)
class Cost:
    """Seconds of one publication: making its parts, building the version, letting it answer."""

    publish_s: float
    build_s: float
    probe_s: float

    @property
    def whole_s(self) -> float:
        """From the sums to the answer, without the way through the log."""
        return self.publish_s + self.build_s + self.probe_s


def measure(stage: Stage) -> Findings:
    """Measure the learner's own encoding and the service's own building, in one process."""
    found = Findings()
    costs = {count: _costs(stage, count) for count in COUNTS}
    whole = {count: spread_of([cost.whole_s for cost in costs[count]]) for count in COUNTS}
    for count in COUNTS:
        parts = [
            spread_of([getattr(cost, name) for cost in costs[count]]).median
            for name in ("publish_s", "build_s", "probe_s")
        ]
        shown = " + ".join(f"{1e3 * part:.3g}" for part in parts)
        found.add(
            f"one label more among {count:,} classes: encode + build + probe",
            f"{milliseconds(whole[count])} ({shown})",
            "",
            ok=None,
            **{f"publication_ms_{count}_classes": 1e3 * whole[count].median},
        )
    few, many = COUNTS[-2:]
    ratio = whole[many].median / whole[few].median
    found.add(
        f"the same, {many:,} over {few:,}",
        f"{ratio:.3g}",
        f"<= {FLAT}",
        ok=ratio <= FLAT,
        publication_ratio=ratio,
    )
    found.keep(
        costs={
            str(count): [(c.publish_s, c.build_s, c.probe_s) for c in costs[count]]
            for count in COUNTS
        }
    )
    return found


def _costs(stage: Stage, classes: int) -> list[Cost]:
    """Return the cost of each of some publications; the first, cold one is left out."""
    known = stage.known(classes=classes)
    learner, present, manifest = learner_of(stage, known.versions), known.snapshot, known.manifest
    costs, probe = [], Probe(stage.backbone)
    for changed in _turns(learner):
        begun = time.perf_counter()
        parts = evidence_parts(learner, _observation_of(changed))
        manifest = next_manifest(learner, _progress(manifest), parts, cursor=changed)
        contents = {digest_of(part): part for part in parts.values()}
        published = time.perf_counter()
        present = build_snapshot(stage.backbone, manifest, contents, present)
        built = time.perf_counter()
        probe.ask(present)
        costs.append(Cost(published - begun, built - published, time.perf_counter() - built))
    return costs[1:]


def _observation_of(changed: int) -> Observation:
    """Return what a batch of one label of a known class changes."""
    row = LearntRow(0, "", changed, torch.zeros(0), refused=False, batch=0)
    nothing = BufferChange([], [])
    return Observation([row], [], nothing, [], [changed], refreshed=False, unfit=[])


def _progress(manifest: Manifest) -> Progress:
    """Return where the learner is once this version is published."""
    progress = Progress("", "", manifest.fingerprint, "")
    progress.version, progress.digest = manifest.version, manifest.digest
    progress.parts = dict(manifest.parts)
    return progress


def _turns(learner: Learner) -> Iterator[int]:
    """Give the sums one label more each time; yield the class that got it."""
    assert learner.sums is not None
    width = learner.sums.sum_CD.shape[1]
    for turn in range(_REPEATS + 1):
        learner.sums.add(torch.ones(1, width), [turn])
        yield turn


def learner_of(stage: Stage, versions: Versions) -> Learner:
    """Return a learner that knows the classes of made-up versions, as if it had learnt them."""
    options = stage.options
    settings = load_settings(
        model=options.model, pretrained=options.pretrained, redis_url="", device=options.device
    )
    learner = Learner(stage.backbone, learner_config(settings, stage.backbone))
    learner.class_names = list(versions.names)
    learner.class_index = {name: k for k, name in enumerate(versions.names)}
    learner.text_vectors = list(versions.text_CE)
    width = versions.mean_CD.shape[1]
    learner.sums = EvidenceSums.of(
        {
            "gram_DD": torch.eye(width, dtype=torch.float64),
            "sum_CD": versions.mean_CD.double(),
            "count_C": versions.count_C.clone(),
        }
    )
    learner.factor = learner.sums.factor()
    learner.factor_samples = learner.samples
    learner.scoring.records.make_room(len(versions.names))
    return learner
