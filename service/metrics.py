"""
What is counted, each name once. No name of a class or a sample is ever a label here. ①

Names follow Prometheus' own rules: one prefix, base units, the unit last (`_seconds`, `_bytes`,
`_ratio`), `_total` for what only grows. The learner has no exporter: it leaves its figures in the
log, and they are shown here. docs/api.md lists them all.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everlens.bus.admission import Backlog
from service.figures import LearnerFigures
from service.waiting import OldestWaiting

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


# A client may invent others; each would be a line of its own for ever.
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"})


class Metrics:
    """All metrics of one service process, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # nobody asks for those lines
        registry = self.registry = CollectorRegistry()
        self.info = Info("everlens", "What runs: version and base model.", registry=registry)

        # Requests
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
        self.in_flight = Gauge(
            "everlens_http_requests_in_flight", "Requests under way.", registry=registry
        )
        self.refused_connections = Counter(
            "everlens_connections_refused_total",
            "Connections that were closed before a whole request came, by reason.",
            ("reason",),
            registry=registry,
        )

        # Answering
        self.decode_seconds = Histogram(
            "everlens_decode_seconds",
            "A picture's way from bytes to pixels, waiting for a decoder included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.decoder_restarts = Counter(
            "everlens_decoder_restarts_total",
            "Decoders that were replaced: died, timeout, or did not start.",
            ("reason",),
            registry=registry,
        )
        self.queued = Gauge(
            "everlens_queued_queries", "Queries that wait or are being answered.", registry=registry
        )
        self.batch_pictures = Histogram(
            "everlens_batch_pictures",
            "Pictures in a forward pass.",
            buckets=_SIZES,
            registry=registry,
        )
        self.forward_seconds = Histogram(
            "everlens_forward_seconds", "A forward pass.", buckets=_SECONDS, registry=registry
        )

        # Versions
        self.version = Gauge("everlens_version", "The version that answers.", registry=registry)
        self.learned_through = Gauge(
            "everlens_learned_through", "The last entry it has learnt.", registry=registry
        )
        self.feedback = Counter(
            "everlens_feedback_total",
            "Predictions that got feedback, by whether their best line was right.",
            ("verdict",),
            registry=registry,
        )
        for verdict in ("right", "wrong"):  # a rate over a series needs its zero
            self.feedback.labels(verdict)
        self.kept_predictions = Gauge(
            "everlens_kept_predictions", "Answers that feedback can be given on.", registry=registry
        )
        self.kept_prediction_bytes = Gauge(
            "everlens_kept_prediction_bytes",
            "What they and their pictures take.",
            registry=registry,
        )
        self.swap_seconds = Histogram(
            "everlens_swap_seconds",
            "From the sight of a new head to its first answer; counts the swaps.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.refused_versions = Counter(
            "everlens_versions_refused_total", "Attempts to swap that failed.", registry=registry
        )

        # The log
        self.log_up = Gauge("everlens_log_up", "1 when the log answers.", registry=registry)
        self.accepted = Counter(
            "everlens_samples_accepted_total", "New samples in the log.", registry=registry
        )
        self.admission_seconds = Histogram(
            "everlens_admission_seconds",
            "Until the samples of a request are on the log's disk.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.accepted_through = Gauge(
            "everlens_accepted_through", "The last entry of the log.", registry=registry
        )
        self.backlog_samples = Gauge(
            "everlens_backlog_samples", "Entries that wait to be learnt.", registry=registry
        )
        self.backlog_bytes = Gauge("everlens_backlog_bytes", "Likewise, bytes.", registry=registry)
        self.backlog_limit_samples = Gauge(
            "everlens_backlog_limit_samples", "Beyond it samples are refused.", registry=registry
        )
        self.backlog_limit_bytes = Gauge(
            "everlens_backlog_limit_bytes", "Likewise, bytes.", registry=registry
        )
        self.backlog_oldest_seconds = Gauge(
            "everlens_backlog_oldest_seconds",
            "How long the oldest of them has waited, to within the time between two scrapes.",
            registry=registry,
        )
        self.paused = Gauge(
            "everlens_learning_paused", "1 while samples are refused.", registry=registry
        )
        self.held = Gauge(
            "everlens_learning_held", "1 while somebody holds learning.", registry=registry
        )
        self.oldest_waiting = OldestWaiting()

        # The learner, and the disk
        self.learner_up = Gauge(
            "everlens_learner_up", "1 while a learner holds the log.", registry=registry
        )
        self.learner = LearnerFigures()
        registry.register(self.learner)
        self.disk_free_bytes = Gauge(
            "everlens_disk_free_bytes", "Left where the service's data is.", registry=registry
        )
        self.disk_bytes = Gauge("everlens_disk_bytes", "Size of that disk.", registry=registry)
        ProcessCollector(registry=registry)

    def set_backlog(self, backlog: Backlog) -> None:
        """Take over where the log is."""
        self.accepted_through.set(backlog.seq)
        self.backlog_samples.set(backlog.entries)
        self.backlog_bytes.set(backlog.bytes)
        self.backlog_oldest_seconds.set(self.oldest_waiting.seconds(backlog.seq, backlog.done))
        self.paused.set(bool(backlog.paused))
        self.held.set(bool(backlog.held))

    def set_disk(self, directory: Path) -> None:
        """Look at the disk that a directory lies on."""
        try:
            disk = shutil.disk_usage(directory)
        except OSError:
            self.disk_free_bytes.set(math.nan)
            return
        self.disk_free_bytes.set(disk.free)
        self.disk_bytes.set(disk.total)

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
        self.metrics.in_flight.inc()

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
            self.metrics.in_flight.dec()
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - started)
