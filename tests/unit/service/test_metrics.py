"""What is counted has the names that Prometheus asks for, each written down, none made of a name."""

from __future__ import annotations

import re

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics
from service.waiting import OldestWaiting

# What stands last in a name: a base unit, what is counted, or (a gauge) the thing of which one is.
UNITS = {"seconds", "bytes", "ratio"}
THINGS = {
    "flight", "pictures", "queries", "samples", "classes", "exemplars", "owed", "version",
    "through", "up", "paused", "held", "predictions",
}  # fmt: skip
LABELS = {"route", "method", "status", "reason", "verdict", "expert", "model", "version", "le"}


def families() -> list[Metric]:
    """Return the metric families that a person's Prometheus would read."""
    return [
        family
        for family in text_string_to_metric_families(Metrics().text().decode())
        if not family.name.startswith("process_")
    ]


def test_names_follow_prometheus_rules():
    """One prefix, lower case, the unit last; `_total` on counters and on nothing else."""
    found = families()
    for family in found:
        assert re.fullmatch(r"everlens(_[a-z]+)*", family.name), family.name
        assert family.documentation.endswith("."), family.name
        last = family.name.rpartition("_")[2]
        match family.type:
            case "counter":
                assert last != "total"  # the parser takes it off
            case "histogram":
                assert last in UNITS | {"pictures"}, family.name
            case "gauge":
                assert last in UNITS | THINGS or family.name == "everlens_info", family.name
            case _:
                pytest.fail(f"{family.name} has the type {family.type}")
    assert len({family.name for family in found}) == len(found) > 40


def test_labels_are_few_and_never_a_name():
    """Each label is one of a closed list, none of which a client fills."""
    metrics = Metrics()
    metrics.info.info({"version": "1", "model": "starter"})
    metrics.requests.labels("/samples", "POST", "202").inc()
    metrics.learner.report = {"expert_recall": {"zero_shot": 0.5, "heron": 1.0}}
    text = metrics.text().decode()
    used = {
        label
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for label in sample.labels
    }
    assert used <= LABELS
    assert "heron" not in text


def test_a_report_of_nonsense_is_not_a_number():
    """Whatever lies in the log, /metrics answers."""
    metrics = Metrics()
    metrics.learner.report = {
        "samples": "many",
        "counts": [1],
        "expert_recall": 3,
        "forgetting": {},
    }
    text = metrics.text().decode()
    assert "everlens_learnt_samples NaN" in text
    assert "everlens_forgetting_ratio NaN" in text


def test_age_of_the_oldest_waiting_entry():
    """It grows while nothing is learnt, follows `done`, and is zero once all is learnt."""
    now = 0.0
    oldest = OldestWaiting(lambda: now)
    assert oldest.seconds(0, 0) == 0
    for now, seq, done, expected in (
        (10.0, 5, 0, 0.0),  # seen for the first time
        (20.0, 9, 0, 10.0),
        (30.0, 9, 4, 20.0),  # the fifth is of the first look
        (40.0, 9, 5, 20.0),  # the sixth came between 10 and 20
        (50.0, 9, 9, 0.0),
        (60.0, 12, 9, 0.0),
        (70.0, 12, 11, 10.0),
        (80.0, 3, 0, 0.0),  # another log
        (90.0, 3, 0, 10.0),
    ):
        assert oldest.seconds(seq, done) == expected, now


def test_a_disk_that_is_gone_is_not_a_number(tmp_path):
    """The figures of a disk are its size and what is left; no error where it is not there."""
    metrics = Metrics()
    metrics.set_disk(tmp_path)
    assert 0 < metrics.disk_free_bytes._value.get() <= metrics.disk_bytes._value.get()
    metrics.set_disk(tmp_path / "gone")
    assert "everlens_disk_free_bytes NaN" in metrics.text().decode()
