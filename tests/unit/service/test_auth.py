"""Who is let in: every route with every kind of key, at any time, as often as it may."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi import Request
from fastapi.routing import iter_route_contexts
from starlette.types import Message, Receive, Scope, Send

from everlens.errors import KeysError
from everlens.keys import SCOPES, ApiKey, add_key, read_ring, revoke_key
from everlens.keys import Scope as ScopeName
from everlens.model.backbone import Backbone
from everlens.settings import Settings
from service.app import create_app
from service.auth import (
    ANY,
    ANYONE,
    OPEN,
    SCOPE_OF_ROUTE,
    ApiKeys,
    Caller,
    ScopeTable,
    WatchedRing,
    caller_of,
)
from service.problems import Problem
from tests.unit.service.api import Api
from tests.unit.service.conftest import Start, lasting, settings_for
from tests.unit.service.waiting import until

pytestmark = pytest.mark.anyio

NOW = datetime.now(UTC)
TABLE = ScopeTable(SCOPE_OF_ROUTE)
GUARDED = [tuple(route.split()) for route, scope in SCOPE_OF_ROUTE.items() if scope != OPEN]
UNKNOWN = [("GET", "/nowhere"), ("POST", "/"), ("DELETE", "/samples"), ("PUT", "/livez")]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def path(settings: Settings) -> Path:
    """Where the service of these tests has its keys."""
    return settings.keys_path


@pytest.fixture
def token(path: Path) -> str:
    """A key with the default scopes."""
    return add_key(path, "phone", now=NOW)[1]


@pytest.fixture
async def guarded(started: Start, settings: Settings, token: str) -> AsyncIterator[Api]:
    """A running service that has the key `token`."""
    async with started(settings) as api:
        yield api


class Door(NamedTuple):
    """One service for what is asked of every route, and keys of each kind to it."""

    api: Api
    good: str
    bad: list[str]  # unknown, forged, revoked, expired
    alone: dict[str, str]  # by scope: a key that has it and no other
    without: dict[str, str]  # likewise: a key that has all others


@pytest.fixture(scope="module")
async def door(
    log_url: str, tiny_clip: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    """A service of its own would take a fifth of a second for each route."""
    folder = tmp_path_factory.mktemp("door")
    settings = settings_for(log_url, "test-door", folder, key_rate_per_s=1000)
    path = settings.keys_path

    def made(*scopes: ScopeName) -> str:
        return add_key(path, "one", scopes=scopes, now=NOW)[1]

    good = add_key(path, "phone", now=NOW)[1]
    revoked, lost = add_key(path, "lost", scopes=SCOPES, now=NOW)
    revoke_key(path, revoked.id)
    past = NOW - timedelta(seconds=1)
    _, expired = add_key(path, "guest", scopes=SCOPES, now=past, expires_at=past)
    forged = [good[:-1] + "~", good[:13], good[13:], "evl_00000000_" + good[13:], "x"]
    alone = {scope: made(scope) for scope in SCOPES} | {ANY: made()}
    without = {scope: made(*(other for other in SCOPES if other != scope)) for scope in SCOPES}
    others = without | {ANY: made()}
    async with lasting(settings, tiny_clip) as api:
        api.service.end_waits()  # else the answer of /events would go on for ever
        yield Door(api, good, [lost, expired, *forged], alone, others)


ADDRESSES = itertools.cycle(f"198.51.100.{number}" for number in range(250))


async def from_elsewhere(api: Api, method: str, path: str, **request: Any) -> httpx.Response:
    """Send a request from an address that few requests came from."""
    transport = httpx.ASGITransport(app_of(api), client=(next(ADDRESSES), 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://everlens") as client:
        return await client.request(method, path, **request)


def app_of(api: Api) -> Any:
    transport = api.client._transport
    assert isinstance(transport, httpx.ASGITransport)
    return transport.app


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Return the problem document of an answer, which has to be this one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    about: dict[str, Any] = response.json()
    assert about["type"] == f"/problems/{kind}"
    return about


# Every route


async def test_the_table_names_every_route_in_order(api: Api):
    """No route without a scope, no scope without a route; the first fitting row is the route's."""
    routes = []
    for route in iter_route_contexts(app_of(api).routes):
        assert route.path
        assert route.methods, f"{route.path} takes no methods; the layer does not guard such"
        routes += [f"{method} {route.path}" for method in sorted(route.methods - {"HEAD"})]
    assert list(SCOPE_OF_ROUTE) == routes
    assert set(SCOPE_OF_ROUTE.values()) <= {*SCOPES, OPEN, ANY}
    assert {route for route, scope in SCOPE_OF_ROUTE.items() if scope == OPEN} == {
        "GET /livez",
        "GET /readyz",
        "GET /v2/health/live",
        "GET /v2/health/ready",
        "GET /label-studio/health",
        "GET /console",
        "GET /console/",
        "GET /console/{name}",
    }


@pytest.mark.parametrize("route", [*GUARDED, *UNKNOWN], ids="-".join)
async def test_no_route_answers_without_a_key(door: Door, route):
    """Every route but the health checks, also those that do not exist, is a 401 without a key."""
    response = await from_elsewhere(door.api, *route)
    about = problem(response, 401, "no-key")
    assert "everlens keys add" in about["detail"]
    assert response.headers["www-authenticate"] == 'Bearer realm="everlens"'


@pytest.mark.parametrize("route", GUARDED, ids="-".join)
async def test_no_route_takes_a_bad_key(door: Door, route):
    """Unknown, forged, revoked and expired keys get one and the same 401, by either header."""
    answers = set()
    for shown in door.bad:
        for headers in (bearer(shown), {"X-API-Key": shown}):
            headers["X-Request-Id"] = "same"
            response = await from_elsewhere(door.api, *route, headers=headers)
            problem(response, 401, "unknown-key")
            answers.add((response.content, str(response.headers)))
            assert shown == "x" or shown not in response.text + str(response.headers)
    assert len(answers) == 1
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


@pytest.mark.parametrize("route", GUARDED, ids="-".join)
async def test_no_route_takes_the_wrong_scope(door: Door, route):
    """A key with every scope but the route's is a 403 that names it; one with it alone is not."""
    needed = TABLE.needed(*route)
    refused = await door.api.client.request(*route, headers=bearer(door.without[needed]))
    if needed == ANY:
        assert refused.status_code == 200
    else:
        assert needed in problem(refused, 403, "scope-missing")["detail"]
        assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
    allowed = await door.api.client.request(*route, headers=bearer(door.alone[needed]))
    assert allowed.status_code not in {401, 403}


async def test_a_key_is_a_password_for_label_studio_alone(guarded: Api, token):
    """It knows no other way; elsewhere a browser might send it along unasked."""
    shown = {"Authorization": f"Basic {b64encode(f'anybody:{token}'.encode()).decode()}"}
    told = await guarded.client.post("/label-studio/train", headers=shown)
    assert told.status_code == 200
    problem(await from_elsewhere(guarded, "GET", "/learning", headers=shown), 401, "no-key")
    for wrong in (b64encode(b"anybody:wrong").decode(), b64encode(token.encode()).decode()):
        shown = {"Authorization": f"Basic {wrong}"}
        refused = await from_elsewhere(guarded, "POST", "/label-studio/train", headers=shown)
        problem(refused, 401, "unknown-key")
    shown = {"Authorization": "Basic no base64"}
    refused = await from_elsewhere(guarded, "POST", "/label-studio/train", headers=shown)
    problem(refused, 401, "no-key")


async def test_a_good_key_teaches_and_asks(guarded: Api, token, photo):
    """A key with the default scopes does all that a client does, by either header."""
    for headers in (
        bearer(token),
        {"authorization": f"bearer  {token}"},
        {"X-API-Key": token},
        {"Authorization": "Basic Zm9vOmJhcg==", "X-API-Key": token},
    ):
        guarded.client.headers = httpx.Headers(headers)
        assert (await guarded.teach("cup", photo, id="one")).is_success
        assert (await guarded.ask(photo, labels=["cup", "plate"])).status_code == 200
        for route in ("/samples/one", "/classes", "/versions", "/learning", "/metrics"):
            assert (await guarded.client.get(route)).status_code == 200, route


async def test_health_needs_no_key(guarded: Api):
    """What an orchestrator asks is answered without a key, and to a wrong one."""
    for headers in ({}, bearer("evl_00000000_x")):
        for route in ("/livez", "/readyz"):
            assert (await guarded.client.get(route, headers=headers)).status_code == 200


async def test_with_a_key_an_unknown_route_is_what_it_is(guarded: Api, token):
    """404 and 405 are answered as without keys, to whoever has one."""
    guarded.client.headers = httpx.Headers(bearer(token))
    problem(await guarded.client.get("/nowhere"), 404, "unknown-route")
    problem(await guarded.client.delete("/samples"), 405, "method-not-allowed")
    assert (await guarded.client.head("/classes")).status_code == 405


async def test_a_route_that_the_table_forgets_is_not_there(settings: Settings, token):
    """A route that nobody gave a scope is a 404 where there are keys, whatever the key may do."""
    _, all_scopes = add_key(settings.keys_path, "all", scopes=SCOPES, now=NOW)
    app = create_app(settings, lambda: pytest.fail("not started"))

    @app.get("/forgotten", include_in_schema=False)
    async def forgotten() -> str:
        return "secret"

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://everlens") as client:
        response = await client.get("/forgotten", headers=bearer(all_scopes))
    problem(response, 404, "unknown-route")


async def test_without_keys_everything_is_open(api: Api, photo):
    """A service without a file of keys asks for none, and a key that is shown does no harm."""
    for headers in ({}, bearer("evl_00000000_x")):
        api.client.headers = httpx.Headers(headers)
        assert (await api.teach("cup", photo, id="one")).is_success
        assert (await api.client.get("/metrics")).status_code == 200


async def test_the_description_says_what_a_key_must_be_for(guarded: Api, token):
    """OpenAPI has the scope of each route and the errors of keys; health checks have none."""
    document = (await guarded.client.get("/openapi.json", headers=bearer(token))).json()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    teach = document["paths"]["/samples"]["post"]
    assert {"bearer": ["learn"]} in teach["security"]
    assert {"401", "403", "429"} <= set(teach["responses"])
    assert document["paths"]["/livez"]["get"]["security"] == []


# Changes while it runs


class Clock:
    """A clock that stands until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_revoked_key_is_refused_within_a_second(guarded: Api, token, path):
    """Without a restart, and whether or not the log answers: the file is all that is looked at."""
    guarded.client.headers = httpx.Headers(bearer(token))
    assert (await guarded.client.get("/classes")).status_code == 200
    revoke_key(path, token[4:12])
    await asyncio.sleep(1.1)
    problem(await guarded.client.get("/classes"), 401, "unknown-key")


async def test_keys_count_while_the_log_is_down(settings: Settings, tiny_clip, path, token):
    """Who may come in is known, and changes, without Redis."""
    nobody = f"unix://{path.parent}/nobody.sock"
    app = create_app(settings.model_copy(update={"redis_url": nobody}), lambda: tiny_clip)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://everlens", headers=bearer(token)
        ) as client,
    ):
        problem(await client.get("/samples/1"), 503, "log-unavailable")
        revoke_key(path, token[4:12])
        await asyncio.sleep(1.1)
        problem(await client.get("/samples/1"), 401, "unknown-key")


async def test_the_first_key_shuts_an_open_service(api: Api, settings: Settings):
    """A key made while the service runs without any is needed within a second."""
    assert (await api.client.get("/classes")).status_code == 200
    _, token = add_key(settings.keys_path, "first", now=NOW)
    await asyncio.sleep(1.1)
    problem(await api.client.get("/classes"), 401, "no-key")
    assert (await api.client.get("/classes", headers=bearer(token))).status_code == 200


def test_the_file_is_looked_at_once_a_second(path: Path, token):
    """A change is seen a second after the last look, not before; without one nothing is read."""
    clock = Clock()
    ring = WatchedRing(path, clock)
    before = ring.current()
    _, second = add_key(path, "second", now=NOW)
    clock.now += 0.99
    assert ring.current() is before
    clock.now += 0.02
    assert ring.current().find(second, NOW)
    seen = ring.current()
    clock.now += 5
    assert ring.current() is seen


def spoil(path: Path) -> None:
    path.write_bytes(b"{")


def expose(path: Path) -> None:
    path.chmod(0o644)


def empty(path: Path) -> None:
    path.write_text('{"format": 1, "keys": []}', encoding="utf-8")


@pytest.mark.parametrize("harm", [spoil, expose, empty, Path.unlink])
def test_a_bad_file_neither_opens_nor_shuts_a_running_service(path: Path, token, harm, caplog):
    """The keys that were read before hold; it is said once; a good file is taken up again."""
    clock = Clock()
    ring = WatchedRing(path, clock)
    content = path.read_bytes()
    harm(path)
    for _ in range(5):
        clock.now += 1.1
        assert ring.current().find(token, NOW)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert str(path) in caplog.text
    path.write_bytes(content)
    path.chmod(0o600)
    revoke_key(path, token[4:12])
    clock.now += 1.1
    assert ring.current().find(token, NOW) is None
    assert len(ring.current()) == 1


@pytest.mark.parametrize("harm", [spoil, expose])
def test_a_bad_file_ends_the_start(settings: Settings, path: Path, token, harm):
    """A service is not started over a file that it cannot believe."""
    harm(path)
    with pytest.raises(KeysError, match=str(path)):
        create_app(settings, lambda: pytest.fail("not started"))


# The layer by itself


async def exchange(
    layer: ApiKeys, headers: dict[str, str], path: str = "/classes", method: str = "GET"
) -> tuple[int, dict[str, str], list[Message]]:
    """Send a request whose body never comes; return status, headers, and what was sent."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()],
        "client": ("192.0.2.1", 5),
    }
    await layer(scope, receive, send)
    start = sent[0]
    return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, sent


class Inside:
    """An application that keeps who came, and answers when it may."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.callers.append(caller_of(Request(scope)))
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def layer_over(
    path: Path,
    inside: Inside,
    clock: Clock,
    *,
    rate_per_s: float = 1e6,
    concurrency: int = 64,
    hold_back_s: float = 0.0,
) -> ApiKeys:
    return ApiKeys(
        inside,
        table=TABLE,
        ring=WatchedRing(path, clock),
        rate_per_s=rate_per_s,
        concurrency=concurrency,
        hold_back_s=hold_back_s,
        clock=clock,
    )


async def test_a_refusal_reads_no_body(path: Path, token):
    """401 and 403 are answered before a byte of the body is asked for."""
    _, reader = add_key(path, "reader", scopes=["read"], now=NOW)
    inside = Inside()
    layer = layer_over(path, inside, Clock())
    body = {"content-length": "50000"}
    for headers, expected in (({}, 401), (bearer("x"), 401), (bearer(reader), 403)):
        status, _, _ = await exchange(layer, headers | body, "/samples", "POST")
        assert status == expected
    assert not inside.callers


async def test_a_large_refused_body_is_read_on_after_the_answer(path: Path, token):
    """A stranger who sends megabytes hears the 401 first, and loses the connection."""
    layer = layer_over(path, Inside(), Clock())
    left = [b"x" * 65536] * 20
    sent: list[Message] = []

    async def receive() -> Message:
        assert sent[0]["status"] == 401
        return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-length", b"1310720")]
    scope = {"type": "http", "method": "POST", "path": "/samples", "headers": headers}
    await layer(scope, receive, send)
    assert not left
    assert (b"connection", b"close") in sent[0]["headers"]


async def test_routes_know_who_asks(path: Path, token):
    """The caller is the key's id and scopes; without keys it is nobody, who may do everything."""
    inside = Inside()
    key, reader = add_key(path, "reader", scopes=["read"], now=NOW)
    await exchange(layer_over(path, inside, Clock()), bearer(reader))
    assert inside.callers == [Caller(key.id, frozenset({"read"}))]
    await exchange(layer_over(path.with_name("none.json"), inside, Clock()), {})
    assert inside.callers[1] is ANYONE
    assert Caller("", frozenset(SCOPES)) == ANYONE


def exchange_scope(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace('"read"', '"admin"'), "utf-8")


async def test_scopes_are_the_files(path: Path, token):
    """A scope that is taken out of the file is taken from the key, without a restart."""
    clock = Clock()
    layer = layer_over(path, Inside(), clock)
    assert (await exchange(layer, bearer(token)))[0] == 200
    exchange_scope(path)
    clock.now += 1.1
    assert (await exchange(layer, bearer(token)))[0] == 403


async def test_a_key_asks_so_often_and_the_others_do_not_notice(path: Path, token):
    """Beyond burst and rate it is 429 with a time after which it goes; each key has its own."""
    clock = Clock()
    layer = layer_over(path, Inside(), clock, rate_per_s=5)
    _, other = add_key(path, "other", now=NOW)
    _, slow = add_key(path, "slow", now=NOW, rate_per_s=0.1)
    clock.now += 1.1
    statuses = [(await exchange(layer, bearer(token)))[0] for _ in range(15)]
    assert statuses == [200] * 10 + [429] * 5
    status, headers, sent = await exchange(layer, bearer(token))
    assert headers["retry-after"] == "1"
    assert json.loads(sent[1]["body"])["type"] == "/problems/rate-exceeded"
    assert (await exchange(layer, bearer(other)))[0] == 200
    assert (await exchange(layer, bearer(slow)))[0] == 200
    status, headers, _ = await exchange(layer, bearer(slow))
    assert (status, headers["retry-after"]) == (429, "10")
    clock.now += 1
    assert (await exchange(layer, bearer(token)))[0] == 200


async def test_a_key_holds_so_many_places_and_gives_them_back(path: Path, token):
    """Beyond its places a key hears 429 at once; others go on; a place is free when it is left."""
    inside = Inside()
    layer = layer_over(path, inside, Clock(), concurrency=3)
    _, other = add_key(path, "other", now=NOW)
    layer.ring._look_at = 0
    inside.may_answer.clear()
    held = [asyncio.create_task(exchange(layer, bearer(token))) for _ in range(3)]
    await asyncio.sleep(0)
    assert len(inside.callers) == 3
    status, headers, sent = await exchange(layer, bearer(token))
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert json.loads(sent[1]["body"])["type"] == "/problems/too-many-at-once"
    held.append(asyncio.create_task(exchange(layer, bearer(other))))
    await asyncio.sleep(0)
    assert len(inside.callers) == 4
    held[0].cancel()  # the service ends, say
    inside.may_answer.set()
    await asyncio.gather(*held, return_exceptions=True)
    for _ in range(4):
        assert (await exchange(layer, bearer(token)))[0] == 200
    assert {use.in_flight for use in layer._uses.values()} == {0}


async def test_greedy_keys_leave_a_place_for_a_modest_one(path: Path, token):
    """Eight keys that take what they get share evenly, and a ninth always finds a place."""
    inside = Inside()
    greedy = [add_key(path, f"greedy {n}", now=NOW)[1] for n in range(8)]
    layer = layer_over(path, inside, Clock(), concurrency=64)
    inside.may_answer.clear()
    held = []
    for _ in range(40):
        held += [asyncio.create_task(exchange(layer, bearer(key))) for key in greedy]
        await asyncio.sleep(0)
    shares = [layer._uses[key[4:12]].in_flight for key in greedy]
    assert max(shares) - min(shares) <= 1
    assert 14 * 8 <= sum(shares) <= 15 * 8  # of 128 places
    modest = [asyncio.create_task(exchange(layer, bearer(token))) for _ in range(4)]
    await asyncio.sleep(0)
    inside.may_answer.set()
    assert [status for status, *_ in await asyncio.gather(*modest)] == [200] * 4
    assert {status for status, *_ in await asyncio.gather(*held)} == {200, 429}
    assert layer._in_flight == 0


async def test_who_asks_too_often_waits_for_the_refusal(path: Path, token):
    """So many refusals of a key are held back, more are given at once; other keys do not wait."""
    layer = layer_over(path, Inside(), Clock(), rate_per_s=1, concurrency=3, hold_back_s=1.0)
    _, other = add_key(path, "other", now=NOW)
    layer.ring._look_at = 0
    for _ in range(2):
        assert (await exchange(layer, bearer(token)))[0] == 200
    tasks = [asyncio.create_task(exchange(layer, bearer(token))) for _ in range(5)]
    await until(lambda: any(task.done() for task in tasks))
    assert [task.done() for task in tasks] == [False] * 3 + [True] * 2
    assert (await exchange(layer, bearer(other)))[0] == 200
    assert [status for status, *_ in await asyncio.gather(*tasks)] == [429] * 5
    assert {use.held_back for use in layer._uses.values()} == {0}


async def test_an_address_fails_so_often_and_locks_nobody_out(path: Path, token):
    """Failing again and again becomes 429; a good key from the same address is let in all the same."""
    layer = layer_over(path, Inside(), Clock())
    statuses = [(await exchange(layer, bearer("evl_00000000_x")))[0] for _ in range(30)]
    assert statuses == [401] * 10 + [429] * 20
    status, headers, sent = await exchange(layer, {})
    assert (status, headers["retry-after"]) == (429, "1")
    assert json.loads(sent[1]["body"])["type"] == "/problems/rate-exceeded"
    assert (await exchange(layer, bearer(token)))[0] == 200


def only_key(path: Path) -> tuple[ApiKey, str]:
    path.unlink()
    return add_key(path, "other", now=NOW)


async def test_tables_are_bounded(path: Path, token):
    """Unknown ids leave nothing behind, and a key that left the file is forgotten."""
    clock = Clock()
    layer = layer_over(path, Inside(), clock)
    for number in range(1000):
        await exchange(layer, bearer(f"evl_{number:08x}_x"))
    await exchange(layer, bearer(token))
    assert set(layer._uses) == {token[4:12]}
    _, other = only_key(path)
    clock.now += 1.1
    await exchange(layer, bearer(other))
    assert set(layer._uses) == {other[4:12]}
    assert len(layer.failures) == 1


async def test_no_token_is_ever_written_down(guarded: Api, token, settings, caplog, photo):
    """Not in a log, an answer, a metric or a repr, whatever becomes of the request."""
    caplog.set_level(logging.DEBUG)
    guarded.client.headers = httpx.Headers(bearer(token))
    answers = [
        await guarded.teach("cup", photo),
        await guarded.teach("cup", b"no picture"),
        await guarded.client.get("/nowhere"),
        await guarded.client.get("/classes", headers=bearer(token + "x")),
        await guarded.client.get("/metrics"),
    ]
    secret = token[13:]
    ring = read_ring(settings.keys_path)
    shown = settings.model_copy(update={"api_key": token})
    said = [caplog.text, repr(list(ring)), repr(ring), repr(shown), repr(app_of(guarded).state)]
    said += [answer.text + str(answer.headers) for answer in answers]
    assert not [text for text in said if secret in text]
    assert next(iter(ring)).sha256 not in "".join(said)


def test_paths_that_fit_two_rows_take_the_first():
    """The table is read as the router reads its routes; a method of another row is no way round."""
    rows = ["GET /a/{x:path}/b admin", "GET /a/{x} read", "POST /a learn", "DELETE /a/y admin"]
    table = ScopeTable({row.rpartition(" ")[0]: row.rpartition(" ")[2] for row in rows})
    assert table.needed("GET", "/a/1/b") == "admin"
    assert table.needed("GET", "/a/1") == "read"
    assert table.needed("GET", "/a/y") == "read"
    assert table.needed("DELETE", "/a/y") == "admin"
    assert table.needed("HEAD", "/a/1") == "read"
    for method, path in (("POST", "/a/1"), ("GET", "/a"), ("get", "/a/1"), ("DELETE", "/a/1")):
        with pytest.raises(Problem):
            table.needed(method, path)
