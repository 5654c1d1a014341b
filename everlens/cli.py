"""The `everlens` command. It loads no torch; what it starts does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import everlens
from everlens.client import ApiError
from everlens.commands import classify, correct, demo, forget, hold, keys, learn, status, up
from everlens.commands.reaching import EXIT_FAILED, Run
from everlens.errors import EverlensError
from everlens.settings import load_settings

EXIT_SETTINGS = 2
EXIT_INTERRUPTED = 130

# In the order in which `everlens --help` names them.
_COMMANDS = (up, demo, keys, classify, learn, correct, forget, hold, status)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    arguments = _parser().parse_args(words)
    run: Run = arguments.run
    try:
        return run(arguments, load_settings())
    except ApiError as error:
        _say(error)
        return EXIT_FAILED
    except EverlensError as error:
        _say(error)
        return EXIT_SETTINGS
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _say(error: Exception) -> None:
    for line in (str(error), *getattr(error, "__notes__", ())):
        print(f"everlens: {line}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="everlens", description="An image classifier that learns while it serves."
    )
    parser.add_argument("--version", action="version", version=f"everlens {everlens.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
