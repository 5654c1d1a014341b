"""
`everlens demo`: real pictures, class by class, and what each class changes.

Through the client only: what it shows is what any user gets.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from everlens.client import Client, Image
from everlens.errors import SettingsError

HELD_OUT = 6  # pictures of each class that are asked for and never taught
SIZE = 128  # of a digit, from the 8 pixels that it has
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_SEED = 0
_ASKING_AT_ONCE = 4  # so that the service answers several in one forward pass
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, slots=True)
class ClassPictures:
    """Pictures of one class, split into those that are taught and those that are asked for."""

    name: str
    taught: tuple[Image, ...]
    held_out: tuple[Image, ...]


def digits(per_class: int, classes: int) -> list[ClassPictures]:
    """Return scikit-learn's handwritten digits, enlarged, in an order fixed by the seed."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    order = np.random.default_rng(_SEED).permutation(len(scans.target))
    return [
        _split(
            f"digit {name}",
            [_enlarged(scans.images[i]) for i in order if scans.target[i] == digit][
                : per_class + HELD_OUT
            ],
            per_class,
        )
        for digit, name in enumerate(_DIGITS[:classes])
    ]


def _enlarged(scan: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Image:
    grey = (255 - scan * (255 / 16)).astype(np.uint8)
    return np.kron(grey, np.ones((SIZE // 8, SIZE // 8), dtype=np.uint8))


def folder(root: Path, per_class: int, classes: int) -> list[ClassPictures]:
    """
    Return the pictures of a folder that has one folder a class, named as people say it.

    Raises:
        SettingsError: no such folder, or no class in it with at least two pictures.
    """
    if not root.is_dir():
        raise SettingsError(f"{root} is not a folder; --folder needs one with a folder a class")
    found = []
    for place in sorted(path for path in root.iterdir() if path.is_dir()):
        files = sorted(f for f in place.iterdir() if f.suffix.lower() in SUFFIXES)
        random.Random(f"{_SEED} {place.name}").shuffle(files)
        if len(files) > 1:
            found.append(_split(place.name.replace("_", " "), files, per_class))
    if not found:
        raise SettingsError(
            f"{root} holds no folder with two or more pictures ({', '.join(sorted(SUFFIXES))})"
        )
    return found[:classes]


def _split(name: str, pictures: list[Image] | list[Path], per_class: int) -> ClassPictures:
    # At least one of each; where there are few, a third is held out.
    held_out = max(1, min(HELD_OUT, len(pictures) // 3))
    return ClassPictures(
        name=name,
        taught=tuple(pictures[held_out : held_out + per_class]),
        held_out=tuple(pictures[:held_out]),
    )


@dataclass(frozen=True, slots=True)
class Step:
    """What one class changed: accuracy on the held-out pictures of all classes so far."""

    name: str
    labels: int
    before: float
    after: float
    learnt_in_s: float
    version: int


def teach(client: Client, classes: list[ClassPictures], progress: Progress) -> list[Step]:
    """
    Teach the classes one after the other and return what each changed.

    Raises:
        ApiError: the service refused a picture, or went away.
    """
    asked = sum(2 * len(c.held_out) * (len(classes) - i) for i, c in enumerate(classes))
    bar = progress.add_task("", total=asked + sum(len(c.taught) for c in classes))
    steps = []
    with ThreadPoolExecutor(_ASKING_AT_ONCE) as pool:

        def accuracy(seen: list[ClassPictures], version: int | None = None) -> float:
            names = [each.name for each in seen]

            def right(picture: Image, name: str) -> bool:
                answer = client.classify(picture, names, top=1, version=version)
                progress.advance(bar)
                return answer.best.label == name

            questions = [(picture, each.name) for each in seen for picture in each.held_out]
            answers = list(pool.map(right, *zip(*questions, strict=True)))
            return sum(answers) / len(answers)

        for number, new in enumerate(classes, start=1):
            progress.update(bar, description=new.name)
            before = accuracy(classes[:number])
            began = time.monotonic()
            receipts = []
            for receipt in client.learn_many((picture, new.name) for picture in new.taught):
                receipts.append(receipt)
                progress.advance(bar)
            version = client.wait(receipts[-1].id).version or 0
            learnt_in_s = time.monotonic() - began
            after = accuracy(classes[:number])
            steps.append(Step(new.name, len(receipts), before, after, learnt_in_s, version))
    return steps


def demo(url: str, *, pictures: Path | None, per_class: int, classes: int, console: Console) -> int:
    """
    Show how it learns; return the exit code.

    Raises:
        ApiError, SettingsError: one sentence says why it cannot.
    """
    known = folder(pictures, per_class, classes) if pictures else digits(per_class, classes)
    console.print(
        f"{len(known)} classes, up to {per_class} labels each, asked about "
        f"{sum(len(each.held_out) for each in known)} other pictures"
    )
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    with Client(url) as client, progress:
        steps = teach(client, known, progress)
    console.print(_table(steps))
    last = steps[-1]
    console.print(
        f"{len(steps)} classes known: {last.after:.0%} of the held-out pictures are named right. "
        f"`everlens status` shows where it stands."
    )
    return 0


def _table(steps: list[Step]) -> Table:
    table = Table(title="accuracy on the held-out pictures of all classes so far")
    for heading in ("class", "labels", "before", "after", "learnt in", "version"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for step in steps:
        table.add_row(
            step.name,
            str(step.labels),
            f"{step.before:.0%}",
            f"{step.after:.0%}",
            f"{step.learnt_in_s:.1f} s",
            str(step.version),
        )
    return table
