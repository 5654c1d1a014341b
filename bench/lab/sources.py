"""
Where the lab's pictures come from: a pack, a folder with a sub-folder a class, or torchvision.

A folder may hold `train` and `test` with the classes below; else its pictures are split 70 to 30,
class by class, in an order that a digest of their paths decides: the same on every machine.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bench.packs import Pack, read_pack

Numbers = NDArray[np.int64]

TRAIN_SHARE = 0.7
_PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class SourceError(Exception):
    """There are no pictures under that name."""


@dataclass(frozen=True, eq=False)
class Split:
    """
    Half of a source: labelled pictures that are read when they are asked for.

    Args:
        labels: index into `classes`, one a picture.
        domains: index into `domain_names`, -1 where a source has none.
        classes: names.
        domain_names: names; empty where a source has none.
        digest: says which pictures these are, and their order; for caches.
        opened: opens the pictures one by one, each time anew.
    """

    labels: Numbers
    domains: Numbers
    classes: tuple[str, ...]
    domain_names: tuple[str, ...]
    digest: str
    opened: Callable[[], Iterator[Image.Image]]

    def pictures(self) -> Iterator[Image.Image]:
        """Yield the pictures in RGB, in the order of `labels`."""
        return self.opened()


def read_source(name_or_path: str, folder: Path) -> tuple[Split, Split]:
    """
    Return the training and the test split of a source.

    Args:
        name_or_path: a pack under `folder`, else a folder of pictures, else the name of a class of
            torchvision.datasets (`CIFAR100`, `Flowers102`), which is downloaded into
            `folder/torchvision`.
        folder: of packs.

    Raises:
        SourceError: it is none of these, or has no pictures.
    """
    for pack in (folder / name_or_path, Path(name_or_path)):
        if (pack / "index.json").is_file():
            train, test = (
                split_of_pack(read_pack(pack.parent, pack.name, half)) for half in ("train", "test")
            )
            return train, test
    if Path(name_or_path).is_dir():
        return read_folder(Path(name_or_path))
    return read_dataset(_torchvision_class(name_or_path), folder / "torchvision")


def split_of_pack(pack: Pack) -> Split:
    """Return a split of a pack as one of the lab."""
    digest = hashlib.sha256(pack.blob.tobytes() + pack.offsets.tobytes()).hexdigest()
    return Split(pack.labels, pack.domains, pack.classes, pack.domain_names, digest, pack.pictures)


def read_folder(folder: Path) -> tuple[Split, Split]:
    """
    Return the splits of a folder with a sub-folder a class.

    Raises:
        SourceError: there is no picture in it.
    """
    halves = folder / "train", folder / "test"
    if all(half.is_dir() for half in halves):
        train, test = (_listed(half) for half in halves)
    else:
        found = _listed(folder)
        keys = [path.relative_to(folder).as_posix() for path, _ in found]
        chosen = _chosen_for_training(keys, [name for _, name in found])
        train = [pair for pair, taken in zip(found, chosen, strict=True) if taken]
        test = [pair for pair, taken in zip(found, chosen, strict=True) if not taken]
    if not train or not test:
        raise SourceError(f"{folder} needs pictures in a sub-folder for each class, for each split")
    classes = tuple(sorted({name for _, name in [*train, *test]}))
    return _split_of_files(train, classes), _split_of_files(test, classes)


def read_dataset(kind: Callable[..., Any], root: Path) -> tuple[Split, Split]:
    """
    Return the splits of a data set of torchvision, downloaded into `root` where it is not there.

    Those without splits of their own are split 70 to 30.
    """
    root.mkdir(parents=True, exist_ok=True)
    parameters = inspect.signature(kind).parameters
    if "train" in parameters:
        halves = [kind(root=root, train=train, download=True) for train in (True, False)]
    elif "split" in parameters:
        # What it is meant to be trained on is the default: `train`, or `trainval`.
        train = parameters["split"].default
        halves = [kind(root=root, split=split, download=True) for split in (train, "test")]
    else:
        whole = kind(root=root, download=True)
        labels = _labels_of(whole)
        chosen = _chosen_for_training([str(place) for place in range(len(labels))], labels)
        places = [k for k, taken in enumerate(chosen) if taken]
        rest = [k for k, taken in enumerate(chosen) if not taken]
        return _split_of_dataset(whole, places), _split_of_dataset(whole, rest)
    train_split, test_split = (_split_of_dataset(half, range(len(half))) for half in halves)
    return train_split, test_split


def _torchvision_class(name: str) -> Callable[..., Any]:
    from everlens.model.runtime import import_torchvision

    try:
        import_torchvision()
        kind: Any = getattr(importlib.import_module("torchvision.datasets"), name, None)
    except ImportError:
        kind = None
    if not inspect.isclass(kind):
        raise SourceError(
            f"{name} is no pack, no folder and no data set of torchvision; give one of the three"
        )
    return kind


def _listed(folder: Path) -> list[tuple[Path, str]]:
    """Return all pictures below the sub-folders, with the name of the sub-folder, sorted."""
    return [
        (path, below.name)
        for below in sorted(folder.iterdir())
        if below.is_dir() and not below.name.startswith(".")
        for path in sorted(below.rglob("*"))
        if path.suffix.lower() in _PICTURES and not path.name.startswith(".")
    ]


def _chosen_for_training(keys: Sequence[str], classes: Sequence[object]) -> list[bool]:
    """Return which pictures are for training: of each class the first 70 % by digest."""
    of_class: dict[object, list[int]] = {}
    for place in sorted(range(len(keys)), key=lambda k: hashlib.sha256(keys[k].encode()).digest()):
        of_class.setdefault(classes[place], []).append(place)
    chosen = [False] * len(keys)
    for places in of_class.values():
        for place in places[: max(1, round(TRAIN_SHARE * len(places)))]:
            chosen[place] = True
    return chosen


def _split_of_files(files: Sequence[tuple[Path, str]], classes: tuple[str, ...]) -> Split:
    index = {name: k for k, name in enumerate(classes)}
    # Size and time stand for the contents, which may be more than one wants to read twice.
    stats = [(path, path.stat()) for path, _ in files]
    digest = _digest(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)

    def opened() -> Iterator[Image.Image]:
        for path, _ in files:
            with Image.open(path) as picture:
                # Upright, as the service makes what it is sent.
                yield ImageOps.exif_transpose(picture).convert("RGB")

    return _without_domains([index[name] for _, name in files], classes, digest, opened)


def _split_of_dataset(dataset: Any, places: Sequence[int]) -> Split:
    labels = _labels_of(dataset)
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if names is None:
        names = [str(label) for label in range(max(labels) + 1)]
    chosen = [labels[place] for place in places]
    digest = _digest([repr(dataset), type(dataset).__name__, repr(chosen), repr(list(places))])

    def opened() -> Iterator[Image.Image]:
        for place in places:
            yield dataset[place][0].convert("RGB")

    return _without_domains(chosen, tuple(map(str, names)), digest, opened)


def _labels_of(dataset: Any) -> list[int]:
    """Return the labels from where torchvision keeps them; from the samples where it does not."""
    for attribute in ("targets", "labels", "_labels", "y"):
        kept = getattr(dataset, attribute, None)
        if kept is not None and len(kept) == len(dataset):
            return [int(label) for label in kept]
    return [int(dataset[place][1]) for place in range(len(dataset))]


def _without_domains(
    labels: Sequence[int],
    classes: tuple[str, ...],
    digest: str,
    opened: Callable[[], Iterator[Image.Image]],
) -> Split:
    domains = np.full(len(labels), -1, np.int64)
    return Split(np.array(labels, np.int64), domains, classes, (), digest, opened)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
