"""
The learner's state in one SQLite file; a commit is one transaction. ⑥

The state owns the cursor: whatever was killed in the middle of a batch leaves no trace, and the
batch is learnt again from the log, to the same bits. Large tensors are not written every time:
the D×D sums are saved now and then, and the features learnt since are added to them at the start,
in the same batches and so with the same rounding.

What lies on the disk is verified before it is believed (`worker.rows`); where it is damaged, the
start falls back to an older copy (`worker.generations`) and learns the rest from the log again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from everlens.errors import DamagedState, StateError
from everlens.records import DeadLetter
from worker.learn.evidence import EvidenceSums
from worker.learn.learner import Forgotten, Learner, LearnerConfig, LearntRow, Observation
from worker.learn.prequential import Prequential
from worker.learn.replay import Exemplar
from worker.learn.tuning import Draw, Round
from worker.rows import Rows
from worker.saved_sums import SCHEMA as SUMS_SCHEMA
from worker.saved_sums import save_sums, saved_sums

FORMAT = 7

GoneRow = tuple[int, str, int]  # seq, id and class of what is unlearnt

# Batches between two saves of the sums: bounds what a start adds up again.
SUMS_EVERY_BATCHES = 32

_TABLES = (
    "classes",
    "samples",
    "forgotten",
    "given_up",
    "dead",
    "reports",
    "exemplars",
    "shelves",
    "waiting",
    "rounds",
    "records",
    "sums",
    "blobs",
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS head (
    id INTEGER PRIMARY KEY CHECK (id = 1), record TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS classes (
    class_index INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, vector BLOB NOT NULL,
    digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS samples (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, batch INTEGER NOT NULL,
    class_index INTEGER NOT NULL, refused INTEGER NOT NULL, feature BLOB NOT NULL,
    digest BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS samples_by_batch ON samples (batch);
CREATE INDEX IF NOT EXISTS samples_by_class ON samples (class_index);
CREATE TABLE IF NOT EXISTS forgotten (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, class_index INTEGER NOT NULL,
    version INTEGER NOT NULL, digest BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS forgotten_by_version ON forgotten (version);
CREATE TABLE IF NOT EXISTS given_up (
    first INTEGER PRIMARY KEY, last INTEGER NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS dead (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, reason TEXT NOT NULL, version INTEGER NOT NULL,
    digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS reports (
    seq INTEGER PRIMARY KEY, report TEXT NOT NULL, version INTEGER NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS exemplars (
    seq INTEGER PRIMARY KEY, class_index INTEGER NOT NULL, text TEXT, image BLOB NOT NULL,
    trunk BLOB NOT NULL, held_out INTEGER NOT NULL, digest BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS exemplars_by_class ON exemplars (class_index);
CREATE TABLE IF NOT EXISTS waiting (
    seq INTEGER PRIMARY KEY, class_index INTEGER NOT NULL, text TEXT, trunk BLOB NOT NULL,
    digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS shelves (
    class_index INTEGER PRIMARY KEY, seen INTEGER NOT NULL, full INTEGER NOT NULL,
    digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    batch INTEGER PRIMARY KEY, plan TEXT NOT NULL, trunks BLOB NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    class_index INTEGER PRIMARY KEY, record BLOB NOT NULL, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS blobs (
    name TEXT PRIMARY KEY, content BLOB NOT NULL, digest BLOB NOT NULL);
"""


@dataclass(slots=True)
class Progress:
    """Where the learner is in the log and in its publications; part of every commit."""

    epoch: str
    holder: str  # of the lease: a restarted learner takes up its own
    fingerprint: str  # of the base model
    numerics: str  # what the bits depend on besides
    cursor: int = 0
    version: int = 0
    digest: str = ""  # of the version's manifest
    parent: str = ""  # of the version before
    parts: dict[str, str] = field(default_factory=dict)  # of the version, name → digest
    gate: dict[str, Any] | None = None  # of the version
    restored_from: int | None = None  # likewise
    sums_batch: int = 0  # when the sums were saved last
    adapter_batch: int = 0  # when the adapter was published last
    tunes: bool = False  # the last batch asks for a round of tuning
    adapter_due: bool = False  # likewise, or the last round, for the adapter's publication
    adapter_stale: bool = False  # its closed form, as published, rests on what is unlearnt since
    rounds: int = 0  # of tuning, drawn since the adapter was published
    waiting: int = 0  # samples observed since a round was drawn


class StateFile(Rows):
    """The learner's state in one file, from `open_state` to `close`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA + SUMS_SCHEMA, _TABLES)

    def verify_all(self) -> None:
        """
        Read everything once; return when it is what was committed.

        Raises:
            DamagedState: it is not.
            StateError: it was written by another everlens.
        """
        try:
            record = self.record()
            tally = {} if record is None else record["rows"]
            self.verify({table: int(total, 16) for table, total in tally.items()})
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise DamagedState(f"{self.path} is damaged ({error})") from error

    @property
    def cursor(self) -> int:
        """The last entry that is learnt in it; 0 in a new file."""
        record = self.record()
        return 0 if record is None else int(record["progress"]["cursor"])

    # What a batch changed

    def save_observation(
        self,
        learner: Learner,
        observation: Observation,
        progress: Progress,
    ) -> None:
        """Write what `Learner.observe` returned; notes in `progress` when it saved the sums."""
        first = len(learner.class_names) - len(observation.new_classes)
        self.insert(
            "classes",
            [
                (first + k, name, _bytes(learner.text_vectors[first + k]))
                for k, name in enumerate(observation.new_classes)
            ],
        )
        self.insert(
            "samples",
            [
                (
                    row.seq,
                    row.id,
                    row.batch,
                    row.class_index,
                    int(row.refused),
                    _bytes(row.feature_D),
                )
                for row in observation.rows
            ],
        )
        self.insert("exemplars", map(_exemplar_row, observation.buffer.added))
        self.delete("exemplars", observation.buffer.evicted)
        self._save_shelves(learner)
        self.insert(
            "waiting",
            ((e.seq, e.class_index, e.text, _trunk_bytes(e)) for e in observation.waiting),
        )
        scored = sorted(set(observation.scored))
        self.replace("records", [(c, save(learner.records.tensors(c))) for c in scored])
        self.save_blob("fusing", save(learner.fusing.tensors()))
        if observation.refreshed:
            assert learner.factor is not None
            self.save_blob("factor", save({"factor_DD": learner.factor}))
        if learner.sums is not None and learner.batch >= progress.sums_batch + SUMS_EVERY_BATCHES:
            self._save_sums(learner, progress)

    def _save_shelves(self, learner: Learner) -> None:
        """Write what the buffer keeps of classes, of those that changed alone."""
        changed = learner.replay.changed_bookkeeping()
        self.replace("shelves", [(c, seen, int(full)) for c, (seen, full) in changed.items()])

    def _save_sums(
        self, learner: Learner, progress: Progress, forgotten: Iterable[int] = ()
    ) -> None:
        """Write the sums of those classes that changed since they were written last."""
        assert learner.sums is not None
        found = self.db.execute(
            "SELECT DISTINCT class_index FROM samples WHERE batch > ?", (progress.sums_batch,)
        )
        save_sums(self, learner.sums, sorted({*forgotten, *(index for (index,) in found)}))
        progress.sums_batch = learner.batch

    def rows_after(self, seq: int) -> list[LearntRow]:
        """Return what the sums took from the samples after an entry, in order."""
        return list(self._rows("seq > ?", seq))

    def row_of(self, seq: int) -> list[LearntRow]:
        """Return what the sums took from one sample; nothing where they have none of it."""
        return list(self._rows("seq = ?", seq))

    def rows_of(self, class_index: int) -> Iterator[LearntRow]:
        """Yield what the sums took from the samples of a class, in order."""
        return self._rows("class_index = ?", class_index)

    def _rows(self, which: str, number: int) -> Iterator[LearntRow]:
        rows = self.db.execute(
            f"SELECT seq, id, class_index, feature, refused, batch FROM samples WHERE {which} "  # noqa: S608 - our own words
            "ORDER BY seq",
            (number,),
        )
        for seq, id_, class_index, feature, refused, batch in rows:
            yield LearntRow(seq, id_, class_index, _vector(feature), bool(refused), batch)

    def has_forgotten(self, seq: int) -> bool:
        """Return whether a sample was learnt once and is unlearnt."""
        found = self.db.execute("SELECT 1 FROM forgotten WHERE seq = ?", (seq,)).fetchone()
        return found is not None

    def save_forgotten(
        self,
        learner: Learner,
        forgotten: Forgotten,
        progress: Progress,
        through: Callable[[Iterable[GoneRow]], Iterable[GoneRow]] = iter,
    ) -> None:
        """
        Write what `Learner.forget` changed.

        Args:
            learner: as it is now.
            forgotten: what left; the ledger keeps the names of the samples.
            progress: with the version that is without them.
            through: yields the rows given, as they are written; there may be a million.
        """
        self.delete("samples", (seq for seq, _, _ in through(forgotten.rows)))
        self.insert("forgotten", ((*row, progress.version) for row in through(forgotten.rows)))
        self.delete("exemplars", forgotten.exemplars)
        self._save_shelves(learner)
        left = {exemplar.seq for exemplar in learner.waiting}
        waiting = self.db.execute("SELECT seq FROM waiting").fetchall()
        self.delete("waiting", [seq for (seq,) in waiting if seq not in left])
        records = learner.records
        self.replace("records", [(c, save(records.tensors(c))) for c in forgotten.whole])
        if forgotten.refreshed:
            assert learner.factor is not None
            self._save_sums(learner, progress, forgotten.touched)
            self.save_blob("factor", save({"factor_DD": learner.factor}))
        if forgotten.whole:  # their losses are part of it
            self.save_accepted(learner)

    def save_reports(self, reports: Mapping[int, Mapping[str, Any]], version: int) -> None:
        """Write what forgettings did, by their seqs."""
        self.insert("reports", [(seq, json.dumps(r), version) for seq, r in reports.items()])

    def save_parts(self, parts: dict[str, bytes]) -> None:
        """Write published parts that a start cannot make again, since what they were made of moved on."""
        for name, content in parts.items():
            self.save_blob(f"part {name}", content)

    def saved_parts(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return those parts that `save_parts` wrote."""
        found = {name: self.blob(f"part {name}") for name in names}
        return {name: content for name, content in found.items() if content is not None}

    def save_round(self, drawn: Round | None) -> None:
        """Write a round, for which no sample waits any more; also where nothing came of them."""
        self.clear("waiting")
        if drawn is not None:
            self.insert("rounds", [_round_row(drawn)])

    def save_tuning(self, tuner: Mapping[str, Tensor], taken: Sequence[int]) -> None:
        """
        Write the adapter after rounds that were taken.

        Args:
            tuner: its state after the last of them.
            taken: their batches.
        """
        self.save_blob("tuner", save(dict(tuner)))
        self.delete("rounds", taken)

    def save_accepted(self, learner: Learner) -> None:
        """Write the adapter after the gate: as it is, and as it was accepted last."""
        self.save_blob("tuner", save(learner.tuner.state()))
        self.save_blob("accepted", save(learner.tuner.accepted))

    def rounds(self) -> list[Round]:
        """Return the rounds that were drawn and not taken, in their order."""
        rows = self.db.execute("SELECT batch, plan, trunks FROM rounds ORDER BY batch")
        return [_round(*row) for row in rows]

    def save_dead(self, letters: list[DeadLetter], version: int) -> None:
        """Write the samples of a batch that could not be learnt."""
        self.insert("dead", [(letter.seq, letter.id, letter.reason, version) for letter in letters])

    def save_blob(self, name: str, content: bytes) -> None:
        """Write one named blob."""
        self.replace("blobs", [(name, content)])

    def save_progress(self, learner: Learner, progress: Progress) -> None:
        """Write the head row: cursor, counters, version. Last in every transaction."""
        record = {
            "format": FORMAT,
            "config": _config_record(learner.config),
            "batch": learner.batch,
            "factor_samples": learner.factor_samples,
            "next_class": learner.replay.next_class,
            "steps_drawn": learner.tuner.steps_drawn,
            "prequential": [
                learner.prequential.scored,
                learner.prequential.correct,
                learner.prequential.recent_correct,
                learner.prequential.recent_weight,
            ],
            "progress": {name: getattr(progress, name) for name in Progress.__slots__},
            "rows": self._tallies(),
        }
        self._save_record(record)

    def _tallies(self) -> dict[str, str]:
        return {table: f"{total:x}" for table, total in self.tally.items()}

    def _save_record(self, record: Mapping[str, Any]) -> None:
        text = json.dumps(record, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?)", (text, digest))

    def reconcile(self, changes: Mapping[str, Any], given_up: Sequence[tuple[int, int]]) -> None:
        """
        Go on from another place of the log; the ledger keeps what that gives up.

        Args:
            changes: fields of `Progress` with their new values.
            given_up: first and last number of each range that will never be learnt.
        """
        record = self.record()
        assert record is not None
        record["progress"] |= changes
        with self.transaction():
            self.replace("given_up", given_up)
            record["rows"] = self._tallies()
            self._save_record(record)

    # What a start reads

    def record(self) -> dict[str, Any] | None:
        """
        Return the head row, or None in a new file.

        Raises:
            DamagedState: its bytes are not what was written.
            StateError: it was written by another everlens.
        """
        row = self.db.execute("SELECT record, digest FROM head").fetchone()
        if row is None:
            return None
        text, digest = row
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise DamagedState(f"{self.path} is damaged: its head row has another digest")
        record: dict[str, Any] = json.loads(text)
        if record["format"] != FORMAT:
            raise StateError(
                f"{self.path} has format {record['format']}, this everlens reads {FORMAT}; go on "
                "with the everlens that wrote it, or begin anew with another EVERLENS_DATA_DIR and "
                "EVERLENS_NAMESPACE"
            )
        return record

    def dead_letters(self, version: int) -> list[DeadLetter]:
        """Return the dead letters that were published with a version."""
        rows = self.db.execute(
            "SELECT seq, id, reason FROM dead WHERE version = ? ORDER BY seq", (version,)
        )
        return [DeadLetter(*row) for row in rows]

    def forgotten(self, version: int) -> list[int]:
        """Return the seqs of the samples that a version was the first to be without."""
        rows = self.db.execute(
            "SELECT seq FROM forgotten WHERE version = ? ORDER BY seq", (version,)
        )
        return [seq for (seq,) in rows]

    def reports(self, version: int) -> dict[int, str]:
        """Return what the forgettings of a version did, as JSON by their seqs."""
        rows = self.db.execute("SELECT seq, report FROM reports WHERE version = ?", (version,))
        return dict(rows)

    def blob(self, name: str) -> bytes | None:
        """Return a named blob."""
        row = self.db.execute("SELECT content FROM blobs WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def restore(self, learner: Learner) -> Progress | None:
        """
        Bring a new learner to the committed state; return None when there is none.

        Raises:
            StateError: made with another base model or other settings.
        """
        record = self.record()
        if record is None:
            return None
        progress = Progress(**record["progress"])
        _check_fits(record, progress, learner)
        learner.batch = record["batch"]
        learner.replay.next_class = record["next_class"]
        learner.prequential = Prequential(*record["prequential"])
        self._restore_classes(learner)
        self._restore_records(learner)
        self._restore_sums(learner, progress.sums_batch)
        learner.factor_samples = record["factor_samples"]
        shelves = self.db.execute("SELECT class_index, seen, full FROM shelves")
        bookkeeping = {index: (seen, bool(full)) for index, seen, full in shelves}
        learner.replay.restore(self._exemplars(), bookkeeping)
        learner.waiting = list(self._waiting())
        learner.tuner.steps_drawn = record["steps_drawn"]
        tuner = self.blob("tuner")
        if tuner is not None:
            learner.tuner.load_state(_tensors(tuner, "tuner"))
        accepted = self.blob("accepted")
        if accepted is not None:
            learner.tuner.accepted = dict(_tensors(accepted, "accepted"))
        return progress

    def _restore_classes(self, learner: Learner) -> None:
        for index, name, vector in self.db.execute(
            "SELECT class_index, name, vector FROM classes ORDER BY class_index"
        ):
            assert index == len(learner.class_names)
            learner.class_names.append(name)
            learner.class_index[name] = index
            learner.text_vectors.append(_vector(vector))

    def _restore_records(self, learner: Learner) -> None:
        learner.records.make_room(len(learner.class_names))
        fusing = self.blob("fusing")
        if fusing is not None:
            learner.fusing.load(_tensors(fusing, "fusing"))
        for class_index, record in self.db.execute("SELECT class_index, record FROM records"):
            learner.records.load(class_index, _tensors(record, f"record {class_index}"))

    def _restore_sums(self, learner: Learner, saved_batch: int) -> None:
        sums, factor = saved_sums(self), self.blob("factor")
        rows = self.db.execute(
            "SELECT batch, class_index, feature, refused FROM samples WHERE batch > ? ORDER BY seq",
            (saved_batch,),
        )
        for labelled, refused in _by_batch(rows):
            if labelled:
                feature_BD = torch.stack([_vector(feature) for _, feature in labelled])
                sums = sums or EvidenceSums(feature_BD.shape[1])
                sums.add(feature_BD, [class_index for class_index, _ in labelled])
            for class_index, feature in refused:
                assert sums is not None  # a name without a sample is not refused
                sums.refuse(_vector(feature)[None], [class_index])
        learner.sums = sums
        if factor is not None:
            learner.factor = _tensors(factor, "factor")["factor_DD"]

    def _exemplars(self) -> Iterator[Exemplar]:
        """Yield them in the order of the log, in which they were added."""
        rows = self.db.execute("SELECT * FROM exemplars ORDER BY seq")
        for seq, class_index, text, image, trunk, held_out, _ in rows:
            state = _tensors(trunk, f"exemplar {seq}")["x"]
            yield Exemplar(seq, class_index, text, image, state, bool(held_out))

    def _waiting(self) -> Iterator[Exemplar]:
        """Yield what waits for a round, in the order of the log; no step looks at a picture."""
        rows = self.db.execute("SELECT seq, class_index, text, trunk FROM waiting ORDER BY seq")
        for seq, class_index, text, trunk in rows:
            yield Exemplar(seq, class_index, text, b"", _tensors(trunk, f"waiting {seq}")["x"])


def _exemplar_row(exemplar: Exemplar) -> tuple[int, int, str | None, bytes, bytes, int]:
    return (
        exemplar.seq,
        exemplar.class_index,
        exemplar.text,
        exemplar.image,
        _trunk_bytes(exemplar),
        int(exemplar.held_out),
    )


def _trunk_bytes(exemplar: Exemplar) -> bytes:
    return save({"x": exemplar.trunk.contiguous()})


def _round_row(drawn: Round) -> tuple[int, str, bytes]:
    """Return a round as a row of its own: what it sees may have left the buffer when it is taken."""
    seen = {e.seq: e for draw in drawn.draws for e in (*draw.new, *draw.replayed)}
    place = {seq: k for k, seq in enumerate(seen)}
    plan = {
        "classes": drawn.classes,
        "seen": [(e.seq, e.class_index, e.text) for e in seen.values()],
        "draws": [
            (draw.step, *([place[e.seq] for e in part] for part in (draw.new, draw.replayed)))
            for draw in drawn.draws
        ],
    }
    trunks = save({"x": torch.stack([e.trunk for e in seen.values()])})
    return drawn.batch, json.dumps(plan), trunks


def _round(batch: int, plan: str, trunks: bytes) -> Round:
    fields = json.loads(plan)
    states = _tensors(trunks, f"round {batch}")["x"]
    seen = [
        Exemplar(seq, class_index, text, b"", trunk)
        for (seq, class_index, text), trunk in zip(fields["seen"], states, strict=True)
    ]
    return Round(
        batch,
        fields["classes"],
        [
            Draw(step, [seen[k] for k in new], [seen[k] for k in replayed])
            for step, new, replayed in fields["draws"]
        ],
    )


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


def _bytes(vector: Tensor) -> bytes:
    assert vector.dtype == torch.float32
    content: bytes = vector.contiguous().numpy().tobytes()
    return content


def _vector(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, "<f4").copy())


def _tensors(content: bytes, name: str) -> Mapping[str, Tensor]:
    try:
        return load(content)
    except SafetensorError as error:
        raise DamagedState(f"{name} in the state is damaged: {error}") from error


def _config_record(config: LearnerConfig) -> dict[str, Any]:
    """The settings that cannot change under a state."""
    return {
        "seed": config.seed,
        "tune": config.adapter.tune,
        "top_blocks": config.adapter.top_blocks,
        "lora_rank": config.adapter.rank,
        "lora_alpha": config.adapter.alpha,
    }


def _check_fits(record: dict[str, Any], progress: Progress, learner: Learner) -> None:
    if progress.fingerprint != learner.backbone.fingerprint:
        raise StateError(
            f"the state was made with another base model ({progress.fingerprint[:12]}, this is "
            f"{learner.backbone.name} {learner.backbone.fingerprint[:12]}); set EVERLENS_MODEL "
            "back, or give this model a data directory of its own"
        )
    now = _config_record(learner.config)
    for name, value in record["config"].items():
        if now[name] != value:
            raise StateError(
                f"the state was made with EVERLENS_{name.upper()}={value}, now it is {now[name]}; "
                "set it back, or begin with another data directory"
            )
