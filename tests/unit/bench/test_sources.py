"""Sources: folders and data sets become splits; no network, no torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.lab.sources import SourceError, Split, read_dataset, read_folder, read_source
from bench.packs import data_folder
from tests.packs import needs_packs

CLASSES = ("cat", "coffee", "rocket")


def write_folder(folder: Path, each: int) -> Path:
    """Write one-coloured pictures, whose colour says which they are."""
    for c, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for k in range(each):
            Image.new("RGB", (6, 4), (c, k, 9)).save(folder / name / f"{k}.png")
    return folder


def colours(split: Split) -> list[tuple[int, int]]:
    """Return red and green of the first dot: class and number of each picture."""
    dots = [np.asarray(picture)[0, 0] for picture in split.pictures()]
    return [(int(dot[0]), int(dot[1])) for dot in dots]


class Coloured:
    """A data set as torchvision makes them."""

    classes = CLASSES

    def __init__(self, root: Path, download: bool = False, first: int = 0) -> None:
        assert download
        self.first = first
        self.targets = [k % 3 for k in range(30)]

    def __repr__(self) -> str:
        return f"from {self.first}"

    def __len__(self) -> int:
        return 30

    def __getitem__(self, place: int) -> tuple[Image.Image, int]:
        return Image.new("L", (4, 4), self.first + place), place % 3


class Halved(Coloured):
    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        super().__init__(root, download, 0 if train else 100)


class Split3(Coloured):
    def __init__(self, root: Path, split: str = "trainval", download: bool = False) -> None:
        super().__init__(root, download, {"trainval": 0, "test": 100}[split])


def test_a_folder_is_split_class_by_class(tmp_path: Path) -> None:
    """70 to 30, no picture in both, and the same wherever the folder lies."""
    train, test = read_folder(write_folder(tmp_path / "here", 10))
    assert train.classes == test.classes == CLASSES
    assert np.bincount(train.labels).tolist() == [7, 7, 7]
    assert np.bincount(test.labels).tolist() == [3, 3, 3]
    assert [c for c, _ in colours(train)] == train.labels.tolist()
    assert sorted(colours(train) + colours(test)) == [(c, k) for c in range(3) for k in range(10)]
    assert set(train.domains.tolist()) == {-1}
    again, _ = read_folder(write_folder(tmp_path / "there", 10))
    assert colours(again) == colours(train)
    assert colours(train) == colours(train)


def test_the_digest_says_which_pictures_these_are(tmp_path: Path) -> None:
    """The same for the same files, another for the other half and for changed files."""
    folder = write_folder(tmp_path / "pictures", 10)
    train, test = read_folder(folder)
    assert train.digest == read_folder(folder)[0].digest != test.digest
    for name in CLASSES:
        for path in (folder / name).iterdir():
            Image.new("RGB", (50, 40), (1, 2, 3)).save(path)
    assert read_folder(folder)[0].digest != train.digest


def test_a_folder_with_its_own_splits(tmp_path: Path) -> None:
    """`train` and `test` are taken as they are; a class may be in one of them alone."""
    write_folder(tmp_path / "train", 4)
    write_folder(tmp_path / "test", 2)
    (tmp_path / "test" / "cat" / "0.png").rename(tmp_path / "test" / "rocket" / "7.PNG")
    (tmp_path / "train" / "zebra").mkdir()
    Image.new("L", (5, 5)).save(tmp_path / "train" / "zebra" / "one.png")
    (tmp_path / "train" / "zebra" / "notes.txt").write_text("no picture")
    train, test = read_source(str(tmp_path), tmp_path / "packs")
    assert train.classes == test.classes == (*CLASSES, "zebra")
    assert np.bincount(train.labels).tolist() == [4, 4, 4, 1]
    assert np.bincount(test.labels, minlength=4).tolist() == [1, 2, 3, 0]
    assert {picture.mode for picture in train.pictures()} == {"RGB"}


def test_pictures_stand_upright(tmp_path: Path) -> None:
    """As the service makes them."""
    write_folder(tmp_path, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in CLASSES:
        for k in range(3):
            Image.new("RGB", (6, 4)).save(tmp_path / name / f"{k}.png", exif=exif)
    train, _ = read_folder(tmp_path)
    assert {picture.size for picture in train.pictures()} == {(4, 6)}


@pytest.mark.parametrize("kind", [Halved, Split3])
def test_a_data_set_with_splits(kind: Any, tmp_path: Path) -> None:
    """By `train`, or by the default of `split` and its test."""
    train, test = read_dataset(kind, tmp_path / "data")
    assert len(train.labels) == len(test.labels) == 30
    assert [first for first, _ in colours(test)] == list(range(100, 130))
    assert train.classes == CLASSES
    assert train.digest != test.digest


def test_a_data_set_without_splits(tmp_path: Path) -> None:
    """It is split class by class."""
    train, test = read_dataset(Coloured, tmp_path)
    assert np.bincount(train.labels).tolist() == [7, 7, 7]
    shown = [first for first, _ in colours(train)] + [first for first, _ in colours(test)]
    assert sorted(shown) == list(range(30))
    assert [first % 3 for first, _ in colours(train)] == train.labels.tolist()


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    """An empty folder is an error of the user's, with its reason."""
    with pytest.raises(SourceError, match="sub-folder for each class"):
        read_folder(tmp_path)


@needs_packs
def test_a_pack_is_read_as_it_is() -> None:
    """With its domains."""
    train, test = read_source("pacs", data_folder())
    assert len(train.labels) == 700
    assert len(test.labels) == 420
    assert len(train.classes) == 7
    assert len(train.domain_names) == 4
    assert train.digest != test.digest
    assert next(train.pictures()).mode == "RGB"
