"""The lab as a command: a folder of pictures in, figures out, and nothing done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.deploy.compose import ROOT
from tests.pictures import PHOTOGRAPHS, crops


def lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.lab", "--seeds", "1", "--processes", "1", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.system
def test_a_folder_of_pictures_is_measured_once(tmp_path: Path) -> None:
    """A folder a class becomes streams; the report has the tables, and a second run takes it up."""
    for name in PHOTOGRAPHS[:3]:
        (tmp_path / "things" / name).mkdir(parents=True)
        for k, picture in enumerate(crops(name, 8, 96)):
            Image.fromarray(picture).save(tmp_path / "things" / name / f"{k}.png")
    arguments = ("--source", str(tmp_path / "things"), "--out", str(tmp_path / "out"))
    first = lab(*arguments, "--only", "1 label")
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout.splitlines()[-1])
    assert summary["streams"] == 1
    assert {"worst_gain", "mean_gain", "ece"} <= summary.keys()
    report = (tmp_path / "out" / "report.md").read_text()
    assert "things 1 label" in report
    assert (tmp_path / "out" / "streams.png").stat().st_size > 1000
    second = lab(*arguments, "--only", "1 label")
    assert "1 of 1 trials are there" in second.stderr
    again = json.loads(second.stdout.splitlines()[-1])
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in summary.items() if k != "seconds"
    }


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    """No packs, no such trial: one sentence that says what to do."""
    missing = lab("--data", str(tmp_path))
    assert missing.returncode == 2
    assert "--source" in missing.stderr
    nothing = lab("--only", "no such trial")
    assert nothing.returncode == 2
    assert "no such trial" in nothing.stderr
