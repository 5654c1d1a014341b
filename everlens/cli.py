"""The `everlens` command. It loads no torch; what it starts does."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import everlens
from everlens import issue
from everlens.client import URL, ApiError, Client
from everlens.demo import demo
from everlens.errors import EverlensError
from everlens.keys import DEFAULT_SCOPES, SCOPES
from everlens.launch.greeting import base_url
from everlens.launch.supervisor import tell_worker, up
from everlens.settings import Settings, load_settings

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
            case "keys":
                return keys(arguments, settings)
            case "create":
                return tell_worker(settings, "create")
            case "reconcile":
                return tell_worker(settings, "reconcile", *(["--yes"] if arguments.yes else []))
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
    commands.add_parser(
        "create", help="begin a log (a first `up` does, unless EVERLENS_CREATE=false)"
    )
    mended = commands.add_parser(
        "reconcile",
        help="go on where the log and what was learnt no longer belong together",
        description="Says which accepted samples would be given up; with --yes it gives them up. "
        "Stop `everlens up` first.",
    )
    mended.add_argument("--yes", action="store_true", help="do it")
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
    _add_keys(commands.add_parser("keys", help="make, list and revoke API keys"))
    told = commands.add_parser("status", help="say where learning and serving stand")
    for command in (shown, told):
        command.add_argument("--url", help=f"of the service (default {URL})")
    return parser


def _add_keys(parser: argparse.ArgumentParser) -> None:
    deeds = parser.add_subparsers(dest="deed", required=True, metavar="DEED")
    added = deeds.add_parser(
        "add",
        help="make a key and print it, once",
        description="Print a new key, which is kept nowhere. Where there is a key, every request "
        "needs one; a running service knows within a second.",
    )
    added.add_argument("name", metavar="NAME", help="whose it is, for people")
    added.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        default=[],
        help=f"what it may do; may be given several times (default {' '.join(DEFAULT_SCOPES)})",
    )
    added.add_argument("--expires-days", type=_positive, metavar="N", help="(default never)")
    added.add_argument(
        "--rate-per-s", type=_rate, metavar="R", help="(default EVERLENS_KEY_RATE_PER_S)"
    )
    deeds.add_parser("list", help="who has keys, and what they may do")
    revoked = deeds.add_parser("revoke", help="refuse a key from now on, for good")
    revoked.add_argument("id", metavar="ID", help="the eight digits after `evl_`")


def _rate(word: str) -> float:
    rate = float(word)
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{word} is not above 0")
    return rate


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is less than 1")
    return number


def keys(arguments: argparse.Namespace, settings: Settings) -> int:
    """Change or show the file of API keys; return the exit code."""
    say = Console(stderr=True, highlight=False)  # standard output is the token's alone
    match arguments.deed:
        case "add":
            return issue.add(
                settings.keys_path,
                arguments.name,
                scopes=arguments.scope,
                expires_days=arguments.expires_days,
                rate_per_s=arguments.rate_per_s,
                say=say,
            )
        case "revoke":
            return issue.revoke(settings.keys_path, arguments.id, say)
        case _:
            return issue.show(settings.keys_path, Console(highlight=False))


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
