"""
Streams of labelled pictures, as plain data: which picture comes when, and under which label.

All are read once. A stream is a pure function of the labels of a split and a seed; no picture comes
twice in one, and a class with fewer pictures than were asked for gives those it has.

Shape suffixes: N pictures of a split, S places of a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

# About so many times is accuracy read along a stream.
READINGS = 5


@dataclass(frozen=True, eq=False)
class Stream:
    """
    Labelled pictures in the order in which they come.

    Args:
        name: for tables and files.
        order: indices into a training split.
        labels: the label given at each place; in a noisy stream not always the true one.
        exam: after how many samples accuracy is read; ascending, the last is the end.
        tasks: start and end of each stretch whose end forgetting is measured from; a stream without
            such stretches is one task.
    """

    name: str
    order: Numbers
    labels: Numbers
    exam: tuple[int, ...]
    tasks: tuple[tuple[int, int], ...]


def class_incremental(labels_N: Numbers, shots: int, seed: int, tasks: int = 5) -> Stream:
    """
    Return a stream of one class after another, classes in random order.

    A task is a stretch of about as many classes as every other; never more tasks than classes.
    """
    generator = np.random.default_rng(seed)
    classes = generator.permutation(np.unique(labels_N))
    parts = [
        np.concatenate([_some(labels_N == c, shots, generator) for c in group])
        for group in np.array_split(classes, min(tasks, len(classes)))
    ]
    return _stream(f"class-incremental-{shots}", labels_N, parts)


def si_blurry(
    labels_N: Numbers, seed: int, tasks: int = 5, disjoint: float = 0.5, blurry: float = 0.1
) -> Stream:
    """
    Return a stream of tasks with blurry borders, of all pictures.

    A share of the classes is *disjoint*: all its pictures come within one task. The others are at
    home in a task too, but a share of their pictures changes places with one another, wherever
    those are at home. Classes are dealt to tasks by random cuts, for either kind by its own; so
    tasks differ in size, and one that got no class at all is left out.

    Args:
        labels_N: of the split.
        seed: of the order.
        tasks: how many.
        disjoint: the share of classes that keep to one task; N in the paper.
        blurry: the share of the other classes' pictures that change places; M in the paper.

    Source: Si-Blurry (MVP, arXiv 2308.09303), from its description; both shares are fixed here.
    """
    generator = np.random.default_rng(seed)
    classes, class_N = np.unique(labels_N, return_inverse=True)
    dealt = generator.permutation(len(classes))
    keeping, others = np.split(dealt, [round(disjoint * len(classes))])
    home_C = np.empty(len(classes), np.int64)
    for group in (keeping, others):
        cuts = np.sort(generator.integers(0, len(group) + 1, tasks - 1))
        home_C[group] = np.searchsorted(cuts, np.arange(len(group)), side="right")
    task_N = home_C[class_N]
    places = np.flatnonzero(np.isin(class_N, others))
    moved = generator.choice(places, round(blurry * len(places)), replace=False)
    task_N[moved] = task_N[generator.permutation(moved)]
    parts = [generator.permutation(np.flatnonzero(task_N == t)) for t in range(tasks)]
    return _stream("si-blurry", labels_N, [part for part in parts if len(part)])


def domain_incremental(labels_N: Numbers, domains_N: Numbers, shots: int, seed: int) -> Stream:
    """
    Return a stream of one domain after another, in random order; a domain is a task.

    Within a domain come `shots` pictures of each class, mixed.
    """
    generator = np.random.default_rng(seed)
    parts = []
    for domain in generator.permutation(np.unique(domains_N)):
        own = [
            _some((labels_N == c) & (domains_N == domain), shots, generator)
            for c in np.unique(labels_N)
        ]
        parts.append(generator.permutation(np.concatenate(own)))
    return _stream(f"domain-incremental-{shots}", labels_N, [part for part in parts if len(part)])


def correlated(labels_N: Numbers, shots: int, seed: int, batch: int = 16) -> Stream:
    """
    Return a stream in which a batch shows one to three classes in runs, and classes come back.

    Up to one batch in sixteen shows four where a class has about as many pictures as a batch, and
    more where it has so few that more classes are needed to fill one.
    """
    generator = np.random.default_rng(seed)
    left = {int(c): _some(labels_N == c, shots, generator) for c in np.unique(labels_N)}
    runs: list[Numbers] = []
    while left:
        wanted, room = int(generator.integers(1, 4)), batch
        # Classes of which little is left come first: else the end would be made of remainders.
        mixed = [int(c) for c in generator.permutation(list(left))]
        for turn, c in enumerate(sorted(mixed, key=lambda c: len(left[c]) > batch // 4)):
            run, left[c] = np.split(left[c], [-(-room // max(wanted - turn, 1))])
            runs.append(run)
            room -= len(run)
            if not room:
                break
        left = {c: rest for c, rest in left.items() if len(rest)}
    return _stream(f"correlated-{shots}", labels_N, [np.concatenate(runs)])


def shuffled(labels_N: Numbers, shots: int, seed: int) -> Stream:
    """Return a stream of `shots` pictures of each class, in random order."""
    generator = np.random.default_rng(seed)
    own = [_some(labels_N == c, shots, generator) for c in np.unique(labels_N)]
    return _stream(f"shuffled-{shots}", labels_N, [generator.permutation(np.concatenate(own))])


def long_tailed(labels_N: Numbers, most: int, least: int, seed: int) -> Stream:
    """
    Return a shuffled stream with `most` pictures of one class, down to `least` of another.

    From rank to rank the number falls by a constant factor; which class has which rank is random.
    """
    generator = np.random.default_rng(seed)
    classes = generator.permutation(np.unique(labels_N))
    counts = np.geomspace(most, least, len(classes)).round().astype(int)
    own = [
        _some(labels_N == c, int(count), generator)
        for c, count in zip(classes, counts, strict=True)
    ]
    name = f"long-tailed-{most}-{least}"
    return _stream(name, labels_N, [generator.permutation(np.concatenate(own))])


def noisy(stream: Stream, classes: int, share: float, seed: int) -> Stream:
    """
    Return the stream with a share of its labels wrong.

    A wrong label is any of the other `classes` with equal chance; exactly that share is wrong.
    """
    generator = np.random.default_rng(seed)
    wrong = generator.choice(len(stream.labels), round(share * len(stream.labels)), replace=False)
    labels_S = stream.labels.copy()
    labels_S[wrong] = (labels_S[wrong] + generator.integers(1, classes, len(wrong))) % classes
    return replace(stream, name=f"{stream.name}-noisy-{share:g}", labels=labels_S)


def poisoned(stream: Stream, classes: int, share: float, burst: int, seed: int) -> Stream:
    """Return the stream with a share of wrong labels among its last `burst` samples alone."""
    clean, end = stream.labels[:-burst], replace(stream, labels=stream.labels[-burst:])
    labels_S = np.concatenate([clean, noisy(end, classes, share, seed).labels])
    return replace(stream, name=f"{stream.name}-poisoned-{share:g}", labels=labels_S)


def exam_places(total: int, ends: Sequence[int] = (), readings: int = READINGS) -> tuple[int, ...]:
    """
    Return after how many samples to read accuracy: at all task ends, the end, and evenly.

    An evenly spaced place within half a spacing of a task's end gives way to it.
    """
    spacing = total / readings
    even = [round(spacing * k) for k in range(1, readings + 1)]
    kept = [p for p in even if p > 0 and all(abs(p - end) > spacing / 2 for end in ends)]
    return tuple(sorted({*kept, *ends, total}))


def _some(chosen_N: NDArray[np.bool_], count: int, generator: np.random.Generator) -> Numbers:
    """Return so many of the chosen pictures, in random order; all where there are fewer."""
    places: Numbers = generator.permutation(np.flatnonzero(chosen_N))
    return places[:count]


def _stream(name: str, labels_N: Numbers, parts: Sequence[Numbers]) -> Stream:
    """Return the stream of these parts end to end, each a task."""
    order = np.concatenate(parts)
    ends = [int(end) for end in np.cumsum([len(part) for part in parts])]
    tasks = tuple(zip([0, *ends[:-1]], ends, strict=True))
    # The end of the only task is the end of the stream, and no reason to leave an even place out.
    exam = exam_places(len(order), ends[:-1])
    return Stream(name, order, labels_N[order], exam, tasks)
