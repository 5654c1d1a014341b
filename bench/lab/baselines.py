"""
What a user would pick instead: closed forms and class means on frozen features, in one pass.

Each takes labelled features in any blocks and gives the same scores as if it had seen them at once.
A baseline with a constant to choose shows the answers of all its settings, and the lab lets the one
count that turned out best on the test pictures. That favours the baseline: nobody could have chosen
so well beforehand.

Arithmetic is in float64, but for the random projection, which needs it least and costs most.

Shape suffixes: B pictures, N samples, C labelled classes, K candidate names, D features,
E joint space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

# λ of both ridges, in units of squared unit features; the default first.
RIDGES = (1.0, 0.1, 10.0, 0.01, 100.0)
# How many random features; RanPAC takes 10,000, which costs 100 times the arithmetic.
RANDOM_FEATURES = 2048
# Deep_SLDA's, as published: so much of the identity in the covariance.
SHRINKAGE = 1e-4
# Weights tried for scores beside zero-shot: shares of a mixture, and multipliers of a sum.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
MULTIPLIERS = (0.3, 1.0, 3.0, 10.0, 30.0)
# Sharpness of a softmax over standardised scores.
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)

_UNKNOWN = float("-inf")
# Of the sum of squares; a sum of a million terms is off by less.
_ROUNDING = 1e-10


class Baseline(ABC):
    """A classifier that is fed features and class indices; without a label it knows no class."""

    name: ClassVar[str]

    @abstractmethod
    def add(self, feature_BD: Tensor, class_B: Sequence[int]) -> None:
        """Learn samples; a class index beyond the known ones makes room for it."""

    @abstractmethod
    def ladder(self, feature_BD: Tensor) -> dict[str, Tensor]:
        """Return score_BC (float64) of each setting by its name; -inf for a class not yet seen."""

    def scores(self, feature_BD: Tensor) -> Tensor:
        """Return score_BC of the default setting, the first of the ladder."""
        return next(iter(self.ladder(feature_BD).values()))


class ClassSums:
    """Σ x and n for each class, in float64."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.sum_CD = torch.zeros(0, width, dtype=torch.float64)
        self.count_C = torch.zeros(0, dtype=torch.int64)

    @property
    def mean_CD(self) -> Tensor:
        """The mean of each class; zero for one without a sample."""
        return self.sum_CD / self.count_C.clamp(min=1)[:, None]

    def add(self, x_BD: Tensor, index_B: Tensor) -> None:
        """Add samples."""
        assert len(x_BD) == len(index_B) > 0
        missing = int(index_B.max()) + 1 - len(self.count_C)
        if missing > 0:
            self.sum_CD = torch.cat([self.sum_CD, self.sum_CD.new_zeros(missing, self.width)])
            self.count_C = torch.cat([self.count_C, self.count_C.new_zeros(missing)])
        self.sum_CD.index_add_(0, index_B, x_BD)
        self.count_C.index_add_(0, index_B, torch.ones_like(index_B))


class Moments(ClassSums):
    """
    Besides, G = Σ x xᵀ.

    Up to D samples are kept as they are: they take no more room than G, and a ridge over fewer
    samples than features is cheaper by the samples.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self._gram_DD: Tensor | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []

    def add(self, x_BD: Tensor, index_B: Tensor) -> None:
        """Add samples."""
        super().add(x_BD, index_B)
        self._kept.append((x_BD.clone(), index_B))
        if sum(len(x) for x, _ in self._kept) > self.width:
            self._fold()

    def gram(self) -> Tensor:
        """Return G; from here on the samples themselves are gone."""
        return self._fold()

    def ridge_weights(self, ladder: Sequence[float]) -> list[Tensor]:
        """
        Return weight_DC = (G + λI)⁻¹ Q for each λ, with Q = Σ x yᵀ over one-hot y.

        By samples it is Xᵀ (X Xᵀ + λI)⁻¹ Y, the same matrix.
        """
        if self._gram_DD is not None:
            gram_DD = self._fold()
            return [_solved(gram_DD, ridge, self.sum_CD.T) for ridge in ladder]
        x_ND, index_N = self._kept_samples()
        one_hot_NC = functional.one_hot(index_N, len(self.count_C)).double()
        gram_NN = x_ND @ x_ND.T
        return [x_ND.T @ _solved(gram_NN, ridge, one_hot_NC) for ridge in ladder]

    def _kept_samples(self) -> tuple[Tensor, Tensor]:
        if len(self._kept) > 1:
            self._kept = [
                (torch.cat([x for x, _ in self._kept]), torch.cat([c for _, c in self._kept]))
            ]
        return self._kept[0]

    def _fold(self) -> Tensor:
        if self._gram_DD is None:
            self._gram_DD = torch.zeros(self.width, self.width, dtype=torch.float64)
        if self._kept:
            x_ND, _ = self._kept_samples()
            self._gram_DD.addmm_(x_ND.T, x_ND)
            self._kept = []
        return self._gram_DD


class ClassMeans(Baseline):
    """
    The class whose mean feature is nearest by cosine.

    Source: SimpleCIL (arXiv 2303.07338).
    """

    name = "class means"

    def __init__(self, width: int) -> None:
        self.sums = ClassSums(width)

    def add(self, feature_BD: Tensor, class_B: Sequence[int]) -> None:
        self.sums.add(feature_BD.double(), torch.tensor(list(class_B)))

    def ladder(self, feature_BD: Tensor) -> dict[str, Tensor]:
        mean_CD = functional.normalize(self.sums.mean_CD, dim=-1)
        score_BC = functional.normalize(feature_BD.double(), dim=-1) @ mean_CD.T
        return {"": _among_seen(score_BC, self.sums.count_C)}


class StreamingLDA(Baseline):
    """
    Gaussian classes of one covariance, equal priors: g_c = μ_cᵀ Λ x - ½ μ_cᵀ Λ μ_c, Λ = Σ̂⁻¹.

    Σ is the scatter within classes over N - C, made an invertible Σ̂ in one of two ways:
    (1 - ρ)Σ + ρI with a fixed ρ, or (1 - ρ)Σ + ρ(tr Σ / D)I with ρ by oracle-approximating
    shrinkage. Features are taken as they are.

    Source: Deep_SLDA (arXiv 1909.01520). Its published code weighs a sample's distance from its
    class's mean by the number of all samples; here it is by those of the class, which makes the
    scatter the exact one. OAS as in RanDumb (arXiv 2402.08823).
    """

    name = "streaming LDA"

    def __init__(self, width: int, shrinkage: float = SHRINKAGE) -> None:
        self.moments = Moments(width)
        self.shrinkage = shrinkage

    def add(self, feature_BD: Tensor, class_B: Sequence[int]) -> None:
        self.moments.add(feature_BD.double(), torch.tensor(list(class_B)))

    def ladder(self, feature_BD: Tensor) -> dict[str, Tensor]:
        count_C = self.moments.count_C
        if not len(count_C):
            none_B0 = feature_BD.new_zeros(len(feature_BD), 0, dtype=torch.float64)
            return {"OAS": none_B0, f"{self.shrinkage:g}": none_B0}
        freedom = max(int(count_C.sum()) - int((count_C > 0).sum()), 1)
        covariance_DD = self.scatter() / freedom
        share = oas_share(covariance_DD, freedom)
        # Without any scatter Σ̂ is a multiple of I, and which one is all the same.
        level = float(covariance_DD.diagonal().mean()) or 1.0
        settings = {
            "OAS": (share, share * level),
            f"{self.shrinkage:g}": (self.shrinkage, self.shrinkage),
        }
        return {
            setting: self._scores(feature_BD.double(), (1 - less) * covariance_DD, added)
            for setting, (less, added) in settings.items()
        }

    def scatter(self) -> Tensor:
        """Return Σ (x - μ_c)(x - μ_c)ᵀ over all samples, from the sums."""
        gram_DD = self.moments.gram()
        root_CD = self.moments.mean_CD * self.moments.count_C.double().sqrt()[:, None]
        scatter_DD = gram_DD - root_CD.T @ root_CD
        # One sample a class, or copies of one: the difference is rounding, of either sign.
        nothing = float(scatter_DD.trace()) <= _ROUNDING * float(gram_DD.trace())
        return torch.zeros_like(gram_DD) if nothing else scatter_DD

    def _scores(self, feature_BD: Tensor, covariance_DD: Tensor, added: float) -> Tensor:
        mean_CD = self.moments.mean_CD
        weight_DC = _solved(covariance_DD, added, mean_CD.T)
        score_BC = feature_BD @ weight_DC - (mean_CD * weight_DC.T).sum(dim=1) / 2
        return _among_seen(score_BC, self.moments.count_C)


def oas_share(covariance_DD: Tensor, samples: int) -> float:
    """
    Return ρ of oracle-approximating shrinkage towards (tr Σ / D)I, in [0, 1].

    Source: Chen, Wiesel, Eldar and Hero, 2010, equation 23.
    """
    width = len(covariance_DD)
    trace, square = float(covariance_DD.trace()), float((covariance_DD**2).sum())
    above = (1 - 2 / width) * square + trace**2
    below = (samples + 1 - 2 / width) * (square - trace**2 / width)
    return min(above / below, 1.0) if below > 0 else 1.0


class Ridge(Baseline):
    """
    Linear regression on one-hot labels over unit features: score = Wᵀx, W = (G + λI)⁻¹ Q.

    Recursive least squares (ACIL, GACL, RAIL) end at the very same W.
    """

    name = "ridge"

    def __init__(self, width: int, ladder: Sequence[float] = RIDGES) -> None:
        self.moments = Moments(width)
        self.ridges = tuple(ladder)

    def add(self, feature_BD: Tensor, class_B: Sequence[int]) -> None:
        self.moments.add(self._mapped(feature_BD), torch.tensor(list(class_B)))

    def ladder(self, feature_BD: Tensor) -> dict[str, Tensor]:
        x_BD, count_C = self._mapped(feature_BD), self.moments.count_C
        if not len(count_C):
            return {f"λ={ridge:g}": x_BD.new_zeros(len(x_BD), 0) for ridge in self.ridges}
        weights = self.moments.ridge_weights(self.ridges)
        return {
            f"λ={ridge:g}": _among_seen(x_BD @ weight_DC, count_C)
            for ridge, weight_DC in zip(self.ridges, weights, strict=True)
        }

    def _mapped(self, feature_BD: Tensor) -> Tensor:
        return functional.normalize(feature_BD.double(), dim=-1)


class RandomRidge(Ridge):
    """
    The same over random features h = relu(Rᵀx), with R drawn once.

    R is scaled so that h has length one on average, as x has, and λ the same meaning.

    Source: RanPAC (arXiv 2307.02251), without its adapter tuned on the first task.
    """

    name = "random-feature ridge"

    def __init__(
        self, width: int, seed: int, count: int = RANDOM_FEATURES, ladder: Sequence[float] = RIDGES
    ) -> None:
        super().__init__(count, ladder)
        generator = torch.Generator().manual_seed(seed)
        drawn_DM = torch.randn(width, count, generator=generator)
        self.projection_DM = drawn_DM * (2 / count) ** 0.5

    def _mapped(self, feature_BD: Tensor) -> Tensor:
        unit_BD = functional.normalize(feature_BD.float(), dim=-1)
        random_BM: Tensor = (unit_BD @ self.projection_DM).relu().double()
        return random_BM


def closed_forms(width: int, seed: int) -> tuple[Baseline, ...]:
    """Return a fresh one of each baseline; all are fed the same features."""
    return (ClassMeans(width), StreamingLDA(width), Ridge(width), RandomRidge(width, seed))


def standardised(score_BC: Tensor, names: int) -> Tensor:
    """
    Return score_BK over `names` candidates, so that scores of any baseline have one scale.

    Each row has its mean over seen classes taken away, and all are divided by their standard
    deviation over all rows: a row in which the baseline is sure stays wider than one in which it is
    not. So it depends on which pictures are asked about together. A class that was not seen, or
    lies beyond the table, stays -inf.
    """
    padded_BK = score_BC.new_full((len(score_BC), names), _UNKNOWN)
    padded_BK[:, : score_BC.shape[1]] = score_BC
    seen_K = padded_BK.isfinite().all(dim=0)
    known_BS = padded_BK[:, seen_K]
    known_BS = known_BS - known_BS.mean(dim=1, keepdim=True)
    padded_BK[:, seen_K] = known_BS / known_BS.square().mean().sqrt().clamp(min=1e-12)
    return padded_BK


def with_zero_shot(
    score_BC: Tensor,
    text_BK: Tensor,
    weight: float,
    form: Literal["mixture", "sum"] = "mixture",
    scale: float = 1.0,
) -> Tensor:
    """
    Return probability_BK of a baseline beside zero-shot with one fixed weight.

    With z the standardised scores:

        mixture    (1 - weight) · softmax(text) + weight · softmax(scale · z)
        sum        softmax(text + weight · z), where z is 0 for a name without a label

    The sum is the rule of Tip-Adapter and GDA-CLIP. Where no name has a label it is zero-shot.

    Args:
        score_BC: of a baseline; class c is candidate c.
        text_BK: zero-shot logits of the candidates.
        weight: 0 is zero-shot alone; 1 in a mixture is the baseline alone.
        form: of the two.
        scale: sharpness, of the mixture alone.
    """
    text_BK = text_BK.double()
    z_BK = standardised(score_BC, text_BK.shape[1])
    unknown_BK = z_BK == _UNKNOWN
    if bool(unknown_BK.all()):
        return text_BK.softmax(dim=-1)
    if form == "sum":
        return (text_BK + weight * z_BK.masked_fill(unknown_BK, 0.0)).softmax(dim=-1)
    return (1 - weight) * text_BK.softmax(dim=-1) + weight * (scale * z_BK).softmax(dim=-1)


def zero_shot_ladder(score_BC: Tensor, text_BK: Tensor) -> dict[str, Tensor]:
    """Return probability_BK with zero-shot, of each form, weight and sharpness by its name."""
    mixtures = {
        f"mixture {share:g} at {scale:g}": with_zero_shot(
            score_BC, text_BK, share, "mixture", scale
        )
        for share in SHARES
        for scale in SCALES
    }
    sums = {
        f"sum {weight:g}": with_zero_shot(score_BC, text_BK, weight, "sum")
        for weight in MULTIPLIERS
    }
    return mixtures | sums


def by_rail(answer_BK: Tensor, text_BK: Tensor, labelled_K: Tensor) -> Tensor:
    """
    Return probability_BK by RAIL's rule: zero-shot decides whether the name has a label.

    Where its best name has none, its answer stands; else `answer_BK` decides, among labelled names
    alone. So accuracy on names without a label cannot fall below zero-shot's.

    Args:
        answer_BK: probabilities, of a baseline with zero-shot.
        text_BK: zero-shot logits.
        labelled_K: true for a name that has a label.

    Source: RAIL (arXiv 2406.18868).
    """
    text_BK = text_BK.double()
    among_BK = answer_BK.double().masked_fill(~labelled_K, 0.0)
    among_BK = among_BK / among_BK.sum(dim=1, keepdim=True).clamp(min=1e-300)
    stands_B = ~labelled_K[text_BK.argmax(dim=1)]
    return torch.where(stands_B[:, None], text_BK.softmax(dim=-1), among_BK)


def _among_seen(score_BC: Tensor, count_C: Tensor) -> Tensor:
    return score_BC.masked_fill(count_C == 0, _UNKNOWN)


def _solved(symmetric: Tensor, added: float, right: Tensor) -> Tensor:
    """Return (A + added · I)⁻¹ · right of a positive definite sum, by Cholesky."""
    shifted = symmetric.clone()
    shifted.diagonal().add_(added)
    solution: Tensor = torch.cholesky_solve(right, torch.linalg.cholesky(shifted))
    return solution
