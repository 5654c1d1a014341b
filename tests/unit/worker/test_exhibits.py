"""What lies in the replay buffer is shown to who asks, and the learner learns on undisturbed."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from everlens.bus.connect import connect, connect_async
from everlens.bus.exhibits import Answering, Asking
from everlens.errors import LearnerSilent
from everlens.exhibits import EXHIBITS_MAX, Exhibit, Question
from everlens.pixels import decode_pixels
from tests.unit.worker.conftest import Bench, digit_samples, run_to
from worker.exhibits import Exhibits, Gallery
from worker.loop import Loop


@contextlib.contextmanager
def looked_at(loop: Loop, bytes_max: int = 1 << 20) -> Iterator[Gallery]:
    with contextlib.closing(Gallery(loop.state.path, bytes_max)) as gallery:
        yield gallery


def by_a_loop(loop: Loop, feature: np.ndarray, count: int) -> list[tuple[str, float]]:
    """Return id and cosine of the nearest exemplars, one after the other in float64."""
    cosines = []
    for row in loop.state.rows_after(0):
        if any(exemplar.seq == row.seq for exemplar in loop.learner.replay):
            other = row.feature_D.double().numpy()
            norms = np.linalg.norm(feature) * np.linalg.norm(other)
            cosines.append((row.id, float(feature @ other / norms)))
    return sorted(cosines, key=lambda pair: -pair[1])[:count]


def feature_of(loop: Loop, seq: int) -> np.ndarray:
    rows = {row.seq: row for row in loop.state.rows_after(0)}
    return rows[seq].feature_D.double().numpy()


def test_the_nearest_are_those_that_a_loop_finds(bench: Bench) -> None:
    """By cosine of frozen features, nearest first, each with its id, label and the learnt JPEG."""
    samples = digit_samples(12)
    bench.admit(samples)
    loop = run_to(bench.loop(tune="none"), 12)
    feature = feature_of(loop, 5) + 0.1 * feature_of(loop, 7)
    with looked_at(loop) as gallery:
        shown = gallery.nearest(feature.astype("<f4").tobytes(), 4)
        expected = by_a_loop(loop, feature, 4)
        assert [exhibit.id for exhibit in shown] == [name for name, _ in expected]
        # Float32 sums of a few hundred terms.
        assert [e.similarity for e in shown] == pytest.approx([c for _, c in expected], abs=1e-6)
        by_id = {sample.id: sample for sample in samples}
        for exhibit in shown:
            assert (exhibit.label, exhibit.image) == (
                by_id[exhibit.id].label,
                by_id[exhibit.id].image,
            )
            assert decode_pixels(exhibit.image, 32).shape == (32, 32, 3)
        assert gallery.of_sample(5) == Exhibit("digit-4", samples[4].label, 1.0, samples[4].image)
        assert gallery.of_sample(99) is None
        # What is no feature of this state has no neighbours.
        for other in (b"", bytes(len(feature) * 4), feature[1:].astype("<f4").tobytes()):
            assert gallery.nearest(other, 4) == []
    loop.close()


def test_a_picture_that_was_sent_twice_is_shown_once(bench: Bench) -> None:
    """Under one label, by the sample that is nearer or came first; under two labels twice."""
    first, second, third = digit_samples(3)
    again = [replace(first, id="again"), replace(first, id="other", label="another")]
    bench.admit([first, second, third, *again])
    loop = run_to(bench.loop(tune="none"), 5)
    with looked_at(loop) as gallery:
        shown = gallery.nearest(feature_of(loop, 1).astype("<f4").tobytes(), EXHIBITS_MAX)
        assert {exhibit.id for exhibit in shown[:2]} == {"digit-0", "other"}
        assert {exhibit.id for exhibit in shown[2:]} == {"digit-1", "digit-2"}
    loop.close()


def test_what_came_is_shown_and_what_went_is_not(bench: Bench) -> None:
    """After each commit the matrix is the buffer's, whose old exemplars made room."""
    bench.admit(digit_samples(40))
    loop = bench.loop(tune="none", replay_bytes=40_000)
    with looked_at(loop) as gallery:
        assert gallery.nearest(b"\0\0\x80?", 6) == []  # nothing is learnt yet
        for cursor in (8, 24, 40):
            run_to(loop, cursor)
            kept = {exemplar.seq for exemplar in loop.learner.replay}
            gallery.refresh()
            assert set(gallery._seq_N.tolist()) == kept
            for seq, unit_D in zip(gallery._seq_N.tolist(), gallery._unit_ND, strict=True):
                expected = feature_of(loop, seq)
                np.testing.assert_allclose(unit_D, expected / np.linalg.norm(expected), atol=1e-6)
        assert len(kept) < 40
        gone = min(set(range(1, 41)) - kept)
        assert gallery.of_sample(gone) is None
    loop.close()


def test_the_matrix_keeps_to_its_bytes_with_all_classes_in_it(bench: Bench) -> None:
    """Where not all exemplars fit, the newest of each class count first."""
    bench.admit(digit_samples(40))
    loop = run_to(bench.loop(tune="none"), 40)
    width = len(feature_of(loop, 1))
    classes = {e.seq: e.class_index for e in loop.learner.replay}
    with looked_at(loop, bytes_max=4 * width * 12 + 3) as gallery:
        gallery.refresh()
        assert gallery._unit_ND.nbytes == 4 * width * 12
        newest = {c: max(seq for seq in classes if classes[seq] == c) for c in classes.values()}
        assert set(newest.values()) <= set(gallery._seq_N.tolist())
    loop.close()


def test_looking_holds_up_no_commit_and_writes_nothing(bench: Bench) -> None:
    """Between two looks the log of the state file can be folded back whole; the file is not ours."""
    bench.admit(digit_samples(12))
    loop = run_to(bench.loop(tune="none"), 12)
    with looked_at(loop) as gallery:
        assert len(gallery.nearest(feature_of(loop, 3).astype("<f4").tobytes(), 6)) == 6
        busy, _, _ = loop.state.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0
        assert gallery._db is not None
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            gallery._db.execute("DELETE FROM exemplars")
        plan = gallery._rows("EXPLAIN QUERY PLAN SELECT seq FROM exemplars GROUP BY class_index")
        assert "COVERING INDEX exemplars_by_class" in str(plan)
    loop.state.verify_all()
    loop.close()


@contextlib.contextmanager
def answering(bench: Bench, loop: Loop, *, at_work: bool = True) -> Iterator[Exhibits]:
    """Run the learner's thread as the learner does."""
    client = connect(bench.url)
    exhibits = Exhibits(
        Gallery(loop.state.path), Answering(client, bench.keys), lambda: at_work and loop.begun
    )
    exhibits.start()
    deadline = time.monotonic() + 60
    while not dict(bench.client.pubsub_numsub(bench.keys.questions))[bench.keys.questions.encode()]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield exhibits
    finally:
        exhibits.close()
        assert not exhibits._thread.is_alive()
        client.close()


def test_a_service_elsewhere_is_answered_also_by_the_next_learner(bench: Bench) -> None:
    """Over the log's server alone: by the thread beside a learner, and after a restart again."""
    samples = digit_samples(12)
    bench.admit(samples)

    async def ask(feature: bytes) -> tuple[list[Exhibit], Exhibit | None, Exhibit | None]:
        client = connect_async(bench.url)
        asking = Asking(client, bench.keys, wait_s=60)
        try:
            several = await asyncio.gather(*(asking.nearest(feature) for _ in range(20)))
            assert all(shown == several[0] for shown in several)
            return several[0], await asking.of_sample(2), await asking.of_sample(77)
        finally:
            await client.aclose()

    for _ in range(2):
        loop = run_to(bench.loop(tune="none"), 12)
        feature = feature_of(loop, 4)
        with answering(bench, loop):
            shown, one, none = asyncio.run(ask(feature.astype("<f4").tobytes()))
        assert [e.id for e in shown] == [name for name, _ in by_a_loop(loop, feature, EXHIBITS_MAX)]
        assert shown[0].similarity == pytest.approx(1, abs=1e-6)
        assert one is not None
        assert (one.id, one.image) == ("digit-1", samples[1].image)
        assert none is None
        loop.close()
    # Nothing is left in the server, but what the learner itself keeps there.
    names = {key.decode() for key in bench.client.scan_iter(f"{{{bench.keys.namespace}}}*")}
    assert not [name for name in names if "question" in name or "answer" in name]


def test_a_silent_learner_is_said_at_once_or_in_time(bench: Bench) -> None:
    """None at work: nobody listens, which is known at once. One that only waits keeps still."""
    bench.admit(digit_samples(4))
    loop = run_to(bench.loop(tune="none"), 4)

    async def ask(wait_s: float) -> None:
        client = connect_async(bench.url)
        try:
            await Asking(client, bench.keys, wait_s).of_sample(1)
        finally:
            await client.aclose()

    with pytest.raises(LearnerSilent, match="none is at work"):
        asyncio.run(ask(30))
    with (
        answering(bench, loop, at_work=False),
        pytest.raises(LearnerSilent, match=r"within 0\.2 s"),
    ):
        asyncio.run(ask(0.2))
    loop.close()


def test_hostile_answers_are_none(bench: Bench) -> None:
    """Bytes that no learner sends are silence with a reason, and the next question is answered."""
    sent = iter([b"[{}]", b"\xff" * 1000, b"[" * 10_000])
    stopping = threading.Event()
    client = connect(bench.url)
    listening = threading.Event()

    class Hostile(Answering):
        def answer(self, question: Question, exhibits: list[Exhibit]) -> None:
            self.client.publish(self.keys.answer(question.token), next(sent))

    def hostile() -> None:
        desk = Hostile(client, bench.keys)
        questions = desk.questions(0.05)
        next(questions)  # None: listening by now
        listening.set()
        for question in questions:
            if stopping.is_set():
                return
            if question is not None:
                desk.answer(question, [])

    thread = threading.Thread(target=hostile)
    thread.start()

    async def ask() -> list[str]:
        connection = connect_async(bench.url)
        said = []
        for _ in range(3):
            with pytest.raises(LearnerSilent) as error:
                await Asking(connection, bench.keys, 60).nearest(b"\0\0\x80?")
            said.append(str(error.value))
        await connection.aclose()
        return said

    try:
        assert listening.wait(60)
        assert all("cannot be used" in said for said in asyncio.run(ask()))
    finally:
        stopping.set()
        thread.join()
        client.close()
