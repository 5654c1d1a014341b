"""
The learner's report as metrics: it has no exporter, and leaves its figures in the log. ①

A field that the report lacks, since nothing is learnt yet, is not a number and never zero; a counter
is not there at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)


class Figure(NamedTuple):
    """One figure of the learner's report; `field` with a dot lies one level deeper."""

    field: str
    name: str
    about: str
    label: tuple[str, str] | None = None  # where several fields are one metric


# Counters begin anew with the learner's process, as Prometheus expects of one.
COUNTERS = (
    Figure("counts.samples", "everlens_learner_samples", "Samples learnt."),
    Figure("counts.batches", "everlens_learner_batches", "Batches learnt."),
    Figure("counts.busy_s", "everlens_learner_busy_seconds", "Time spent learning them."),
    Figure("counts.dead", "everlens_learner_dead_letters", "Samples that could not be learnt."),
    *(
        Figure(
            f"counts.gate_{verdict}",
            "everlens_gate_verdicts",
            "Adapters that held-out samples let through, and that they held back.",
            ("verdict", verdict),
        )
        for verdict in ("passed", "held_back")
    ),
)
GAUGES = (
    Figure(
        "reported_at",
        "everlens_learner_report_timestamp_seconds",
        "When the learner last left its figures; it does so every ten seconds at least.",
    ),
    Figure("samples", "everlens_learnt_samples", "Samples that the newest version has learnt."),
    Figure("classes", "everlens_learnt_classes", "Classes that it knows."),
    Figure("exemplars", "everlens_exemplars", "Samples in the replay buffer."),
    Figure("exemplar_bytes", "everlens_exemplar_bytes", "What they take of its budget."),
    Figure("rounds_owed", "everlens_rounds_owed", "Rounds of tuning that were drawn, not taken."),
    Figure(
        "prequential_accuracy",
        "everlens_prequential_accuracy_ratio",
        "Share of samples that were answered rightly before they were learnt.",
    ),
    Figure(
        "prequential_accuracy_recent",
        "everlens_prequential_accuracy_recent_ratio",
        "Likewise, over about the last hundred.",
    ),
    Figure(
        "forgetting",
        "everlens_forgetting_ratio",
        "Best prequential recall of a class minus the present one, mean over classes.",
    ),
    *(
        Figure(
            f"expert_recall.{expert}",
            "everlens_expert_recall_ratio",
            "Prequential recall of each expert alone, mean over classes.",
            ("expert", expert),
        )
        for expert in ("zero_shot", "evidence", "adapter")
    ),
    Figure(
        "class_weight_max",
        "everlens_class_weight_max_ratio",
        "Largest weight of a class's loss in tuning; 1 is the mean.",
    ),
    Figure(
        "disk_free_bytes", "everlens_learner_disk_free_bytes", "Left where the learner's state is."
    ),
    Figure("disk_bytes", "everlens_learner_disk_bytes", "Size of that disk."),
)


class LearnerFigures(Collector):
    """The last report, and its metrics."""

    def __init__(self) -> None:
        self.report: dict[str, Any] = {}

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield every figure of it."""
        yield from self._families(CounterMetricFamily, COUNTERS)
        yield from self._families(GaugeMetricFamily, GAUGES)

    def _families(self, kind: type[Family], figures: Sequence[Figure]) -> Iterator[Family]:
        families: dict[str, Family] = {}
        for figure in figures:
            name, value = figure.label or ("", "")
            if figure.name not in families:
                labels = [name] if name else []
                families[figure.name] = kind(figure.name, figure.about, labels=labels)
            number = self._number(figure.field)
            if not (kind is CounterMetricFamily and math.isnan(number)):  # which no rate survives
                families[figure.name].add_metric([value] if value else [], number)
        yield from families.values()

    def _number(self, field: str) -> float:
        value: Any = self.report
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, int | float) else math.nan
