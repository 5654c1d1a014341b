"""`everlens keys`: make, list and revoke API keys."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from rich.console import Console

from everlens import issue
from everlens.commands.reaching import positive
from everlens.keys import DEFAULT_SCOPES, SCOPES
from everlens.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say its words."""
    parser = commands.add_parser("keys", help="make, list and revoke API keys")
    parser.set_defaults(run=run)
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
    added.add_argument("--expires-days", type=positive, metavar="N", help="(default never)")
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


def run(arguments: argparse.Namespace, settings: Settings) -> int:
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
