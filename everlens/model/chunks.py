"""
What a version knows of the classes 1024·N …, made from their parts and shared between versions. ⑧

A version that learnt of one class makes the chunk of that class anew, and of it the pieces alone
whose part is another one; all other chunks are those of the version before, as they are. So what is
walked through for each version is the chunks, and not the parts nor the classes.

Shape suffixes: C classes of a chunk, D features, E joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from everlens.errors import PartError
from everlens.model.classes import CHUNK, EVIDENCE_CHUNK, NameChunk, Rows, chunks_of
from everlens.model.forms import all_finite, check_form, read_json, read_tensors
from everlens.model.heads import class_vectors
from everlens.model.snapshot import CURVE_BINS, RECORD
from everlens.records import LABEL_CHARACTERS_MAX, clean_name

# A letter has at most four bytes; quotes, comma and blank stand around a name.
_NAMES_BYTES_MAX = CHUNK * (4 * LABEL_CHARACTERS_MAX + 4)
_COUNT_MAX = 1 << 53  # what every reader of JSON keeps exactly
_UNIT_TOLERANCE = 1e-3

# Stands for NaN in `record/N`, since a part with a number that is not finite is refused.
UNKNOWN = -1.0

Made = TypeVar("Made")


class Pieces:
    """
    What is made of parts, each under what it was made from; made once, as long as that stays.

    Args:
        digests: name → digest of the parts of a version.
        contents: digest → bytes, of at least those parts that `before` has nothing of.
        before: the pieces of the version before.
    """

    def __init__(
        self,
        digests: Mapping[str, str],
        contents: Mapping[str, bytes],
        before: Mapping[Hashable, Any],
    ) -> None:
        self.digests = digests
        self.contents = contents
        self.before = before
        self.made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return the piece under a key, from the version before where that has it."""
        if key not in self.made:
            self.made[key] = self.before[key] if key in self.before else make()
        value: Made = self.made[key]
        return value

    def tensors(self, name: str) -> dict[str, Tensor]:
        """
        Return the tensors of a part.

        Raises:
            PartError: it was not given, or is none of its kind.
        """
        return self.once((name, self.digests[name]), partial(self._read, name))

    def _read(self, name: str) -> dict[str, Tensor]:
        digest = self.digests[name]
        if digest not in self.contents:
            raise PartError(f"part {name} ({digest[:12]}) was not fetched")
        tensors = read_tensors(self.contents[digest], name)
        check_form(tensors, name)
        return tensors


@dataclass(frozen=True)
class Metric:
    """What the vectors of all chunks are made with; its digests say when they are made anew."""

    factor_DD: Mapping[str, Tensor]  # by expert, `evidence` and `adapter`
    digests: Mapping[str, str]  # of the factors
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def key(self) -> Hashable:
        """Equal for equal metrics."""
        return *self.digests.items(), self.dtype, self.device


@dataclass(frozen=True, slots=True)
class Chunk:
    """
    The classes 1024·N … of a version.

    Args:
        key: what it was made of beside its parts.
        names, text: as they were named, and as these names are scored.
        count_C: labels learnt.
        record: record_CR and curve_CN2, how they fared, see `everlens.model.snapshot`; None where
            the version says nothing of it.
        evidence, adapter: the vectors of the two heads; an adapter may know some of them or none.
        tuned_text: through a tuned text tower, where there is one.
        pieces: what these were made of, for the next version.
    """

    key: Hashable
    names: NameChunk
    text: Rows
    count_C: Tensor
    record: tuple[Tensor, Tensor] | None
    evidence: Rows
    adapter: Rows | None
    tuned_text: Rows | None
    pieces: Mapping[Hashable, Any]


def chunk_of(name: str) -> int | None:
    """Return the number of the chunk that a part belongs to; None for one of no class."""
    prefix, _, leaf = name.partition("/")
    if not leaf.isdecimal():
        return None
    return int(leaf) // (CHUNK // EVIDENCE_CHUNK) if prefix == "evidence" else int(leaf)


def chunk_key(digests: Mapping[str, str], number: int, classes: int, metric: Metric) -> Hashable:
    """Return what a chunk of so many classes is made of beside its parts; of the same, the same."""
    kinds = tuple(f"{kind}/{number}" in digests for kind in ("record", "adapter"))
    # Classes that came after an adapter was fitted are missing at its end.
    last = f"adapter/{number + 1}" not in digests
    return classes, kinds, last, metric.key


def build_chunk(pieces: Pieces, number: int, classes: int, metric: Metric) -> Chunk:
    """
    Return a chunk of so many classes.

    Raises:
        PartError: a part of it is missing, damaged or of another form.
        Exception: whatever else hostile bytes make the libraries raise.
    """
    key = chunk_key(pieces.digests, number, classes, metric)
    name = f"classes/{number}"
    tensors, digest = _rows_of(pieces, name, classes, classes), pieces.digests[name]
    names = pieces.once(("names", digest), partial(_names, tensors, name))
    text = _text(pieces, name, tensors, metric)
    evidence = [
        (f"evidence/{number * (CHUNK // EVIDENCE_CHUNK) + k}", span.stop - span.start)
        for k, span in chunks_of(classes, EVIDENCE_CHUNK)
    ]
    counted = [_rows_of(pieces, name, rows, rows) for name, rows in evidence]
    count_C = torch.cat([tensors["count_C"] for tensors in counted])
    vectors = _vectors(pieces, "evidence", [name for name, _ in evidence], metric)
    # Its score would be no number, and with it everybody's.
    if bool(count_C[vectors.missing.cpu()].any()):
        raise PartError("a class has labels, and a mean that points nowhere")
    record = None
    if (name := f"record/{number}") in pieces.digests:
        tensors = _rows_of(pieces, name, classes, classes)
        record = pieces.once(("record", pieces.digests[name]), partial(_record, tensors))
    adapter, tuned_text = None, None
    if (name := f"adapter/{number}") in pieces.digests:
        least = 1 if f"adapter/{number + 1}" not in pieces.digests else classes
        tensors = _rows_of(pieces, name, least, classes)
        adapter = _vectors(pieces, "adapter", [name], metric)
        if "text_CE" in tensors:
            tuned_text = _text(pieces, name, tensors, metric)
    return Chunk(
        key=key,
        names=names,
        text=text,
        count_C=count_C,
        record=record,
        evidence=vectors,
        adapter=adapter,
        tuned_text=tuned_text,
        pieces=pieces.made,
    )


def _rows_of(pieces: Pieces, name: str, least: int, most: int) -> dict[str, Tensor]:
    """Return the tensors of a part that has a row for each of so many classes."""
    key = ("rows", name, pieces.digests[name], least, most)
    tensors = pieces.tensors(name)
    pieces.once(key, partial(_check_rows, tensors, name, least, most))
    return tensors


def _check_rows(tensors: Mapping[str, Tensor], name: str, least: int, most: int) -> None:
    rows = {len(tensor) for key, tensor in tensors.items() if key != "names"}
    if len(rows) != 1 or not least <= rows.pop() <= most:
        raise PartError(f"{name} has not a row for each of {most} classes")
    # A longer one would win every answer.
    if "text_CE" in tensors:
        norm_C = tensors["text_CE"].norm(dim=1)
        if not bool(((norm_C - 1).abs() < _UNIT_TOLERANCE).all()):
            raise PartError(f"{name} has a text vector whose length is not one")
    if "count_C" in tensors:
        count_C = tensors["count_C"]
        if bool(((count_C < 0) | (count_C > _COUNT_MAX)).any()):
            raise PartError("a class has a count that no number of samples gives")


def _names(tensors: Mapping[str, Tensor], part: str) -> NameChunk:
    names = read_json(tensors["names"], _NAMES_BYTES_MAX)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PartError("class table is not a list of names")
    for name in names:
        if clean_name(name, field="class name") != name:
            raise PartError(f"class name {name!r} is not in the form in which names are kept")
    if len(names) != len(tensors["text_CE"]):
        raise PartError(f"{part} has {len(names)} names for other vectors")
    if len(set(names)) != len(names):
        raise PartError(f"a class name stands twice in {part}")
    return NameChunk(names)


def _text(pieces: Pieces, name: str, tensors: Mapping[str, Tensor], metric: Metric) -> Rows:
    """Return text vectors as they are scored."""
    return pieces.once(
        ("text", name, pieces.digests[name], metric.dtype),
        lambda: Rows.of(tensors["text_CE"].to(metric.device, metric.dtype)),
    )


def _record(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    record_CR, curve_CN2 = tensors["record_CR"], tensors["curve_CN2"]
    if record_CR.shape[1] != len(RECORD):
        raise PartError(f"a record has {record_CR.shape[1]} columns, not {len(RECORD)}")
    if curve_CN2.shape[1:] != (CURVE_BINS, 2):
        raise PartError(f"a curve has {tuple(curve_CN2.shape[1:])} numbers a class")
    if bool((curve_CN2[:, :, 1] > curve_CN2[:, :, 0]).any()):
        raise PartError("a curve has more right answers than answers")
    return record_CR.masked_fill(record_CR == UNKNOWN, torch.nan), curve_CN2


def _vectors(pieces: Pieces, expert: str, names: Iterable[str], metric: Metric) -> Rows:
    """Return the vectors of some parts as one table, from now on the memory of them all."""
    factor_DD, factor = metric.factor_DD[expert], metric.digests[expert]
    keys = {name: ("vectors", name, pieces.digests[name], factor, metric.dtype) for name in names}
    made = [
        pieces.once(key, partial(_made, factor_DD, pieces.tensors(name), metric.dtype))
        for name, key in keys.items()
    ]
    rows = pieces.once(("joined", *keys.values()), lambda: Rows.joined(made))
    views = torch.split(rows.vector_CD, [len(part.vector_CD) for part in made])
    for key, part, view in zip(keys.values(), made, views, strict=True):
        pieces.made[key] = Rows(view, part.missing)
    return rows


def _made(factor_DD: Tensor, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Rows:
    vector_CD = class_vectors(factor_DD, tensors["mean_CD"].to(factor_DD.device))
    if not all_finite(vector_CD):
        raise PartError("a class overflows in the metric of the factor")
    return Rows.of(vector_CD.to(dtype))
