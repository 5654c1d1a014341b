"""`everlens status`: where learning and serving stand, once or as it goes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from everlens.client import Client
from everlens.commands.reaching import EXIT_FAILED, PATIENCE_S, add_url, client_of
from everlens.commands.watching import watch
from everlens.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_WATCHING_S = 600.0  # whoever watches sees a restart through

# What the learner leaves for /metrics.
_ELSEWHERE = {"counts", "disk_bytes", "disk_free_bytes", "reported_at"}


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say its words."""
    parser = commands.add_parser("status", help="say where learning and serving stand")
    parser.add_argument("--watch", action="store_true", help="go on saying it; Ctrl-C ends it")
    add_url(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print where it stands; return 1 when it does not answer queries."""
    console = Console(highlight=False)
    patience_s = _WATCHING_S if arguments.watch else PATIENCE_S
    with client_of(arguments, settings, patience_s=patience_s) as client:
        return watch(client, console) if arguments.watch else status(client, console)


def status(client: Client, console: Console) -> int:
    """Print a table; return 1 when the service does not answer queries."""
    ready = client.ready()
    learning = client.learning()
    classes = client.classes()
    rows: dict[str, object] = {
        "service": f"{client.url}, {'ready' if ready else 'not ready'}",
        "version": learning.version,
        "learnt": f"{learning.learned_through} of {learning.accepted_through} entries",
        "classes": len(classes),
        "labels": sum(known.samples for known in classes),
    }
    if learning.paused:
        rows["paused"] = learning.paused
    if learning.held:
        rows["held"] = learning.held
    table = Table(show_header=False, box=None)
    figures = {name: value for name, value in learning.learner.items() if name not in _ELSEWHERE}
    for name, value in (rows | figures).items():
        table.add_row(name.replace("_", " "), Text(str(value)))
    console.print(table)
    return 0 if ready else EXIT_FAILED
