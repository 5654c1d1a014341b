"""What a person sees of the learner changes nothing that it learns."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from everlens.bus.admission import Admittable
from everlens.logs import JsonLines
from tests.unit.worker.conftest import Bench, digit_samples, fresh_bench, run_to


def test_traced_samples_are_learnt_to_the_same_bits_and_linked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    With and without traces two learners come to the same version; each batch of the traced one is a
    span with its place in the log that links to the requests, and so do its lines say it.
    """
    samples = digit_samples(8)
    bench.admit(samples)
    plain = run_to(bench.loop(), 8)

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    caplog.handler.setFormatter(JsonLines())
    traced = fresh_bench(bench, "-traced")
    parents = [f"00-{k:032x}-{k:016x}-01" for k in range(1, 9)]
    traced.admit([replace(s, trace=t) for s, t in zip(samples[:6], parents, strict=False)])
    traced.admit_payloads([Admittable("bad", "0", b"no payload")])
    traced.admit(samples[6:])
    with caplog.at_level(logging.DEBUG, logger="everlens.worker"):
        loop = run_to(traced.loop("traced"), 9)

    assert loop.snapshot.classes.count_C.tolist() == plain.snapshot.classes.count_C.tolist()
    first, second = exporter.get_finished_spans()[:2]
    assert [link.context.span_id for link in first.links] == [1, 2, 3, 4]
    assert [link.context.span_id for link in second.links] == [5, 6]
    assert dict(first.attributes or {}) == {
        "batch": 1,
        "first_seq": 1,
        "last_seq": 4,
        "samples": 4,
    }
    events = [json.loads(line) for line in caplog.text.splitlines() if line.startswith("{")]
    (dead,) = [event for event in events if "is not learnt" in event["message"]]
    assert (dead["batch"], dead["first_seq"], dead["last_seq"]) == (2, 5, 8)
    assert dead["trace_id"] == f"{second.get_span_context().trace_id:032x}"  # type: ignore[union-attr]
    assert loop.report.counts.dead == 1

    same = fresh_bench(bench, "-same")
    same.admit([replace(s, trace=t) for s, t in zip(samples, parents, strict=True)])
    assert run_to(same.loop("same"), 8).progress.digest == plain.progress.digest
