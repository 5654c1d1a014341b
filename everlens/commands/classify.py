"""`everlens classify`: what pictures show."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from everlens.client import Answer, Explanation
from everlens.client.results import by_version, counted, percent, plain, printable
from everlens.commands.reaching import add_url, client_of, files_given, positive
from everlens.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_BAR_COLUMNS = 24


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say its words."""
    parser = commands.add_parser("classify", help="say what pictures show")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a picture")
    parser.add_argument(
        "--labels",
        type=_names,
        metavar="A,B",
        help="the names to choose from (default all that are learnt)",
    )
    parser.add_argument(
        "--top", type=positive, default=5, metavar="N", help="lines an answer (default 5)"
    )
    parser.add_argument(
        "--version", type=int, metavar="V", help="ask this version; 0 is the frozen base model"
    )
    parser.add_argument("--wait-for", metavar="ID", help="answer when this sample is learnt")
    parser.add_argument("--explain", action="store_true", help="say too where the answer is from")
    parser.add_argument("--json", action="store_true", help="one JSON object a picture and line")
    add_url(parser)
    parser.set_defaults(run=run)


def _names(word: str) -> list[str]:
    return [name for name in map(str.strip, word.split(",")) if name]


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print an answer for each picture; return the exit code."""
    console = Console(highlight=False)
    with files_given(), client_of(arguments, settings) as client:
        for file in arguments.files:
            answer = client.classify(
                file,
                arguments.labels,
                top=arguments.top,
                version=arguments.version,
                wait_for=arguments.wait_for,
                explain=arguments.explain,
            )
            if arguments.json:
                print(json.dumps({"file": file} | plain(answer), ensure_ascii=False))
            else:
                show(file, answer, console)
    return 0


def show(file: str, answer: Answer, console: Console) -> None:
    """Print an answer as bars."""
    about = f"{by_version(answer.known, answer.version)}, prediction {answer.prediction_id}"
    console.print(Text(printable(file), style="bold"), Text(about, style="dim"), soft_wrap=True)
    table = _table(justified=1)
    for line in answer.predictions:
        table.add_row(
            Text(printable(line.label)),
            percent(line.score),
            Bar(1.0, 0.0, line.score, width=_BAR_COLUMNS),
            counted(line.samples, "label"),
        )
    console.print(table)
    if answer.explanation is not None:
        _explain(answer.explanation, console)


def _explain(explanation: Explanation, console: Console) -> None:
    table = _table(justified=3)
    table.add_row("", *(Text(name, style="dim") for name in ("zero-shot", "evidence", "adapter")))
    for line in explanation.experts:
        shares = (line.zero_shot, line.evidence, line.adapter)
        table.add_row(
            Text(printable(line.label)),
            *("–" if each is None else percent(each) for each in shares),
        )
    console.print(table)
    if explanation.exemplars is None:
        console.print(Text(f"  {explanation.note or ''}", style="dim"), soft_wrap=True)
        return
    for near in explanation.exemplars:
        words = (
            f"  near {near.similarity:.2f}  {printable(near.label)}  {printable(near.sample_id)}"
        )
        console.print(Text(words), soft_wrap=True)


def _table(justified: int) -> Table:
    """Return a table of names and as many columns of numbers."""
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column()
    for _ in range(justified):
        table.add_column(justify="right")
    return table
