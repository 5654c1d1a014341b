"""
Evidence: sums over unit features, from which the classifier follows in closed form. ⑤

Sums commute: the result does not depend on order, two learners merge by addition, and a sample is
forgotten by subtraction.

Shape suffixes: B samples, C classes, D features before the projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from everlens.errors import StateError
from worker.learn.room import lengthened

# λ, in units of squared unit features, not divided by N. Flat between 0.3 and 1 on all packs; with
# less the worst stream loses two points, and the factorisation is safe at any rank.
RIDGE = 0.5


@dataclass(frozen=True, slots=True)
class Head:
    """The learning half of `everlens.model.heads.EvidenceHead`."""

    factor_DD: Tensor  # float32
    mean_CD: Tensor  # float32, zero for a class without a sample
    count_C: Tensor  # int64


class EvidenceSums:
    """gram = Σ x xᵀ, and Σ x and n for each class, in float64; x = feature / ‖feature‖."""

    def __init__(self, width: int) -> None:
        self.gram_DD = torch.zeros(width, width, dtype=torch.float64)
        self.sum_CD = torch.zeros(0, width, dtype=torch.float64)
        self.count_C = torch.zeros(0, dtype=torch.int64)

    @property
    def samples(self) -> int:
        """How many samples the sums hold."""
        return int(self.count_C.sum())

    def add(self, feature_BD: Tensor, class_B: Sequence[int]) -> None:
        """
        Add samples; a class index beyond the known ones makes room for it.

        Raises:
            StateError: a feature is not finite; nothing was added.
        """
        self._change(feature_BD, class_B, sign=1)

    def subtract(self, feature_BD: Tensor, class_B: Sequence[int]) -> None:
        """Take samples out again that were added with these very features and classes."""
        self._change(feature_BD, class_B, sign=-1)

    def merge(self, other: EvidenceSums) -> None:
        """Add the sums of another learner over the same class table."""
        self.make_room(len(other.count_C))
        self.gram_DD += other.gram_DD
        self.sum_CD[: len(other.count_C)] += other.sum_CD
        self.count_C[: len(other.count_C)] += other.count_C

    def factor(self) -> Tensor:
        """
        Return P (float32, lower triangular) with PᵀP = (G + λI)⁻¹, the inverse Cholesky factor.

        Raises:
            StateError: the sums are damaged: a non-finite number, or not positive definite.

        Reference: tests/reference/evidence.py.
        """
        # Looked at before: Cholesky reads the lower triangle only, and lets an infinite diagonal
        # through, so that its own status would not show all damage.
        if not (self.gram_DD.isfinite().all() and self.sum_CD.isfinite().all()):
            raise StateError("evidence: the running sums hold a number that is not finite")
        eye_DD = torch.eye(len(self.gram_DD), dtype=torch.float64)
        lower_DD, info = torch.linalg.cholesky_ex(self.gram_DD + RIDGE * eye_DD)
        if int(info) != 0:
            raise StateError(f"evidence: G + {RIDGE:g}·I is not positive definite")
        inverse_DD = torch.linalg.solve_triangular(lower_DD, eye_DD, upper=False)
        # In the memory order in which it is saved: another order gives other bits downstream.
        factor_DD: Tensor = inverse_DD.float().contiguous()
        return factor_DD

    def mean_CD(self, span: slice = slice(None)) -> Tensor:
        """Return the mean unit feature of a range of classes, float32; zero without a sample."""
        return (self.sum_CD[span] / self.count_C[span].clamp(min=1)[:, None]).float()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a commit saves."""
        return {"gram_DD": self.gram_DD, "sum_CD": self.sum_CD, "count_C": self.count_C}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> EvidenceSums:
        """Return the sums that `tensors` saved."""
        sums = cls(len(tensors["gram_DD"]))
        sums.gram_DD = tensors["gram_DD"].clone()
        sums.sum_CD = tensors["sum_CD"].clone()
        sums.count_C = tensors["count_C"].clone()
        return sums

    def _change(self, feature_BD: Tensor, class_B: Sequence[int], sign: int) -> None:
        assert len(feature_BD) == len(class_B) > 0
        assert min(class_B) >= 0
        unit_BD = functional.normalize(feature_BD.double(), dim=-1)
        if not unit_BD.isfinite().all():
            raise StateError("evidence: a feature holds a number that is not finite")
        self.make_room(max(class_B) + 1)
        index_B = torch.tensor(list(class_B))
        self.gram_DD += sign * (unit_BD.T @ unit_BD)
        self.sum_CD.index_add_(0, index_B, unit_BD, alpha=sign)
        self.count_C.index_add_(0, index_B, torch.ones_like(index_B), alpha=sign)

    def make_room(self, classes: int) -> None:
        """Know at least so many classes; new ones have no sample."""
        self.sum_CD = lengthened(self.sum_CD, classes)
        self.count_C = lengthened(self.count_C, classes)


def head_of(sums: EvidenceSums, factor_DD: Tensor | None = None) -> Head:
    """Return the closed form of the sums; a factor made earlier may stand in for its own."""
    return Head(
        factor_DD=sums.factor() if factor_DD is None else factor_DD,
        mean_CD=sums.mean_CD(),
        count_C=sums.count_C.clone(),
    )
