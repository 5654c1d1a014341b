"""
The SIT loss: only the texts of classes present in the batch compete. ⑤

Shape suffixes: B pictures, K candidate texts, E numbers of the joint space.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def sit_losses(
    image_BE: Tensor,
    text_KE: Tensor,
    target_B: Tensor,
    logit_scale: float,
    rival_BK: Tensor | None = None,
) -> Tensor:
    """
    Return loss_B, the image→text cross-entropy of each picture over the candidates of the batch.

        ℓ_i = -log  exp(s ẑ_i·t̂_{y_i}) / Σ_{c in Y_B} exp(s ẑ_i·t̂_c)          L = (1/B) Σ_i ℓ_i

    A class that is absent from `text_KE` receives exactly zero gradient. With one candidate the
    loss and all gradients are zero: such a batch teaches nothing.

    Args:
        image_BE: unit vectors.
        text_KE: unit vectors of the candidates, each present in the batch.
        target_B: the candidate of each picture.
        logit_scale: s; the cosines are multiplied by it, once, and no softmax is applied before.
        rival_BK: False where a candidate is another text of the picture's own class and must not
            compete; None when each class has one text.

    Source: SIT, arXiv 2405.15155; on logits, where the published code applies the softmax twice.
    Reference: tests/reference/sit.py, a loop in float64.
    """
    assert image_BE.ndim == text_KE.ndim == 2
    assert target_B.shape == image_BE.shape[:1]
    assert int(target_B.min()) >= 0
    assert int(target_B.max()) < len(text_KE)
    logit_BK = logit_scale * image_BE @ text_KE.T
    if rival_BK is not None:
        own_BK = functional.one_hot(target_B, len(text_KE)).bool()
        logit_BK = logit_BK.masked_fill(~(rival_BK | own_BK), float("-inf"))
    return functional.cross_entropy(logit_BK, target_B, reduction="none")


def candidates(
    class_B: Sequence[int], text_B: Sequence[Hashable]
) -> tuple[list[int], Tensor, Tensor]:
    """
    Return the candidates of a batch: one for each distinct pair of class and text.

    Args:
        class_B: class index of each picture.
        text_B: what its text is (None for the class's own prompt, else a caption).

    Returns:
        first_K: for each candidate, the first picture that has it; target_B; rival_BK.
    """
    pairs = list(zip(class_B, text_B, strict=True))
    distinct = sorted(set(pairs), key=lambda pair: (pair[0], pair[1] is not None, str(pair[1])))
    place = {pair: k for k, pair in enumerate(distinct)}
    target_B = torch.tensor([place[pair] for pair in pairs])
    class_K = torch.tensor([pair[0] for pair in distinct])
    rival_BK = torch.tensor(list(class_B))[:, None] != class_K[None, :]
    return [pairs.index(pair) for pair in distinct], target_B, rival_BK
