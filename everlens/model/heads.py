"""
Scores of one expert each: text by cosine, evidence by cosine in the metric of what was seen.

Shape suffixes: B pictures, C learnt classes, K candidates, D features, E joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from everlens.model.classes import Table


@dataclass(frozen=True, slots=True)
class FeatureRecipe:
    """
    How a base model's outputs become the features of evidence.

    Args:
        root: take the square root, where features are rectified: of signed ones it costs a point.
        trunk_weight: length of the trunk's part, that of the feature being 1; 0 leaves it out.
    """

    root: bool = False
    trunk_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class EvidenceHead:
    """
    A closed form, ready to answer.

    Args:
        factor_DD: P with PᵀP = (G + λI)⁻¹, lower triangular; whitens a unit feature.
        vector_CD: P·μ_c of each learnt class, unit norm; a zero row has no sample here.
    """

    factor_DD: Tensor
    vector_CD: Table


def evidence_feature(feature_BF: Tensor, trunk_BH: Tensor, recipe: FeatureRecipe) -> Tensor:
    """
    Return feature_BD, what evidence is made of: the tower's feature and the trunk's pooled output.

    What lies a few blocks lower tells drawings from photographs, which the last feature was made
    to overlook. A square root brings the long tails of rectified features nearer to a Gaussian.

    Args:
        feature_BF: before the projection, of any norm.
        trunk_BH: mean of the trunk's output over positions, likewise.
        recipe: of the base model.

    Source: Tukey's ladder of powers, for class-incremental learning in FeCAM (arXiv 2309.14062).
    """
    if recipe.root:
        feature_BF = feature_BF.clamp(min=0).sqrt()
    feature_BF = functional.normalize(feature_BF, dim=-1)
    if recipe.trunk_weight == 0:
        return feature_BF
    trunk_BH = recipe.trunk_weight * functional.normalize(trunk_BH, dim=-1)
    return torch.cat([feature_BF, trunk_BH], dim=-1)


def text_logits(embedding_BE: Tensor, text_KE: Tensor | Table, logit_scale: float) -> Tensor:
    """Return logit_scale · cosine of unit vectors, the zero-shot logits of CLIP."""
    if isinstance(text_KE, Table):
        return text_KE.products(logit_scale * embedding_BE)
    return logit_scale * embedding_BE @ text_KE.to(embedding_BE).T


def class_vectors(factor_DD: Tensor, mean_CD: Tensor) -> Tensor:
    """Return P·μ_c with unit norm; a zero mean stays zero."""
    return functional.normalize(mean_CD @ factor_DD.T, dim=-1)


def evidence_scores(
    head: EvidenceHead, feature_BD: Tensor, classes: Sequence[int] | None
) -> Tensor:
    """
    Return score_BK in [-1, 1]: the cosine of P·x and P·μ_c, with x the unit feature.

    This is ridge regression's direction for each class, freed of its length: counts drop out,
    so that a class with many labels has no advantage over one with few.

    Args:
        head: the closed form.
        feature_BD: features before the projection, of any norm.
        classes: class index of each candidate, -1 for a name that was never learnt; None takes
            all classes in order. A candidate the head does not know scores NaN.

    Source: the metric is that of the ridge head of RanPAC (arXiv 2307.02251).
    Reference: tests/reference/evidence.py.
    """
    whitened_BD = functional.normalize(
        functional.normalize(feature_BD, dim=-1) @ head.factor_DD.T, dim=-1
    )
    if classes is None:
        return head.vector_CD.products(whitened_BD)
    vector_KD = head.vector_CD.at(classes)
    return (whitened_BD @ vector_KD.T).masked_fill(~vector_KD.any(dim=1), float("nan"))
