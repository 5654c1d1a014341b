"""What the README shows, executed against a running everlens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from tests.system.processes import clean_environment, everlens_up, free_port, started

ROOT = Path(__file__).parents[2]


def conversation(word: str) -> list[tuple[str, str]]:
    """Return commands and answers of the README's first console block that has this word."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", readme, re.DOTALL)
    block = next(block for block in blocks if word in block)
    turns = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    return [(command, answer.strip()) for command, answer in turns]


def python_example(place: Path, port: int) -> str:
    """Return a command that runs the README's Python in `place`, which has what it names."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    source = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert source is not None
    (place / "birds" / "great_heron").mkdir(parents=True)
    Image.fromarray(data.coffee()).save(place / "birds" / "great_heron" / "1.png")
    Image.fromarray(data.coffee()).save(place / "heron.jpg")
    code = source[1].replace("Client()", f'Client("http://127.0.0.1:{port}")')
    (place / "example.py").write_text(code, encoding="utf-8")
    return f"PYTHONPATH={ROOT} .venv/bin/python example.py"


@pytest.mark.system
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_what_is_shown_is_true(tmp_path_factory: pytest.TempPathFactory) -> None:
    """
    Each command gives the README's answer: same labels, nearly the same scores, same versions.

    So does what it shows of Python, of a folder and a picture that are there. Then a key is made as
    it says there: it opens, and nothing is open without it.
    """
    data_dir = tmp_path_factory.mktemp("readme")
    port = free_port()
    environment = clean_environment(data_dir=str(data_dir), port=str(port))

    def run(script: str, cwd: Path = ROOT) -> str:
        script = script.replace("localhost:8000", f"127.0.0.1:{port}")
        script = script.replace(".venv/bin/python", sys.executable)
        script = script.replace(".venv/bin/everlens", f"{sys.executable} -m everlens.cli")
        return subprocess.run(
            ["bash", "-c", script],
            env=environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    (variables, _), *turns = conversation("skimage")
    assert 3 == len(turns)
    with started(everlens_up(), environment, data_dir / "up.log") as launcher:
        launcher.until_said("Ctrl-C here stops everything", 120)
        for command, expected in turns:
            answer = run(f"{variables}\n{command}")
            assert told(expected) == told(answer), answer
        said = run(python_example(data_dir, port), data_dir)
        assert re.match(r"<Answer great heron \d+\.\d %, .*; known .* %, version \d+>\n", said), (
            said
        )
        (make, _), (use, _) = conversation("everlens keys add")
        assert "version" in json.loads(run(f"{make}\n{use}"))
        time.sleep(1.1)
        assert "version" in json.loads(run(f"{make}\n{use}"))
        assert json.loads(run(use))["status"] == 401


def told(answer: str) -> object:
    """
    Return an answer without its random id, its lines by label.

    A close guess is one in bfloat16 and a slightly other one in float32: .461 to .440 here, .413 to
    .494 on a processor without.
    """
    found = json.loads(answer)
    found.pop("prediction_id", None)
    found.get("predictions", []).sort(key=lambda line: line["label"])
    for line in found.get("predictions", []):
        line["score"] = pytest.approx(line["score"], abs=0.06)
    return found
