"""Traces: off by default, carried with a sample, and linked by the batch that learns it."""

from __future__ import annotations

import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from everlens import tracing
from everlens.errors import SettingsError
from everlens.records import TRACE_CHARACTERS_MAX, Rejection, Sample
from everlens.wire import decode_rejection, decode_sample, encode_rejection, encode_sample


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What is traced meanwhile; only `everlens.tracing` sees this provider."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def test_nothing_is_traced_unless_somebody_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address nothing is begun, and a sample carries nothing."""
    for variable in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    before = trace.get_tracer_provider()
    tracing.begin("", "everlens-test", "1")()
    assert trace.get_tracer_provider() is before
    with tracing.linked("learn batch", [], {}):
        assert tracing.current() == ""

    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing.begin("http://127.0.0.1:9", "everlens-test", "1")()
    assert trace.get_tracer_provider() is before


def test_missing_packages_are_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own setting refuses the start; OpenTelemetry's variables, set for others too, do not."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"everlens\[otel\]"):
        tracing.begin("http://127.0.0.1:9", "everlens-test", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing.begin("", "everlens-test", "1")()


def test_a_batch_links_to_each_request_once(exporter: InMemorySpanExporter) -> None:
    """It is a trace of its own; twice the same request is one link, and nonsense is none."""
    parents = []
    for _ in range(2):
        with tracing.linked("request", [], {}):
            parents.append(tracing.current())
    assert [len(parent) for parent in parents] == [TRACE_CHARACTERS_MAX] * 2
    with tracing.linked(
        "learn batch", [parents[0], "nonsense", parents[1], parents[0], ""], {"batch": 7}
    ):
        pass

    *requests, batch = exporter.get_finished_spans()
    contexts = [request.get_span_context() for request in requests]
    assert [link.context.span_id for link in batch.links] == [c.span_id for c in contexts if c]
    assert batch.parent is None
    assert batch.attributes is not None
    assert batch.attributes["batch"] == 7
    assert len({span.context.trace_id for span in (*requests, batch) if span.context}) == 3


def test_links_are_bounded(exporter: InMemorySpanExporter) -> None:
    """A batch of a thousand requests links to as many as OpenTelemetry keeps."""
    parents = [f"00-{k:032x}-{k:016x}-01" for k in range(1, 1001)]
    with tracing.linked("learn batch", parents, {}):
        pass

    assert len(exporter.get_finished_spans()[0].links) == 128


@pytest.mark.parametrize("trace_", ["", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"])
def test_a_sample_carries_its_trace(trace_: str) -> None:
    """It comes back from the wire; without one the bytes are what they always were."""
    sample = Sample("id", "heron", b"jpeg", trace=trace_)
    rejection = Rejection("id", "heron", b"jpeg", trace=trace_)
    learnt, refused = encode_sample(sample), encode_rejection(rejection)

    assert decode_sample(learnt) == sample
    assert decode_rejection(refused) == rejection
    assert (b"trace" in learnt, b"trace" in refused) == (bool(trace_), bool(trace_))


@pytest.mark.parametrize("written", [b'"x"', b"[1]", b"null", b"7", b'"' + b"a" * 56 + b'"'])
def test_no_sample_is_lost_for_its_trace(written: bytes) -> None:
    """Whatever stands in that field, the sample is learnt."""
    head = b'{"id":"a","label":"heron","text":null,"trace":' + written + b"}"
    payload = b"\x00\x01" + len(head).to_bytes(4, "big") + head + b"jpeg"

    sample = decode_sample(payload)
    assert (sample.label, sample.image) == ("heron", b"jpeg")
    assert sample.trace in {"", "x"}
