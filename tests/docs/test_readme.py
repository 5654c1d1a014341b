"""The README's first screen, executed against a running everlens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.processes import clean_environment, everlens_up, free_port, started

ROOT = Path(__file__).parents[2]


def conversation() -> list[tuple[str, str]]:
    """Return commands and answers of the README's second console block."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.findall(r"```console\n(.*?)```", readme, re.DOTALL)[1]
    turns = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    return [(command, answer.strip()) for command, answer in turns]


@pytest.mark.system
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_first_screen_is_true(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each command gives the README's answer: same labels in order, same scores and versions."""
    data_dir = tmp_path_factory.mktemp("readme")
    port = free_port()
    environment = clean_environment(data_dir=str(data_dir), port=str(port))
    variables, turns = conversation()[0][0], conversation()[1:]
    assert 3 == len(turns)
    with started(everlens_up(), environment, data_dir / "up.log") as launcher:
        launcher.until_said("Ctrl-C here stops everything", 120)
        for command, expected in turns:
            script = f"{variables}\n{command}".replace(".venv/bin/python", sys.executable)
            script = script.replace("localhost:8000", f"127.0.0.1:{port}")
            answer = subprocess.run(
                ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True
            ).stdout
            assert told(expected) == told(answer), answer


def told(answer: str) -> object:
    """Return an answer without its random id, scores to two places."""
    found = json.loads(answer)
    found.pop("prediction_id", None)
    for line in found.get("predictions", []):
        line["score"] = pytest.approx(line["score"], abs=0.01)
    return found
