"""Alerts and dashboard: every expression is PromQL, over metrics that /metrics really has."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.auth import SCOPE_OF_ROUTE
from service.figures import COUNTERS, GAUGES
from service.metrics import Metrics
from tests.deploy.compose import ROOT

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULES_TEST = RULES.with_name("alerts_test.yml")
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
PROMTOOL = shutil.which("promtool")


def alerts() -> list[dict[str, Any]]:
    """Return all alerting rules."""
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def queries() -> list[str]:
    """Return the queries of all dashboards, as Prometheus gets them from Grafana."""
    return [
        target["expr"].replace("$__rate_interval", "1m")
        for path in DASHBOARDS
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", [])
    ]


@functools.cache
def exported() -> dict[str, set[str]]:
    """Return each series that a service may have, with the labels of the metric."""
    metrics = Metrics()
    metrics.requests.labels("/classify", "POST", "200").inc()
    metrics.seconds.labels("/classify").observe(0.1)
    metrics.refused_connections.labels("crowded").inc()
    metrics.decoder_restarts.labels("died").inc()
    figures = {figure.field: 1 for figure in COUNTERS + GAUGES}
    for field, value in figures.items():
        first, _, second = field.partition(".")
        nested: Any = metrics.learner.report.setdefault(first, {} if second else value)
        if second:
            nested[second] = value
    found: dict[str, set[str]] = {"up": {"job", "instance"}}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    return found


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """Yield every selector of a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for part in ("lhs", "rhs", "expr", "param", "vector_selector", "args"):
        child = getattr(node, part, None)
        for one in child if isinstance(child, list) else [child]:
            if one is not None:
                yield from selectors(one)


def check(expression: str) -> None:
    """Return when the expression is PromQL and names only what is exported."""
    found = list(selectors(promql_parser.parse(expression)))
    assert found, expression
    for selector in found:
        assert selector.name is not None
        assert selector.name in exported(), f"{selector.name} of {expression}"
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert labels <= exported()[selector.name], expression
    names = {name for selector in found if (name := selector.name)}
    for group in re.findall(r"\b(?:by|without) \(([^)]*)\)", expression):
        known = set().union(*(exported()[name] for name in names))
        assert {label.strip() for label in group.split(",")} <= known, expression


def test_the_check_finds_what_is_wrong() -> None:
    """An unknown metric, an unknown label and broken PromQL are each refused."""
    check("max(everlens_learner_up) == 0")
    for wrong in (
        "max(everlens_lerner_up) == 0",
        'everlens_http_requests_total{label="heron"}',
        "sum by (label) (everlens_http_requests_total)",
        "rate(everlens_http_requests_total[5m]",
    ):
        with pytest.raises((AssertionError, ValueError)):
            check(wrong)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alerts_ask_for_what_is_there(rule: dict[str, Any]) -> None:
    """Each alert is over real metrics, says how urgent it is, and stands in the operator's page."""
    check(rule["expr"])
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description"}
    page = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    assert f"`{rule['alert']}`" in page


def test_a_probe_that_is_told_no_is_no_error() -> None:
    """What asks whether a service is ready counts neither as failed nor as asked; all else does."""
    (expression,) = (rule["expr"] for rule in alerts() if rule["alert"] == "EverlensErrors")
    probes = re.compile(r".*/(livez|readyz|metrics|live|ready|health)")
    left_out = re.findall(r'route!~"([^"]*)"', expression)
    assert len(left_out) == 2
    for route in {route.split()[1] for route in SCOPE_OF_ROUTE}:
        for pattern in left_out:
            assert bool(re.fullmatch(pattern, route)) == bool(probes.fullmatch(route)), route


def test_each_alert_has_been_seen_to_fire() -> None:
    """The rules' own tests name every alert, so that none was only ever silent."""
    tried = RULES_TEST.read_text(encoding="utf-8")
    for rule in alerts():
        assert f'"{rule["alert"]}"' in tried, rule["alert"]


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on this machine")
def test_promtool_accepts_the_rules_and_they_fire() -> None:
    """Prometheus' own tool reads the rules, and runs their tests."""
    for words in (["check", "rules", str(RULES)], ["test", "rules", str(RULES_TEST)]):
        done = subprocess.run(
            [str(PROMTOOL), *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_asks_for_what_is_there() -> None:
    """Each panel is over real metrics."""
    assert len(queries()) > 40
    for query in queries():
        check(query)


def test_dashboard_is_whole() -> None:
    """Each panel has a place of its own on the grid, a title, and the data source's name."""
    (path,) = DASHBOARDS
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    sources = ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(sources.read_text(encoding="utf-8"))["datasources"]
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        taken = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not taken & cells
        assert max(x for x, _ in taken) < 24
        cells |= taken
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == source["uid"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_metric_of_ours_is_looked_at() -> None:
    """The dashboard and the alerts leave out only what is for somebody who asks for it."""
    expressions = [*queries(), *(rule["expr"] for rule in alerts())]
    asked = {s.name or "" for e in expressions for s in selectors(promql_parser.parse(e))}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    left = {
        name
        for name in (re.sub(r"_(bucket|sum|count)$", "", name) for name in exported())
        if name.startswith("everlens_")
    } - families

    assert left == {
        "everlens_info",
        "everlens_learnt_samples",
        "everlens_learnt_classes",
        "everlens_exemplars",
        "everlens_class_weight_max_ratio",
        "everlens_learner_batches_total",
    }
