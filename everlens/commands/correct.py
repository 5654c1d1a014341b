"""`everlens correct`: what an answer should have been."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from everlens.commands.reaching import add_url, client_of
from everlens.errors import SettingsError
from everlens.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say its words."""
    parser = commands.add_parser("correct", help="say what an answer should have been")
    parser.add_argument(
        "prediction", metavar="PREDICTION_ID", help="as `everlens classify` says it"
    )
    parser.add_argument("label", nargs="?", metavar="LABEL", help="the right name")
    parser.add_argument("--not", dest="wrong", metavar="NAME", help="only say what it is not")
    add_url(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Correct an answer; return the exit code."""
    if (arguments.label is None) == (arguments.wrong is None):
        raise SettingsError("say the right name, or with --not NAME a wrong one")
    with client_of(arguments, settings) as client:
        if arguments.wrong is None:
            receipt = client.correct(arguments.prediction, arguments.label)
        else:
            receipt = client.reject(arguments.prediction, arguments.wrong)
    print(f"accepted as entry {receipt.seq}, {receipt.id}")
    return 0
