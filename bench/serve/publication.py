"""What one label more costs to publish and to swap in, by the number of learnt classes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from bench.measure import interleaved, ratio_of, spread_of
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
_REPEATS = 8


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


class Publishing:
    """A learner that knows so many classes, and the service's version of it; one label more each time."""

    def __init__(self, stage: Stage, classes: int) -> None:
        known = stage.known(classes=classes)
        self.backbone = stage.backbone
        self.learner = learner_of(stage, known.versions)
        self.present, self.manifest = known.snapshot, known.manifest
        self.probe = Probe(stage.backbone)
        self.costs: list[Cost] = []
        self.labels = 0

    def warm(self) -> None:
        """Publish once, and forget what that cost."""
        self()
        self.costs.clear()

    def __call__(self) -> float:
        """Publish a label of the next class; return the seconds in all."""
        changed = self.labels
        self.labels += 1
        sums = self.learner.sums
        assert sums is not None
        sums.add(torch.ones(1, sums.sum_CD.shape[1]), [changed])
        begun = time.perf_counter()
        parts = evidence_parts(self.learner, _observation_of(changed))
        self.manifest = next_manifest(
            self.learner, _progress(self.manifest), parts, cursor=self.labels
        )
        contents = {digest_of(part): part for part in parts.values()}
        published = time.perf_counter()
        self.present = build_snapshot(self.backbone, self.manifest, contents, self.present)
        built = time.perf_counter()
        self.probe.ask(self.present)
        answered = time.perf_counter()
        self.costs.append(Cost(published - begun, built - published, answered - built))
        return self.costs[-1].whole_s


def measure(stage: Stage) -> Findings:
    """Measure the learner's own encoding and the service's own building, in one process."""
    found = Findings()
    publishing = {f"{count:,}": Publishing(stage, count) for count in COUNTS}
    for each in publishing.values():
        each.warm()
    whole = interleaved(publishing, _REPEATS)
    for count, classes in zip(COUNTS, publishing, strict=True):
        seconds, costs = spread_of(whole[classes]), publishing[classes].costs
        parts = [
            spread_of([getattr(cost, name) for cost in costs]).median
            for name in ("publish_s", "build_s", "probe_s")
        ]
        shown = " + ".join(f"{1e3 * part:.3g}" for part in parts)
        found.add(
            f"one label more among {classes} classes: encode + build + probe",
            f"{milliseconds(seconds)} ({shown})",
            "",
            ok=None,
            **{f"publication_ms_{count}_classes": 1e3 * seconds.median},
        )
    few, many = list(publishing)[-2:]
    ratio = ratio_of(whole[many], whole[few])
    found.add(
        f"the same, {many} over {few}",
        ratio,
        f"<= {FLAT}",
        ok=ratio.median <= FLAT,
        publication_ratio=ratio.median,
    )
    found.keep(
        costs={
            classes: [(c.publish_s, c.build_s, c.probe_s) for c in each.costs]
            for classes, each in publishing.items()
        }
    )
    return found


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
