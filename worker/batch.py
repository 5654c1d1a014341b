"""Entries of the log → one batch: where it ends, and which of its samples are fit to be learnt. ④"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from everlens.errors import WireError
from everlens.pixels import decode_pixels
from everlens.records import Activation, DeadLetter, Entry, EntryKind, clean_name
from everlens.wire import decode_activation, decode_sample
from worker.learn.learner import LabelledPixels


@dataclass(frozen=True, slots=True)
class Batch:
    """What one turn of the loop learns."""

    samples: list[LabelledPixels]
    dead: list[DeadLetter]
    last_seq: int
    tunes: bool  # whether its border asks for a round of tuning, full or not
    publishes_adapter: bool
    activation: Activation | None = None


def cut(entries: Sequence[Entry], batch_size: int) -> list[Entry] | None:
    """
    Return the entries of the next batch, or None while its border is not in the log yet.

    A border is a control entry, or `batch_size` samples: a function of the log alone and never of
    the time, so that a restarted learner makes the same batches.
    """
    for place, entry in enumerate(entries[:batch_size]):
        if entry.kind is EntryKind.ACTIVATE:
            return list(entries[: max(1, place)])  # alone, behind what came before it
        if entry.kind is not EntryKind.SAMPLE:
            return list(entries[: place + 1])
    return list(entries[:batch_size]) if len(entries) >= batch_size else None


def parse(entries: Sequence[Entry], *, size: int, name_fits: Callable[[str], bool]) -> Batch:
    """
    Return the batch; a bad entry becomes a dead letter and costs nobody else anything.

    Args:
        entries: of one batch, in order, at least one.
        size: of the model's pictures.
        name_fits: whether the text tower reads the whole name.
    """
    samples, dead = [], []
    activation = None
    for entry in entries:
        if entry.kind is EntryKind.ACTIVATE:
            try:
                activation = decode_activation(entry.payload)
            except WireError as error:
                dead.append(DeadLetter(entry.seq, "", str(error)))
        if entry.kind is not EntryKind.SAMPLE:
            continue
        sample_id = ""
        try:
            sample = decode_sample(entry.payload)
            sample_id = sample.id
            label = clean_name(sample.label, field="label")
            if not name_fits(label):
                raise WireError("label is longer than the text tower reads")
            pixels = decode_pixels(sample.image, size)
        except (WireError, ValueError) as error:
            dead.append(DeadLetter(entry.seq, sample_id, str(error)))
            continue
        samples.append(
            LabelledPixels(entry.seq, sample.id, label, sample.text, sample.image, pixels)
        )
    return Batch(
        samples=samples,
        dead=dead,
        last_seq=entries[-1].seq,
        tunes=entries[-1].kind in {EntryKind.TUNE, EntryKind.ADAPTER},
        publishes_adapter=entries[-1].kind is EntryKind.ADAPTER,
        activation=activation,
    )
