"""Prequential accuracy: each sample is scored by the present version before anything learns it. ⑤"""

from __future__ import annotations

from dataclasses import dataclass

DECAY = 0.99


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
