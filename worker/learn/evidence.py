"""
Evidence: sums over unit features, from which the classifier follows in closed form. ⑤

Sums commute: the result does not depend on order, two learners merge by addition, and a sample is
forgotten by subtraction. So are refused names: a class is led away from the pictures that somebody
said are not of it.

Shape suffixes: B samples, C classes, R classes with a refused picture, D features before the
projection.
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

# Triangles of at most this size are inverted by solving.
_SOLVED_MAX = 128

# What a refused picture counts against a class, where a labelled one counts 1 for it.
REFUSAL = 0.25


@dataclass(slots=True)
class Refused:
    """The pictures that are not of one class: Σ x and how many."""

    sum_D: Tensor
    count: int = 0


@dataclass(frozen=True, slots=True)
class ClassSums:
    """What the sums hold of one class: Σ x and n, and what was refused, if anything was."""

    sum_D: Tensor
    count: int
    refused: Refused | None


@dataclass(frozen=True, slots=True)
class Head:
    """The learning half of `everlens.model.heads.EvidenceHead`."""

    factor_DD: Tensor  # float32
    mean_CD: Tensor  # float32, zero for a class without a sample
    count_C: Tensor  # int64


class EvidenceSums:
    """
    gram = Σ x xᵀ, and Σ x and n for each class, in float64; x = feature / ‖feature‖.

    Of refused pictures Σ x and m for each class that has any; they are in no other sum.
    """

    def __init__(self, width: int) -> None:
        self.gram_DD = torch.zeros(width, width, dtype=torch.float64)
        self.sum_CD = torch.zeros(0, width, dtype=torch.float64)
        self.count_C = torch.zeros(0, dtype=torch.int64)
        self.refused: dict[int, Refused] = {}

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
        """
        Take samples out again that were added with these very features and classes.

        A class whose last sample goes is left with exact zeros, and so is the gram when all went:
        what rounding leaves behind would have a direction.
        """
        self._change(feature_BD, class_B, sign=-1)
        self.sum_CD[self.count_C == 0] = 0
        if self.samples == 0:
            self.gram_DD.zero_()

    def refuse(self, feature_BD: Tensor, class_B: Sequence[int]) -> None:
        """Take in pictures that are not of these classes, which are known."""
        for unit_D, index in zip(_unit(feature_BD), class_B, strict=True):
            refused = self.refused.setdefault(index, Refused(torch.zeros_like(unit_D)))
            refused.sum_D += unit_D
            refused.count += 1

    def readmit(self, feature_BD: Tensor, class_B: Sequence[int]) -> None:
        """Take pictures out again that were refused with these very features and classes."""
        for unit_D, index in zip(_unit(feature_BD), class_B, strict=True):
            refused = self.refused[index]
            refused.sum_D -= unit_D
            refused.count -= 1
            if not refused.count:
                del self.refused[index]

    def merge(self, other: EvidenceSums) -> None:
        """Add the sums of another learner over the same class table."""
        self.make_room(len(other.count_C))
        self.gram_DD += other.gram_DD
        self.sum_CD[: len(other.count_C)] += other.sum_CD
        self.count_C[: len(other.count_C)] += other.count_C
        for index, theirs in other.refused.items():
            ours = self.refused.setdefault(index, Refused(torch.zeros_like(theirs.sum_D)))
            ours.sum_D += theirs.sum_D
            ours.count += theirs.count

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
        damped_DD = self.gram_DD.clone()
        damped_DD.diagonal().add_(RIDGE)
        lower_DD, info = torch.linalg.cholesky_ex(damped_DD)
        if int(info) != 0:
            raise StateError(f"evidence: G + {RIDGE:g}·I is not positive definite")
        # In the memory order in which it is saved: another order gives other bits downstream.
        factor_DD: Tensor = _inverse(lower_DD).float().contiguous()
        return factor_DD

    def mean_CD(self, span: slice = slice(None)) -> Tensor:
        """
        Return the mean of a range of classes, float32; zero without a sample.

            μ_c = Σ x / n - ¼ · Σ r / (n + m)

        r are the m refused pictures: one of them says as much against a class of few labels as
        none of many, and however many there are, they weigh less than a label.

        Source: relevance feedback (Rocchio, 1971), with weights that follow the counts.
        Reference: tests/reference/evidence.py.
        """
        classes = range(*span.indices(len(self.count_C)))
        mean_CD = self.total_CD(classes)
        mean_CD /= self.count_C[span].clamp(min=1)[:, None]
        return mean_CD.float()

    def total_CD(self, classes: Sequence[int]) -> Tensor:
        """Return n_c · μ_c of some classes, float64; see `mean_CD`."""
        total_CD = self.sum_CD[list(classes)]
        for place, index in enumerate(classes if self.refused else ()):
            refused, count = self.refused.get(index), int(self.count_C[index])
            if refused is not None:
                total_CD[place] -= REFUSAL * count / (count + refused.count) * refused.sum_D
        return total_CD

    def of_class(self, index: int) -> ClassSums:
        """Return what is held of one class."""
        return ClassSums(self.sum_CD[index], int(self.count_C[index]), self.refused.get(index))

    def put(self, index: int, sums: ClassSums) -> None:
        """Hold what `of_class` returned of a class that there is room for."""
        self.sum_CD[index] = sums.sum_D
        self.count_C[index] = sums.count
        if sums.refused is not None:
            self.refused[index] = sums.refused

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is held, by name."""
        tensors = {"gram_DD": self.gram_DD, "sum_CD": self.sum_CD, "count_C": self.count_C}
        if self.refused:
            tensors["refused_R"] = torch.tensor([[c, r.count] for c, r in self.refused.items()])
            tensors["refused_RD"] = torch.stack([r.sum_D for r in self.refused.values()])
        return tensors

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> EvidenceSums:
        """Return the sums that `tensors` saved."""
        sums = cls(len(tensors["gram_DD"]))
        sums.gram_DD = tensors["gram_DD"].clone()
        sums.sum_CD = tensors["sum_CD"].clone()
        sums.count_C = tensors["count_C"].clone()
        if "refused_R" in tensors:
            sums.refused = {
                index: Refused(sum_D.clone(), count)
                for (index, count), sum_D in zip(
                    tensors["refused_R"].tolist(), tensors["refused_RD"], strict=True
                )
            }
        return sums

    def _change(self, feature_BD: Tensor, class_B: Sequence[int], sign: int) -> None:
        assert len(feature_BD) == len(class_B) > 0
        assert min(class_B) >= 0
        unit_BD = _unit(feature_BD)
        self.make_room(max(class_B) + 1)
        index_B = torch.tensor(list(class_B))
        self.gram_DD += sign * (unit_BD.T @ unit_BD)
        self.sum_CD.index_add_(0, index_B, unit_BD, alpha=sign)
        self.count_C.index_add_(0, index_B, torch.ones_like(index_B), alpha=sign)

    def make_room(self, classes: int) -> None:
        """Know at least so many classes; new ones have no sample."""
        self.sum_CD = lengthened(self.sum_CD, classes)
        self.count_C = lengthened(self.count_C, classes)


def _inverse(lower_DD: Tensor) -> Tensor:
    """
    Return the inverse of a lower triangular matrix, by halves:

        [A 0; B C]⁻¹ = [A⁻¹ 0; -C⁻¹·B·A⁻¹ C⁻¹]

    A third of the operations of solving for every column of the identity, and plain products.
    """
    size = len(lower_DD)
    if size <= _SOLVED_MAX:
        eye_DD = torch.eye(size, dtype=lower_DD.dtype)
        solved_DD: Tensor = torch.linalg.solve_triangular(lower_DD, eye_DD, upper=False)
        return solved_DD
    half = size // 2
    inverse_DD = torch.zeros_like(lower_DD)
    upper, lower = _inverse(lower_DD[:half, :half]), _inverse(lower_DD[half:, half:])
    inverse_DD[:half, :half] = upper
    inverse_DD[half:, half:] = lower
    inverse_DD[half:, :half] = -(lower @ (lower_DD[half:, :half] @ upper))
    return inverse_DD


def _unit(feature_BD: Tensor) -> Tensor:
    unit_BD = functional.normalize(feature_BD.double(), dim=-1)
    if not unit_BD.isfinite().all():
        raise StateError("evidence: a feature holds a number that is not finite")
    return unit_BD


def head_of(sums: EvidenceSums, factor_DD: Tensor | None = None) -> Head:
    """Return the closed form of the sums; a factor made earlier may stand in for its own."""
    return Head(
        factor_DD=sums.factor() if factor_DD is None else factor_DD,
        mean_CD=sums.mean_CD(),
        count_C=sums.count_C.clone(),
    )
