"""
The classes of a version: names, vectors and counts, in chunks that versions share. ⑦⑨

A version that learnt of one class has a new chunk, and the others of the version before as they
are. So a swap costs what changed, and eight kept versions are little more than one.

Shape suffixes: B pictures, C classes, K candidates, D width of a vector, E joint space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Classes that are scored together, and whose names go into one part.
CHUNK = 1024

# Classes whose evidence goes into one part. A batch names a few classes of many, so that nearly each
# of its samples sends a part of its own.
EVIDENCE_CHUNK = 64


def chunks_of(classes: int, size: int = CHUNK) -> Iterator[tuple[int, slice]]:
    """Yield number and class range of each chunk."""
    for number, start in enumerate(range(0, classes, size)):
        yield number, slice(start, min(start + size, classes))


def precision(classes: int, device: torch.device) -> torch.dtype:
    """
    Return in which precision the vectors of so many classes are kept.

    An answer reads all of them, and a processor's memory is what that waits for, once they are
    more than its cache holds. Half precision moves a cosine near one by at most 6e-4, and a
    common one, which is near 0.3, by 2e-4.
    """
    return torch.float16 if classes > CHUNK and device.type == "cpu" else torch.float32


class Rows(NamedTuple):
    """The vectors of one chunk, and the places of those that are zero: they stand for none."""

    vector_CD: Tensor
    missing: Tensor

    @classmethod
    def of(cls, vector_CD: Tensor) -> Rows:
        """Return these vectors."""
        return cls(vector_CD, (~vector_CD.any(dim=1)).nonzero()[:, 0])

    @classmethod
    def joined(cls, parts: Iterable[Rows]) -> Rows:
        """Return the vectors of some chunks as those of one."""
        vectors, missing, start = [], [], 0
        for part in parts:
            vectors.append(part.vector_CD)
            missing.append(part.missing + start)
            start += len(part.vector_CD)
        return cls(torch.cat(vectors), torch.cat(missing))

    def multiply(self, x_BD: Tensor, product_BC: Tensor) -> None:
        """Write x·v of each picture and vector; NaN for a vector that is missing."""
        if len(x_BD) == 1:
            torch.mv(self.vector_CD, x_BD[0], out=product_BC[0])
        else:  # widened once, a chunk at a time within the cache
            torch.mm(x_BD, self.vector_CD.to(x_BD.dtype).T, out=product_BC)
        if len(self.missing):
            product_BC[:, self.missing] = torch.nan


@dataclass(frozen=True, slots=True)
class Table:
    """One vector for each of so many classes; those beyond the last chunk have none."""

    chunks: tuple[Rows, ...]
    classes: int

    def products(self, x_BD: Tensor) -> Tensor:
        """Return x·v of each picture and class; NaN for a class without a vector."""
        dtype = x_BD.dtype
        if len(x_BD) == 1 and self.chunks:  # in the vectors' own precision, as memory gives them
            dtype = self.chunks[0].vector_CD.dtype
        factor_BD = x_BD.to(dtype)
        product_BC = factor_BD.new_full((len(x_BD), self.classes), torch.nan)
        for rows, (_, span) in zip(self.chunks, chunks_of(self.classes), strict=False):
            own = slice(span.start, span.start + len(rows.vector_CD))
            rows.multiply(factor_BD, product_BC[:, own])
        return product_BC.to(x_BD.dtype)

    def at(self, classes: Sequence[int]) -> Tensor:
        """Return row_KD of these classes, in float32; a zero row for one that is not there."""
        vector_CD = self.chunks[0].vector_CD
        row_KD = vector_CD.new_zeros(len(classes), vector_CD.shape[1], dtype=torch.float32)
        places: dict[int, list[tuple[int, int]]] = {}
        for k, index in enumerate(classes):
            places.setdefault(index // CHUNK, []).append((k, index % CHUNK))
        for number, asked in places.items():
            if not 0 <= number < len(self.chunks):
                continue
            rows = self.chunks[number]
            there = [(k, c) for k, c in asked if c < len(rows.vector_CD)]
            if there:
                index_K, place_K = torch.tensor(there, device=row_KD.device).T
                row_KD[index_K] = rows.vector_CD[place_K].float()
        return row_KD


def table(vector_CD: Tensor) -> Table:
    """Return these float32 vectors as the table of as many classes."""
    dtype = precision(len(vector_CD), vector_CD.device)
    chunks = (Rows.of(vector_CD[span].to(dtype)) for _, span in chunks_of(len(vector_CD)))
    return Table(tuple(chunks), len(vector_CD))


class NameChunk:
    """The names of one chunk, and the place of each."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.places = {name: place for place, name in enumerate(self.names)}


class Names(Sequence[str]):
    """All names in the order of their index."""

    def __init__(self, chunks: Sequence[NameChunk] = ()) -> None:
        self.chunks = tuple(chunks)

    def __len__(self) -> int:
        return sum(len(chunk.names) for chunk in self.chunks)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        number, place = divmod(index, CHUNK)
        return self.chunks[number].names[place]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(chunk.names for chunk in self.chunks)

    def find(self, name: str) -> int:
        """Return the index of a name; -1 where there is none."""
        for number, chunk in enumerate(self.chunks):
            place = chunk.places.get(name)
            if place is not None:
                return number * CHUNK + place
        return -1


@dataclass(frozen=True)
class Classes:
    """The learnt classes of one version, by index."""

    names: Names
    text_CE: Table  # frozen unit vectors of the names
    count_C: Tensor  # labels learnt

    @cached_property
    def labelled(self) -> Tensor | None:
        """Index of each class that has a label; None where all have, since none was forgotten."""
        return None if bool(self.count_C.all()) else self.count_C.nonzero()[:, 0]

    @cached_property
    def learnt(self) -> Sequence[str]:
        """Names of the classes that have a label."""
        if self.labelled is None:
            return self.names
        return [self.names[index] for index in self.labelled.tolist()]

    def samples(self, name: str) -> int:
        """Return how many labels of this class were learnt."""
        index = self.names.find(name)
        return 0 if index < 0 else int(self.count_C[index])

    def place(self, name: str) -> int:
        """Return where in `learnt` a name stands; -1 where it does not."""
        if not self.samples(name):
            return -1
        index = self.names.find(name)
        return index if self.labelled is None else int(torch.searchsorted(self.labelled, index))
