"""`everlens status`: where learning and serving stand, once or as it goes."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from everlens.client import Client, Learning
from everlens.client.results import plain
from everlens.commands.reaching import EXIT_FAILED, PATIENCE_S, add_url, client_of
from everlens.commands.standing import notes, of_learner, standing
from everlens.commands.watching import watch
from everlens.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_WATCHING_S = 600.0  # whoever watches sees a restart through


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say its words."""
    parser = commands.add_parser("status", help="say where learning and serving stand")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="go on saying it; Ctrl-C ends it")
    how.add_argument("--json", action="store_true", help="one JSON object, with every figure")
    add_url(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print where it stands; return 1 when it does not answer queries."""
    console = Console(highlight=False)
    patience_s = _WATCHING_S if arguments.watch else PATIENCE_S
    with client_of(arguments, settings, patience_s=patience_s) as client:
        if arguments.watch:
            return watch(client, console)
        ready, learning = client.ready(), client.learning()
        if arguments.json:
            about = {"url": client.url, "ready": ready} | plain(learning)
            print(json.dumps(about, ensure_ascii=False))
        else:
            console.print(table_of(client, learning, ready=ready))
    return 0 if ready else EXIT_FAILED


def table_of(client: Client, learning: Learning, *, ready: bool) -> Table:
    """Return what is known, a line a figure."""
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column()
    rows = {"service": f"{client.url}, {'ready' if ready else 'not ready'}"}
    for refused in learning.refused_versions:
        rows[f"refused {refused.name}"] = refused.reason
    rows |= standing(learning) | notes(learning) | of_learner(learning.learner)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table
