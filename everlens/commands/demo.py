"""`everlens demo`: teach it real pictures, and see what each class changes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from everlens.commands.reaching import add_url, positive, url_of
from everlens.demo import demo
from everlens.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say its words."""
    parser = commands.add_parser(
        "demo",
        help="teach it real pictures class by class, and see what each class changes",
    )
    parser.add_argument(
        "--folder", type=Path, help="a folder with a folder a class; else scikit-learn's digits"
    )
    parser.add_argument(
        "--per-class",
        type=positive,
        default=15,
        metavar="N",
        help="labels sent for each class (default 15)",
    )
    parser.add_argument(
        "--classes",
        type=positive,
        default=10,
        metavar="N",
        help="classes taught at most (default 10)",
    )
    add_url(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Show how it learns; return the exit code."""
    return demo(
        url_of(arguments, settings),
        pictures=arguments.folder,
        per_class=arguments.per_class,
        classes=arguments.classes,
        console=Console(highlight=False),
    )
