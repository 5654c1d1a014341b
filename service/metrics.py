"""What is counted, each name once. No name of a class or a sample is ever a label here. ①"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


# A client may invent others; each would be a line of its own for ever.
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"})

# Fields of the learner's report, as gauges.
_LEARNT = {
    "prequential_accuracy": "Share of samples that were answered rightly before they were learnt.",
    "prequential_accuracy_recent": "Likewise, over about the last hundred.",
    "forgetting": "Best prequential recall of a class minus the present one, mean over classes.",
    "class_weight_max": "Largest weight of a class's loss in tuning; 1 is the mean.",
}


class Metrics:
    """All metrics of one service process, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "everlens_http_requests_total",
            "Requests by route template, method and status.",
            ("route", "method", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "everlens_http_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.refused_connections = Counter(
            "everlens_connections_refused_total",
            "Connections that were closed before a whole request came, by reason.",
            ("reason",),
            registry=registry,
        )
        self.batch_size = Histogram(
            "everlens_batch_size", "Pictures in a forward pass.", buckets=_SIZES, registry=registry
        )
        self.queue_depth = Gauge(
            "everlens_queue_depth", "Queries that wait or are being answered.", registry=registry
        )
        self.decoder_restarts = Counter(
            "everlens_decoder_restarts_total",
            "Decoders that were replaced: died, timeout, or did not start.",
            ("reason",),
            registry=registry,
        )
        self.accepted = Counter(
            "everlens_samples_accepted_total", "New samples in the log.", registry=registry
        )
        self.feedback = Counter(
            "everlens_feedback_total",
            "Predictions that got feedback, by whether their best line was right.",
            ("verdict",),
            registry=registry,
        )
        for verdict in ("right", "wrong"):  # a rate over a series needs its zero
            self.feedback.labels(verdict)
        self.swaps = Counter("everlens_swaps_total", "Versions swapped in.", registry=registry)
        self.swap_seconds = Histogram(
            "everlens_swap_seconds",
            "From the sight of a new head to its first answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.refused_versions = Counter(
            "everlens_refused_versions_total", "Attempts to swap that failed.", registry=registry
        )
        self.version = Gauge("everlens_version", "The version that answers.", registry=registry)
        self.learned_through = Gauge(
            "everlens_learned_through", "The last entry it has learnt.", registry=registry
        )
        self.backlog_samples = Gauge(
            "everlens_backlog_samples", "Entries that wait to be learnt.", registry=registry
        )
        self.backlog_bytes = Gauge("everlens_backlog_bytes", "Likewise, bytes.", registry=registry)
        self.learnt = {
            field: Gauge(f"everlens_{field}", about, registry=registry)
            for field, about in _LEARNT.items()
        }
        self.expert_recall = Gauge(
            "everlens_expert_recall",
            "Prequential recall of each expert alone, mean over classes.",
            ("expert",),
            registry=registry,
        )
        self.log_up = Gauge("everlens_log_up", "1 when the log answers.", registry=registry)

    def set_learnt(self, report: Mapping[str, Any]) -> None:
        """Take over the learner's own figures; what it does not know yet stays not a number."""
        for field, gauge in self.learnt.items():
            value = report.get(field)
            gauge.set(math.nan if value is None else value)
        for expert, recall in (report.get("expert_recall") or {}).items():
            self.expert_recall.labels(expert).set(math.nan if recall is None else recall)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class RequestMetrics:
    """ASGI layer that counts and times every request."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500
        started = time.monotonic()

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting_status)
        finally:
            # The template, not the path: ids and names must not become metrics.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - started)
