"""What docs/first-ten-minutes.md has people type in a shell, typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.folders import short_folder
from tests.pictures import PHOTOGRAPHS, photograph
from tests.system.processes import clean_environment, everlens_up, free_port, started

ROOT = Path(__file__).parents[2]


@pytest.mark.system
def test_each_line_works(tmp_path: Path) -> None:
    """From an everlens that knows nothing to one that names a cat, and a folder taught."""
    page = (ROOT / "docs" / "first-ten-minutes.md").read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL)
        for line in re.findall(r"^\$ (.*)", block, re.MULTILINE)
        if not line.startswith(("git ", "make "))
    ]
    assert len(lines) == 6
    for name in sorted(PHOTOGRAPHS)[:2]:
        folder = tmp_path / "photographs" / name
        folder.mkdir(parents=True)
        photograph(name).save(folder / "one.png")
    script = "\n".join(["set -e", *lines]).replace(".venv/bin/python", sys.executable)
    script = script.replace(".venv/bin/everlens", f"{sys.executable} -m everlens.cli")
    with short_folder("minutes") as data_dir:
        environment = clean_environment(data_dir=str(data_dir), port=str(free_port()))
        environment["PYTHONPATH"] = str(ROOT)
        with started(everlens_up(), environment, data_dir / "up.log") as launcher:
            launcher.until_said("Ctrl-C here stops everything", 240)
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
    assert done.returncode == 0, done.stderr
    first, taught, _ = done.stdout.partition("accepted as entry")
    assert "cat" in first.split("%")[0]
    assert re.search(r"Chelsea +100\.0 %", taught + _)
