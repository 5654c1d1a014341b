"""The learner's report: what it has done and where it is, for services to read. ⑦"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass

from worker.batch import Batch
from worker.outbox import Outbox
from worker.rounds import Rounds

_REPORT_S = 10.0  # between two reports at most, so that whoever looks knows the age of a silence
_AGAIN_S = 1.0  # behind one that did not arrive


@dataclass(slots=True)
class Counts:
    """What this process has done since it began."""

    samples: int = 0
    dead: int = 0
    batches: int = 0
    busy_s: float = 0.0
    gate_passed: int = 0
    gate_held_back: int = 0


class Report:
    """
    What is told after each version, and now and then while none comes.

    Args:
        outbox: what is committed.
        rounds: how many are owed.
        numerics: what the bits depend on here.
    """

    def __init__(self, outbox: Outbox, rounds: Rounds, numerics: str) -> None:
        self.outbox = outbox
        self.rounds = rounds
        self.numerics = numerics
        self.counts = Counts()
        self._samples_per_s = 0.0
        self._sent_at = 0.0  # monotonic

    @property
    def is_due(self) -> bool:
        """Whether the last one is old."""
        return time.monotonic() - self._sent_at > _REPORT_S

    def measure(self, batch: Batch, seconds: float) -> None:
        """Count a batch that was learnt."""
        samples = len(batch.samples)
        self.counts.samples += samples
        self.counts.dead += len(batch.dead)
        self.counts.batches += 1
        self.counts.busy_s += seconds
        if samples:
            rate, before = samples / max(seconds, 1e-6), self._samples_per_s
            self._samples_per_s = 0.9 * before + 0.1 * rate if before else rate

    def send(self) -> None:
        """Tell services."""
        learner, progress = self.outbox.learner, self.outbox.progress
        prequential = learner.scoring.prequential
        disk = shutil.disk_usage(self.outbox.state.path.parent)
        now = time.monotonic()
        self._sent_at = now - _REPORT_S + _AGAIN_S  # where this one is lost
        self.outbox.stream.report(
            {
                "reported_at": round(time.time(), 3),
                "version": progress.version,
                "learned_through": progress.cursor,
                "batch": learner.batch,
                "samples": learner.samples,
                "classes": len(learner.class_names),
                "exemplars": len(learner.replay),
                "exemplar_bytes": learner.replay.bytes,
                "prequential_accuracy": prequential.accuracy,
                "prequential_accuracy_recent": prequential.recent_accuracy,
                "prequential_samples": prequential.scored,
                "forgetting": learner.scoring.records.forgetting,
                "fusion": asdict(learner.scoring.fusing.fusion()),
                "expert_recall": learner.scoring.records.expert_recall,
                "class_weight_max": round(float(learner.class_weights().max()), 4)
                if learner.class_names
                else None,
                "samples_per_s": round(self._samples_per_s, 2),
                "adapter_batch": progress.adapter_batch,
                "rounds_owed": self.rounds.owed,
                "counts": asdict(self.counts),
                "disk_free_bytes": disk.free,
                "disk_bytes": disk.total,
                "numerics": self.numerics,
            }
        )
        self._sent_at = now
