"""The replay buffer: one budget, equal shares, a uniform sample of each class."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.replay import Memory
from worker.learn.randomness import generator_for
from worker.learn.replay import Exemplar, ReplayBuffer

ROW = Exemplar(0, 0, None, b"picture", torch.zeros(8, dtype=torch.float16)).bytes


def exemplar(seq: int, class_index: int, image_bytes: int = 7, *, held: bool = False) -> Exemplar:
    trunk = torch.zeros(8, dtype=torch.float16)
    return Exemplar(seq, class_index, None, b"p" * image_bytes, trunk, held)


def filled(slots: int, classes: list[int], seed: int = 0) -> ReplayBuffer:
    buffer = ReplayBuffer(slots * ROW)
    for seq, c in enumerate(classes):
        buffer.add([exemplar(seq, c)], generator_for(seed, seq))
    return buffer


def seqs(buffer: ReplayBuffer) -> list[int]:
    return [e.seq for e in buffer]


def skewed(samples: int, classes: int) -> list[int]:
    """Class c comes with weight 1 / (c + 1), the rare ones late."""
    generator = torch.Generator().manual_seed(1)
    weights = 1 / torch.arange(1.0, classes + 1)
    early = torch.multinomial(weights, samples, replacement=True, generator=generator).tolist()
    return [*sorted(early[: samples // 2]), *early[samples // 2 :]]


def test_an_exemplar_counts_its_picture_and_its_trunk_output() -> None:
    """Two bytes for each float16 number, one for each of the picture's, and a constant."""
    small, large = exemplar(0, 0, 7), exemplar(0, 0, 107)
    assert large.bytes - small.bytes == 100
    longer = Exemplar(0, 0, None, b"picture", torch.zeros(18, dtype=torch.float16))
    assert longer.bytes - ROW == 20


streams = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 900)), max_size=80)


@given(stream=streams, budget=st.integers(1, 4000), seed=st.integers(0, 99))
def test_the_budget_holds_whatever_comes(
    stream: list[tuple[int, int]], budget: int, seed: int
) -> None:
    """The bytes are those of what is kept, never above the budget, for pictures of any size."""
    buffer, generator = ReplayBuffer(budget), generator_for(seed)
    for seq, (c, size) in enumerate(stream):
        buffer.add([exemplar(seq, c, size)], generator)
        assert buffer.bytes == sum(e.bytes for e in buffer) <= budget
        assert len(buffer) == len(set(seqs(buffer)))
        assert all(e in buffer.of_class(e.class_index) for e in buffer)


@given(stream=streams, budget=st.integers(1, 4000), forgets=st.sets(st.integers(0, 79)))
def test_what_changed_adds_up_to_the_whole_bookkeeping(
    stream: list[tuple[int, int]], budget: int, forgets: set[int]
) -> None:
    """A commit writes what changed since the last one, and a start reads all of it."""
    buffer, generator = ReplayBuffer(budget), generator_for(0)
    written: dict[int, tuple[int, bool]] = {}
    for seq, (c, size) in enumerate(stream):
        buffer.add([exemplar(seq, c, size)], generator)
        if seq in forgets:
            buffer.forget([(seq, c)])
        if seq % 3 == 0:
            written |= buffer.changed_bookkeeping()
    written |= buffer.changed_bookkeeping()
    assert written == buffer.bookkeeping()
    assert buffer.changed_bookkeeping() == {}


@given(classes=st.lists(st.integers(0, 9), max_size=40))
def test_everything_is_kept_while_there_is_room(classes: list[int]) -> None:
    """Up to the last byte of the budget nothing is refused and nothing goes."""
    buffer = ReplayBuffer(max(1, len(classes)) * ROW)
    change = buffer.add([exemplar(k, c) for k, c in enumerate(classes)], generator_for(0))
    assert [e.seq for e in change.added] == list(range(len(classes)))
    assert change.evicted == []
    assert sorted(seqs(buffer)) == list(range(len(classes)))


@given(
    classes=st.lists(st.integers(0, 6), max_size=150),
    slots=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_the_content_is_that_of_the_published_algorithm(
    classes: list[int], slots: int, seed: int
) -> None:
    """With exemplars of one size, bytes are slots: the paper's algorithm keeps the same ones."""
    memory, generator = Memory(slots), generator_for(seed)
    for seq, c in enumerate(classes):
        memory.offer(seq, c, lambda n: int(torch.randint(n, (1,), generator=generator)))
    buffer = ReplayBuffer(slots * ROW)
    buffer.add([exemplar(k, c) for k, c in enumerate(classes)], generator_for(seed))
    assert sorted((e.seq, e.class_index) for e in buffer) == sorted(memory.stored)
    assert buffer.bookkeeping() == {c: (n, c in memory.full) for c, n in memory.seen.items()}


@pytest.mark.parametrize(("slots", "classes"), [(100, 7), (60, 30), (40, 40), (20, 40)])
def test_shares_are_equal_when_classes_are_many(slots: int, classes: int) -> None:
    """After a skewed stream no class holds more than one exemplar above another that came up."""
    stream = skewed(4000, classes)
    enough = [c for c, n in Counter(stream).items() if n >= math.ceil(slots / classes)]
    assert len(enough) == classes
    buffer = filled(slots, stream)
    held = [len(buffer.of_class(c)) for c in range(classes)]
    assert sum(held) == slots
    assert max(held) - min(held) <= 1


def test_a_new_class_gets_room_at_once() -> None:
    """The first sample of a class that comes late is kept, at the expense of the largest."""
    buffer = filled(20, [0] * 15 + [1] * 30)
    before = [len(buffer.of_class(c)) for c in (0, 1)]
    change = buffer.add([exemplar(1000, 2)], generator_for(9))
    assert [e.seq for e in change.added] == [1000]
    assert len(change.evicted) == 1
    after = [len(buffer.of_class(c)) for c in (0, 1)]
    assert max(before) - 1 in after
    assert sum(before) - 1 == sum(after)


def test_each_sample_of_a_full_class_is_equally_likely_to_stay() -> None:
    """Over 3,000 seeds, early and late samples of a class in a shared buffer are kept alike."""
    runs, slots, classes = 3000, 10, [0] * 12 + [0, 1] * 12
    kept: Counter[int] = Counter()
    for seed in range(runs):
        buffer = ReplayBuffer(slots * ROW)
        buffer.add([exemplar(k, c) for k, c in enumerate(classes)], generator_for(seed))
        kept.update(e.seq for e in buffer.of_class(0))
    zeros = [k for k, c in enumerate(classes) if c == 0]
    share = sum(kept[k] for k in zeros) / runs / len(zeros)
    # Five standard deviations of a binomial: for 24 places wrong once in 70,000 sets of seeds,
    # and the seeds are fixed.
    bound = 5 * math.sqrt(share * (1 - share) / runs)
    for k in zeros:
        assert kept[k] / runs == pytest.approx(share, abs=bound)


@given(stream=streams, budget=st.integers(200, 4000), seed=st.integers(0, 99))
def test_a_class_that_lost_an_exemplar_is_full(
    stream: list[tuple[int, int]], budget: int, seed: int
) -> None:
    """Whoever made room is thinned by the reservoir from then on, so that its sample stays fair."""
    buffer, generator = ReplayBuffer(budget), generator_for(seed)
    class_of = {seq: c for seq, (c, _) in enumerate(stream)}
    for seq, (c, size) in enumerate(stream):
        change = buffer.add([exemplar(seq, c, size)], generator)
        full = buffer.bookkeeping()
        assert all(full[class_of[gone]][1] for gone in change.evicted)


@given(classes=st.sets(st.integers(0, 40), min_size=1, max_size=20), count=st.integers(1, 12))
def test_every_class_has_its_turn(classes: set[int], count: int) -> None:
    """Each class is drawn within ceil(classes / count) draws, and none twice in a round."""
    buffer = ReplayBuffer(1000 * ROW)
    buffer.add([exemplar(k, c) for k, c in enumerate(sorted(classes) * 2)], generator_for(0))
    generator, turns = generator_for(1), math.ceil(len(classes) / count)
    for _ in range(3):
        drawn = [[e.class_index for e in buffer.draw(count, generator)] for _ in range(turns)]
        assert {c for turn in drawn for c in turn} == classes
        assert all(len(turn) == count for turn in drawn)
        flat = [c for turn in drawn for c in turn]
        assert len(set(flat[: len(classes)])) == len(classes)


def test_a_draw_from_nothing_is_empty() -> None:
    """An empty buffer and a draw of none give no exemplar and move nothing."""
    buffer = ReplayBuffer(10 * ROW)
    assert buffer.draw(4, generator_for(0)) == []
    buffer.add([exemplar(0, 3)], generator_for(0))
    assert buffer.draw(0, generator_for(0)) == []
    assert buffer.next_class == 0


def test_all_exemplars_of_a_class_can_be_drawn() -> None:
    """Within a class each exemplar is as likely as another."""
    buffer, generator = filled(10, [0] * 10), generator_for(5)
    drawn = Counter(e.seq for _ in range(4000) for e in buffer.draw(1, generator))
    bound = 5 * math.sqrt(0.1 * 0.9 / 4000)
    assert all(drawn[k] / 4000 == pytest.approx(0.1, abs=bound) for k in range(10))


@given(stream=streams, budget=st.integers(200, 4000), batch=st.integers(1, 9))
def test_the_change_lists_say_what_happened(
    stream: list[tuple[int, int]], budget: int, batch: int
) -> None:
    """Replayed on a dict, `added` and `evicted` give the very content of the buffer."""
    buffer, content = ReplayBuffer(budget), dict[int, Exemplar]()
    offered = [exemplar(seq, c, size) for seq, (c, size) in enumerate(stream)]
    for start in range(0, len(offered), batch):
        change = buffer.add(offered[start : start + batch], generator_for(0, start))
        for seq in change.evicted:
            del content[seq]
        content |= {e.seq: e for e in change.added}
        assert sorted(seqs(buffer)) == sorted(content)


def test_a_sample_over_the_whole_budget_is_refused() -> None:
    """A picture larger than the budget is counted, and costs no other its place."""
    buffer = filled(3, [0, 1, 2])
    change = buffer.add([exemplar(9, 1, 10_000)], generator_for(0))
    assert (change.added, change.evicted) == ([], [])
    assert seqs(buffer) == [0, 1, 2]
    assert buffer.bookkeeping()[1] == (2, False)


@given(classes=st.lists(st.integers(0, 5), min_size=2, max_size=80), data=st.data())
def test_a_restored_buffer_goes_on_as_if_nothing_had_happened(
    classes: list[int], data: st.DataObject
) -> None:
    """Saved and restored anywhere in the stream, it keeps and draws the same exemplars."""
    border = data.draw(st.integers(1, len(classes) - 1))
    buffer = filled(12, classes[:border])
    buffer.draw(3, generator_for(7))
    copy = ReplayBuffer(12 * ROW)
    in_order_of_arrival = sorted(buffer, key=lambda e: e.seq)
    copy.restore(in_order_of_arrival, buffer.bookkeeping())
    copy.next_class = buffer.next_class
    for seq, c in enumerate(classes[border:], start=border):
        changes = [b.add([exemplar(seq, c)], generator_for(1, seq)) for b in (buffer, copy)]
        assert changes[0].evicted == changes[1].evicted
        draws = [b.draw(4, generator_for(2, seq)) for b in (buffer, copy)]
        assert [e.seq for e in draws[0]] == [e.seq for e in draws[1]]
    assert seqs(copy) == seqs(buffer)
    assert copy.bytes == buffer.bytes
    assert copy.bookkeeping() == buffer.bookkeeping()


def test_the_same_seed_keeps_the_same_exemplars() -> None:
    """Content is a function of stream and seed; another seed keeps others."""
    stream = skewed(400, 6)
    assert seqs(filled(30, stream, seed=1)) == seqs(filled(30, stream, seed=1))
    assert seqs(filled(30, stream, seed=1)) != seqs(filled(30, stream, seed=2))


def test_randomness_is_a_function_of_its_place() -> None:
    """Seed and path name a generator; `1, 23` is another place than `12, 3`."""
    places = [
        (0, "replay", 1, 23),
        (0, "replay", 12, 3),
        (0, "buffer", 1, 23),
        (1, "replay", 1, 23),
    ]
    numbers = [torch.rand(4, generator=generator_for(*place)).tolist() for place in places]
    again = [torch.rand(4, generator=generator_for(*place)).tolist() for place in places]
    assert numbers == again
    assert len({tuple(row) for row in numbers}) == len(places)


marked = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60)


@given(stream=marked, slots=st.integers(1, 20), seed=st.integers(0, 99))
def test_held_out_exemplars_are_never_trained_on(
    stream: list[tuple[int, bool]], slots: int, seed: int
) -> None:
    """They take their place and can be evicted, but no draw and no class lists them."""
    buffer, generator = ReplayBuffer(slots * ROW), generator_for(seed)
    for seq, (c, held) in enumerate(stream):
        buffer.add([exemplar(seq, c, held=held)], generator)
        kept = list(buffer)
        trainable = [e for e in kept if not e.held_out]
        assert buffer.classes == sorted({e.class_index for e in trainable})
        assert [e for k in range(5) for e in buffer.of_class(k)] == trainable
        drawn = buffer.draw(7, generator)
        assert all(not e.held_out for e in drawn)
        assert len(drawn) == (7 if trainable else 0)
        assert buffer.held_out(100) == sorted((e for e in kept if e.held_out), key=lambda e: e.seq)


@given(stream=marked, slots=st.integers(1, 20), count=st.integers(1, 9))
def test_the_newest_held_out_exemplars_are_asked(
    stream: list[tuple[int, bool]], slots: int, count: int
) -> None:
    """So many at most, the newest, in the order of the log whatever their classes are."""
    buffer = ReplayBuffer(slots * ROW)
    offered = [exemplar(seq, c, held=held) for seq, (c, held) in enumerate(stream)]
    buffer.add(offered, generator_for(0))
    newest = sorted(e.seq for e in buffer if e.held_out)[-count:]
    assert [e.seq for e in buffer.held_out(count)] == newest


@given(stream=marked, slots=st.integers(1, 12), data=st.data())
def test_a_restored_buffer_knows_what_is_held_out(
    stream: list[tuple[int, bool]], slots: int, data: st.DataObject
) -> None:
    """Restored in the middle, it draws, lists and evicts as the one that went on."""
    border = data.draw(st.integers(0, len(stream)))
    buffer, copy = ReplayBuffer(slots * ROW), ReplayBuffer(slots * ROW)
    offered = [exemplar(seq, c, held=held) for seq, (c, held) in enumerate(stream)]
    for e in offered[:border]:
        buffer.add([e], generator_for(0, e.seq))
    copy.restore(sorted(buffer, key=lambda e: e.seq), buffer.bookkeeping())
    for e in offered[border:]:
        changes = [b.add([e], generator_for(0, e.seq)) for b in (buffer, copy)]
        assert changes[0].evicted == changes[1].evicted
    assert buffer.bookkeeping() == copy.bookkeeping()
    assert buffer.classes == copy.classes
    assert buffer.held_out(50) == copy.held_out(50)
    draws = [b.draw(6, generator_for(1)) for b in (buffer, copy)]
    assert draws[0] == draws[1]


def test_a_class_of_held_out_exemplars_alone_has_no_turn() -> None:
    """Its trainable exemplars were evicted: the round robin passes it over, and finds it again."""
    buffer = ReplayBuffer(4 * ROW)
    change = buffer.add(
        [exemplar(0, 0, held=True), exemplar(1, 1), exemplar(2, 2)], generator_for(0)
    )
    assert [e.seq for e in change.added] == [0, 1, 2]
    assert buffer.classes == [1, 2]
    assert [e.class_index for e in buffer.draw(4, generator_for(1))] == [1, 2, 1, 2]
    buffer.add([exemplar(3, 0)], generator_for(2))
    assert buffer.classes == [0, 1, 2]
    assert [e.class_index for e in buffer.draw(3, generator_for(3))] == [0, 1, 2]


def test_no_sample_looks_at_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither room nor company is sought by going over the classes, however many there are."""

    class Shelves(dict[int, Any]):
        looks = 0

        def values(self) -> Any:
            Shelves.looks += len(self)
            return super().values()

        def items(self) -> Any:
            Shelves.looks += len(self)
            return super().items()

    popped, pop = Counter[str](), heapq.heappop

    def counted(heap: list[Any]) -> Any:
        popped["all"] += 1
        return pop(heap)

    monkeypatch.setattr(heapq, "heappop", counted)
    classes, rounds = 500, 6
    buffer = ReplayBuffer(2 * classes * 3 * ROW)
    buffer._shelves = Shelves()
    for seq in range(rounds * classes):
        size = 2 * ROW + seq * 37 % 101
        buffer.add([exemplar(seq, seq % classes, size, held=seq % 10 == 0)], generator_for(0, seq))
        buffer.draw(4, generator_for(1, seq))
    assert len(buffer) < rounds * classes
    buffer.held_out(50)
    # Going over them once a sample would be classes² · rounds looks; a heap begun anew is some.
    assert Shelves.looks <= 4 * rounds * classes
    assert 0 < popped["all"] <= 20 * rounds * classes
