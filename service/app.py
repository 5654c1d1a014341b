"""The composition root: parts, routes and layers become one application. ①"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from everlens import __version__
from everlens.model.backbone import Backbone
from everlens.settings import Settings
from service import openapi, problems
from service.auth import SCOPE_OF_ROUTE, ApiKeys, ScopeTable, WatchedRing
from service.context import Service
from service.limits import BodyLimits
from service.metrics import RequestMetrics
from service.routes import (
    adapter,
    classify,
    console,
    events,
    exhibits,
    feedback,
    forgetting,
    health,
    holding,
    hugging_face,
    insight,
    kserve,
    label_studio,
    labelling,
    openai,
    predictions,
    samples,
    versions,
)
from service.tracking import QUIET, Tracking


def create_app(settings: Settings, load: Callable[[], Backbone]) -> FastAPI:
    """
    Return the application; `load` is called once, in a thread, when it starts.

    Args:
        settings: with the address of the log.
        load: returns the base model.

    Raises:
        KeysError: there is a file of API keys, and it is not as it must be.
    """
    service = Service(settings, load)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="everlens",
        version=__version__,
        description="An image classifier that learns while it serves.",
        lifespan=lifespan,
        # FastAPI's pages for people load their scripts from the internet, and are blank without it.
        docs_url=None,
        redoc_url=None,
        # A redirect would lose the body with many clients, and "/classes/x/" has a name of its own.
        redirect_slashes=False,
        # A span for each request, where `everlens.tracing` was begun; figures are at /metrics.
        telemetry={
            "auto_configure": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "exclude": lambda scope: scope.get("path") in QUIET,
        },
    )
    app.state.service = service
    problems.install(app)
    table = ScopeTable(SCOPE_OF_ROUTE)
    app.add_middleware(BodyLimits, bytes_max=settings.max_body_bytes)
    app.add_middleware(
        ApiKeys,
        table=table,
        ring=WatchedRing(settings.keys_path),
        rate_per_s=settings.key_rate_per_s,
        concurrency=settings.key_concurrency,
    )
    app.add_middleware(RequestMetrics, metrics=service.metrics)
    app.add_middleware(Tracking)
    for routes in (
        exhibits,  # before the samples, whose ids may have slashes
        samples,
        classify,
        feedback,
        predictions,
        labelling,
        insight,
        versions,
        adapter,
        forgetting,
        holding,
        events,
        hugging_face,
        kserve,
        openai,
        label_studio,
        console,
        health,
    ):
        app.include_router(routes.router, responses=openapi.EVERYWHERE)
    openapi.install(app, table)
    return app
