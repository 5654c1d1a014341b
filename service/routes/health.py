"""Whether the process lives, whether it may be asked, and its figures. ①"""

from __future__ import annotations

import math

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from everlens.errors import LogUnavailable
from service import openapi
from service.context import Service, service_of
from service.metrics import CONTENT_TYPE
from service.rendering import answer
from service.schemas import AliveOut, ReadyOut, RootOut

router = APIRouter(tags=["health"])


@router.get("/", summary="Where everything is", responses={200: {"model": RootOut}})
async def get_root(request: Request) -> Response:
    """The routes, for people with curl."""
    paths = request.app.openapi()["paths"]
    routes = [path for path in paths if path != "/" and "{" not in path]
    return answer({"name": "everlens", "docs": "/openapi.json", "routes": [*routes, "/console"]})


@router.get("/livez", summary="The process lives", responses={200: {"model": AliveOut}})
async def get_livez() -> Response:
    """200 as long as the event loop turns, also while the model loads."""
    return answer({"status": "alive"})


@router.get(
    "/readyz",
    summary="The service may be asked",
    responses={200: {"model": ReadyOut}, **openapi.problems(503)},
)
async def get_readyz(request: Request) -> Response:
    """200 once a warm forward pass has run and the newest version was looked for."""
    model = service_of(request).ready()
    current = model.serving.current
    about = {"status": "ready", "model": model.backbone.name, "version": current.version}
    about |= {"learned_through": current.learned_through, "stale": model.swaps.stale}
    return answer(about)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(request: Request) -> Response:
    """All figures in Prometheus' text format."""
    service = service_of(request)
    await _look_at_log(service)
    service.metrics.set_disk(service.settings.data_dir)
    service.metrics.kept_predictions.set(len(service.predictions))
    service.metrics.kept_prediction_bytes.set(service.predictions.bytes)
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


async def _look_at_log(service: Service) -> None:
    metrics = service.metrics
    try:
        backlog = await service.log.backlog()
        metrics.learner.report = await service.log.learner()
        metrics.learner_up.set(await service.log.learner_present())
    except LogUnavailable:
        metrics.log_up.set(0)
        metrics.learner_up.set(math.nan)
        return
    metrics.log_up.set(1)
    metrics.set_backlog(backlog)
