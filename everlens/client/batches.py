"""Many pictures in requests that the service takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from everlens.client.steps import Plan, aside

COUNT_MAX = 64
BYTES_MAX = 8 * 2**20  # of base64; a request may hold twice as much


class Sized(Protocol):
    """Something to send, and how many bytes of a body it takes."""

    @property
    def size(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


def in_batches(
    items: Iterable[Callable[[], Item]],
    send: Callable[[list[Item]], Plan[None]],
    *,
    count_max: int = COUNT_MAX,
) -> Plan[None]:
    """
    Open the items one after the other, and send them in batches.

    Args:
        items: each returns one item when it is called; that may block.
        send: a plan that sends a batch, which is never empty.
        count_max: how many a batch has at most.
    """
    batch: list[Item] = []
    for open_one in items:
        item = yield from aside(open_one)
        full = len(batch) == count_max or sum(each.size for each in batch) + item.size > BYTES_MAX
        if batch and full:
            yield from send(batch)
            batch = []
        batch.append(item)
    if batch:
        yield from send(batch)
