"""Entries of the log → one batch: where it ends, and which of its samples are fit to be learnt. ④"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from everlens.errors import WireError
from everlens.pixels import decode_pixels
from everlens.records import (
    Activation,
    DeadLetter,
    Entry,
    EntryKind,
    Forgetting,
    Rejection,
    Sample,
    clean_name,
)
from everlens.wire import (
    decode_activation,
    decode_forgetting,
    decode_rejection,
    decode_sample,
)
from worker.learn.learner import LabelledPixels

# Forgettings of a batch. One costs a row to subtract, a batch of them a factor and a version: whoever
# asks for many, one request each, makes few batches.
FORGETTINGS_MAX = 256

_PICTURES = (EntryKind.SAMPLE, EntryKind.REJECT)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one turn of the loop learns, or unlearns."""

    samples: list[LabelledPixels]
    dead: list[DeadLetter]
    last_seq: int
    tunes: bool  # whether its border asks for a round of tuning, full or not
    publishes_adapter: bool
    activation: Activation | None = None
    forgettings: list[tuple[int, Forgetting]] = field(default_factory=list)  # with their seqs
    first_seq: int = 0
    traces: Sequence[str] = ()  # of the requests that brought the samples


def cut(
    entries: Sequence[Entry], batch_size: int, forgettings_max: int = FORGETTINGS_MAX
) -> list[Entry] | None:
    """
    Return the entries of the next batch, or None while its border is not in the log yet.

    A border is a control entry, or `batch_size` pictures, or `forgettings_max` forgettings (or as
    many as pictures, if that is more), or where pictures end and forgettings begin or the other way
    round: a function of the log alone and never of the time, so that a restarted learner makes the
    same batches.
    """
    forgets = bool(entries) and _forgets(entries[0])
    most = max(batch_size, forgettings_max) if forgets else batch_size
    for place, entry in enumerate(entries[:most]):
        if entry.kind is EntryKind.ACTIVATE:
            return list(entries[: max(1, place)])  # alone, behind what came before it
        if entry.kind not in {*_PICTURES, EntryKind.FORGET}:
            return list(entries[: place + 1])
        if _forgets(entry) != forgets:
            return list(entries[:place])
    return list(entries[:most]) if len(entries) >= most else None


def _forgets(entry: Entry) -> bool:
    return entry.kind is EntryKind.FORGET


def parse(entries: Sequence[Entry], *, size: int, name_fits: Callable[[str], bool]) -> Batch:
    """
    Return the batch; a bad entry becomes a dead letter and costs nobody else anything.

    Args:
        entries: of one batch, in order, at least one.
        size: of the model's pictures.
        name_fits: whether the text tower reads the whole name.
    """
    samples, dead, forgettings, traces = [], [], [], []
    activation = None
    for entry in entries:
        sample_id = ""
        try:
            match entry.kind:
                case EntryKind.ACTIVATE:
                    activation = decode_activation(entry.payload)
                case EntryKind.FORGET:
                    forgettings.append((entry.seq, decode_forgetting(entry.payload)))
                case EntryKind.SAMPLE | EntryKind.REJECT:
                    sample = _decoded(entry)
                    sample_id = sample.id
                    samples.append(_pixels_of(entry, sample, size, name_fits))
                    traces += [sample.trace] if sample.trace else []
        except (WireError, ValueError) as error:
            dead.append(DeadLetter(entry.seq, sample_id, str(error)))
    return Batch(
        samples=samples,
        dead=dead,
        last_seq=entries[-1].seq,
        tunes=entries[-1].kind in {EntryKind.TUNE, EntryKind.ADAPTER},
        publishes_adapter=entries[-1].kind is EntryKind.ADAPTER,
        activation=activation,
        first_seq=entries[0].seq,
        traces=traces,
        forgettings=forgettings,
    )


def _decoded(entry: Entry) -> Sample | Rejection:
    refused = entry.kind is EntryKind.REJECT
    return decode_rejection(entry.payload) if refused else decode_sample(entry.payload)


def _pixels_of(
    entry: Entry, sample: Sample | Rejection, size: int, name_fits: Callable[[str], bool]
) -> LabelledPixels:
    label = clean_name(sample.label, field="label")
    if not name_fits(label):
        raise WireError("label is longer than the text tower reads")
    return LabelledPixels(
        seq=entry.seq,
        id=sample.id,
        label=label,
        text=sample.text if isinstance(sample, Sample) else None,
        image=sample.image,
        pixels=decode_pixels(sample.image, size),
        refused=isinstance(sample, Rejection),
    )
