"""`everlens pause` and `everlens resume`: hold learning, and let it go on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from everlens.commands.reaching import add_url, client_of
from everlens.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say their words."""
    held = commands.add_parser("pause", help="hold learning; answers and samples go on")
    held.add_argument("reason", nargs="?", default="", metavar="REASON", help="for people")
    held.set_defaults(run=_pause)
    resumed = commands.add_parser("resume", help="let learning go on")
    resumed.set_defaults(run=_resume)
    for parser in (held, resumed):
        add_url(parser)


def _pause(arguments: argparse.Namespace, settings: Settings) -> int:
    with client_of(arguments, settings) as client:
        print(f"learning is held: {client.pause(arguments.reason)}")
    return 0


def _resume(arguments: argparse.Namespace, settings: Settings) -> int:
    with client_of(arguments, settings) as client:
        held = client.resume()
    print("learning goes on" if held is None else f"learning is still held: {held}")
    return 0
