"""`everlens forget`: take a sample or a class back, and hear what that reaches."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from everlens.client import Forgetting
from everlens.client.results import counted, percent, printable
from everlens.commands.reaching import EXIT_FAILED, add_url, client_of
from everlens.errors import SettingsError
from everlens.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say its words."""
    parser = commands.add_parser("forget", help="take a sample, or a whole class, back")
    parser.add_argument("sample", nargs="?", metavar="SAMPLE_ID", help="as `learn` says it")
    parser.add_argument("--class", dest="name", metavar="NAME", help="all that was learnt of it")
    add_url(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Forget, and say what was; return the exit code."""
    if (arguments.sample is None) == (arguments.name is None):
        raise SettingsError("say the id of a sample, or with --class NAME a class")
    with client_of(arguments, settings) as client:
        if arguments.name is None:
            receipt = client.forget(arguments.sample)
        else:
            receipt = client.forget_class(arguments.name)
        state = client.wait(receipt)
    if state.version is None:
        print(f"everlens: {state.status}: {state.reason}", file=sys.stderr)
        return EXIT_FAILED
    print(f"forgotten by version {state.version}")
    if state.report is not None:
        _show(state.report)
    return 0


def _show(report: Forgetting) -> None:
    """Print what was removed, where nothing is left, and where something is."""
    name = "" if report.label is None else f" of {printable(report.label)}"
    print(f"{counted(report.samples, 'sample')}{name}, {report.exemplars} of them kept for replay")
    if report.before is not None and report.after is not None:
        change = f"{percent(report.before)} before, {percent(report.after)} after"
        print(f"on {report.held_out} samples of other classes: {change}")
    for heading, sentences in (("unlearnt", report.unlearnt), ("stays", report.stays)):
        print(f"\n{heading}:")
        for sentence in sentences:
            print(f"  {sentence}")
