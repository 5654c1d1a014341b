"""The demo's pictures and its words; `tests/system/test_up.py` runs it against a service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everlens.cli import main
from everlens.demo import HELD_OUT, SIZE, digits, folder
from everlens.errors import SettingsError


def test_digits_are_enlarged_and_split() -> None:
    """Each class has as many taught pictures as asked for, and others that are held out."""
    found = digits(3, 2)

    assert [each.name for each in found] == ["digit zero", "digit one"]
    for each in found:
        assert (len(each.taught), len(each.held_out)) == (3, HELD_OUT)
        pixels = [np.asarray(picture) for picture in (*each.taught, *each.held_out)]
        assert {p.shape for p in pixels} == {(SIZE, SIZE)}
        assert len({p.tobytes() for p in pixels}) == 3 + HELD_OUT


def test_folder_is_split_the_same_way_each_time(tmp_path: Path) -> None:
    """A folder a class; pictures only; some held out, none of them taught, whatever the day."""
    for name, count in (("great_heron", 30), ("owl", 3), ("empty", 0), ("single", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.JPG").touch()
        (tmp_path / name / "notes.txt").touch()

    first, second = folder(tmp_path, 5, 10), folder(tmp_path, 5, 10)

    assert first == second
    assert {each.name: (len(each.taught), len(each.held_out)) for each in first} == {
        "great heron": (5, HELD_OUT),
        "owl": (2, 1),
    }
    for each in first:
        assert not set(each.taught) & set(each.held_out)


def test_folder_without_classes_is_refused(tmp_path: Path) -> None:
    """A folder that is missing, or holds no class, is one sentence."""
    with pytest.raises(SettingsError, match="is not a folder"):
        folder(tmp_path / "nowhere", 5, 10)
    with pytest.raises(SettingsError, match="holds no folder"):
        folder(tmp_path, 5, 10)


def test_refused_connection_says_how_to_start_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing listens, the command says what to do instead of a traceback."""
    code = main(["demo", "--url", "http://127.0.0.1:9"])

    (line,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert "`make up`" in line
    assert "--url" in line


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`everlens --help` lists up, demo and status with a line each."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"\n    {name} " in said for name in ("up", "demo", "status"))
