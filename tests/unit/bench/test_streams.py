"""Streams: which picture comes when, and that none comes twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.lab.streams import (
    Numbers,
    Stream,
    class_incremental,
    correlated,
    domain_incremental,
    exam_places,
    long_tailed,
    noisy,
    poisoned,
    shuffled,
    si_blurry,
)

DOMAINS = 3
MAKERS: dict[str, Callable[[Numbers, int], Stream]] = {
    "class-incremental": lambda labels, seed: class_incremental(labels, 4, seed),
    "si-blurry": si_blurry,
    "domain-incremental": lambda labels, seed: domain_incremental(
        labels, domains_of(labels), 2, seed
    ),
    "correlated": lambda labels, seed: correlated(labels, 9, seed),
    "shuffled": lambda labels, seed: shuffled(labels, 4, seed),
    "long-tailed": lambda labels, seed: long_tailed(labels, 8, 1, seed),
    "noisy": lambda labels, seed: noisy(shuffled(labels, 4, seed), 20, 0.3, seed),
}


def domains_of(labels: Numbers) -> Numbers:
    return np.arange(len(labels), dtype=np.int64) % DOMAINS


def table(classes: int, each: int, seed: int = 0) -> Numbers:
    """Labels of a split with `each` pictures a class, mixed."""
    labels = np.repeat(np.arange(classes, dtype=np.int64), each)
    return np.random.default_rng(seed).permutation(labels)


def task_of_place(stream: Stream) -> Numbers:
    return np.repeat(np.arange(len(stream.tasks)), [end - start for start, end in stream.tasks])


def runs(labels: Numbers) -> int:
    """How many stretches of one label."""
    return 1 + int((labels[1:] != labels[:-1]).sum())


@given(
    labels=st.lists(st.integers(0, 12), min_size=1, max_size=80),
    seed=st.integers(0, 5),
    kind=st.sampled_from(sorted(MAKERS)),
)
def test_a_stream_is_whole(labels: list[int], seed: int, kind: str) -> None:
    """No picture twice; true labels where none is flipped; exams and tasks cover the stream."""
    labels_N = np.array(labels, np.int64)
    stream = MAKERS[kind](labels_N, seed)
    total = len(stream.order)
    assert len(set(stream.order.tolist())) == total == len(stream.labels) > 0
    assert stream.order.dtype == stream.labels.dtype == np.int64
    if kind != "noisy":
        assert stream.labels.tolist() == labels_N[stream.order].tolist()
    assert list(stream.exam) == sorted(set(stream.exam))
    assert stream.exam[0] > 0
    assert stream.exam[-1] == total
    ends = [end for _, end in stream.tasks]
    assert [start for start, _ in stream.tasks] == [0, *ends[:-1]]
    assert ends[-1] == total
    assert all(start < end for start, end in stream.tasks)
    assert set(ends) <= set(stream.exam)
    again, other = MAKERS[kind](labels_N, seed), MAKERS[kind](labels_N, seed + 1)
    assert again.order.tolist() == stream.order.tolist()
    assert again.labels.tolist() == stream.labels.tolist()
    assert again.name == stream.name == other.name


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_another_seed_is_another_order(kind: str) -> None:
    """Repeats of a measurement differ."""
    labels = table(20, 12)
    assert MAKERS[kind](labels, 1).order.tolist() != MAKERS[kind](labels, 2).order.tolist()


def test_poison_is_at_the_end_alone() -> None:
    """The first labels are the true ones; of the burst exactly the share is wrong."""
    clean = shuffled(table(5, 20), 20, 0)
    stream = poisoned(clean, 5, 0.3, 40, 0)
    wrong = stream.labels != clean.labels
    assert not wrong[:-40].any()
    assert int(wrong[-40:].sum()) == 12


def test_even_readings_and_the_ends_of_tasks() -> None:
    """Evenly spaced places give way to a task's end nearby, and not to one far away."""
    assert exam_places(100) == (20, 40, 60, 80, 100)
    assert exam_places(100, (), 10) == (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    assert exam_places(100, [11, 33], 10) == (11, 20, 33, 40, 50, 60, 70, 80, 90, 100)
    assert exam_places(100, [25], 10) == (10, 25, 40, 50, 60, 70, 80, 90, 100)
    assert exam_places(3) == (1, 2, 3)
    assert exam_places(1) == (1,)


def test_class_incremental_brings_each_class_once() -> None:
    """One run a class, of `shots` pictures or as many as there are; five tasks of whole classes."""
    labels = np.concatenate([table(25, 6), np.full(2, 25)])
    stream = class_incremental(labels, 4, 3)
    assert runs(stream.labels) == 26
    counts = np.bincount(stream.labels)
    assert counts.tolist() == [4] * 25 + [2]
    assert len(stream.tasks) == 5
    classes = [set(stream.labels[start:end].tolist()) for start, end in stream.tasks]
    assert sum(map(len, classes)) == 26
    assert {len(group) for group in classes} == {5, 6}
    first = {class_incremental(labels, 4, seed).labels[0] for seed in range(10)}
    assert len(first) > 3


@pytest.mark.parametrize("seed", range(5))
def test_si_blurry_shares(seed: int) -> None:
    """Half of the classes keep to one task; a tenth of the others' pictures at most has moved."""
    classes, each = 40, 30
    labels = table(classes, each)
    stream = si_blurry(labels, seed)
    assert len(stream.order) == classes * each
    tasks = task_of_place(stream)
    away, spread = 0, 0
    for c in range(classes):
        count_T = np.bincount(tasks[stream.labels == c], minlength=len(stream.tasks))
        away += each - int(count_T.max())
        spread += int((count_T > 0).sum() > 1)
    assert spread <= classes // 2
    moved = round(0.1 * each * classes / 2)
    # Fewer than moved: some took the place of one from the same task.
    assert 0.2 * moved < away <= moved
    # Within a task the pictures are mixed.
    assert runs(stream.labels) > 0.7 * len(stream.labels)
    # Pictures change places, so that sizes of tasks stay those of whole classes.
    assert all((end - start) % each == 0 for start, end in stream.tasks)


def test_si_blurry_without_blur_is_disjoint() -> None:
    """Either constant alone makes every class keep to its task; all blur scatters the classes."""
    labels = table(20, 10)
    for stream in (si_blurry(labels, 1, blurry=0.0), si_blurry(labels, 1, disjoint=1.0)):
        tasks = task_of_place(stream)
        assert all(len(set(tasks[stream.labels == c].tolist())) == 1 for c in range(20))
    stream = si_blurry(labels, 1, disjoint=0.0, blurry=1.0)
    tasks = task_of_place(stream)
    assert np.mean([len(set(tasks[stream.labels == c].tolist())) for c in range(20)]) > 2


def test_domains_come_one_after_another() -> None:
    """Each domain is a task with `shots` pictures of each class in it, mixed."""
    labels = table(6, 30)
    domains = domains_of(labels)
    stream = domain_incremental(labels, domains, 5, 0)
    assert runs(domains[stream.order]) == DOMAINS == len(stream.tasks)
    for start, end in stream.tasks:
        assert np.bincount(stream.labels[start:end]).tolist() == [5] * 6
        assert runs(stream.labels[start:end]) > 12
    firsts = {
        int(domains[domain_incremental(labels, domains, 5, seed).order[0]]) for seed in range(12)
    }
    assert firsts == {0, 1, 2}


@pytest.mark.parametrize("each", [15, 20, 100])
def test_correlated_batches_show_one_to_three_classes(each: int) -> None:
    """A few batches show four, hardly one more; the end is no more mixed; classes come back."""
    shown = []
    for seed in range(5):
        stream = correlated(table(40, each), each, seed)
        assert np.bincount(stream.labels).tolist() == [each] * 40
        batches = [stream.labels[k : k + 16] for k in range(0, len(stream.labels), 16)]
        shown += [len(set(batch.tolist())) for batch in batches]
        assert np.mean(shown[-5:]) < 3.5
        assert runs(stream.labels) > 1.3 * 40
    assert np.mean([count <= 3 for count in shown]) > 0.9
    assert max(shown) <= 5
    assert {1, 2, 3} <= set(shown) or each < 16


def test_correlated_fills_its_batches_with_rare_classes() -> None:
    """One picture a class leaves no choice."""
    stream = correlated(table(20, 3), 1, 0)
    assert sorted(stream.labels.tolist()) == list(range(20))


def test_shuffled_is_mixed() -> None:
    """As many pictures of each class, in no order."""
    stream = shuffled(table(10, 30), 20, 0)
    assert np.bincount(stream.labels).tolist() == [20] * 10
    assert runs(stream.labels) > 150
    assert len(stream.tasks) == 1


def test_a_long_tail_falls_by_a_constant_factor() -> None:
    """From `most` to `least`, straight on a logarithmic scale; the order of classes is drawn."""
    stream = long_tailed(table(21, 100), 100, 1, 0)
    counts = np.bincount(stream.labels)
    expected = [round(100 * (1 / 100) ** (rank / 20)) for rank in range(21)]
    assert sorted(counts.tolist(), reverse=True) == expected
    assert counts.tolist() != expected
    assert runs(stream.labels) > 0.5 * len(stream.labels)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_the_share_of_flips_is_exact(share: float) -> None:
    """So many labels are wrong, of other classes alike; the stream it came from is unchanged."""
    labels = table(10, 50)
    clean = shuffled(labels, 50, 0)
    before = clean.labels.copy()
    stream = noisy(clean, 10, share, 1)
    truth = labels[stream.order]
    assert int((stream.labels != truth).sum()) == round(share * 500)
    assert clean.labels.tolist() == before.tolist()
    assert stream.order.tolist() == clean.order.tolist()
    assert set(stream.labels.tolist()) <= set(range(10))
    if share == 1.0:
        offsets = np.bincount((stream.labels - truth) % 10, minlength=10)
        assert offsets[0] == 0
        assert offsets[1:].min() > 30
