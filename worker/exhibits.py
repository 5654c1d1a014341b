"""
The thread that shows what lies in the replay buffer to services that ask. ⑥⑨

It reads the committed state over a connection of its own, one short statement at a time, and
writes nothing: so learning goes on beside it, bit for bit as without. Nothing is read before
somebody asks. Numpy only, and no BLAS, which would start threads of its own.

Shape suffixes: N exemplars, D features.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from everlens.bus.exhibits import Answering
from everlens.errors import LogUnavailable
from everlens.exhibits import EXHIBITS_MAX, Exhibit, Question

# What the features may take together. With more exemplars than that the newest of each class count.
FEATURE_BYTES_MAX = 32 << 20

# How many times as many are looked at as are shown, where pictures repeat.
_LOOKED_AT = 4

_LOOK_S = 0.5
_AWAY_S = 1.0
_ROWS_A_READ = 64  # a few hundred kilobytes: no checkpoint waits long for a reader

# The exemplars in turns, the newest of each class first: read from the index alone, since a row of
# the table itself is a picture and its trunk output.
_CHOSEN = """
SELECT seq FROM (
    SELECT seq, row_number() OVER (PARTITION BY class_index ORDER BY seq DESC) AS turn
    FROM exemplars INDEXED BY exemplars_by_class)
ORDER BY turn, seq DESC LIMIT ?
"""
_SHOWN = """
SELECT samples.id, classes.name, exemplars.image
FROM exemplars JOIN samples USING (seq) JOIN classes ON classes.class_index = exemplars.class_index
WHERE seq = ?
"""

log = logging.getLogger("everlens.worker")


class Gallery:
    """
    The exemplars of a committed state: their features as one matrix, their pictures on the disk.

    Args:
        path: of the state file. It is opened by the thread that looks first, and is that thread's.
        bytes_max: what the matrix may take.
    """

    def __init__(self, path: Path, bytes_max: int = FEATURE_BYTES_MAX) -> None:
        self.path = path
        self.bytes_max = bytes_max
        self._db: sqlite3.Connection | None = None
        self._seen = -1  # the state that the matrix is of, as SQLite counts
        self._unit_ND: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._seq_N: NDArray[np.int64] = np.zeros(0, np.int64)

    def close(self) -> None:
        """Close the file; the next look opens it again."""
        if self._db is not None:
            self._db.close()
        self._db, self._seen = None, -1

    def refresh(self) -> None:
        """Bring the matrix to the committed state: what came is read, what went is left out."""
        seen = self._one("PRAGMA data_version")[0]
        if seen == self._seen:
            return
        width = self._width()
        if width:
            wanted = [seq for (seq,) in self._rows(_CHOSEN, [self.bytes_max // (4 * width)])]
            self._keep(np.isin(self._seq_N, wanted))
            missing = np.setdiff1d(wanted, self._seq_N).tolist()
            found = list(self._features(missing, width))
            seqs = np.array([seq for seq, _ in found], np.int64)
            self._seq_N = np.concatenate([self._seq_N, seqs])
            parts = [self._unit_ND.reshape(-1, width), *(unit_D[None] for _, unit_D in found)]
            self._unit_ND = np.concatenate(parts)
        self._seen = seen

    def nearest(self, feature: bytes, count: int) -> list[Exhibit]:
        """
        Return up to `count` exemplars by the cosine of their frozen features, the nearest first.

        A picture that was sent twice with the same label is shown once.

        Args:
            feature: float32. Of another width than the state's, nothing is near.
            count: at most.
        """
        self.refresh()
        unit_D = _unit(feature)
        if unit_D is None or not len(self._seq_N) or len(unit_D) != self._unit_ND.shape[1]:
            return []
        cosine_N = np.einsum("nd,d->n", self._unit_ND, unit_D)
        shown: dict[tuple[str, bytes], Exhibit] = {}
        for place in np.argsort(-cosine_N, kind="stable")[: _LOOKED_AT * count]:
            exhibit = self.of_sample(int(self._seq_N[place]), float(cosine_N[place]))
            if exhibit is not None:  # one that the next commit just took away is passed over
                shown.setdefault((exhibit.label, exhibit.image), exhibit)
            if len(shown) == count:
                break
        return list(shown.values())

    def of_sample(self, seq: int, similarity: float = 1.0) -> Exhibit | None:
        """Return the exemplar with this number, or None."""
        row = self._one(_SHOWN, [seq])
        return None if row is None else Exhibit(row[0], row[1], similarity, row[2])

    def _width(self) -> int:
        """Return D; 0 before the first sample."""
        row = self._one("SELECT length(feature) FROM samples LIMIT 1")
        return 0 if row is None else row[0] // 4

    def _keep(self, kept_N: NDArray[np.bool_]) -> None:
        if not kept_N.all():
            self._seq_N, self._unit_ND = self._seq_N[kept_N], self._unit_ND[kept_N]

    def _features(self, seqs: list[int], width: int) -> Iterable[tuple[int, NDArray[np.float32]]]:
        """Yield number and unit feature of those samples that are still there."""
        for start in range(0, len(seqs), _ROWS_A_READ):
            part = seqs[start : start + _ROWS_A_READ]
            marks = ", ".join("?" * len(part))
            words = f"SELECT seq, feature FROM samples WHERE seq IN ({marks})"  # noqa: S608 - marks
            for seq, feature in self._rows(words, part):
                unit_D = _unit(feature)
                if unit_D is not None and len(unit_D) == width:
                    yield seq, unit_D

    def _rows(self, words: str, values: Iterable[int] = ()) -> list[tuple[Any, ...]]:
        """Return all rows at once: between two statements no read transaction is open."""
        if self._db is None:
            address = f"file:{quote(str(self.path.absolute()))}?mode=ro"
            self._db = sqlite3.connect(address, uri=True, isolation_level=None)
        return self._db.execute(words, list(values)).fetchall()

    def _one(self, words: str, values: Iterable[int] = ()) -> Any:
        rows = self._rows(words, values)
        return rows[0] if rows else None


class Exhibits:
    """
    Answers questions from `start` to `close`.

    Args:
        gallery: what is shown.
        answering: where questions come from.
        at_work: whether this learner is the one that learns the log; another one keeps still.
    """

    def __init__(self, gallery: Gallery, answering: Answering, at_work: Callable[[], bool]) -> None:
        self.gallery = gallery
        self.answering = answering
        self.at_work = at_work
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exhibits", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; a question that is being answered is answered first."""
        self._stopping.set()
        self._thread.join(4 * _LOOK_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except LogUnavailable as error:
                log.debug("questions about the replay buffer are not heard: %s", error)
            except (
                Exception
            ):  # whatever a question leads to may not end the learner, nor the thread
                log.exception("a question about the replay buffer could not be answered")
            self.gallery.close()
            self._stopping.wait(_AWAY_S)

    def _listen(self) -> None:
        for question in self.answering.questions(_LOOK_S):
            if self._stopping.is_set():
                return
            if question is not None and self.at_work():
                self.answering.answer(question, self._shown(question))

    def _shown(self, question: Question) -> list[Exhibit]:
        if question.feature:
            return self.gallery.nearest(question.feature, EXHIBITS_MAX)
        exhibit = self.gallery.of_sample(question.seq)
        return [] if exhibit is None else [exhibit]


def _unit(feature: bytes) -> NDArray[np.float32] | None:
    """Return a feature at length one; None where it has none."""
    feature_D: NDArray[np.float32] = np.frombuffer(feature, np.dtype("<f4"))
    length = float(np.sqrt(np.einsum("d,d->", feature_D, feature_D, dtype=np.float64)))
    return feature_D / np.float32(length) if 0 < length < np.inf else None
