"""A route that is called directly differs from FastAPI's own in nothing that a client sees."""

from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import APIRouter, FastAPI, Path, Request, Response
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from service import problems
from service.direct import DirectRoute
from service.problems import Problem


def client_of(route_class: type[APIRoute]) -> TestClient:
    router = APIRouter(route_class=route_class)

    @router.post("/things")
    async def post_thing(request: Request) -> Response:
        body = await request.body()
        if not body:
            raise Problem("bad-request", "send something")
        return Response(body, 202, {"X-Route": str(request.scope["route"].path)})

    @router.get("/things/{name}")
    async def get_thing(request: Request, name: Annotated[str, Path(max_length=3)]) -> Response:
        return Response(f"{request.url.path} {name}")

    app = FastAPI()
    problems.install(app)
    app.include_router(router)
    return TestClient(app)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/things", b"one"),
        ("POST", "/things", b""),
        ("PUT", "/things", b"one"),
        ("GET", "/things/abc", b""),
        ("GET", "/things/abcd", b""),
        ("GET", "/openapi.json", b""),
    ],
)
def test_answers_are_those_of_a_route_of_fastapi(method: str, path: str, body: bytes) -> None:
    direct, usual = (
        client_of(route_class).request(method, path, content=body)
        for route_class in (DirectRoute, APIRoute)
    )
    assert direct.status_code == usual.status_code
    assert direct.content == usual.content
    assert direct.headers == usual.headers


def test_fastapi_looks_for_no_parameters_where_there_are_none() -> None:
    seen: list[bool] = []

    async def endpoint(request: Request) -> Response:
        seen.append("fastapi_inner_astack" in request.scope)
        return Response()

    for route_class in (DirectRoute, APIRoute):
        app = FastAPI()
        router = APIRouter(route_class=route_class)
        router.add_api_route("/", endpoint)
        app.include_router(router)
        TestClient(app).get("/")
    assert seen == [False, True]
