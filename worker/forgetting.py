"""What a batch of forgettings names, and what is said of each afterwards. ⑤"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from everlens.records import DeadLetter, Forgetting
from worker.commit import StateFile
from worker.learn.learner import Forgotten, LearntRow


class Named:
    """
    The samples that a batch of forgettings names; each comes once, however often it is named.

    Args:
        state: where learnt samples lie.
        class_index: of every name.
        wishes: the forgettings with their seqs, in the order of the log.
    """

    def __init__(
        self,
        state: StateFile,
        class_index: Mapping[str, int],
        wishes: Sequence[tuple[int, Forgetting]],
    ) -> None:
        self.state = state
        self.class_index = class_index
        self.wishes = wishes
        self.dead: list[DeadLetter] = []  # known once `rows` is through
        self._first_batch: dict[int, int] = {}  # by class, of the samples named
        self._wish_of: dict[int, tuple[int, bool]] = {}  # by sample; whether it was refused

    @property
    def classes(self) -> list[int]:
        """The classes that begin anew."""
        named = {self.class_index.get(wish.label) for _, wish in self.wishes}
        return sorted(index for index in named if index is not None)

    def rows(self) -> Iterator[LearntRow]:
        """Yield what the sums took from each sample."""
        for seq, wish in self.wishes:
            found = False
            for row in self._rows(wish):
                found = True
                if row.seq not in self._wish_of:
                    self._wish_of[row.seq] = (seq, row.refused)
                    before = self._first_batch.get(row.class_index, row.batch)
                    self._first_batch[row.class_index] = min(before, row.batch)
                    yield row
            if wish.seq and not found and not self.state.has_forgotten(wish.seq):
                reason = f"entry {wish.seq} is not among the samples that are learnt"
                self.dead.append(DeadLetter(seq, "", reason))

    def classes_learnt_by(self, batch: int) -> list[int]:
        """Return the classes of those samples that were learnt in this batch or before."""
        return sorted(index for index, first in self._first_batch.items() if first <= batch)

    def _rows(self, wish: Forgetting) -> Iterator[LearntRow]:
        if wish.seq:
            yield from self.state.row_of(wish.seq)
        elif wish.label in self.class_index:
            yield from self.state.rows_of(self.class_index[wish.label])

    def reports(
        self, forgotten: Forgotten, whole: Mapping[str, Any], *, adapter: bool
    ) -> dict[int, dict[str, Any]]:
        """
        Return what each forgetting did, by its seq.

        Args:
            forgotten: what the learner did with `rows`.
            whole: what is said besides of a class.
            adapter: whether any was tuned, maybe on what is forgotten.
        """
        removed = Counter(self._wish_of.values())
        kept = Counter(self._wish_of[seq][0] for seq in forgotten.exemplars)
        refused = {letter.seq for letter in self.dead}
        return {
            seq: {
                "label": wish.label or None,
                "samples": removed[seq, False],
                "rejections": removed[seq, True],
                "exemplars": kept[seq],
                "adapter": adapter,
                **(whole if wish.label else {}),
            }
            for seq, wish in self.wishes
            if seq not in refused
        }
