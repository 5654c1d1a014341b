"""`everlens up`, `create`, `backup` and `reconcile`: what runs here, on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from everlens.launch.supervisor import back_up, tell_worker, up
from everlens.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say their words."""
    started = commands.add_parser(
        "up",
        help="start the log, the worker and the service; Ctrl-C stops them",
        description="Start everything on this machine. All settings are EVERLENS_* variables: "
        "EVERLENS_PORT, EVERLENS_DATA_DIR, EVERLENS_MODEL, EVERLENS_REDIS_URL, ...",
    )
    started.set_defaults(run=lambda _, settings: up(settings))
    created = commands.add_parser(
        "create", help="begin a log (a first `up` does, unless EVERLENS_CREATE=false)"
    )
    created.set_defaults(run=lambda _, settings: tell_worker(settings, "create"))
    copied = commands.add_parser(
        "backup",
        help="copy everything that must survive, while it runs",
        description="The copy is a data directory: EVERLENS_DATA_DIR=DIR everlens up goes on from "
        "it. It holds every sample that was accepted before the command began.",
    )
    copied.add_argument("target", type=Path, metavar="DIR", help="must not be there yet")
    copied.add_argument(
        "--log", type=Path, metavar="DIR", help="of the log's server (default: the embedded one's)"
    )
    copied.add_argument(
        "--serving",
        type=Path,
        metavar="DIR",
        help="data directory of the service, where it has one of its own",
    )
    copied.set_defaults(run=_back_up)
    mended = commands.add_parser(
        "reconcile",
        help="go on where the log and what was learnt no longer belong together",
        description="Says which accepted samples would be given up; with --yes it gives them up. "
        "Stop `everlens up` first.",
    )
    mended.add_argument("--yes", action="store_true", help="do it")
    mended.set_defaults(run=_reconcile)


def _back_up(arguments: argparse.Namespace, settings: Settings) -> int:
    return back_up(settings, arguments.target, log_dir=arguments.log, serving_dir=arguments.serving)


def _reconcile(arguments: argparse.Namespace, settings: Settings) -> int:
    return tell_worker(settings, "reconcile", *(["--yes"] if arguments.yes else []))
