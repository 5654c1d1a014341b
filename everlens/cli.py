"""The `everlens` command. It loads no torch; what it starts does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import everlens
from everlens.client import URL, ApiError, Client
from everlens.demo import demo
from everlens.errors import EverlensError
from everlens.launch.greeting import base_url
from everlens.launch.supervisor import up
from everlens.settings import load_settings

EXIT_FAILED = 1
EXIT_SETTINGS = 2
EXIT_INTERRUPTED = 130


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    arguments = _parser().parse_args(words)
    try:
        settings = load_settings()
        url = getattr(arguments, "url", None) or base_url(settings.host, settings.port)
        match arguments.command:
            case "up":
                return up(settings)
            case "demo":
                return demo(
                    url,
                    pictures=arguments.folder,
                    per_class=arguments.per_class,
                    classes=arguments.classes,
                    console=Console(highlight=False),
                )
            case _:
                return status(url, Console(highlight=False))
    except ApiError as error:
        print(f"everlens: {_with_help(error)}", file=sys.stderr)
        return EXIT_FAILED
    except EverlensError as error:
        print(f"everlens: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _with_help(error: ApiError) -> str:
    if error.status == 0:
        return (
            f"{error}; start it with `make up` (or `everlens up`), or give its address with --url"
        )
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="everlens", description="An image classifier that learns while it serves."
    )
    parser.add_argument("--version", action="version", version=f"everlens {everlens.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "up",
        help="start the log, the worker and the service; Ctrl-C stops them",
        description="Start everything on this machine. All settings are EVERLENS_* variables: "
        "EVERLENS_PORT, EVERLENS_DATA_DIR, EVERLENS_MODEL, EVERLENS_REDIS_URL, ...",
    )
    shown = commands.add_parser(
        "demo",
        help="teach it real pictures class by class, and see what each class changes",
    )
    shown.add_argument(
        "--folder", type=Path, help="a folder with a folder a class; else scikit-learn's digits"
    )
    shown.add_argument(
        "--per-class",
        type=_positive,
        default=15,
        metavar="N",
        help="labels sent for each class (default 15)",
    )
    shown.add_argument(
        "--classes",
        type=_positive,
        default=10,
        metavar="N",
        help="classes taught at most (default 10)",
    )
    told = commands.add_parser("status", help="say where learning and serving stand")
    for command in (shown, told):
        command.add_argument("--url", help=f"of the service (default {URL})")
    return parser


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is less than 1")
    return number


def status(url: str, console: Console) -> int:
    """Print where learning and serving stand; return 1 when it does not answer queries."""
    with Client(url, patience_s=5.0) as client:
        ready = client.ready()
        learning = client.learning()
        classes = client.classes()
    rows: dict[str, object] = {
        "service": f"{url}, {'ready' if ready else 'not ready'}",
        "version": learning.version,
        "learnt": f"{learning.learned_through} of {learning.accepted_through} entries",
        "classes": len(classes),
        "labels": sum(known.samples for known in classes),
    }
    if learning.paused:
        rows["paused"] = learning.paused
    table = Table(show_header=False, box=None)
    for name, value in (rows | learning.learner).items():
        table.add_row(name.replace("_", " "), str(value))
    console.print(table)
    return 0 if ready else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
