"""
`everlens demo`: real pictures, class by class, and what each class changes.

Through the client only: what it shows is what any user gets.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from everlens.client import Client, Image
from everlens.client.folder import class_files
from everlens.errors import SettingsError

HELD_OUT = 8  # pictures of each class that are asked for and never taught
SIZE = 128  # of a digit, from the 8 pixels that it has
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
    found = []
    for digit, name in enumerate(_DIGITS[:classes]):
        chosen = [i for i in order if scans.target[i] == digit][: HELD_OUT + per_class]
        pictures = [_enlarged(scans.images[i]) for i in chosen]
        found.append(
            ClassPictures(f"digit {name}", tuple(pictures[HELD_OUT:]), tuple(pictures[:HELD_OUT]))
        )
    return found


def _enlarged(scan: NDArray[np.float64]) -> Image:
    # Smoothly: the edges of enlarged pixels would be all that a photograph's model sees.
    grey = PIL.Image.fromarray((255 - scan * (255 / 16)).astype(np.uint8))
    return grey.resize((SIZE, SIZE), PIL.Image.Resampling.BICUBIC)


def folder(root: Path, per_class: int, classes: int) -> list[ClassPictures]:
    """
    Return the pictures of a folder that has one folder a class, named as people say it.

    Raises:
        SettingsError: no such folder, or no class in it with at least two pictures.
    """
    files: dict[str, list[Path]] = {}
    for file in class_files(root):
        files.setdefault(file.label, []).append(file.path)
    found = []
    for name, paths in files.items():
        random.Random(f"{_SEED} {name}").shuffle(paths)
        if len(paths) > 1:
            # Where there are few, a third is held out, and at least one is taught.
            held_out = max(1, min(HELD_OUT, len(paths) // 3))
            taught = paths[held_out : held_out + per_class]
            found.append(ClassPictures(name, tuple(taught), tuple(paths[:held_out])))
    if not found:
        raise SettingsError(f"no folder of {root} holds two or more pictures; add some")
    return found[:classes]


@dataclass(frozen=True, slots=True)
class Step:
    """What one class changed: accuracy on the held-out pictures of all classes so far."""

    name: str
    labels: int
    before: float
    after: float
    learnt_in_s: float
    version: int


class Lesson:
    """Teaches classes one after the other and measures what each changes."""

    def __init__(self, client: Client, pool: ThreadPoolExecutor, done: Callable[[], None]) -> None:
        self.client = client
        self.pool = pool
        self.done = done  # called after each picture, asked or taught

    def teach(self, new: ClassPictures, known: Sequence[ClassPictures]) -> Step:
        """
        Teach one class and return what it changed.

        Raises:
            ApiError: the service refused a picture, or went away.
        """
        seen = [*known, new]
        before = self._accuracy(seen)
        began = time.monotonic()
        receipts = self.client.learn_many((picture, new.name) for picture in new.taught)
        for _ in receipts:
            self.done()
        version = self.client.wait(receipts[-1]).version or 0
        learnt_in_s = time.monotonic() - began
        return Step(
            new.name, len(receipts), before, self._accuracy(seen), learnt_in_s, version=version
        )

    def _accuracy(self, seen: Sequence[ClassPictures]) -> float:
        names = [each.name for each in seen]

        def is_right(question: tuple[Image, str]) -> bool:
            picture, name = question
            answer = self.client.classify(picture, names, top=1)
            self.done()
            return answer.best.label == name

        questions = [(picture, each.name) for each in seen for picture in each.held_out]
        return sum(self.pool.map(is_right, questions)) / len(questions)


def demo(url: str, *, pictures: Path | None, per_class: int, classes: int, console: Console) -> int:
    """
    Show how it learns; return the exit code.

    Raises:
        ApiError, SettingsError: one sentence says why it cannot.
    """
    known = folder(pictures, per_class, classes) if pictures else digits(per_class, classes)
    console.print(
        f"{len(known)} classes, up to {per_class} labels each, asked about "
        f"{sum(len(each.held_out) for each in known)} other pictures",
        soft_wrap=True,
    )
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    steps: list[Step] = []
    with Client(url) as client:
        client.learning()  # a service that is not there is said before a bar is drawn
    with Client(url) as client, progress, ThreadPoolExecutor(_ASKING_AT_ONCE) as pool:
        bar = progress.add_task("", total=_pictures(known))
        lesson = Lesson(client, pool, lambda: progress.advance(bar))
        for number, new in enumerate(known):
            progress.update(bar, description=new.name)
            steps.append(lesson.teach(new, known[:number]))
    console.print(_table(steps))
    last = steps[-1]
    console.print(
        f"{len(steps)} classes known: {last.after:.0%} of the held-out pictures are named right. "
        "`everlens status` shows where it stands.",
        soft_wrap=True,
    )
    return 0


def _pictures(classes: Sequence[ClassPictures]) -> int:
    """Return how many are sent in all: those taught, and those asked for before and after."""
    asked = sum(2 * len(c.held_out) * (len(classes) - i) for i, c in enumerate(classes))
    return asked + sum(len(c.taught) for c in classes)


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
