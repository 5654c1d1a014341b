"""
Who carries the verbs out: `Client` blocks, `AsyncClient` awaits. Nothing else differs.

A verb is a plan of steps (`steps`), written once; `Verb` gives it to both with its arguments and
documentation, and mypy knows what each of them returns.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import httpx

from everlens.client import asking, steering, teaching
from everlens.client.feed import Feed
from everlens.client.refusals import patiently, unreachable
from everlens.client.results import Event
from everlens.client.steps import Pause, Plan, Reply, Request
from everlens.errors import SettingsError

URL = "http://127.0.0.1:8000"
_API_KEY = "EVERLENS_API_KEY"
_REPLY_S = 60.0

P = ParamSpec("P")
T = TypeVar("T")


class Verb(Generic[P, T]):
    """A plan as a method of both clients."""

    def __init__(self, plan: Callable[P, Plan[T]]) -> None:
        self.plan = plan
        functools.update_wrapper(self, plan)  # type: ignore[arg-type]
        signature = inspect.signature(plan)
        said = str(signature.return_annotation).removeprefix("Plan[").removesuffix("]")
        self.signature = signature.replace(return_annotation=said)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        if client is None:
            return self

        @functools.wraps(self.plan)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._run(patiently(self.plan(*args, **kwargs), client.patience_s))

        method.__signature__ = self.signature  # type: ignore[attr-defined]
        return method


class Verbs:
    """What both clients can do."""

    learn = Verb(teaching.learn)
    learn_many = Verb(teaching.learn_many)
    learn_folder = Verb(teaching.learn_folder)
    correct = Verb(teaching.correct)
    reject = Verb(teaching.reject)
    forget = Verb(teaching.forget)
    forget_class = Verb(teaching.forget_class)
    sample = Verb(teaching.sample)
    wait = Verb(teaching.wait)

    classify = Verb(asking.classify)
    classify_many = Verb(asking.classify_many)
    uncertain = Verb(asking.uncertain)
    predictions = Verb(asking.predictions)
    picture_of = Verb(asking.picture_of)
    embed = Verb(asking.embed)
    embed_texts = Verb(asking.embed_texts)

    ready = Verb(steering.ready)
    classes = Verb(steering.classes)
    class_ = Verb(steering.class_)
    versions = Verb(steering.versions)
    learning = Verb(steering.learning)
    labelling = Verb(steering.labelling)
    pause = Verb(steering.pause)
    resume = Verb(steering.resume)
    activate = Verb(steering.activate)
    pin = Verb(steering.pin)
    unpin = Verb(steering.unpin)


class Client(Verbs):
    """
    Talks to one service, and blocks; may be used by several threads at once.

    Args:
        url: where the service listens.
        api_key: shown with every request; by default `EVERLENS_API_KEY` of the environment.
        patience_s: how long a request is sent again while the service says "later".
        transport: of httpx, for a proxy, a certificate or a socket of your own.

    Raises:
        SettingsError: the key has characters that no key has.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        patience_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.patience_s = patience_s
        self._http = httpx.Client(
            base_url=self.url,
            timeout=_REPLY_S,
            transport=transport,
            headers=_authorization(api_key),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def events(self) -> Generator[Event, None, None]:
        """
        Yield what changes, as long as it is asked for: versions, how learning goes, refusals.

        The present state comes first. A connection that breaks is made again.

        Raises:
            ApiError: with the service's own words, or it was away for too long.
        """
        feed = Feed(self.patience_s)
        while True:
            try:
                with self._http.stream("GET", "/events", headers=feed.headers) as response:
                    if response.is_success:
                        feed.opened()
                        for chunk in response.iter_raw():
                            yield from feed.take(chunk)
                        reply = unreachable(self.url, "the stream of events ended")
                    else:
                        response.read()
                        reply = _reply(response)
            except httpx.TransportError as error:
                reply = _none(self.url, error)
            time.sleep(feed.pause_s(reply))

    def _run(self, plan: Plan[T]) -> T:
        result: Any = None
        try:
            while True:
                step, result = plan.send(result), None
                match step:
                    case Request():
                        result = self._ask(step)
                    case Pause():
                        time.sleep(step.seconds)
                    case _:
                        result = step.work()
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            plan.close()

    def _ask(self, request: Request) -> Reply:
        try:
            return _reply(self._http.request(**_words(request)))
        except httpx.TransportError as error:
            return _none(self.url, error)


class AsyncClient(Verbs):
    """Talks to one service from an event loop; else as `Client`, arguments and errors too."""

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        patience_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.patience_s = patience_s
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=_REPLY_S,
            transport=transport,
            headers=_authorization(api_key),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield what changes, as `Client.events` does."""
        feed = Feed(self.patience_s)
        while True:
            try:
                async with self._http.stream("GET", "/events", headers=feed.headers) as response:
                    if response.is_success:
                        feed.opened()
                        async for chunk in response.aiter_raw():
                            for event in feed.take(chunk):
                                yield event
                        reply = unreachable(self.url, "the stream of events ended")
                    else:
                        await response.aread()
                        reply = _reply(response)
            except httpx.TransportError as error:
                reply = _none(self.url, error)
            await asyncio.sleep(feed.pause_s(reply))

    async def _run(self, plan: Plan[T]) -> T:
        result: Any = None
        try:
            while True:
                step, result = plan.send(result), None
                match step:
                    case Request():
                        result = await self._ask(step)
                    case Pause():
                        await asyncio.sleep(step.seconds)
                    case _:
                        result = await asyncio.to_thread(step.work)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            plan.close()

    async def _ask(self, request: Request) -> Reply:
        try:
            return _reply(await self._http.request(**_words(request)))
        except httpx.TransportError as error:
            return _none(self.url, error)


def _words(request: Request) -> dict[str, Any]:
    """Return a request in httpx's words."""
    return {
        "method": request.method,
        "url": request.path,
        "json": request.body,
        "headers": dict(request.headers),
    }


def _reply(response: httpx.Response) -> Reply:
    retry_after = response.headers.get("retry-after", "")
    return Reply(response.status_code, response.content, retry_after)


def _none(url: str, error: httpx.TransportError) -> Reply:
    return unreachable(url, str(error) or type(error).__name__)


def _authorization(api_key: str | None) -> dict[str, str]:
    """Return the header that shows a key; none without one."""
    api_key = os.environ.get(_API_KEY, "") if api_key is None else api_key
    api_key = api_key.strip()  # of the newline that a file of it ends with
    if not (api_key.isascii() and api_key.isprintable()):
        raise SettingsError(
            f"an API key is a line of printable ASCII; look at {_API_KEY}, or at what was handed over"
        )
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}
