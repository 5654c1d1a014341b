"""`/events`: what changes, as server-sent events. ①⑧"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from service import openapi
from service.context import service_of
from service.events import Event, Events, Listener
from service.schemas import INTEGER_MAX

router = APIRouter(tags=["insight"])

_RETRY_MS = 2000


async def _listening(
    request: Request,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=INTEGER_MAX, description="The last version that is known.")
    ] = None,
) -> AsyncIterator[tuple[Events, Listener]]:
    """Give a listener before the answer begins, so that there may be none and that is said."""
    events = service_of(request).loaded().events
    with events.listener(last_event_id) as listener:
        yield events, listener


@router.get(
    "/events",
    summary="What changes, as it does",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "An endless stream; a comment every 15 s keeps it open.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **openapi.problems(422, 503),
    },
)
async def get_events(
    listening: Annotated[tuple[Events, Listener], Depends(_listening)],
) -> AsyncIterator[ServerSentEvent]:
    """
    First how things are, then what changes; data is JSON.

    `version`: a record as in /versions, once that version answers here, each published one once;
    its number is the event's id, and a client that comes again with `Last-Event-ID` is told those
    that it missed. `learning`: the body of /learning when it changed, at most once a second,
    without the time of the learner's report and its disk's room, which change when nothing else does.
    `refused`: a version that could not be used. A client that does not read loses its place.
    """
    events, listener = listening
    async for event in events.events(listener):
        yield _rendered(event)


def _rendered(event: Event) -> ServerSentEvent:
    number = None if event.version is None else str(event.version)
    return ServerSentEvent(
        raw_data=event.data.decode(), event=event.kind, id=number, retry=_RETRY_MS
    )
