"""The Python of docs/clients.md, run as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "program",
    re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL),
    ids=lambda program: re.findall(r"from (?!pathlib)(\w+)|$", program)[0],
)
def test_each_example_runs(program: str, url: str, pictures, tmp_path: Path) -> None:
    """It ends well and says something; only the address is another."""
    (tmp_path / "heron.jpg").write_bytes(pictures["cat"])
    (tmp_path / "bird.jpg").write_bytes(pictures["rocket"])
    for name in ("cat", "rocket"):
        folder = tmp_path / "photographs" / name
        folder.mkdir(parents=True)
        (folder / "0.jpg").write_bytes(pictures[name])
    program = program.replace("127.0.0.1:8000", url.removeprefix("http://"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
