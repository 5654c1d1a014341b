"""Where a batch ends, and which of its entries can be learnt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlens.pixels import decode_pixels, encode_pixels
from everlens.records import DeadLetter, Entry, EntryKind, Forgetting, Rejection, Sample
from everlens.wire import encode_forgetting, encode_rejection, encode_sample
from tests.pictures import crops
from worker.batch import FORGETTINGS_MAX, cut, parse

logs = st.lists(st.sampled_from(EntryKind), max_size=40)
SIZE = 32
FORGETTINGS = 5  # of a batch, so that examples have more


def log_of(kinds: list[EntryKind]) -> list[Entry]:
    return [Entry(seq, kind, b"") for seq, kind in enumerate(kinds, start=1)]


def all_batches(log: list[Entry], batch_size: int) -> list[list[Entry]]:
    batches = []
    while (batch := cut(log, batch_size, FORGETTINGS)) is not None:
        batches.append(batch)
        log = log[len(batch) :]
    return batches


def sample(name: str, label: str = "cat", **changes: object) -> bytes:
    image = encode_pixels(crops("cat", 1, SIZE)[0])
    fields: dict[str, object] = {"id": name, "label": label, "image": image, **changes}
    return encode_sample(Sample(**fields))  # type: ignore[arg-type]


def entries(*payloads: bytes) -> list[Entry]:
    return [Entry(seq, EntryKind.SAMPLE, p) for seq, p in enumerate(payloads, start=11)]


@given(kinds=logs, batch_size=st.integers(1, 9), data=st.data())
def test_batches_are_a_function_of_the_log_alone(
    kinds: list[EntryKind], batch_size: int, data: st.DataObject
) -> None:
    """However much of the log can be seen at a time, the batches are the same."""
    log = log_of(kinds)
    expected, found, start = all_batches(log, batch_size), [], 0
    for end in sorted({*data.draw(st.sets(st.integers(0, len(log)))), len(log)}):
        batches = all_batches(log[start:end], batch_size)
        found += batches
        start += sum(map(len, batches))
    assert found == expected


@given(kinds=logs, batch_size=st.integers(1, 9))
def test_a_batch_ends_at_a_control_entry_or_when_it_is_full(
    kinds: list[EntryKind], batch_size: int
) -> None:
    """
    No entry is lost or moved; a border is the first control entry, or so many pictures or forgettings.

    An activation is alone in its batch, so that a border stands before it as well; another one is
    where pictures end and forgettings begin, or the other way round.
    """
    pictures, forgettings = {EntryKind.SAMPLE, EntryKind.REJECT}, {EntryKind.FORGET}
    log = log_of(kinds)
    batches = all_batches(log, batch_size)
    assert [entry for batch in batches for entry in batch] == log[: sum(map(len, batches))]
    for batch, following in zip(batches, [*batches[1:], []], strict=False):
        before = {entry.kind for entry in batch[:-1]}
        assert before <= pictures or before <= forgettings
        last = batch[-1].kind
        if last in pictures | forgettings and before:
            assert (last in pictures) == (before <= pictures)
        most = batch_size if last in pictures else max(batch_size, FORGETTINGS)
        full = len(batch) == most or last not in pictures | forgettings
        following_kind = next(iter(following)).kind if following else None
        turns = following_kind is not None and (last in pictures) != (following_kind in pictures)
        assert full or following_kind is EntryKind.ACTIVATE or turns or not following
        assert len(batch) <= max(batch_size, FORGETTINGS if before <= forgettings else 0)
        assert len(batch) == 1 or last is not EntryKind.ACTIVATE
    rest = log[sum(map(len, batches)) :]
    of_rest = {entry.kind for entry in rest}
    assert len(rest) < max(batch_size, FORGETTINGS if of_rest <= forgettings else 0)
    assert of_rest <= pictures or of_rest <= forgettings


def test_nothing_to_cut() -> None:
    """An empty log, and one that is short of its border, has no batch."""
    assert cut([], 4) is None
    assert cut(log_of([EntryKind.SAMPLE] * 3), 4) is None
    assert cut(log_of([EntryKind.FORGET] * (FORGETTINGS_MAX - 1)), 4) is None


def test_a_good_sample_is_ready_to_be_learnt() -> None:
    """Label, caption, id, the bytes as they are and the pixels in them."""
    (entry,) = entries(sample("one", "  cafe\u0301 ", text="a café at night"))
    batch = parse([entry], size=SIZE, name_fits=bool)
    (learnt,) = batch.samples
    assert (learnt.seq, learnt.id, learnt.label) == (11, "one", "café")
    assert learnt.text == "a café at night"
    assert np.array_equal(learnt.pixels, decode_pixels(learnt.image, SIZE))
    assert (batch.dead, batch.last_seq, batch.publishes_adapter) == ([], 11, False)


@pytest.mark.parametrize(
    ("payload", "name", "reason"),
    [
        (b"nothing of ours", "", "format"),
        (sample("wide", image=encode_pixels(crops("cat", 1, 40)[0])), "wide", "40 x 40"),
        (sample("broken", image=b"\xff\xd8\xff\x00"), "broken", "not a JPEG"),
        (sample("hidden", "ca\u202et"), "hidden", "U+202E"),
        (sample("blank", "  "), "blank", "empty"),
        (sample("long", "long"), "long", "longer than the text tower reads"),
    ],
    ids=["bytes", "size", "jpeg", "character", "empty", "fit"],
)
def test_a_bad_entry_costs_nobody_else_anything(payload: bytes, name: str, reason: str) -> None:
    """It becomes a dead letter with its id, if it has one, and its reason; the others are learnt."""
    whole = entries(sample("before"), payload, sample("after"))
    batch = parse(whole, size=SIZE, name_fits=lambda label: label != "long")
    assert [s.id for s in batch.samples] == ["before", "after"]
    assert [s.seq for s in batch.samples] == [11, 13]
    (dead,) = batch.dead
    assert (dead.seq, dead.id) == (12, name)
    assert reason in dead.reason
    assert batch.last_seq == 13


@pytest.mark.parametrize(("kind", "publishes"), [(EntryKind.CUT, False), (EntryKind.ADAPTER, True)])
def test_a_control_entry_is_no_sample(kind: EntryKind, publishes: bool) -> None:
    """It ends the batch and moves the cursor; only `adapter` asks for the adapter."""
    whole = [*entries(sample("one")), Entry(12, kind, b"")]
    batch = parse(whole, size=SIZE, name_fits=bool)
    assert [s.id for s in batch.samples] == ["one"]
    assert (batch.dead, batch.last_seq, batch.publishes_adapter) == ([], 12, publishes)


def test_a_rejection_is_a_picture_with_a_refused_name() -> None:
    """It comes among the samples of its batch, in order, and says what it is."""
    refusal = encode_rejection(Rejection("no", "cat", encode_pixels(crops("cat", 1, SIZE)[0])))
    whole = [*entries(sample("one")), Entry(12, EntryKind.REJECT, refusal)]
    whole.append(Entry(13, EntryKind.REJECT, sample("bad", image=b"")))
    batch = parse(whole, size=SIZE, name_fits=bool)
    assert [(s.id, s.label, s.refused) for s in batch.samples] == [
        ("one", "cat", False),
        ("no", "cat", True),
    ]
    assert [(letter.seq, letter.id) for letter in batch.dead] == [(13, "bad")]


def test_forgettings_are_read_with_their_numbers() -> None:
    """One that cannot be read is a dead letter."""
    wishes = [Forgetting(seq=3), Forgetting(label="cat")]
    payloads = [*map(encode_forgetting, wishes), b"what?"]
    whole = [Entry(seq, EntryKind.FORGET, p) for seq, p in enumerate(payloads, start=11)]
    batch = parse([*whole, Entry(14, EntryKind.CUT, b"")], size=SIZE, name_fits=bool)
    assert batch.forgettings == [(11, wishes[0]), (12, wishes[1])]
    assert [letter.seq for letter in batch.dead] == [13]
    assert (batch.samples, batch.last_seq) == ([], 14)


def test_a_batch_may_be_all_dead() -> None:
    """Nothing to learn is a batch all the same: the cursor moves past it."""
    batch = parse(entries(b"x", b"y"), size=SIZE, name_fits=bool)
    assert batch.samples == []
    assert [type(letter) for letter in batch.dead] == [DeadLetter, DeadLetter]
    assert batch.last_seq == 12
