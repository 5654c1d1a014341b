"""
The replay buffer: equal shares of one byte budget for any number of classes. ⑤

While there is room everything is kept. Then a class below its share takes room from the largest
one, and a class that has been the largest keeps a uniform sample of all it ever saw.

Source: class-balancing reservoir sampling (Chrysakis and Moens, ICML 2020), with bytes for slots.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

# What a row costs beside its picture and its trunk output.
_ROW_BYTES = 128


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A sample kept for replay: its picture, and the trunk's output, from which learning starts."""

    seq: int
    class_index: int
    text: str | None
    image: bytes
    trunk: Tensor  # float16, without the batch dimension
    held_out: bool = False  # never trained on: the gate asks it about a new adapter

    @property
    def bytes(self) -> int:
        """Its share of the budget."""
        return len(self.image) + self.trunk.numel() * self.trunk.element_size() + _ROW_BYTES


@dataclass(frozen=True, slots=True)
class BufferChange:
    """What adding samples did, for the commit."""

    added: list[Exemplar]
    evicted: list[int]  # their seqs


@dataclass(slots=True)
class _Shelf:
    """The exemplars of one class, in the order of their seqs."""

    exemplars: list[Exemplar] = field(default_factory=list)
    seen: int = 0
    bytes: int = 0
    full: bool = False  # has been the largest class while the budget was spent
    trainable: int = 0  # exemplars that are not held out


class ReplayBuffer:
    """Exemplars by class under `budget_bytes`."""

    def __init__(self, budget_bytes: int) -> None:
        assert budget_bytes > 0
        self.budget_bytes = budget_bytes
        self.bytes = 0
        self.next_class = 0  # where the round robin goes on
        self._shelves: dict[int, _Shelf] = {}
        # What would otherwise be looked for among all classes, kept up to date:
        self._trainable: list[int] = []  # the classes that have an exemplar to train on, in order
        self._sizes: list[
            tuple[int, int]
        ] = []  # heap of -bytes and class; what is past stays in it
        self._held: dict[int, Exemplar] = {}  # by seq
        self._kept = 0
        self._changed: set[int] = set()  # classes whose bookkeeping did since it was asked for

    def __len__(self) -> int:
        return self._kept

    def __iter__(self) -> Iterator[Exemplar]:
        """Yield all exemplars, class by class."""
        for _, shelf in sorted(self._shelves.items()):
            yield from shelf.exemplars

    @property
    def classes(self) -> list[int]:
        """The classes that have an exemplar to train on."""
        return list(self._trainable)

    def of_class(self, class_index: int) -> list[Exemplar]:
        """Return the exemplars of one class to train on."""
        shelf = self._shelves.get(class_index)
        return [] if shelf is None else [e for e in shelf.exemplars if not e.held_out]

    def held_out(self, count_max: int) -> list[Exemplar]:
        """Return the newest exemplars that are never trained on, in the order of the log."""
        return [self._held[seq] for seq in sorted(self._held)[-count_max:]]

    def bookkeeping(self) -> dict[int, tuple[int, bool]]:
        """Return, for each class, how many samples were seen and whether it has been full."""
        return {index: (shelf.seen, shelf.full) for index, shelf in self._shelves.items()}

    def changed_bookkeeping(self) -> dict[int, tuple[int, bool]]:
        """Return the same of those classes alone of which it changed since this was asked last."""
        changed, self._changed = self._changed, set()
        return {c: (self._shelves[c].seen, self._shelves[c].full) for c in sorted(changed)}

    def restore(
        self, exemplars: Iterable[Exemplar], bookkeeping: dict[int, tuple[int, bool]]
    ) -> None:
        """Take over what a commit saved; the exemplars in the order in which they were added."""
        assert not self._shelves
        for index, (seen, full) in bookkeeping.items():
            self._shelves[index] = _Shelf(seen=seen, full=full)
        for exemplar in exemplars:
            self._put(self._shelves[exemplar.class_index], exemplar)

    def add(self, samples: Iterable[Exemplar], generator: Generator) -> BufferChange:
        """Offer samples in order; return which were kept and which went."""
        added: dict[int, Exemplar] = {}
        evicted: list[int] = []
        for sample in samples:
            gone = self._offer(sample, generator)
            if gone is None:
                continue
            added[sample.seq] = sample
            # One that came and went within this call was never saved.
            evicted += [seq for seq in gone if added.pop(seq, None) is None]
        return BufferChange(list(added.values()), evicted)

    def forget(self, samples: Iterable[tuple[int, int]]) -> list[int]:
        """
        Take samples out as if they had never come; return the seqs of those that were kept.

        Args:
            samples: seq and class index of each.
        """
        gone: list[int] = []
        for seq, class_index in samples:
            shelf = self._shelves[class_index]
            self._changed.add(class_index)
            shelf.seen -= 1
            place = bisect_left(shelf.exemplars, seq, key=lambda exemplar: exemplar.seq)
            if place < len(shelf.exemplars) and shelf.exemplars[place].seq == seq:
                gone.append(self._take(shelf, place))
            if not shelf.seen:
                shelf.full = False
        return gone

    def draw(self, count: int, generator: Generator) -> list[Exemplar]:
        """
        Return up to `count` exemplars, one a class, going round all classes.

        A class waits at most classes / count draws for its next turn. With fewer classes than
        `count`, each gets several; an exemplar may then come twice.
        """
        classes = self._trainable
        if not classes:
            return []
        start = bisect_left(classes, self.next_class) % len(classes)
        chosen = [classes[(start + k) % len(classes)] for k in range(count)]
        if chosen:
            self.next_class = chosen[-1] + 1
        return [self._any(c, generator) for c in chosen]

    def _offer(self, sample: Exemplar, generator: Generator) -> list[int] | None:
        """Keep the sample if it may stay; return the seqs that made room, or None if refused."""
        shelf = self._shelves.setdefault(sample.class_index, _Shelf())
        self._changed.add(sample.class_index)
        shelf.seen += 1
        if sample.bytes > self.budget_bytes:
            return None
        gone: list[int] = []
        if self.bytes + sample.bytes > self.budget_bytes:
            self._largest()  # marks it full
            if shelf.full and shelf.exemplars:
                if _below(shelf.seen, generator) >= len(shelf.exemplars):
                    return None
                gone.append(self._drop(shelf, generator))
        while self.bytes + sample.bytes > self.budget_bytes:
            gone.append(self._drop(self._largest(), generator))
        self._put(shelf, sample)
        return gone

    def _largest(self) -> _Shelf:
        """Return the largest class, the first of several; all of them are full from now on."""
        largest: dict[int, _Shelf] = {}
        size = 0
        while self._sizes and -self._sizes[0][0] >= size:
            negative, index = heapq.heappop(self._sizes)
            shelf = self._shelves[index]
            if shelf.bytes == -negative:
                size, shelf.full, largest[index] = shelf.bytes, True, shelf
        self._changed.update(largest)
        for index in largest:
            heapq.heappush(self._sizes, (-size, index))
        return next(iter(largest.values()))

    def _any(self, class_index: int, generator: Generator) -> Exemplar:
        exemplars = self.of_class(class_index)
        return exemplars[_below(len(exemplars), generator)]

    def _put(self, shelf: _Shelf, exemplar: Exemplar) -> None:
        shelf.exemplars.append(exemplar)
        shelf.bytes += exemplar.bytes
        self.bytes += exemplar.bytes
        self._kept += 1
        self._sized(exemplar.class_index, shelf)
        if exemplar.held_out:
            self._held[exemplar.seq] = exemplar
            return
        shelf.trainable += 1
        if shelf.trainable == 1:
            insort(self._trainable, exemplar.class_index)

    def _drop(self, shelf: _Shelf, generator: Generator) -> int:
        return self._take(shelf, _below(len(shelf.exemplars), generator))

    def _take(self, shelf: _Shelf, place: int) -> int:
        gone = shelf.exemplars.pop(place)
        shelf.bytes -= gone.bytes
        self.bytes -= gone.bytes
        self._kept -= 1
        self._sized(gone.class_index, shelf)
        if gone.held_out:
            del self._held[gone.seq]
            return gone.seq
        shelf.trainable -= 1
        if shelf.trainable == 0:
            del self._trainable[bisect_left(self._trainable, gone.class_index)]
        return gone.seq

    def _sized(self, class_index: int, shelf: _Shelf) -> None:
        heapq.heappush(self._sizes, (-shelf.bytes, class_index))
        if len(self._sizes) > 4 * len(self._shelves) + 64:  # mostly past: begin anew
            self._sizes = [(-s.bytes, index) for index, s in self._shelves.items()]
            heapq.heapify(self._sizes)


def _below(bound: int, generator: Generator) -> int:
    return int(torch.randint(bound, (1,), generator=generator))
