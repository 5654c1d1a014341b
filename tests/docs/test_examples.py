"""The programs under examples/, run as they are against a running everlens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest
import skimage

from bench.tiny_clip import write_tiny_clip
from everlens import Client
from tests.folders import short_folder
from tests.system.processes import clean_environment, everlens_up, free_port, started

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = Path(skimage.__path__[0]) / "data"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """One `everlens up` over a small model: that the programs work is seen, not how well it does."""
    with short_folder("examples") as data_dir:
        port, model = free_port(), write_tiny_clip(data_dir / "tiny-vit")
        environment = clean_environment(
            data_dir=str(data_dir), port=str(port), model=str(model), pretrained="random"
        )
        with started(everlens_up(), environment, data_dir / "up.log") as launcher:
            launcher.until_said("Ctrl-C here stops everything", 240)
            yield f"http://127.0.0.1:{port}"


def run(program: str, *words: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """Return what became of an example that is told `said` on its standard input."""
    return subprocess.run(
        [sys.executable, ROOT / "examples" / program, *words],
        input=said,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=clean_environment(),
    )


def quarters(name: str, folder: Path) -> list[Path]:
    """Write the four quarters of a photograph, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = PIL.Image.open(PHOTOGRAPHS / name).convert("RGB")
    half = (picture.width // 2, picture.height // 2)
    paths = []
    for k in range(4):
        left, top = half[0] * (k % 2), half[1] * (k // 2)
        path = folder / f"{Path(name).stem}-{k}.png"
        picture.crop((left, top, left + half[0], top + half[1])).save(path)
        paths.append(path)
    return paths


def test_a_folder_is_taught_and_another_asked_about(url: str, tmp_path: Path) -> None:
    """Each folder is a class; run again it teaches nothing twice."""
    unsorted = tmp_path / "unsorted"
    unsorted.mkdir()
    for name in ("coffee.png", "chelsea.png"):
        first = quarters(name, tmp_path / "photographs" / Path(name).stem)[0]
        shutil.move(first, unsorted / first.name)
    (tmp_path / "photographs" / "coffee" / "broken.jpg").write_bytes(b"no picture")

    for _ in range(2):
        done = run("folder.py", str(tmp_path / "photographs"), "--ask", str(unsorted), "--url", url)
        assert done.returncode == 0, done.stderr
        assert "skipped" in done.stdout
        assert "broken.jpg" in done.stdout
        assert "6 pictures, learnt by version" in done.stdout
        assert "chelsea-0.png: " in done.stdout
    with Client(url) as client:
        counts = {known.label: known.samples for known in client.classes()}
    assert (counts["coffee"], counts["chelsea"]) == (3, 3)


def test_a_camera_learns_the_name_that_is_typed(url: str, tmp_path: Path) -> None:
    """Frames are answered; a line on standard input names the frame in front of it."""
    for k, path in enumerate(quarters("astronaut.png", tmp_path / "frames")):
        path.rename(path.with_name(f"{k:02}.png"))

    done = run(
        "webcam.py", "--camera", str(tmp_path / "frames" / "%02d.png"), "--url", url, said="pilot\n"
    )

    assert done.returncode == 0, done.stderr
    assert "pilot: learnt by version" in done.stdout
    with Client(url) as client:
        assert "pilot" in {known.label for known in client.classes()}


def test_a_log_of_corrections_is_learnt_once(url: str, tmp_path: Path) -> None:
    """By prediction or by picture; what cannot be learnt is named by its line."""
    picture = quarters("rocket.jpg", tmp_path)[0]
    with Client(url) as client:
        prediction = client.classify(picture, ["rocket", "tower"]).prediction_id
    log = tmp_path / "corrections.jsonl"
    lines = [
        {"prediction_id": prediction, "label": "tower"},
        {"image": str(picture), "label": "rocket"},
        {"image": str(tmp_path / "gone.jpg"), "label": "rocket"},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    for _ in range(2):
        done = run("corrections.py", str(log), "--url", url)
        assert done.returncode == 1
        assert "line 3: " in done.stderr
        assert "2 corrections sent, 1 failed" in done.stdout
    with Client(url) as client:
        client.wait(f"feedback-{prediction}", within_s=240)
        counts = {known.label: known.samples for known in client.classes()}
    assert counts["tower"] == 1
