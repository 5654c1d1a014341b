"""
Learning the fusion: which of its constants would have made the samples so far most probable. ⑤

Every sample of a class that is known is scored before it is learnt, so that each expert shows what
it is worth on what it has not seen. A table holds the summed log-loss of every choice of constants
on a grid; the version served takes the best one. The gate to names without a label is a linear
discriminant of two kinds of cases that each such sample gives: the picture as it is, and with its
own class hidden.

Shape suffixes: B samples, C learnt classes; of the grid K kappas, P text powers, S sharpnesses and
N shares of noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from everlens.model.fusion import Fusion, Scores, counted_weight, log_experts

KAPPA = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
TEXT_POWER = (0.0, 0.15, 0.3, 0.6, 1.0)
SHARPNESS = (0.5, 0.7, 1.0, 1.25, 1.5, 1.8, 2.2, 2.8)

# Share of labels that say nothing, among which one is as likely as the other. Learnt with the rest
# and not served: else flipped labels would be taken for a reason to be less sure.
NOISE = (0.005, 0.05, 0.1, 0.2, 0.3, 0.4)

# A sample counts half when so many more were scored.
HALF_LIFE = 300.0
_DECAY = 0.5 ** (1 / HALF_LIFE)

# The prior: standard deviations around the constants to begin with, and nats for each tenth of
# noise. Wider and narrower ones did as well within noise.
_KAPPA_NATS, _POWER_DEVIATION, _SHARPNESS_NATS, _NOISE_COST = 1.0, 0.5, 0.4, 2.0

# Candidates that a sample is scored against, the likeliest by either expert.
CANDIDATES_MAX = 256

# The gate to begin with: mean evidence cosine of the nearest learnt class, for a picture of a
# learnt class and of none, their common variance, and how many pairs of cases that is worth.
_NEAR_KNOWN, _NEAR_UNKNOWN, _NEAR_VARIANCE, _NEAR_PAIRS = 0.30, 0.10, 0.0071, 20.0

# A camera that never moves gives cosines that hardly vary; another picture must still have a chance.
SLOPE_MAX = 60.0

# Nats that a nat of the best zero-shot logit says about a picture being of a learnt class.
TEXT_SLOPE = 0.25


class FusionLearner:
    """Summed log-losses over the grid, and moments of the gate; all decay with what is scored."""

    def __init__(self, begin: Fusion) -> None:
        self.begin = begin
        shape = (len(KAPPA), len(TEXT_POWER), len(SHARPNESS), len(NOISE))
        self.loss_KPSN = torch.zeros(shape, dtype=torch.float64)
        # Pairs, Σ of the nearest cosine with and without the own class, Σ of their squares.
        self.near = torch.zeros(4, dtype=torch.float64)
        # Pictures, Σ of the best zero-shot logit.
        self.text = torch.zeros(2, dtype=torch.float64)

    def record(self, scores: Scores, class_B: Sequence[int]) -> None:
        """
        Score a batch that nothing has learnt from yet.

        Args:
            scores: of the version that served, over its learnt classes in order.
            class_B: the class of each sample, -1 for one that this version does not know.
        """
        if scores.evidence_BK is None:
            return
        for row, class_index in enumerate(class_B):
            one = scores.picture(row)
            self.text = _DECAY * self.text
            self.text += torch.tensor([1.0, float(one.text_BK.max())])
            if class_index < 0 or len(scores.count_K) < 2:
                continue
            self.loss_KPSN = _DECAY * self.loss_KPSN + grid_losses(one, class_index, self.begin)
            self.near = _DECAY * self.near + _pair(one, class_index)

    def fusion(self) -> Fusion:
        """Return the constants that made the samples so far most probable, the prior included."""
        k, p, s, _ = unravel(int((self.loss_KPSN + prior(self.begin)).argmin()))
        pairs, known, unknown, squares = (self.near + near_prior()).tolist()
        known, unknown = known / pairs, unknown / pairs
        variance = max(squares / pairs - known**2 - unknown**2, 1e-6) / 2
        pictures, text = self.text.tolist()
        return replace(
            self.begin,
            kappa=KAPPA[k],
            text_power=TEXT_POWER[p],
            sharpness=SHARPNESS[s],
            threshold=(known + unknown) / 2,
            slope=min((known - unknown) / variance, SLOPE_MAX),
            text_center=text / pictures if pictures else 0.0,
            text_slope=TEXT_SLOPE if pictures else 0.0,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return what a commit saves."""
        return {"loss_KPSN": self.loss_KPSN, "near": self.near, "text": self.text}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` saved."""
        self.loss_KPSN = tensors["loss_KPSN"].clone()
        self.near = tensors["near"].clone()
        self.text = tensors["text"].clone()


def grid_losses(scores: Scores, class_index: int, fusion: Fusion) -> Tensor:
    """
    Return loss_KPSN = -log((1 - ε) p(y) + ε / C) of one picture for each choice of constants.

    Args:
        scores: of one picture, B = 1.
        class_index: y.
        fusion: what is not on the grid.

    Reference: tests/reference/fusing.py, choice by choice through the fusion itself.
    """
    classes = len(scores.count_K)
    log_text_C, log_evidence_C = (expert_BC[0] for expert_BC in log_experts(scores, fusion))
    place_C = _candidates(log_text_C, log_evidence_C, class_index)
    log_text_C, log_evidence_C = log_text_C[place_C].double(), log_evidence_C[place_C].double()
    count_C = scores.count_K[place_C].double()
    weight_KC = counted_weight(count_C, torch.tensor(KAPPA, dtype=torch.float64)[:, None])
    log_KC = torch.logaddexp((1 - weight_KC).log() + log_text_C, weight_KC.log() + log_evidence_C)
    power_P = torch.tensor(TEXT_POWER, dtype=torch.float64)
    log_KPC = log_KC[:, None] + power_P[:, None] * log_text_C
    sharpness_S = torch.tensor(SHARPNESS, dtype=torch.float64)
    log_KPSC = sharpness_S[:, None] * log_KPC[:, :, None]
    own = int((place_C == class_index).nonzero())
    right_KPS = (log_KPSC[..., own] - log_KPSC.logsumexp(dim=-1)).exp()
    noise_N = torch.tensor(NOISE, dtype=torch.float64)
    return -((1 - noise_N) * right_KPS[..., None] + noise_N / classes).log()


def prior(begin: Fusion) -> Tensor:
    """Return cost_KPSN in nats: how far each choice is from the constants to begin with."""
    kappa_K = torch.tensor(KAPPA, dtype=torch.float64).log() - torch.tensor(begin.kappa).log()
    power_P = torch.tensor(TEXT_POWER, dtype=torch.float64) - begin.text_power
    sharpness_S = torch.tensor(SHARPNESS, dtype=torch.float64).log()
    sharpness_S = sharpness_S - torch.tensor(begin.sharpness).log()
    noise_N = torch.tensor(NOISE, dtype=torch.float64)
    return (
        0.5 * (kappa_K / _KAPPA_NATS)[:, None, None, None] ** 2
        + 0.5 * (power_P / _POWER_DEVIATION)[:, None, None] ** 2
        + 0.5 * (sharpness_S / _SHARPNESS_NATS)[:, None] ** 2
        + 10 * _NOISE_COST * noise_N
    )


def near_prior() -> Tensor:
    """Return the moments of the gate to begin with; they never decay."""
    known, unknown = _NEAR_KNOWN, _NEAR_UNKNOWN
    squares = 2 * _NEAR_VARIANCE + known**2 + unknown**2
    return _NEAR_PAIRS * torch.tensor([1, known, unknown, squares], dtype=torch.float64)


def unravel(place: int) -> tuple[int, int, int, int]:
    """Return the indices of a place in the flattened grid."""
    place, noise = divmod(place, len(NOISE))
    place, sharpness = divmod(place, len(SHARPNESS))
    kappa, power = divmod(place, len(TEXT_POWER))
    return kappa, power, sharpness, noise


def _pair(scores: Scores, class_index: int) -> Tensor:
    """Return what one picture adds to the moments: nearest class with and without its own."""
    assert scores.evidence_BK is not None
    cosine_C = scores.evidence_BK[0].double()
    nearest = float(cosine_C.max())
    others_C = cosine_C.clone()
    others_C[class_index] = -torch.inf
    hidden = float(others_C.max())
    return torch.tensor([1, nearest, hidden, nearest**2 + hidden**2], dtype=torch.float64)


def _candidates(log_text_C: Tensor, log_evidence_C: Tensor, own: int) -> Tensor:
    """Return the places of the likeliest candidates by either expert, the own class among them."""
    if len(log_text_C) <= CANDIDATES_MAX:
        return torch.arange(len(log_text_C))
    half = CANDIDATES_MAX // 2
    likeliest = [expert_C.topk(half).indices for expert_C in (log_text_C, log_evidence_C)]
    place_C: Tensor = torch.cat([*likeliest, torch.tensor([own])]).unique()  # type: ignore[no-untyped-call]
    return place_C
