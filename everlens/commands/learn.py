"""`everlens learn`: teach a picture, or a folder of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from everlens.client import Client, Receipt
from everlens.client.results import counted, printable
from everlens.commands.reaching import EXIT_FAILED, add_url, client_of, files_given
from everlens.errors import SettingsError
from everlens.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_PATIENCE_S = 600.0  # a folder is longer than the queue, and waits for the learner


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say its words."""
    parser = commands.add_parser(
        "learn",
        help="teach a picture and its name, or a folder with a folder a class",
        description="Hands labelled pictures over; they are on disk when it ends. The same folder "
        "again changes nothing, so that what was stopped goes on when it is called again.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="a picture")
    parser.add_argument("label", nargs="?", metavar="LABEL", help="what it shows")
    parser.add_argument("--id", metavar="ID", help="makes a repeat harmless (default a new one)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="with a folder a class")
    parser.add_argument("--wait", action="store_true", help="end when it is learnt")
    add_url(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Teach; return the exit code, 1 where a file was skipped."""
    one = arguments.file is not None and arguments.label is not None
    if one == (arguments.folder is not None) or (not one and arguments.file is not None):
        raise SettingsError("say `everlens learn FILE LABEL` or `everlens learn --folder DIR`")
    with files_given(), client_of(arguments, settings, patience_s=_PATIENCE_S) as client:
        if one:
            receipt = client.learn(arguments.file, arguments.label, id=arguments.id)
            print(f"accepted as entry {receipt.seq}, {receipt.id}")
            return _waited(client, receipt) if arguments.wait else 0
        return _folder(client, arguments)


def _folder(client: Client, arguments: argparse.Namespace) -> int:
    report = client.learn_folder(arguments.folder)
    for each in report.skipped:
        print(f"everlens: skipped {printable(each.path)}: {each.reason}", file=sys.stderr)
    new = "" if report.new is None else f", {report.new} of them new"
    print(f"{counted(report.taken, 'picture')} accepted{new}; {len(report.skipped)} skipped")
    code = EXIT_FAILED if report.skipped else 0
    if arguments.wait and report.last is not None:
        return max(code, _waited(client, report.last))
    return code


def _waited(client: Client, receipt: Receipt) -> int:
    state = client.wait(receipt, within_s=_PATIENCE_S)
    if state.version is None:
        print(f"everlens: {state.status}: {state.reason}", file=sys.stderr)
        return EXIT_FAILED
    print(f"{state.status} by version {state.version}")
    return 0
