"""The learner: two clocks over one stream, a function of settings and entries alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from everlens.model.backbone import Backbone
from everlens.model.snapshot import RECORD, Snapshot, base_snapshot
from everlens.model.tower import Hidden
from everlens.pixels import Pixels, encode_pixels
from tests.pictures import PHOTOGRAPHS, crops
from tests.unit.learn.exemplars import FIRST_STEPS, SPEC, same_bits
from worker.learn.adapter_head import adapter_text, balanced, fit_adapter_head
from worker.learn.class_weights import ClassWeightConfig
from worker.learn.evidence import EvidenceSums
from worker.learn.learner import LabelledPixels, Learner, LearnerConfig
from worker.learn.tuning import TuningConfig


def learner(
    backbone: Backbone,
    *,
    replay_bytes: int = 1 << 20,
    seed: int = 0,
    tune: str = "image",
    class_weights: ClassWeightConfig | None = None,
) -> Learner:
    tuning = TuningConfig(
        seed=seed,
        learning_rate=1e-2,
        weight_decay=1e-2,
        steps=2,
        first_steps=FIRST_STEPS,
        replay_samples=3,
        new_per_class=8,
        contrast=1.0,
        augment=True,
        class_weights=class_weights,
    )
    config = LearnerConfig(replace(SPEC, tune=tune), tuning, replay_bytes, backbone.fusion())
    return Learner(backbone, config)


def labelled(classes: list[int], size: int = 32) -> list[LabelledPixels]:
    parts = {c: crops(PHOTOGRAPHS[c], len(classes), size) for c in set(classes)}
    return [
        LabelledPixels(
            k + 1, f"s{k}", PHOTOGRAPHS[c], None, encode_pixels(parts[c][k]), parts[c][k]
        )
        for k, c in enumerate(classes)
    ]


@pytest.fixture
def base(tiny_clip: Backbone) -> Snapshot:
    return base_snapshot(tiny_clip, SPEC.top_blocks)


STREAM = [0, 1, 1, 2, 0, 3, 2, 1, 0, 3]


def sums_of(one: Learner) -> EvidenceSums:
    assert one.sums is not None
    return one.sums


def test_evidence_does_not_depend_on_the_batches(tiny_clip: Backbone, base: Snapshot) -> None:
    """One batch of ten, or ten of one: the same classes, and sums of the same samples."""
    whole, single = learner(tiny_clip), learner(tiny_clip)
    samples = labelled(STREAM)
    whole.observe(samples, base)
    for sample in samples:
        single.observe([sample], base)
    assert single.class_names == whole.class_names == ["astronaut", "cat", "coffee", "rocket"]
    assert sums_of(single).count_C.tolist() == sums_of(whole).count_C.tolist() == [3, 3, 2, 2]
    for name, tensor in sums_of(whole).tensors().items():
        # One forward pass of ten pictures and ten of one differ by float32 rounding.
        torch.testing.assert_close(sums_of(single).tensors()[name], tensor, atol=1e-4, rtol=0)


def test_observing_leaves_batch_and_snapshot_alone(tiny_clip: Backbone, base: Snapshot) -> None:
    """Neither the samples nor the version that served are written to."""
    samples = labelled(STREAM)
    before = copy.deepcopy(samples)
    top = {name: tensor.clone() for name, tensor in base.frozen_top.state_dict().items()}
    one = learner(tiny_clip)
    one.observe(samples, base)
    one.tune()
    assert all((a.pixels == b.pixels).all() for a, b in zip(samples, before, strict=True))
    assert [s.image for s in samples] == [s.image for s in before]
    assert same_bits(base.frozen_top.state_dict(), top)
    assert not base.classes.names


def test_rows_say_what_the_sums_took(tiny_clip: Backbone, base: Snapshot) -> None:
    """With the features of its rows a batch can be subtracted again."""
    one = learner(tiny_clip)
    one.observe(labelled([0, 1]), base)
    before = {name: tensor.clone() for name, tensor in sums_of(one).tensors().items()}
    observation = one.observe(labelled(STREAM), base)
    assert [(row.seq, row.id) for row in observation.rows] == [
        (k + 1, f"s{k}") for k in range(len(STREAM))
    ]
    assert observation.new_classes == ["coffee", "rocket"]
    sums_of(one).subtract(
        torch.stack([row.feature_D for row in observation.rows]),
        [row.class_index for row in observation.rows],
    )
    assert sums_of(one).count_C.tolist() == [1, 1, 0, 0]
    after = sums_of(one).tensors()
    torch.testing.assert_close(after["gram_DD"], before["gram_DD"], atol=1e-12, rtol=0)
    torch.testing.assert_close(after["sum_CD"][:2], before["sum_CD"], atol=1e-12, rtol=0)


def test_an_empty_batch_counts_and_changes_nothing(tiny_clip: Backbone, base: Snapshot) -> None:
    """A batch whose entries were all bad moves the number that randomness depends on."""
    one = learner(tiny_clip)
    one.observe(labelled(STREAM), base)
    one.tune()
    state = one.tuner.state()
    observation = one.observe([], base)
    assert (one.batch, one.samples, one.tune()) == (2, len(STREAM), [])
    assert (observation.rows, observation.new_classes, observation.refreshed) == ([], [], False)
    assert (observation.buffer.added, observation.buffer.evicted) == ([], [])
    assert same_bits(one.tuner.state(), state)


def test_a_batch_is_tuned_once(tiny_clip: Backbone, base: Snapshot) -> None:
    """Asking twice takes the steps once."""
    one = learner(tiny_clip)
    one.observe(labelled(STREAM), base)
    assert len(one.tune()) == FIRST_STEPS
    assert one.tune() == []


def test_learning_repeats_to_the_bit(tiny_clip: Backbone, base: Snapshot) -> None:
    """Two learners over one stream end in the same bits; another seed ends elsewhere."""
    ends = []
    for seed in (0, 0, 1):
        one = learner(tiny_clip, seed=seed, replay_bytes=40_000)
        losses = []
        for start in range(0, len(STREAM), 3):
            one.observe(labelled(STREAM)[start : start + 3], base)
            losses.append(one.tune())
        kept = [e.seq for e in one.replay]
        ends.append((losses, kept, {**one.tuner.state(), **sums_of(one).tensors()}))
    assert ends[0][:2] == ends[1][:2]
    assert same_bits(ends[0][2], ends[1][2])
    assert not same_bits(ends[0][2], ends[2][2])


def test_the_factor_is_made_anew_when_a_tenth_came(tiny_clip: Backbone, base: Snapshot) -> None:
    """After every batch at first, later when the samples grew by a tenth."""
    one, samples = learner(tiny_clip), labelled([0, 1] * 12)
    made = [one.observe([sample], base).refreshed for sample in samples]
    assert made[:11] == [True] * 11
    assert [k + 1 for k, fresh in enumerate(made) if fresh][-4:] == [17, 19, 21, 24]
    assert one.factor is not None
    assert torch.equal(one.factor, sums_of(one).factor())


def test_classes_are_scored_by_the_version_that_served(tiny_clip: Backbone, base: Snapshot) -> None:
    """Version 0 knows no class, so nothing is scored; what the snapshot lacks is left out."""
    one = learner(tiny_clip)
    one.observe(labelled(STREAM), base)
    assert one.scoring.prequential.accuracy is None


def test_the_adapters_head_takes_an_equal_share(
    tiny_clip: Backbone, base: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its closed form stands on the buffer, the latest of each class where that is too large."""
    monkeypatch.setattr("worker.learn.learner.HOLD_OUT_AFTER", 100)
    one = learner(tiny_clip)
    assert fit_adapter_head(one) is None
    one.observe(labelled([0] * 7 + [1] * 2 + [2]), base)
    head = fit_adapter_head(one)
    assert head is not None
    assert head.count_C.tolist() == [7, 2, 1]
    assert [e.seq for e in balanced(one, 6)] == [6, 7, 8, 9, 10]


def test_before_any_step_the_adapters_head_is_the_evidence(
    tiny_clip: Backbone, base: Snapshot
) -> None:
    """With B = 0 the tuned features are the frozen ones, up to the float16 of the trunk's cache."""
    one = learner(tiny_clip)
    one.observe(labelled(STREAM), base)
    head = fit_adapter_head(one)
    assert head is not None
    expected = sums_of(one).mean_CD()
    torch.testing.assert_close(head.mean_CD, expected, atol=1e-3, rtol=0)


def test_trunk_outputs_beyond_half_precision_are_learnt_from(
    tiny_clip: Backbone, base: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of large activations: each step counts, and the adapter has a closed form."""
    see_trunk = Snapshot.see_trunk

    def large(snapshot: Snapshot, pixels: Sequence[Pixels]) -> Hidden:
        return Hidden(1e5 * see_trunk(snapshot, pixels).states)

    monkeypatch.setattr(Snapshot, "see_trunk", large)
    one = learner(tiny_clip)
    assert not one.observe(labelled(STREAM), base).unfit
    assert all(bool(exemplar.trunk.isfinite().all()) for exemplar in one.replay)
    assert len(one.tune()) == FIRST_STEPS
    assert fit_adapter_head(one) is not None


def test_adapter_texts_are_those_of_a_tuned_tower(tiny_clip: Backbone, base: Snapshot) -> None:
    """A frozen text tower has none of its own; a tuned one reads the names by the first prompt."""
    frozen = learner(tiny_clip)
    frozen.observe(labelled(STREAM), base)
    assert adapter_text(frozen, slice(0, 4)) is None
    tuned = learner(tiny_clip, tune="both")
    tuned.observe(labelled(STREAM), base)
    tuned.tune()
    found_CE = adapter_text(tuned, slice(1, 3))
    prompts = [tiny_clip.templates[0].format(name) for name in ("cat", "coffee")]
    expected_CE = torch.stack([tuned.tuner.text_vector(prompt) for prompt in prompts])
    assert found_CE is not None
    assert torch.equal(found_CE, expected_CE)


def test_one_in_ten_is_held_out_and_never_trained_on(tiny_clip: Backbone, base: Snapshot) -> None:
    """Of the samples past the first two of their class; evidence learns them all the same."""
    one, samples = learner(tiny_clip, replay_bytes=8 << 20), labelled([0, 1, 2, 3] * 50)
    for start in range(0, len(samples), 5):
        batch = samples[start : start + 5]
        one.waiting = []
        one.observe(batch, base)
        held = {e.seq for e in one.replay if e.held_out}
        assert [e.seq for e in one.waiting] == [s.seq for s in batch if s.seq not in held]
    assert len(one.replay) == one.samples == len(samples)
    # 192 chances of one in ten: 19 expected, 4 the deviation.
    assert 8 <= len(one.replay.held_out(200)) <= 31
    # By chance and not in turn, whose step could be that of the classes.
    assert len({e.class_index for e in one.replay.held_out(200)}) > 1


def test_the_first_two_of_a_class_are_never_held_out(
    tiny_clip: Backbone, base: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not within one batch either, where the sums do not know them yet."""
    monkeypatch.setattr("worker.learn.learner.HOLD_OUT_EVERY", 1)
    one = learner(tiny_clip)
    one.observe(labelled([0, 0, 1, 1, 1]), base)
    assert [e.held_out for e in one.replay] == [False] * 4 + [True]
    assert [e.held_out for e in one.waiting] == [False] * 4


def test_records_say_how_each_class_fares(tiny_clip: Backbone, base: Snapshot) -> None:
    """A row a class and a column a figure: recall and weight, and NaN where nothing is known."""
    weighting = ClassWeightConfig(temperature=1.0)
    one = learner(tiny_clip, class_weights=weighting)
    one.observe(labelled(STREAM), base)
    record_CR = one.scoring.about(slice(0, 4), one.class_weights())
    assert record_CR.shape == (4, len(RECORD))
    weight_C = record_CR[:, RECORD.index("weight")]
    assert torch.equal(weight_C, torch.ones(4, dtype=torch.float64))
    assert bool(record_CR[:, :2].isnan().all())
    assert bool(record_CR[:, 3:].isnan().all())
    one.tune()
    one.tuner.accept()
    one.scoring.records.record(2, right=True, experts=[False, True, True], labels=1)
    record_CR = one.scoring.about(slice(1, 4), one.class_weights())
    assert record_CR[1, RECORD.index("recall")] == 1
    assert record_CR[1, 3:].tolist() == [0, 1, 1]
    assert bool(record_CR[0, 3:].isnan().all())
    whole_C = one.class_weights()
    assert torch.equal(record_CR[:, RECORD.index("weight")], whole_C[1:])
    assert float(whole_C.mean()) == pytest.approx(1, abs=1e-12)
    assert float(whole_C.max()) > 1.01
