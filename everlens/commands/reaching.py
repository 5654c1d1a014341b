"""What commands that talk to a service share: its address, and words that are numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from everlens.client import URL, Client
from everlens.errors import SettingsError
from everlens.launch.greeting import base_url
from everlens.settings import Settings

EXIT_FAILED = 1
PATIENCE_S = 5.0  # of a person who looks; work that takes long has the client's own

Run = Callable[[argparse.Namespace, Settings], int]


def add_url(parser: argparse.ArgumentParser) -> None:
    """Let a command be told where the service is."""
    parser.add_argument("--url", help=f"of the service (default {URL})")


def url_of(arguments: argparse.Namespace, settings: Settings) -> str:
    """Return where the service is: as said, else where this machine's would listen."""
    return arguments.url or base_url(settings.host, settings.port)


def client_of(
    arguments: argparse.Namespace, settings: Settings, *, patience_s: float = PATIENCE_S
) -> Client:
    """Return a client of that service."""
    return Client(url_of(arguments, settings), patience_s=patience_s)


@contextmanager
def files_given() -> Iterator[None]:
    """
    Work with files that the command was given.

    Raises:
        SettingsError: one of them cannot be read.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise SettingsError(
            f"{error.filename}: {error.strerror}; give the path of a file"
        ) from error


def positive(word: str) -> int:
    """Return a number from 1 on."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is less than 1")
    return number
