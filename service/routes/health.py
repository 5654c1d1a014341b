"""Whether the process lives, whether it may be asked, and its figures. ①"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from everlens.errors import LogUnavailable
from service import openapi
from service.context import Service, service_of
from service.metrics import CONTENT_TYPE
from service.rendering import answer

router = APIRouter(tags=["health"])


@router.get("/", summary="Where everything is")
async def get_root() -> Response:
    """The routes, for people with curl."""
    routes = ["/samples", "/classify", "/classes", "/versions", "/learning", "/livez", "/readyz"]
    return answer({"name": "everlens", "docs": "/docs", "routes": [*routes, "/metrics"]})


@router.get("/livez", summary="The process lives")
async def get_livez() -> Response:
    """200 as long as the event loop turns, also while the model loads."""
    return answer({"status": "alive"})


@router.get("/readyz", summary="The service may be asked", responses=openapi.problems(503))
async def get_readyz(request: Request) -> Response:
    """200 once a warm forward pass has run and the newest version was looked for."""
    model = service_of(request).ready()
    current = model.serving.current
    about = {"status": "ready", "model": model.backbone.name, "version": current.version}
    return answer(about | {"learned_through": current.learned_through})


@router.get("/metrics", summary="Prometheus metrics")
async def get_metrics(request: Request) -> Response:
    """All figures in Prometheus' text format."""
    service = service_of(request)
    await _look_at_log(service)
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


async def _look_at_log(service: Service) -> None:
    metrics = service.metrics
    try:
        backlog = await service.log.backlog()
        metrics.set_learnt(await service.log.learner())
    except LogUnavailable:
        metrics.log_up.set(0)
        return
    metrics.log_up.set(1)
    metrics.backlog_samples.set(backlog.entries)
    metrics.backlog_bytes.set(backlog.bytes)
