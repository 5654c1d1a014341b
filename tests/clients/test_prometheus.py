"""Prometheus' own parser reads what /metrics says."""

from __future__ import annotations

import math

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.processes import PATIENCE_S

pytestmark = pytest.mark.system


def test_every_line_is_understood(url: str, pictures: dict[str, bytes]) -> None:
    """Each metric has a type and a help text and comes once; what happened is counted."""
    counts = []
    for _ in range(2):
        answer = httpx.get(f"{url}/metrics", timeout=PATIENCE_S)
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = list(text_string_to_metric_families(answer.text))
        names = [family.name for family in families]
        assert len(names) == len(set(names))
        for family in families:
            assert family.type in {"counter", "gauge", "histogram", "info"}, family.name
            assert family.documentation, family.name
        lines = [line for line in answer.text.splitlines() if line and line[0] != "#"]
        samples = [sample for family in families for sample in family.samples]
        assert len(lines) == len(samples)
        counts.append(
            math.fsum(s.value for s in samples if s.name == "everlens_http_requests_total")
        )
        httpx.post(
            f"{url}/classify",
            data={"labels": "cat"},
            files={"image": pictures["cat"]},
            timeout=PATIENCE_S,
        ).raise_for_status()
    assert counts[0] + 1 < counts[1]
