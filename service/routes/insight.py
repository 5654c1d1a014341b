"""What is known, by which version, and how far learning is. ①"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from operator import itemgetter
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from everlens.model.snapshot import Snapshot
from everlens.records import as_written
from service import openapi
from service.context import service_of
from service.present import BASE_VERSION, learning
from service.problems import Problem
from service.rendering import answer
from service.schemas import (
    INTEGER_MAX,
    NAME_LENGTH_MAX,
    ClassesOut,
    LearningOut,
    OneClassOut,
    VersionOut,
    VersionsOut,
)

router = APIRouter(tags=["insight"])


@router.get(
    "/classes",
    summary="The learnt classes",
    responses={200: {"model": ClassesOut}, **openapi.problems(422, 503)},
)
async def get_classes(
    request: Request,
    search: Annotated[
        str,
        Query(
            max_length=NAME_LENGTH_MAX,
            description="Names that hold this, in large letters or small.",
            examples=["heron"],
        ),
    ] = "",
    after: Annotated[
        int | None,
        Query(ge=0, le=INTEGER_MAX, description="Go on behind the class of this `index`."),
    ] = None,
    limit: Annotated[
        int | None, Query(ge=1, le=10_000, description="Without it, all.", examples=[100])
    ] = None,
) -> Response:
    """
    In the order of their first sample, with what became of each.

    `total` is how many fit the search on all pages; `after` of the next page is the last `index` of
    this one, which no class ever changes.

    `recall` is that of served answers before the sample was learnt, lately, and `forgetting` how
    far that is below the class's best; `weight` multiplies its loss in tuning (1 is the mean);
    `zero_shot`, `evidence` and `adapter` are the recall of each expert alone. Null: not known yet.
    """
    snapshot = service_of(request).ready().serving.current
    # Aside: with a hundred thousand of them it takes a second, and other requests go on.
    return await asyncio.to_thread(_listed, snapshot, search, -1 if after is None else after, limit)


@router.get(
    "/classes/{name:path}",
    summary="One class",
    responses={200: {"model": OneClassOut}, **openapi.problems(404, 422, 503)},
)
async def get_class(
    request: Request, name: Annotated[str, Path(max_length=NAME_LENGTH_MAX, examples=["heron"])]
) -> Response:
    """One learnt class."""
    snapshot = service_of(request).ready().serving.current
    name = as_written(name)
    if not snapshot.samples(name):
        raise Problem("unknown-class", "no class of this name is learnt; GET /classes lists them")
    index = snapshot.classes.names.find(name)
    about = {"label": name, "samples": snapshot.samples(name), "index": index}
    prompts = [template.format(name) for template in snapshot.backbone.templates]
    known = {"prompts": prompts, "version": snapshot.version}
    return answer(about | snapshot.about(index) | known)


def _listed(snapshot: Snapshot, search: str, after: int, limit: int | None) -> Response:
    names, counts = snapshot.classes.names, snapshot.classes.count_C.tolist()
    wanted = as_written(search).casefold()
    fitting = [
        (index, name)
        for index, (name, count) in enumerate(zip(names, counts, strict=True))
        if count and wanted in name.casefold()
    ]
    shown = fitting[bisect_right(fitting, after, key=itemgetter(0)) :][:limit]
    records = [
        {"label": name, "samples": counts[index], "index": index, **snapshot.about(index)}
        for index, name in shown
    ]
    return answer({"classes": records, "total": len(fitting), "version": snapshot.version})


@router.get(
    "/versions",
    summary="The lineage",
    responses={200: {"model": VersionsOut}, **openapi.problems(422, 503)},
)
async def get_versions(
    request: Request, limit: Annotated[int, Query(ge=1, le=10_000)] = 100
) -> Response:
    """The published versions, the newest first."""
    service = service_of(request)
    current = service.loaded().serving.current.version
    lineage = await service.follower.lineage(limit)
    return answer({"current": current, "versions": lineage})


@router.get(
    "/versions/{version}",
    summary="One version",
    responses={200: {"model": VersionOut}, **openapi.problems(404, 422, 503)},
)
async def get_version(
    request: Request, version: Annotated[int, Path(ge=0, le=INTEGER_MAX, examples=[1])]
) -> Response:
    """One version of the lineage; 0 is the frozen base model."""
    if version == 0:
        return answer(BASE_VERSION)
    record = await service_of(request).follower.record(version)
    if record is not None:
        return answer(record)
    raise Problem("unknown-version", f"version {version} is not remembered; see GET /versions")


@router.get(
    "/learning",
    summary="How far learning is",
    responses={200: {"model": LearningOut}, **openapi.problems(503)},
)
async def get_learning(request: Request) -> Response:
    """What serves, what waits, what the learner says of itself, and what was refused."""
    return answer(await learning(service_of(request)))
