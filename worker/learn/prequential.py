"""
Prequential figures: each sample is scored by the present version before anything learns it. ⑤

Shape suffixes: C classes, N bins of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from everlens.model.snapshot import CURVE_BINS
from worker.learn.room import lengthened

DECAY = 0.99

# Of the recall of one class, which sees far fewer samples than the whole.
CLASS_DECAY = 0.9

# A best recall is believed from so many scored samples on: one lucky answer is not a best.
BEST_AFTER = 5

EXPERTS = ("zero_shot", "evidence", "adapter")


@dataclass(slots=True)
class Prequential:
    """
    How often the answer was right, over all samples and lately.

    The first sample of a class is not scored: nobody could have been right among the learnt ones.
    `recent` weighs the sample n steps ago by 0.99^n, without a start-up bias.
    """

    scored: int = 0
    correct: int = 0
    recent_correct: float = 0.0
    recent_weight: float = 0.0

    def record(self, *, right: bool) -> None:
        """Count one scored sample."""
        self.scored += 1
        self.correct += right
        self.recent_correct = DECAY * self.recent_correct + right
        self.recent_weight = DECAY * self.recent_weight + 1.0

    @property
    def accuracy(self) -> float | None:
        """Over all scored samples; None before the first."""
        return self.correct / self.scored if self.scored else None

    @property
    def recent_accuracy(self) -> float | None:
        """Over about the last hundred; None before the first."""
        return self.recent_correct / self.recent_weight if self.recent_weight else None


# What a number of a curve may be; beyond it both of its bin are halved, so that recall stays.
_CURVE_MAX = 255

# Columns of `ClassRecords.record_CK`; sums weigh a class's n-th last scored sample by 0.9^n.
_SCORED, _RIGHT, _WEIGHT, _BEST = range(4)
_EXPERT = 4


class ClassRecords:
    """
    The same by class: recall lately, its best so far, how often each expert was right, and a curve.

    Forgetting of a class is its best recall so far minus the present one. The curve has two numbers
    a bin: how many answers were scored while the class had so many labels, and how many were right.
    """

    def __init__(self) -> None:
        self.record_CK = torch.zeros(0, _EXPERT + len(EXPERTS), dtype=torch.float64)
        self.curve_CN2 = torch.zeros(0, CURVE_BINS, 2, dtype=torch.uint8)

    def record(
        self, class_index: int, *, right: bool, experts: Sequence[bool], labels: int
    ) -> None:
        """
        Count one scored sample of a class.

        Args:
            class_index: of the class.
            right: whether the served answer was.
            experts: whether each of `EXPERTS` was.
            labels: how many the version that answered had learnt of it.
        """
        self.make_room(class_index + 1)
        bin_2 = self.curve_CN2[class_index, min(labels.bit_length(), CURVE_BINS) - 1]
        if int(bin_2[0]) == _CURVE_MAX:
            bin_2 //= 2
        bin_2 += torch.tensor([1, right], dtype=torch.uint8)
        row_K = self.record_CK[class_index]
        row_K[_SCORED] += 1
        row_K[_RIGHT] = CLASS_DECAY * row_K[_RIGHT] + right
        row_K[_WEIGHT] = CLASS_DECAY * row_K[_WEIGHT] + 1
        row_K[_EXPERT:] = CLASS_DECAY * row_K[_EXPERT:] + torch.tensor(experts)
        if row_K[_SCORED] >= BEST_AFTER:
            row_K[_BEST] = max(row_K[_BEST], row_K[_RIGHT] / row_K[_WEIGHT])

    def forget(self, class_index: int) -> None:
        """Let a class begin anew."""
        self.record_CK[class_index] = 0
        self.curve_CN2[class_index] = 0

    def make_room(self, classes: int) -> None:
        """Know at least so many classes."""
        self.record_CK = lengthened(self.record_CK, classes)
        self.curve_CN2 = lengthened(self.curve_CN2, classes)

    def tensors(self, class_index: int) -> dict[str, Tensor]:
        """Return the record of one class, for the commit."""
        record, curve = self.record_CK[class_index], self.curve_CN2[class_index]
        return {"record": record.clone(), "curve": curve.clone()}

    def load(self, class_index: int, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""
        self.record_CK[class_index] = tensors["record"]
        self.curve_CN2[class_index] = tensors["curve"]

    def part(self, span: slice) -> ClassRecords:
        """Return the records of a range of classes."""
        records = ClassRecords()
        records.record_CK, records.curve_CN2 = self.record_CK[span], self.curve_CN2[span]
        return records

    @property
    def recall_C(self) -> Tensor:
        """Recall of each class lately; NaN before its first scored sample."""
        return self.record_CK[:, _RIGHT] / self.record_CK[:, _WEIGHT]

    @property
    def forgetting_C(self) -> Tensor:
        """Best recall minus the present one; NaN before a class has a best."""
        known_C = self.record_CK[:, _SCORED] >= BEST_AFTER
        loss_C = self.record_CK[:, _BEST] - self.recall_C
        return torch.where(known_C, loss_C, torch.nan)

    @property
    def expert_CX(self) -> Tensor:
        """Recall of each expert alone, by class."""
        return self.record_CK[:, _EXPERT:] / self.record_CK[:, _WEIGHT, None]

    @property
    def forgetting(self) -> float | None:
        """Mean over the classes that have a best; None before the first."""
        return _mean(self.forgetting_C)

    @property
    def expert_recall(self) -> dict[str, float | None]:
        """Mean recall of each expert over the classes that were scored."""
        return {
            name: _mean(column_C) for name, column_C in zip(EXPERTS, self.expert_CX.T, strict=True)
        }


def _mean(value_C: Tensor) -> float | None:
    known_C = value_C[~value_C.isnan()]
    return round(float(known_C.mean()), 4) if len(known_C) else None
