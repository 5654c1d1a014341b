"""The gate in front of a publication: held-out samples decide about an adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load

from everlens.artifact import decode_manifest, digest_of
from everlens.model.backbone import Backbone
from everlens.model.classes import EVIDENCE_CHUNK
from everlens.model.parts import build_snapshot, encode_evidence
from everlens.model.snapshot import Snapshot, base_snapshot, joined
from everlens.pixels import encode_pixels
from tests.pictures import PHOTOGRAPHS, crops
from tests.unit.learn.exemplars import SPEC, same_bits
from worker.commit import Progress
from worker.learn.class_weights import ClassWeightConfig
from worker.learn.gate import HELD_OUT_MIN
from worker.learn.held_out import judge
from worker.learn.learner import LabelledPixels, Learner, LearnerConfig
from worker.learn.tuning import TuningConfig
from worker.publication import adapter_parts, evidence_parts, judged, next_manifest

TUNING = TuningConfig(
    seed=0,
    learning_rate=1e-3,
    weight_decay=1e-5,
    steps=2,
    first_steps=8,
    replay_samples=3,
    new_per_class=8,
    contrast=1.0,
    augment=True,
    class_weights=ClassWeightConfig(temperature=1.0),
)
BATCH = 8


class Course:
    """A learner with the version that it published last, in one process and without a log."""

    def __init__(self, backbone: Backbone) -> None:
        config = LearnerConfig(SPEC, TUNING, 4 << 20, backbone.fusion())
        self.learner = Learner(backbone, config)
        self.progress = Progress("", "", backbone.fingerprint, "")
        self.snapshot = base_snapshot(backbone, SPEC.top_blocks)

    def exchange(self, parts: dict[str, bytes]) -> None:
        manifest = next_manifest(self.learner, self.progress, parts, cursor=self.progress.cursor)
        contents = {digest_of(part): part for part in parts.values()}
        self.progress.version, self.progress.digest = manifest.version, manifest.digest
        self.progress.parts = dict(manifest.parts)
        self.snapshot = build_snapshot(self.learner.backbone, manifest, contents, self.snapshot)

    def learn(self, batch: list[LabelledPixels]) -> None:
        observation = self.learner.observe(batch, self.snapshot)
        self.progress.cursor = batch[-1].seq
        self.exchange(evidence_parts(self.learner, observation))
        self.learner.tune()

    def wrecked(self) -> dict[str, bytes]:
        """Return the adapter with the classes of its head mixed up, as after wrong labels."""
        parts = adapter_parts(self.learner)
        chunk = load(parts["adapter/0"])
        mean_CD, count_C = chunk["mean_CD"].roll(1, dims=0), chunk["count_C"]
        return {**parts, "adapter/0": encode_evidence(mean_CD, count_C)}

    def candidate(self, parts: dict[str, bytes] | None = None) -> Snapshot:
        parts = parts or adapter_parts(self.learner)
        manifest = next_manifest(self.learner, self.progress, parts, cursor=self.progress.cursor)
        contents = {digest_of(part): part for part in parts.values()}
        return build_snapshot(self.learner.backbone, manifest, contents, self.snapshot)


def samples(count: int) -> list[LabelledPixels]:
    """Return parts of four photographs, in turn."""
    parts = [crops(name, count, 32) for name in PHOTOGRAPHS]
    return [
        LabelledPixels(k + 1, f"s{k}", PHOTOGRAPHS[k % 4], None, encode_pixels(picture), picture)
        for k in range(count)
        for picture in [parts[k % 4][k // 4]]
    ]


@pytest.fixture
def course(tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> Course:
    """Ninety-six samples learnt, about every second one held out but for two of each class."""
    monkeypatch.setattr("worker.learn.learner.HOLD_OUT_EVERY", 2)
    course, shown = Course(tiny_clip), samples(96)
    for start in range(0, 96, BATCH):
        course.learn(shown[start : start + BATCH])
    assert 30 < len(course.learner.replay.held_out(100)) < 58
    return course


def test_a_version_is_never_worse_than_itself(course: Course) -> None:
    """The very same version twice, and one with an adapter that bends nothing, pass."""
    verdict = judge(course.learner, course.snapshot, course.snapshot)
    assert verdict.test is not None
    assert verdict.passed
    assert verdict.test.before == verdict.test.after
    assert verdict.test.error == 0
    assert 0 < verdict.test.before < 1
    assert verdict.held_out == len(course.learner.replay.held_out(100))


def test_evidence_alone_is_judged_without_the_picture_itself(course: Course) -> None:
    """Held-out pictures are in the sums: counted as they stand, they would flatter the version."""
    learner, snapshot = course.learner, course.snapshot
    held = learner.replay.held_out(100)
    class_N = [exemplar.class_index for exemplar in held]
    views = joined([snapshot.look(hidden) for _, hidden in learner.in_parts(held)])
    answer = snapshot.answer(views, None, snapshot.classes.text_CE)
    flattered = answer.probability_BK[torch.arange(len(held)), class_N].mean()
    verdict = judge(learner, snapshot, snapshot)
    assert verdict.test is not None
    assert verdict.test.before < float(flattered)


def test_a_wrecked_adapter_is_held_back(course: Course) -> None:
    """Classes mixed up cost the right names more than chance explains."""
    verdict = judge(course.learner, course.snapshot, course.candidate(course.wrecked()))
    assert verdict.test is not None
    assert not verdict.passed
    assert verdict.test.after < verdict.test.before


def test_too_few_held_out_samples_publish_unseen(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the least number no version is asked, and whatever it is goes out."""
    monkeypatch.setattr("worker.learn.learner.HOLD_OUT_EVERY", 2)
    course, shown = Course(tiny_clip), samples(20)
    for start in range(0, 16, 4):
        course.learn(shown[start : start + 4])
    assert len(course.learner.replay.held_out(100)) < HELD_OUT_MIN
    verdict = judge(course.learner, course.snapshot, course.candidate(course.wrecked()))
    assert verdict.test is None
    assert verdict.passed


def test_what_passes_is_published_and_accepted(course: Course) -> None:
    """The parts go out with what the test said, and are what a bad stretch goes back to."""
    parts = adapter_parts(course.learner)
    state = course.learner.tuner.state()
    before = replace(course.progress)
    manifest, published = judged(course.learner, course.progress, parts, course.snapshot)
    assert published == parts
    assert manifest.gate is not None
    assert manifest.gate["published"] is True
    assert manifest.gate["held_out"] == len(course.learner.replay.held_out(100))
    assert {"before", "after", "error"} <= manifest.gate.keys()
    assert manifest.version == before.version + 1
    assert manifest.parts["adapter"] == digest_of(parts["adapter"])
    assert same_bits(course.learner.tuner.accepted, state)
    assert same_bits(course.learner.tuner.state(), state)
    assert course.progress == before
    assert decode_manifest(manifest.encode(), manifest.digest) == manifest


def test_what_is_held_back_leaves_the_version_as_it_was(course: Course) -> None:
    """No part is exchanged, the manifest says why, and the tuner is at the accepted bits."""
    parts = adapter_parts(course.learner)
    manifest, published = judged(course.learner, course.progress, parts, course.snapshot)
    assert published
    course.exchange(parts)
    good, served = course.learner.tuner.adapter(), dict(course.progress.parts)
    course.learn(samples(104)[96:])
    evidence_only = {k: v for k, v in course.progress.parts.items() if k.startswith("adapter")}
    assert evidence_only == {k: v for k, v in served.items() if k.startswith("adapter")}

    wrecked = course.wrecked()
    held = len(course.learner.replay.held_out(100))
    manifest, published = judged(course.learner, course.progress, wrecked, course.snapshot)
    assert published == {}
    assert manifest.gate is not None
    assert manifest.gate["published"] is False
    assert manifest.gate["held_out"] == held
    assert manifest.gate["after"] < manifest.gate["before"]
    assert manifest.parts == course.progress.parts
    assert (manifest.version, manifest.parent) == (
        course.progress.version + 1,
        course.progress.digest,
    )
    assert same_bits(course.learner.tuner.adapter(), good)
    # A version without new parts can be built and answers as the one before.
    again = build_snapshot(course.learner.backbone, manifest, {}, course.snapshot)
    picture = [samples(1)[0].pixels]
    text_CE = again.classes.text_CE
    answers = [s.answer(s.see(picture), None, text_CE) for s in (again, course.snapshot)]
    assert torch.equal(answers[0].probability_BK, answers[1].probability_BK)


def test_evidence_parts_hold_fusion_and_records(course: Course) -> None:
    """What is learnt of the experts goes out with each version, for the service to read."""
    for _ in range(4):
        course.learn(samples(80)[-BATCH:])
    parts = evidence_parts(course.learner, None)
    assert {"fusion", "record/0"} <= parts.keys()
    assert course.snapshot.fusion == course.learner.scoring.fusing.fusion()
    assert course.snapshot.fusion.text_slope > 0
    record = course.snapshot.about(0)
    assert record["recall"] == pytest.approx(
        float(course.learner.scoring.records.recall_C[0]), abs=1e-4
    )
    assert record["evidence"] is not None
    manifest = next_manifest(course.learner, course.progress, {}, cursor=course.progress.cursor)
    assert manifest.top_blocks == SPEC.top_blocks
    assert manifest.gate is None


def test_a_batch_makes_the_parts_of_its_own_classes(course: Course) -> None:
    """Known names are not sent again, nor the evidence of classes that got no sample."""
    course.learn(samples(8))
    learner = course.learner
    for k in range(EVIDENCE_CHUNK):
        learner._add_class(f"another {k}")
    assert learner.sums is not None
    learner.sums.make_room(len(learner.class_names))
    learner.scoring.records.make_room(len(learner.class_names))
    course.exchange(evidence_parts(learner, None))
    observation = learner.observe(samples(16)[8:12], course.snapshot)
    assert not observation.new_classes
    parts = evidence_parts(learner, replace(observation, refreshed=False))
    assert parts.keys() == {"fusion", "evidence/0", "record/0"}
    whole = evidence_parts(learner, None)
    assert whole.keys() - parts.keys() == {"evidence/factor", "evidence/1", "classes/0"}
    assert all(whole[name] == content for name, content in parts.items())
