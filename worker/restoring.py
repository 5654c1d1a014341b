"""
A start: what is committed becomes a new learner, to the bit. ⑥

Large sums are not written with every batch; those of the batches since are added to them again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from everlens.errors import StateError
from worker.commit import Progress, StateFile, config_record
from worker.learn.evidence import EvidenceSums
from worker.learn.learner import Learner
from worker.learn.prequential import Prequential
from worker.learn.replay import Exemplar
from worker.saved_sums import saved_sums
from worker.tables import tensors_of, vector_of


def restore(state: StateFile, learner: Learner) -> Progress | None:
    """
    Bring a new learner to the committed state; return None when there is none.

    Args:
        state: verified.
        learner: that has seen nothing.

    Raises:
        StateError: made with another base model or other settings.
    """
    record = state.record()
    if record is None:
        return None
    progress = Progress(**record["progress"])
    _check_fits(record, progress, learner)
    learner.batch = record["batch"]
    learner.replay.next_class = record["next_class"]
    learner.scoring.prequential = Prequential(*record["prequential"])
    _restore_classes(state, learner)
    _restore_records(state, learner)
    _restore_sums(state, learner, progress.sums_batch)
    learner.factor_samples = record["factor_samples"]
    shelves = state.db.execute("SELECT class_index, seen, full FROM shelves")
    bookkeeping = {index: (seen, bool(full)) for index, seen, full in shelves}
    learner.replay.restore(_exemplars(state), bookkeeping)
    learner.waiting = list(_waiting(state))
    learner.tuner.steps_drawn = record["steps_drawn"]
    tuner = state.blob("tuner")
    if tuner is not None:
        learner.tuner.load_state(tensors_of(tuner, "tuner"))
    accepted = state.blob("accepted")
    if accepted is not None:
        # What it lacks is as in a new one: losses, where classes were not weighed until now.
        learner.tuner.accepted |= tensors_of(accepted, "accepted")
    return progress


def _restore_classes(state: StateFile, learner: Learner) -> None:
    for index, name, vector in state.db.execute(
        "SELECT class_index, name, vector FROM classes ORDER BY class_index"
    ):
        assert index == len(learner.class_names)
        learner.class_names.append(name)
        learner.class_index[name] = index
        learner.text_vectors.append(vector_of(vector))


def _restore_records(state: StateFile, learner: Learner) -> None:
    learner.scoring.records.make_room(len(learner.class_names))
    fusing = state.blob("fusing")
    if fusing is not None:
        learner.scoring.fusing.load(tensors_of(fusing, "fusing"))
    for class_index, record in state.db.execute("SELECT class_index, record FROM records"):
        learner.scoring.records.load(class_index, tensors_of(record, f"record {class_index}"))


def _restore_sums(state: StateFile, learner: Learner, saved_batch: int) -> None:
    sums, factor = saved_sums(state), state.blob("factor")
    rows = state.db.execute(
        "SELECT batch, class_index, feature, refused FROM samples WHERE batch > ? ORDER BY seq",
        (saved_batch,),
    )
    for labelled, refused in _by_batch(rows):
        if labelled:
            feature_BD = torch.stack([vector_of(feature) for _, feature in labelled])
            sums = sums or EvidenceSums(feature_BD.shape[1])
            sums.add(feature_BD, [class_index for class_index, _ in labelled])
        for class_index, feature in refused:
            assert sums is not None  # a name without a sample is not refused
            sums.refuse(vector_of(feature)[None], [class_index])
    learner.sums = sums
    if factor is not None:
        learner.factor = tensors_of(factor, "factor")["factor_DD"]


def _exemplars(state: StateFile) -> Iterator[Exemplar]:
    """Yield them in the order of the log, in which they were added."""
    rows = state.db.execute("SELECT * FROM exemplars ORDER BY seq")
    for seq, class_index, text, image, trunk, held_out, _ in rows:
        hidden = tensors_of(trunk, f"exemplar {seq}")["x"]
        yield Exemplar(seq, class_index, text, image, hidden, bool(held_out))


def _waiting(state: StateFile) -> Iterator[Exemplar]:
    """Yield what waits for a round, in the order of the log."""
    rows = state.db.execute("SELECT seq, class_index, text, trunk FROM waiting ORDER BY seq")
    for seq, class_index, text, trunk in rows:
        yield Exemplar(seq, class_index, text, b"", tensors_of(trunk, f"waiting {seq}")["x"])


def _by_batch(
    rows: Iterable[tuple[int, int, bytes, int]],
) -> Iterator[tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]]:
    """
    Yield the labelled and the refused rows of each batch.

    Sums must be added in the steps in which they were first added.
    """
    for _, group in itertools.groupby(rows, key=lambda row: row[0]):
        some: tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]] = ([], [])
        for _, class_index, feature, refused in group:
            some[refused].append((class_index, feature))
        yield some


def _check_fits(record: dict[str, Any], progress: Progress, learner: Learner) -> None:
    if progress.fingerprint != learner.backbone.fingerprint:
        raise StateError(
            f"the state was made with another base model ({progress.fingerprint[:12]}, this is "
            f"{learner.backbone.name} {learner.backbone.fingerprint[:12]}); set EVERLENS_MODEL "
            "back, or give this model an EVERLENS_DATA_DIR and EVERLENS_NAMESPACE of its own"
        )
    now = config_record(learner.config)
    for name, value in record["config"].items():
        if now[name] != value:
            raise StateError(
                f"the state was made with EVERLENS_{name.upper()}={value}, now it is {now[name]}; "
                "set it back, or begin anew with another EVERLENS_DATA_DIR and EVERLENS_NAMESPACE"
            )
