"""Samples and classes that are unlearnt, names that are refused, and learning that is held."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from everlens.bus.admission import Admission, Admittable
from everlens.bus.connect import connect_async
from everlens.bus.stream import LEASE_MS
from everlens.bus.versions import Publisher
from everlens.bus.witness import Witness
from everlens.errors import LogUnavailable
from everlens.model.snapshot import Snapshot
from everlens.pixels import decode_pixels
from everlens.records import Activation, EntryKind, Forgetting, Rejection, Sample
from everlens.wire import encode_activation, encode_forgetting, encode_rejection
from tests.unit.worker.conftest import (
    LIMITS,
    PACE,
    Bench,
    digit_samples,
    finish,
    fresh_bench,
    run_to,
    until_cursor,
)
from tests.unit.worker.test_loop import assert_same_bits, everything
from worker.learn.evidence import EvidenceSums
from worker.learn.held_out import held_out_accuracy
from worker.lease import Lease
from worker.loop import Loop

# Float64 sums of a few dozen products below one, added in another order.
REORDERED = 1e-12
# A float32 factor of them, and what follows from it.
SINGLE = 2e-5


def forget(bench: Bench, *wishes: Forgetting) -> None:
    """Admit forgettings, and the entry that ends their batch."""
    entries = [(EntryKind.FORGET, encode_forgetting(wish)) for wish in wishes]
    append(bench, [*entries, (EntryKind.TUNE, b"")])


def refuse(bench: Bench, *rejections: Rejection) -> None:
    """Admit rejections, and the entry that ends their batch."""
    entries = [(EntryKind.REJECT, encode_rejection(rejection)) for rejection in rejections]
    append(bench, [*entries, (EntryKind.TUNE, b"")])


def append(bench: Bench, entries: list[tuple[EntryKind, bytes]]) -> None:
    state = bench.stream().state()
    assert state is not None
    names = [f"{kind.value}-{state.seq + k}" for k, (kind, _) in enumerate(entries, start=1)]
    bench.admit_payloads(
        [
            Admittable(name, "same", payload, kind=kind)
            for name, (kind, payload) in zip(names, entries, strict=True)
        ]
    )


def answers(snapshot: Snapshot, samples: list[Sample]) -> torch.Tensor:
    """Return the frozen evidence's cosines of pictures with all learnt classes."""
    views = snapshot.see([decode_pixels(s.image, 32) for s in samples])
    scores = snapshot.scores(views, None, snapshot.classes.text_CE)
    assert scores.evidence_BK is not None
    return scores.evidence_BK


def told(bench: Bench) -> tuple[dict[int, int], dict[int, dict[str, object]]]:
    """Return what services can read of forgotten samples, and of what forgettings did."""
    forgotten = bench.client.hgetall(bench.keys.forgotten)
    reports = bench.client.hgetall(bench.keys.reports)
    return (
        {int(seq): int(version) for seq, version in forgotten.items()},
        {int(seq): json.loads(report) for seq, report in reports.items()},
    )


def test_forgotten_sample_might_never_have_been(bench: Bench) -> None:
    """Sums, buffer and answers are those of a learner that never saw it; services can read so."""
    samples, other = digit_samples(12), fresh_bench(bench, "-without")
    bench.admit(samples)
    other.admit(samples[:2] + samples[3:9] + samples[10:])
    forget(bench, Forgetting(seq=3), Forgetting(seq=10))
    forget(bench, Forgetting(seq=3))
    loop = run_to(bench.loop(tune="none"), 17)
    never = run_to(other.loop("never", tune="none"), 10)

    assert loop.learner.sums is not None
    assert never.learner.sums is not None
    loop.learner.sums.make_room(10)
    never.learner.sums.make_room(10)
    names = never.learner.class_names
    order = [loop.learner.class_index[name] for name in names]
    found, expected = loop.learner.sums, never.learner.sums
    torch.testing.assert_close(found.gram_DD, expected.gram_DD, rtol=REORDERED, atol=REORDERED)
    torch.testing.assert_close(
        found.sum_CD[order], expected.sum_CD[: len(order)], rtol=REORDERED, atol=REORDERED
    )
    assert found.count_C[order].tolist() == expected.count_C[: len(order)].tolist()
    places = [list(loop.snapshot.learnt).index(name) for name in never.snapshot.learnt]
    found_BK, expected_BK = (answers(s.snapshot, samples) for s in (loop, never))
    torch.testing.assert_close(found_BK[:, places], expected_BK, rtol=0, atol=SINGLE)
    assert {e.seq for e in loop.learner.replay} == set(range(1, 13)) - {3, 10}
    version = loop.progress.version - 1
    forgotten, reports = told(bench)
    assert forgotten == {3: version, 10: version}
    assert [reports[seq]["samples"] for seq in (13, 14, 16)] == [1, 1, 0]
    assert not bench.client.hlen(bench.keys.dead)  # to forget it again is no mistake
    loop.close()
    never.close()


def test_forgotten_class_is_gone_and_begins_anew(bench: Bench) -> None:
    """It is no candidate, nothing of it is kept, no adapter knows it; its next label is a first."""
    samples = sorted(digit_samples(60), key=lambda s: s.label not in {"nine", "one", "two"})[:14]
    gone = samples[0].label
    own = [k for k, sample in enumerate(samples, start=1) if sample.label == gone]
    bench.admit(samples)
    loop = run_to(bench.loop(), 12)
    loop.progress.adapter_due = True
    loop._publish_adapter()
    adapter = loop.snapshot.adapter
    assert adapter is not None
    index = loop.learner.class_index[gone]
    assert adapter.vector_CD.at([index]).any()
    bench.admit([Sample("late", gone, samples[1].image)])
    forget(bench, Forgetting(seq=15))
    part = loop.progress.parts["adapter/0"]
    run_to(loop, 17)
    assert loop.progress.parts["adapter/0"] == part  # what came later is not in it
    forget(bench, Forgetting(label=gone), Forgetting(label="never heard of"))
    run_to(loop, 20)

    assert gone not in loop.snapshot.learnt
    assert loop.learner.samples == 14 - len(own)
    assert {e.class_index for e in loop.learner.replay}.isdisjoint({index})
    assert loop.snapshot.adapter is not None
    assert not loop.snapshot.adapter.vector_CD.at([index]).any()
    assert loop.snapshot.tuned_top is not None
    assert not loop.learner.scoring.records.record_CK[index].any()
    assert loop.learner.sums is not None
    assert not loop.learner.sums.sum_CD[index].any()
    forgotten, reports = told(bench)
    assert sorted(forgotten) == [*own, 15]
    assert reports[18] == {
        "label": gone,
        "samples": len(own),
        "rejections": 0,
        "exemplars": len(own),
        "adapter": True,
        "held_out": 0,
        "before": None,
        "after": None,
    }
    assert reports[19]["samples"] == 0
    again = [Sample(f"again-{k}", gone, samples[k].image) for k in range(4)]
    bench.admit(again)
    run_to(loop, 24)
    assert loop.snapshot.samples(gone) == 4
    assert loop.learner.class_index[gone] == index
    loop.close()


def test_adapter_is_published_anew_though_nobody_teaches(bench: Bench) -> None:
    """Its closed form is without what is unlearnt after a pause, and knows the rest of the class."""
    samples = digit_samples(12)
    bench.admit(samples)
    loop = run_to(bench.loop(pace=replace(PACE, adapter_idle_s=0.05)), 12)
    loop.progress.adapter_due = True
    loop._publish_adapter()
    before = loop.progress.parts["adapter/factor"]
    index = loop.learner.class_index[samples[0].label]
    forget(bench, Forgetting(seq=1))
    run_to(loop, 14)
    assert loop.learner.sums is not None
    assert loop.learner.sums.count_C[index] > 0
    assert loop.snapshot.adapter is not None
    assert not loop.snapshot.adapter.vector_CD.at([index]).any()
    loop.close()

    loop = run_to(bench.loop(pace=replace(PACE, adapter_idle_s=0.05)), 15)
    assert loop.snapshot.adapter is not None
    assert loop.snapshot.adapter.vector_CD.at([index]).any()
    assert loop.progress.parts["adapter/factor"] != before
    loop.run(until_turns(loop, 5))
    assert bench.stream().read(14, 9)[0].kind is EntryKind.ADAPTER
    assert loop.progress.cursor == 15  # once
    loop.close()


def until_turns(loop: Loop, turns: int) -> Callable[[], bool]:
    """Return a stop condition: the learner has looked so often and found nothing to do."""
    looks = iter(range(turns))
    return lambda: loop.unpublished is None and next(looks, None) is None


def test_report_says_how_well_the_other_classes_are_told_apart(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out samples of the others are put to the version before and to the one after."""
    monkeypatch.setattr("worker.learn.learner.HOLD_OUT_EVERY", 2)
    samples = [s for s in digit_samples(80) if s.label in {"zero", "one", "two"}][:16]
    bench.admit(samples)
    forget(bench, Forgetting(label="two"))
    loop = run_to(bench.loop(tune="none"), 18)
    held = loop.learner.replay.held_out(100)
    assert len(held) >= 2
    (report,) = told(bench)[1].values()
    assert report["held_out"] == len(held)
    before, after = report["before"], report["after"]
    assert isinstance(before, float)
    assert isinstance(after, float)
    # A rival less: what was right stays right but for the metric, which is another one.
    assert 0 <= before <= after + 0.5
    assert after > 0.5
    loop.close()


def test_restart_after_forgettings_gives_the_same_bits(bench: Bench) -> None:
    """Killed anywhere, also between commit and publication, it comes to what never was killed."""
    samples = digit_samples(28)
    copy = fresh_bench(bench, "-copy")
    for log in (bench, copy):
        log.admit(samples[:16])
        refuse(log, Rejection("no", samples[3].label, samples[20].image))
        forget(log, Forgetting(seq=2), Forgetting(label=samples[0].label))
        forget(log, Forgetting(seq=17))
        log.admit(samples[16:])
    through = run_to(bench.loop("through"), 35)
    run_to(copy.loop("dying"), 16).close()
    dying = run_to(copy.loop("dying"), 18)
    batch = dying._next_batch()
    assert batch is not None
    assert batch.forgettings
    dying.evidence_clock.forget(batch)  # committed, and never published
    dying.close()
    survivor = run_to(copy.loop("dying"), 35)

    assert_same_bits(through, survivor)
    assert told(bench) == told(copy)
    assert len(told(copy)[0]) > 2
    assert through.learner.sums is not None
    assert not through.learner.sums.refused
    survivor.close()
    again = copy.loop("dying")
    assert again._begin()
    assert_same_bits(through, again)
    assert Publisher(again.stream).head() == (again.progress.version, again.progress.digest)
    again.close()
    through.close()


def test_next_round_sees_nothing_of_a_forgotten_sample(bench: Bench) -> None:
    """Neither what waited for it nor what was to be replayed; rounds drawn before are taken first."""
    samples = digit_samples(6)
    bench.admit(samples)
    append(bench, [(EntryKind.CUT, b"")])
    loop = bench.loop()
    loop.run(until_cursor(loop, 7))
    assert {e.seq for e in loop.learner.waiting} == {5, 6}
    forget(bench, Forgetting(seq=5), Forgetting(seq=1))
    loop.run(until_cursor(loop, 9))
    assert loop.rounds.owed <= 1
    rounds = loop.state.rounds()
    for drawn in rounds:
        seen = {e.seq for draw in drawn.draws for e in (*draw.new, *draw.replayed)}
        assert seen.isdisjoint({1, 5})
        assert 6 in seen
    assert rounds or loop.learner.tuner.steps_drawn > 8
    finish(loop)
    loop.close()


def test_forgetting_of_what_was_never_learnt_is_a_dead_letter(bench: Bench) -> None:
    """It says so, and costs nobody else anything."""
    bench.admit(digit_samples(4))
    forget(bench, Forgetting(seq=9), Forgetting(seq=5), Forgetting(seq=2))
    loop = run_to(bench.loop(tune="none"), 8)
    dead = bench.client.hgetall(bench.keys.dead)
    assert list(dead) == [b"5", b"6"]
    assert b"entry 9 is not among the samples" in dead[b"5"]
    assert loop.learner.samples == 3
    assert sorted(told(bench)[1]) == [7]
    loop.close()


def test_many_forgettings_are_one_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for one by one, they cost one factor and one version, whatever a batch of pictures is."""
    bench.admit(digit_samples(12))
    loop = run_to(bench.loop(tune="none"), 12)
    version, factor, factors = loop.progress.version, EvidenceSums.factor, []

    def counted(sums: EvidenceSums) -> torch.Tensor:
        factors.append(sums)
        return factor(sums)

    monkeypatch.setattr(EvidenceSums, "factor", counted)
    forget(bench, *(Forgetting(seq=seq) for seq in range(1, 11)))
    run_to(loop, 23)
    assert loop.learner.samples == 2
    assert (len(factors), loop.progress.version) == (1, version + 1)
    assert sorted(told(bench)[1]) == list(range(13, 23))
    loop.close()


@pytest.mark.parametrize("how", ["a class", "all that came since"])
def test_lease_is_held_while_many_samples_are_forgotten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """However long it takes to read its rows and to write them: nobody takes the log over."""
    bench.admit([replace(sample, label="one") for sample in digit_samples(24)])
    loop = run_to(bench.loop(tune="none"), 24)
    if how == "a class":
        forget(bench, Forgetting(label="one"))
    else:
        append(bench, [(EntryKind.ACTIVATE, encode_activation(Activation(0, 0, b"")))])
    batch = loop._next_batch()
    assert batch is not None
    monkeypatch.setattr("worker.lease._RENEWAL_S", 0.0)
    left_ms = []

    def slowly(renewing: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def rows(of: Lease, some: Iterable[Any]) -> Iterator[Any]:
            for row in renewing(of, some):
                left_ms.append(bench.client.pttl(bench.keys.lease))
                bench.client.pexpire(bench.keys.lease, 50)  # as if much of it had gone by
                yield row

        return rows

    monkeypatch.setattr(Lease, "through", slowly(Lease.through))
    if batch.activation is None:
        loop.evidence_clock.forget(batch)
    else:
        loop.evidence_clock.activate(batch, batch.activation)
    assert len(left_ms) == 3 * 24  # read, taken out, noted
    assert min(left_ms) > LEASE_MS - 5000
    loop.close()


def test_log_that_goes_away_while_a_class_is_forgotten_is_not_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half forgotten in memory is forgotten to the end, and committed."""
    bench.admit([replace(sample, label="one") for sample in digit_samples(8)])
    loop = run_to(bench.loop(tune="none"), 8)
    forget(bench, Forgetting(label="one"))
    batch = loop._next_batch()
    assert batch is not None
    monkeypatch.setattr("worker.lease._RENEWAL_S", 0.0)
    hold, away = loop.stream.hold, []

    def fails(*arguments: object) -> bool:
        if len(arguments) == 2:  # not the lease of a turn, which names the cursor
            away.append(arguments)
            raise LogUnavailable("gone for a moment")
        return hold(*arguments)  # type: ignore[arg-type]

    loop.stream.hold = fails  # type: ignore[method-assign,assignment]
    loop.evidence_clock.forget(batch)
    assert len(away) == 24
    assert loop.learner.samples == 0
    assert loop.progress.cursor == 10
    loop.close()


def test_sample_held_out_of_a_class_that_lost_the_others_is_not_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learnt without itself it would be of no class at all, and no adapter would ever pass."""
    monkeypatch.setattr("worker.learn.learner.HOLD_OUT_EVERY", 1)
    samples = [s for s in digit_samples(90) if s.label in {"zero", "one"}][:16]
    bench.admit(samples)
    loop = run_to(bench.loop(tune="none"), 16)
    ones = [e.seq for e in loop.learner.replay.held_out(100) if e.class_index == 1]
    assert ones
    gone = [k for k, s in enumerate(samples, 1) if s.label == samples[1].label and k != ones[-1]]
    forget(bench, *(Forgetting(seq=seq) for seq in gone))
    run_to(loop, 17 + len(gone))
    assert loop.learner.sums is not None
    count, accuracy = held_out_accuracy(loop.learner, [loop.snapshot])
    assert 0 < count < len(loop.learner.replay.held_out(100))
    assert accuracy[0] > 0
    loop.close()


def test_refused_answer_counts_as_wrong_and_leads_its_class_away(bench: Bench) -> None:
    """It is scored first; no sum of a label moves, no class is made, and it can be taken back."""
    samples = digit_samples(21)
    bench.admit(samples[:16])
    loop = run_to(bench.loop(tune="none"), 16)
    asked = samples[20]
    best = loop.snapshot.learnt[int(answers(loop.snapshot, [asked])[0].argmax())]
    views = loop.snapshot.see([decode_pixels(asked.image, 32)])
    served = loop.snapshot.answer(views, None, loop.snapshot.classes.text_CE).probability_BK
    named = loop.snapshot.learnt[int(served.argmax())]
    other = next(name for name in loop.snapshot.learnt if name not in {named, best})
    before, scored = everything(loop), loop.learner.scoring.prequential.scored
    right = loop.learner.scoring.prequential.correct
    first_BK = answers(loop.snapshot, [asked])
    refuse(
        bench,
        Rejection("wrong", named, asked.image),
        Rejection("not asked", other, asked.image),
        Rejection("unheard of", "a unicorn", asked.image),
    )
    run_to(loop, 20)

    assert loop.learner.scoring.prequential.scored == scored + 1
    assert loop.learner.scoring.prequential.correct == right
    assert "a unicorn" not in loop.learner.class_index
    for name in ("gram_DD", "sum_CD", "count_C"):
        assert torch.equal(everything(loop)[name], before[name])
    after_BK = answers(loop.snapshot, [asked])
    places = [list(loop.snapshot.learnt).index(name) for name in (named, other)]
    assert all(after_BK[0, place] < first_BK[0, place] for place in places)
    rest = [k for k in range(after_BK.shape[1]) if k not in places]
    assert torch.equal(after_BK[:, rest], first_BK[:, rest])
    assert len(loop.learner.replay) == 16
    assert not bench.client.hlen(bench.keys.dead)

    forget(bench, Forgetting(seq=17), Forgetting(seq=18))
    run_to(loop, 23)
    again_BK = answers(loop.snapshot, [asked])
    torch.testing.assert_close(again_BK[:, places], first_BK[:, places], rtol=0, atol=SINGLE)
    assert [report["rejections"] for report in told(bench)[1].values()] == [1, 1]
    loop.close()


def test_held_learner_takes_nothing_up(bench: Bench) -> None:
    """Held before a start or within one: samples wait, nothing is written; then all are learnt."""

    def hold(reason: str) -> None:
        async def send() -> None:
            connection = connect_async(bench.url)
            admission = Admission(connection, bench.keys, LIMITS, Witness(bench.directory / "w"))
            await admission.hold(reason)
            await connection.aclose()

        asyncio.run(send())

    hold("labels are being checked")
    bench.admit(digit_samples(6))
    loop = bench.loop(tune="none")
    ended = threading.Event()
    loop.run(lambda: hasattr(loop, "progress") and loop.stream.held != "")
    assert loop.stream.held == "labels are being checked"
    learner = threading.Thread(target=lambda: loop.run(ended.is_set))
    turns, hold_lease = 0, loop.stream.hold

    def counted(*arguments: object) -> bool:
        nonlocal turns
        turns += 1
        if turns == 4:
            ended.set()
        return hold_lease(*arguments)  # type: ignore[arg-type]

    loop.stream.hold = counted  # type: ignore[method-assign,assignment]
    learner.start()
    learner.join(60)
    assert turns >= 4
    assert loop.progress.cursor == 0
    state = bench.stream().state()
    assert state is not None
    assert state.seq == 6  # no border was written either
    hold("")
    run_to(loop, 6)
    assert loop.learner.samples == 6
    loop.close()
