"""
Traces for OpenTelemetry, where somebody collects them: off unless an address is set.

The service's requests are spans (FastAPI makes them), and a sample carries the trace of its request
through the log. The learner's batch is a trace of its own, since one batch learns the samples of
many requests, and *links* to each of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from everlens.errors import SettingsError

_STANDARD = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_MISSING = "the packages for traces are not installed: `pip install 'everlens[otel]'`"
_LINKS_MAX = 128  # what OpenTelemetry keeps of them by default
_LAST_EXPORT_S = 1.0

_PROPAGATOR = TraceContextTextMapPropagator()

log = logging.getLogger(__name__)


def begin(endpoint: str, name: str, version: str) -> Callable[[], None]:
    """
    Collect this process's spans from now on, if anybody wants them; return what ends it.

    Args:
        endpoint: of a collector that speaks OTLP over HTTP, as `http://collector:4318`; where it
            is empty, OpenTelemetry's own variables decide.
        name: of this half, unless `OTEL_SERVICE_NAME` has another.
        version: of everlens.

    Raises:
        SettingsError: `endpoint` is set, and the packages of the extra `otel` are not there.
    """
    standard = any(os.environ.get(variable) for variable in _STANDARD)
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not (endpoint or standard):
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        if endpoint:
            raise SettingsError(f"EVERLENS_OTLP_ENDPOINT is set, but {_MISSING}") from None
        log.warning("OTEL_* variables name a collector, but %s", _MISSING)  # set for others too
        return lambda: None
    about = {"service.version": version}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        about["service.name"] = name
    address = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address)))
    trace.set_tracer_provider(provider)

    def end() -> None:
        # What is left goes out; but a collector that is away may not hold up the end.
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(_LAST_EXPORT_S)

    return end


def current() -> str:
    """Return the traceparent of the span that is under way; empty where nothing is traced."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


@contextlib.contextmanager
def linked(
    name: str, traceparents: Sequence[str], attributes: Mapping[str, int | str]
) -> Iterator[None]:
    """
    Record what happens inside as a trace of its own.

    Args:
        name: of the span.
        traceparents: what led to it; what is not one is left out.
        attributes: of the span.
    """
    contexts = (_context_of(parent) for parent in dict.fromkeys(traceparents))
    links = [Link(context) for context in contexts if context.is_valid][:_LINKS_MAX]
    tracer = trace.get_tracer("everlens")
    with tracer.start_as_current_span(
        name, kind=SpanKind.CONSUMER, links=links, attributes=dict(attributes)
    ):
        yield


def _context_of(traceparent: str) -> SpanContext:
    extracted = _PROPAGATOR.extract({"traceparent": traceparent})
    return trace.get_current_span(extracted).get_span_context()
