"""A bar on a terminal, and nothing elsewhere: a log file wants no bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(total: int, *, shown: bool | None) -> Iterator[Callable[[int], object]]:
    """
    Give a function that is told how many more are done.

    Args:
        total: how many there are.
        shown: None draws where standard error is a terminal.
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _nothing(count: int) -> None:
    """Draw nothing."""
