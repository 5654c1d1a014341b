"""`everlens correct` and `everlens forget`: what was wrong, in an answer or in what was taught."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from everlens.commands.reaching import add_url, client_of
from everlens.errors import SettingsError
from everlens.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say their words."""
    corrected = commands.add_parser("correct", help="say what an answer should have been")
    corrected.add_argument(
        "prediction", metavar="PREDICTION_ID", help="as `everlens classify` says it"
    )
    corrected.add_argument("label", nargs="?", metavar="LABEL", help="the right name")
    corrected.add_argument("--not", dest="wrong", metavar="NAME", help="only say what it is not")
    corrected.set_defaults(run=_correct)
    forgotten = commands.add_parser("forget", help="take a sample, or a whole class, back")
    forgotten.add_argument("sample", nargs="?", metavar="SAMPLE_ID", help="as `learn` says it")
    forgotten.add_argument("--class", dest="name", metavar="NAME", help="all that was learnt of it")
    forgotten.set_defaults(run=_forget)
    for parser in (corrected, forgotten):
        add_url(parser)


def _correct(arguments: argparse.Namespace, settings: Settings) -> int:
    if (arguments.label is None) == (arguments.wrong is None):
        raise SettingsError("say the right name, or with --not NAME a wrong one")
    with client_of(arguments, settings) as client:
        if arguments.wrong is None:
            receipt = client.correct(arguments.prediction, arguments.label)
        else:
            receipt = client.reject(arguments.prediction, arguments.wrong)
    print(f"accepted as entry {receipt.seq}, {receipt.id}")
    return 0


def _forget(arguments: argparse.Namespace, settings: Settings) -> int:
    if (arguments.sample is None) == (arguments.name is None):
        raise SettingsError("say the id of a sample, or with --class NAME a class")
    with client_of(arguments, settings) as client:
        if arguments.name is None:
            receipt = client.forget(arguments.sample)
        else:
            receipt = client.forget_class(arguments.name)
        state = client.wait(receipt)
    if state.report is not None:
        print(json.dumps(state.report, indent=2, ensure_ascii=False))
    print(f"forgotten by version {state.version}" if state.version else state.reason)
    return 0
