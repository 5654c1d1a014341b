"""The learner's loop: what it publishes, and that it goes on exactly where it was."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.tiny_clip import write_tiny_clip
from everlens.bus.admission import Admittable
from everlens.bus.scripts import text
from everlens.bus.stream import Stream
from everlens.bus.versions import Publisher
from everlens.errors import Diverged, Fenced, LogUnavailable, OtherLog, StateError
from everlens.model.backbone import load_backbone
from everlens.model.snapshot import Snapshot, Views
from everlens.model.tower import Hidden
from everlens.records import EntryKind
from tests.unit.learn.exemplars import same_bits
from tests.unit.worker.conftest import (
    PACE,
    Bench,
    Spoilt,
    digit_samples,
    finish,
    fresh_bench,
    run_to,
)
from worker.commit import StateFile
from worker.learn.class_weights import ClassWeightConfig
from worker.learn.gate import Comparison, Verdict
from worker.learn.learner import Learner, Through
from worker.loop import Loop

# Room for about thirty digits with their trunks.
BUFFER_BYTES = 150_000


def everything(loop: Loop) -> dict[str, torch.Tensor]:
    """Return all tensors that the learner's future depends on."""
    learner = loop.learner
    assert learner.sums is not None
    assert learner.factor is not None
    tensors = {**learner.tuner.state(), **learner.sums.tensors(), "factor": learner.factor}
    tensors |= {f"accepted {name}": t for name, t in learner.tuner.accepted.items()}
    tensors |= {f"fusing {name}": t for name, t in learner.scoring.fusing.tensors().items()}
    tensors["records"] = learner.scoring.records.record_CK
    tensors["curves"] = learner.scoring.records.curve_CN2
    # By place: the order decides what is drawn and evicted next.
    for place, exemplar in enumerate(learner.replay):
        held = "held out" if exemplar.held_out else "trained on"
        tensors[f"exemplar {place} is {exemplar.seq}, {held}"] = exemplar.trunk
    return tensors


def assert_same_bits(one: Loop, other: Loop) -> None:
    assert one.progress.digest == other.progress.digest
    expected, found = everything(one), everything(other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor.isnan(), found[name].isnan()), name
        assert torch.equal(tensor.nan_to_num(), found[name].nan_to_num()), name
    assert one.progress.gate == other.progress.gate
    assert one.learner.replay.bookkeeping() == other.learner.replay.bookkeeping()
    assert one.learner.scoring.prequential == other.learner.scoring.prequential


def test_each_batch_publishes_evidence(bench: Bench) -> None:
    """After every batch there is a version that knows its samples."""
    bench.admit(digit_samples(8))
    loop = run_to(bench.loop(), 8)

    version, digest = Publisher(loop.stream).head()
    assert (2, loop.progress.digest) == (version, digest)
    assert 8 == loop.snapshot.learned_through
    assert 8 == int(loop.snapshot.classes.count_C.sum())
    assert set(loop.snapshot.classes.names) == {s.label for s in digit_samples(8)}


def test_adapter_is_published_after_so_many_batches(bench: Bench) -> None:
    """The adapter gets a version of its own every `adapter_every_rounds` batches."""
    bench.admit(digit_samples(16))
    loop = run_to(bench.loop(), 16)

    lineage = bench.client.hgetall(bench.keys.lineage)
    adapters = [
        json.loads(text(line).partition(" ")[2])["adapter"]
        for _, line in sorted(lineage.items(), key=lambda item: int(item[0]))
    ]
    # Three batches of evidence, then the adapter as a version, then one more of evidence.
    assert [False, False, False, True, True] == [bool(a) for a in adapters]
    assert loop.snapshot.adapter is not None
    assert loop.progress.version == 5


def test_idle_learner_publishes_its_adapter_through_the_log(bench: Bench) -> None:
    """When nothing comes, the decision to publish the adapter is an entry of the log."""
    bench.admit(digit_samples(4))
    pace = replace(PACE, adapter_every_rounds=100, adapter_idle_s=0.05)
    loop = run_to(bench.loop(pace=pace), 5)

    assert loop.progress.parts["adapter"]
    assert bench.client.hget(bench.keys.meta, "seq") == b"5"


def test_batch_that_is_not_full_is_cut_through_the_log(bench: Bench) -> None:
    """Lingering writes an entry instead of deciding by the clock."""
    bench.admit(digit_samples(2))
    loop = run_to(bench.loop(), 3)

    assert 3 == loop.progress.cursor
    assert 2 == loop.learner.samples
    assert 1 == loop.learner.batch


@pytest.mark.parametrize("tune", ["image", "text", "both", "none"])
def test_restart_after_every_batch_gives_the_same_bits(bench: Bench, tune: str) -> None:
    """A learner that is restarted between all batches ends as one that ran through."""
    bench.admit(digit_samples(24))
    through = bench.loop("through", tune=tune)
    copy = fresh_bench(bench, "-copy")  # a log is trimmed as it is learnt
    copy.admit(digit_samples(24))
    run_to(through, 24)

    for batch in range(1, 7):
        restarted = run_to(copy.loop("restarted", tune=tune), 4 * batch)
        if batch < 6:
            restarted.close()

    # Epoch and holder differ by design; the manifests do not carry them.
    assert_same_bits(through, restarted)


@pytest.mark.parametrize("weighted", [False, True])
def test_restart_restores_what_was_learnt_of_experts_and_classes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    """Fusion, records, accepted adapter, held-out exemplars and class losses come back."""
    monkeypatch.setattr("worker.learn.learner.HOLD_OUT_EVERY", 2)
    weighting = ClassWeightConfig(temperature=1.0) if weighted else None
    samples = digit_samples(32)
    copy = fresh_bench(bench, "-copy")
    for log in (bench, copy):
        log.admit(samples)
    through = run_to(bench.loop("through", class_weights=weighting), 32)
    for cursor in (8, 12, 20, 28, 32):
        restarted = run_to(copy.loop("again", class_weights=weighting), cursor)
        if cursor < 32:
            restarted.close()

    learner = through.learner
    assert learner.replay.held_out(100)
    assert float(learner.scoring.fusing.near[0]) > 0
    assert learner.scoring.records.record_CK.any()
    assert not same_bits(learner.tuner.accepted, learner.tuner.state())
    assert any(name.startswith("exp_avg.") for name in learner.tuner.accepted)
    assert_same_bits(through, restarted)


def test_a_restart_publishes_no_version_of_its_own(bench: Bench) -> None:
    """The version that served is computed again to the same digest, class weights among it."""
    weighting = ClassWeightConfig(temperature=1.0)
    bench.admit(digit_samples(16))
    loop = run_to(bench.loop(class_weights=weighting), 16)
    before = (loop.progress.version, loop.progress.digest)
    loop.close()
    again = bench.loop(class_weights=weighting)
    again._begin()
    assert (again.progress.version, again.progress.digest) == before


def lineage_of(bench: Bench) -> list[dict[str, Any]]:
    lines = sorted(bench.client.hgetall(bench.keys.lineage).items(), key=lambda item: int(item[0]))
    return [json.loads(text(line).partition(" ")[2]) for _, line in lines]


def hold_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gate find each new adapter worse, whatever the samples say."""

    def judge(learner: Learner, present: Snapshot, candidate: Snapshot, _: Through) -> Verdict:
        assert candidate.adapter is not None
        return Verdict(20, Comparison(before=0.5, after=0.25, error=0.0625))

    monkeypatch.setattr("worker.publication.judge", judge)


def test_an_adapter_that_is_held_back_leaves_a_version_without_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lineage says why, the answer has no adapter, and the tuner is where it was accepted."""
    hold_everything_back(monkeypatch)
    bench.admit(digit_samples(12))
    loop = bench.loop()
    fresh = loop.learner.tuner.adapter()
    run_to(loop, 12)
    published = lineage_of(bench)
    assert [record["gate"] for record in published[:3]] == [None] * 3
    assert published[3]["gate"] == {
        "published": False,
        "held_out": 20,
        "before": 0.5,
        "after": 0.25,
        "error": 0.0625,
    }
    assert published[3]["adapter"] == ""
    assert loop.snapshot.adapter is None
    assert same_bits(loop.learner.tuner.adapter(), fresh)
    assert loop.progress.adapter_batch == 3
    # A sample more is learnt and published as ever, and its version says nothing of a gate.
    bench.admit(digit_samples(16)[12:])
    run_to(loop, 16)
    assert lineage_of(bench)[-1]["gate"] is None
    assert loop.learner.samples == 16


@pytest.mark.parametrize(
    ("dies", "weighted"),
    [
        ("decided", False),
        ("decided", True),
        ("committed", False),
        ("committed", True),
    ],
)
def test_death_after_an_adapter_was_held_back_repeats_the_version(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, dies: str, weighted: bool
) -> None:
    """Whether its commit came or not, the next start ends in the same manifest and the same bits."""
    hold_everything_back(monkeypatch)
    weighting = ClassWeightConfig(temperature=1.0) if weighted else None
    copy = fresh_bench(bench, "-copy")
    for log in (bench, copy):
        log.admit(digit_samples(16))
    through = run_to(bench.loop("through", class_weights=weighting), 16)

    dying = run_to(copy.loop("dying", class_weights=weighting), 8)
    batch = dying._next_batch()
    assert batch is not None
    dying.evidence_clock.observe(batch)
    dying._keep_up()
    dying.adapter_clock.draw()
    assert dying.progress.adapter_due
    if dies == "decided":
        monkeypatch.setattr(StateFile, "save_accepted", fail)
        with pytest.raises(OSError, match="pulled the plug"):
            dying._publish_adapter()
        monkeypatch.undo()
        hold_everything_back(monkeypatch)
    else:
        monkeypatch.setattr(Publisher, "publish", away)
        with pytest.raises(LogUnavailable):
            dying._publish_adapter()
        monkeypatch.undo()
        hold_everything_back(monkeypatch)
        assert dying.unpublished is not None
    decided = dying.snapshot.version
    dying.close()
    survivor = run_to(copy.loop("dying", class_weights=weighting), 16)

    assert decided == (3 if dies == "decided" else 4)
    assert [r["digest"] for r in lineage_of(bench)] == [r["digest"] for r in lineage_of(copy)]
    assert [bool(r["gate"]) for r in lineage_of(copy)] == [False, False, False, True, False]
    assert_same_bits(through, survivor)


def fail(*_: object, **__: object) -> None:
    raise OSError("pulled the plug")


def away(*_: object) -> None:
    raise LogUnavailable("gone")


def test_death_between_any_two_steps_gives_the_same_bits(bench: Bench) -> None:
    """Evidence committed but not published, tuned but not committed: nothing is lost or doubled."""
    bench.admit(digit_samples(20))
    copy = fresh_bench(bench, "-copy")
    copy.admit(digit_samples(20))
    through = run_to(bench.loop("through"), 20)

    for dies_after in ("learn", "observe", "publish", "draw", "tune"):
        loop = copy.loop("dying")
        loop._begin()
        loop._keep_up()
        batch = finish(loop)._next_batch()
        assert batch is not None
        if dies_after == "learn":  # in memory only
            loop.learner.observe(batch.samples, loop.snapshot)
        else:
            loop.evidence_clock.observe(batch)
        if dies_after in {"publish", "draw", "tune"}:
            loop._keep_up()
        if dies_after in {"draw", "tune"}:
            loop.adapter_clock.draw()
        if dies_after == "tune":  # the steps were taken, their commit was not
            assert loop.rounds.taken(wait_s=60)
        loop.close()
    survivor = run_to(copy.loop("dying"), 20)

    assert_same_bits(through, survivor)


def test_long_run_with_evictions_survives_restarts_to_the_bit(bench: Bench) -> None:
    """Past a save of the sums, with a factor that is old and a buffer that is full."""
    pace = replace(PACE, batch_size=2, adapter_every_rounds=5)
    copy = fresh_bench(bench, "-copy")
    for log in (bench, copy):
        log.admit(digit_samples(80))
    through = run_to(bench.loop("through", pace=pace, replay_bytes=BUFFER_BYTES), 80)
    assert len(through.learner.replay) < 60
    assert through.learner.factor_samples < 80
    assert through.state.blob("gram") is not None

    for cursor in (14, 30, 66, 70, 80):
        restarted = run_to(copy.loop("again", pace=pace, replay_bytes=BUFFER_BYTES), cursor)
        if cursor < 80:
            restarted.close()

    assert_same_bits(through, restarted)


@pytest.mark.parametrize("fails", ["head", "pause", "state"])
def test_log_that_goes_away_during_the_start_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A start that was cut short is begun again whole: nothing of it is taken as done."""
    bench.admit(digit_samples(12))
    dying = bench.loop()
    dying._begin()
    batch = dying._next_batch()
    assert batch is not None
    dying.evidence_clock.observe(batch)  # committed, neither published nor tuned
    dying.close()

    again = bench.loop()
    target = again.outbox.publisher if fails == "head" else again.stream
    real, calls = getattr(target, fails), []

    def away_once(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise LogUnavailable("gone for a moment")
        return real(*arguments)

    monkeypatch.setattr(target, fails, away_once)
    run_to(again, 12)

    assert len(calls) > 1
    assert 12 == again.learner.samples
    assert (again.progress.version, again.progress.digest) == Publisher(again.stream).head()
    assert b"" == bench.client.hget(bench.keys.meta, "paused")


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_no_version_is_committed_before_the_last_one_is_the_head(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """A log that goes away for one exchange, whichever, is sent that version before the next."""
    pace = replace(PACE, adapter_every_rounds=1)
    bench.admit(digit_samples(8))
    through = run_to(bench.loop("through", pace=pace), 8)
    assert 4 == through.progress.version  # of which two are an adapter's

    exchanges = [("publish", n) for n in range(1, through.progress.version)]
    exchanges += [(step, 2) for step in ("head", "missing", "store", "collect")]
    exchanges += [(step, 2) for step in ("tell_forgotten", "tell_reports")]
    exchanges += [(step, 2) for step in ("trim", "report", "hold", "read")]
    for step, spoilt in exchanges:
        copy = fresh_bench(bench, f"-{step}-{spoilt}")
        copy.admit(digit_samples(8))
        loop = copy.loop(f"away-{step}-{spoilt}", pace=pace)
        publisher, stream = loop.outbox.publisher, loop.stream
        owner = publisher if hasattr(publisher, step) else stream
        exchange = Spoilt(getattr(owner, step), spoilt, executed=lost == "reply")
        monkeypatch.setattr(owner, step, exchange)
        run_to(loop, 8)
        loop._keep_up()

        assert exchange.calls > spoilt
        assert_same_bits(through, loop)
        assert (loop.progress.version, loop.progress.digest) == loop.outbox.publisher.head()
        loop.close()


@pytest.mark.parametrize("lost", ["request", "reply"])
@pytest.mark.parametrize("step", ["append_control", "wait"])
def test_a_batch_is_cut_once_whatever_exchange_is_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str, lost: str
) -> None:
    """Six samples are a full batch and a cut one: the entry that cuts it is appended once."""
    bench.admit(digit_samples(6))
    loop = bench.loop()
    exchange = Spoilt(getattr(loop.stream, step), 1, executed=lost == "reply")
    monkeypatch.setattr(loop.stream, step, exchange)
    run_to(loop, 7)

    assert exchange.calls > 0
    assert 6 == loop.learner.samples
    controls = [entry.kind for entry in loop.stream.read(6, 10)]
    # Whether a round was under way when the batch was cut is chance.
    assert controls in ([EntryKind.TUNE], [EntryKind.CUT], [EntryKind.CUT, EntryKind.TUNE])


def test_start_makes_up_for_a_trim_that_was_cut_short(bench: Bench) -> None:
    """Published and not trimmed: the next start frees the log, so that admission has its room."""
    bench.admit(digit_samples(4))
    loop = run_to(bench.loop(), 4)
    loop.close()
    bench.client.hset(bench.keys.meta, "done", 0)

    run_to(bench.loop(), 4)
    assert b"4" == bench.client.hget(bench.keys.meta, "done")


def test_over_maxmemory_what_waits_is_still_learnt_and_freed(bench: Bench) -> None:
    """A server that refuses new samples for their memory lets the learner publish and trim."""
    bench.admit(digit_samples(8))
    bench.client.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(LogUnavailable, match="maxmemory"):
            bench.admit(digit_samples(9))
        loop = run_to(bench.loop(), 8)
    finally:
        bench.client.config_set("maxmemory", "256mb")

    assert 8 == Publisher(loop.stream).head()[0] * 4
    assert b"0" == bench.client.hget(bench.keys.meta, "bytes")


def test_idle_adapter_without_exemplars_ends(bench: Bench) -> None:
    """A buffer too small for any exemplar leads to no adapter, and to one decision only."""
    bench.admit(digit_samples(8))
    pace = replace(PACE, adapter_every_rounds=100, adapter_idle_s=0.05)
    loop = bench.loop(pace=pace, replay_bytes=100)
    run_to(loop, 9)
    ended = time.monotonic() + 1.0

    loop.run(lambda: time.monotonic() > ended)
    assert 9 == loop.progress.cursor


def test_learner_without_a_state_does_not_pause_another(bench: Bench) -> None:
    """A second worker with an empty directory stops; the first one's log goes on taking samples."""
    bench.admit(digit_samples(4))
    run_to(bench.loop(), 4)
    bench.client.hset(bench.keys.meta, "kept", 4)
    stranger = bench.loop("empty")
    with pytest.raises(StateError):
        run_to(stranger, 8)

    assert not stranger.stream.pause("I have no state", stranger.holder)
    assert b"" == bench.client.hget(bench.keys.meta, "paused")


def test_bad_entry_goes_to_the_dead_letters_alone(bench: Bench) -> None:
    """A payload that is not a sample costs its neighbours nothing and leaves its reason."""
    good = digit_samples(3)
    bench.admit(good[:1])
    bench.admit_payloads([Admittable("bad", "0" * 64, b"not a sample")])
    bench.admit(good[1:])
    loop = run_to(bench.loop(), 4)

    assert 3 == loop.learner.samples
    reasons = bench.client.hgetall(bench.keys.dead)
    assert [b"2"] == list(reasons)
    assert b"format" in reasons[b"2"] or b"payload" in reasons[b"2"]


def test_picture_that_the_model_answers_with_no_numbers_is_a_dead_letter(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feature that is not finite costs its own sample alone."""
    look = Snapshot.look

    def spoilt(self: Snapshot, hidden: Hidden, **how: Any) -> Views:
        views = look(self, hidden, **how)
        if len(views.feature_BD) == 4:
            views.feature_BD[1] = torch.nan
        return views

    monkeypatch.setattr(Snapshot, "look", spoilt)
    bench.admit(digit_samples(4))
    loop = run_to(bench.loop(), 4)

    assert loop.learner.samples == 3
    assert [b"2"] == list(bench.client.hgetall(bench.keys.dead))
    assert [1, 3, 4] == sorted(exemplar.seq for exemplar in loop.learner.replay)


def test_state_of_another_base_model_is_refused(bench: Bench, tmp_path) -> None:
    """A state names the base model it was made with and says what to set back."""
    bench.admit(digit_samples(4))
    run_to(bench.loop(), 4).close()
    folder = write_tiny_clip(tmp_path / "other")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 4
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    other = load_backbone(str(folder), "random", device=torch.device("cpu"))

    with pytest.raises(StateError, match=r"another base model.*EVERLENS_MODEL"):
        run_to(bench.loop(backbone=other), 8)


def test_state_of_other_settings_is_refused(bench: Bench) -> None:
    """A setting that the state depends on cannot change under it."""
    bench.admit(digit_samples(4))
    run_to(bench.loop(seed=0), 4).close()

    with pytest.raises(StateError, match="EVERLENS_SEED=0, now it is 1"):
        run_to(bench.loop(seed=1), 8)


def test_class_weights_may_be_turned_on_and_off(bench: Bench) -> None:
    """They are no part of what a state was made with: a start goes on with them, or without."""
    samples = digit_samples(28)
    for cursor, weighting in ((12, None), (20, ClassWeightConfig(temperature=1.0)), (28, None)):
        bench.admit(samples[:cursor])
        loop = run_to(bench.loop(class_weights=weighting), cursor)
        assert loop.learner.samples == cursor
        assert loop.snapshot.adapter is not None
        loop.close()


def test_wiped_log_is_noticed(bench: Bench) -> None:
    """A state without its log does not begin anew."""
    bench.admit(digit_samples(4))
    run_to(bench.loop(), 4).close()
    bench.client.delete(bench.keys.meta)

    with pytest.raises(StateError, match="log is empty"):
        run_to(bench.loop(), 8)


def test_exchanged_log_is_noticed(bench: Bench) -> None:
    """A log with another epoch is not learnt from."""
    bench.admit(digit_samples(4))
    run_to(bench.loop(), 4).close()
    bench.client.hset(bench.keys.meta, "epoch", "another")

    with pytest.raises(OtherLog):
        run_to(bench.loop(), 8)


def test_log_behind_the_state_is_noticed(bench: Bench) -> None:
    """An older copy of the log lost samples that were accepted."""
    bench.admit(digit_samples(4))
    run_to(bench.loop(), 4).close()
    bench.client.hset(bench.keys.meta, "seq", 3)

    with pytest.raises(StateError, match="behind"):
        run_to(bench.loop(), 8)


def test_older_log_under_a_running_learner_is_noticed(bench: Bench) -> None:
    """What it took now, under numbers that were learnt before, would be skipped."""
    bench.admit(digit_samples(4))
    loop = run_to(bench.loop(), 4)
    bench.client.hset(bench.keys.meta, "seq", 3)

    with pytest.raises(StateError, match="ends at entry 3, behind the 4"):
        run_to(loop, 8)


def test_lost_state_is_noticed(bench: Bench) -> None:
    """A log that was learnt and freed is not learnt again from the middle."""
    bench.admit(digit_samples(4))
    run_to(bench.loop(), 4).close()
    bench.client.hset(bench.keys.meta, "kept", 4)

    with pytest.raises(StateError, match="no state"):
        run_to(bench.loop("empty"), 8)


def test_second_learner_over_one_state_is_refused(bench: Bench) -> None:
    """The state file belongs to one process."""
    bench.admit(digit_samples(4))
    loop = run_to(bench.loop(), 4)

    with pytest.raises(StateError, match="another learner uses"):
        bench.loop()
    loop.close()


def test_learner_that_lost_its_lease_cannot_publish(bench: Bench) -> None:
    """Whoever was replaced while it slept is fenced off where its writes would land."""
    bench.admit(digit_samples(4))
    old = run_to(bench.loop(), 4)
    bench.client.delete(bench.keys.lease)
    assert Stream(bench.client, bench.keys).hold(old.progress.epoch, "successor")
    before = bench.client.get(bench.keys.head)
    bench.admit(digit_samples(8)[4:])

    with pytest.raises(Fenced):
        run_to(old, 8)
    with pytest.raises(Fenced):
        old.stream.trim(4, 0, 1000)
    with pytest.raises(Fenced):
        old.stream.append_control(EntryKind.CUT, 8)
    assert before == bench.client.get(bench.keys.head)


def test_head_that_moved_on_without_the_state_is_noticed(bench: Bench) -> None:
    """A state restored from an older copy does not publish over newer versions."""
    bench.admit(digit_samples(4))
    loop = run_to(bench.loop(), 4)
    loop.close()
    bench.client.set(bench.keys.head, "7 " + "a" * 64)
    bench.admit(digit_samples(8)[4:])

    with pytest.raises(Diverged):
        run_to(bench.loop(), 8)


def test_other_numerics_go_on_with_a_new_version(bench: Bench) -> None:
    """Where this machine computes other bits, head and state agree again in a new version."""
    bench.admit(digit_samples(4))
    loop = run_to(bench.loop(), 4)
    loop.progress.digest = "b" * 64
    loop.state.save_progress(loop.learner, loop.progress)
    bench.client.set(bench.keys.head, "1 " + "b" * 64)
    loop.close()
    bench.admit(digit_samples(8)[4:])

    again = run_to(bench.loop(), 8)
    assert 3 == again.progress.version
    assert (3, again.progress.digest) == Publisher(again.stream).head()
