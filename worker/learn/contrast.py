"""
The contrastive loss: pictures of one class are drawn together, those of others apart. ⑤

SIT pulls the embedding of a picture to its name. Evidence stands on the feature before that, and
this is what bends it: a closed form on features wants classes that are compact and apart.

Shape suffixes: B pictures, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TEMPERATURE = 0.1


def contrastive_loss(feature_BD: Tensor, class_B: Sequence[int]) -> Tensor:
    """
    Return the mean supervised contrastive loss over the pictures that have company of their class.

        ℓ_i = -(1/|P_i|) Σ_{j in P_i} log  exp(x_i·x_j / τ) / Σ_{k ≠ i} exp(x_i·x_k / τ)

    P_i are the other pictures of its class. Zero, with zero gradient, where no picture has any.

    Args:
        feature_BD: unit vectors.
        class_B: class index of each picture.

    Source: supervised contrastive learning (arXiv 2004.11362), L_out, one view a picture.
    Reference: tests/reference/contrast.py, a loop in float64.
    """
    assert len(feature_BD) == len(class_B)
    itself_BB = torch.eye(len(class_B), dtype=torch.bool, device=feature_BD.device)
    class_index_B = torch.tensor(list(class_B), device=feature_BD.device)
    same_BB = (class_index_B[:, None] == class_index_B[None]) & ~itself_BB
    logit_BB = (feature_BD @ feature_BD.T / TEMPERATURE).masked_fill(itself_BB, -torch.inf)
    log_BB = logit_BB.log_softmax(dim=1).masked_fill(~same_BB, 0.0)
    company_B = same_BB.sum(dim=1)
    loss_B = -log_BB.sum(dim=1) / company_B.clamp(min=1)
    return loss_B.sum() / (company_B > 0).sum().clamp(min=1)
