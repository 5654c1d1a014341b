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
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from everlens.errors import DamagedState, StateError
from everlens.records import DeadLetter
from worker.learn.learner import Forgotten, Learner, LearnerConfig, LearntRow, Observation
from worker.learn.tuning import Round
from worker.rows import Rows
from worker.saved_sums import save_sums
from worker.tables import (
    SCHEMA,
    TABLES,
    bytes_of,
    exemplar_row,
    round_of,
    round_row,
    sample_row,
    vector_of,
    waiting_row,
)

FORMAT = 8

GoneRow = tuple[int, str, int]  # seq, id and class of what is unlearnt

# Batches between two saves of the sums: bounds what a start adds up again.
SUMS_EVERY_BATCHES = 32


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
        super().__init__(path, SCHEMA, TABLES)

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
                (first + k, name, bytes_of(learner.text_vectors[first + k]))
                for k, name in enumerate(observation.new_classes)
            ],
        )
        self.insert("samples", map(sample_row, observation.rows))
        self.insert("exemplars", map(exemplar_row, observation.buffer.added))
        self.delete("exemplars", observation.buffer.evicted)
        self._save_shelves(learner)
        self.insert("waiting", map(waiting_row, observation.waiting))
        scored = sorted(set(observation.scored))
        self.replace("records", [(c, save(learner.scoring.records.tensors(c))) for c in scored])
        self.save_blob("fusing", save(learner.scoring.fusing.tensors()))
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

    def rows_after(self, seq: int) -> Iterator[LearntRow]:
        """Yield what the sums took from the samples after an entry, in order."""
        return self._rows("seq > ?", seq)

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
            yield LearntRow(seq, id_, class_index, vector_of(feature), bool(refused), batch)

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
        records = learner.scoring.records
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
            self.insert("rounds", [round_row(drawn)])

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
        return [round_of(*row) for row in rows]

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
            "config": config_record(learner.config),
            "batch": learner.batch,
            "factor_samples": learner.factor_samples,
            "next_class": learner.replay.next_class,
            "steps_drawn": learner.tuner.steps_drawn,
            "prequential": [
                learner.scoring.prequential.scored,
                learner.scoring.prequential.correct,
                learner.scoring.prequential.recent_correct,
                learner.scoring.prequential.recent_weight,
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

    # What is read again

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


def config_record(config: LearnerConfig) -> dict[str, Any]:
    """Return the settings that cannot change under a state."""
    return {
        "seed": config.seed,
        "tune": config.adapter.tune,
        "top_blocks": config.adapter.top_blocks,
        "lora_rank": config.adapter.rank,
        "lora_alpha": config.adapter.alpha,
    }
