"""The environment of the peft loop, made once, and the loop itself as a child that waits to be asked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.learn.clock import Timing
from bench.packs import REPOSITORY
from everlens.errors import EverlensError
from everlens.settings import Settings

PEERS = REPOSITORY / "build" / "bench" / "peers"
INSTALL_S_MAX = 1200.0

# Architectures whose Hugging Face twin the loop can build without a hub, by their patch size.
PATCH_SIZES = {"ViT-B-32": 32, "ViT-B-16": 16}

_HERE = Path(__file__).parent
_PINS = (REPOSITORY / "requirements-torch.txt", _HERE / "requirements-peft.txt")


class NoPeerError(EverlensError):
    """A peer cannot be run here; the message says why, and stands in the table."""


def environment_of(folder: Path = PEERS / "peft") -> Path:
    """
    Return the Python of the peft loop's environment, made where it is not there yet.

    Raises:
        NoPeerError: it cannot be installed.
    """
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in _PINS)).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing peft into {folder} (once; some minutes)", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    # PyTorch first and alone, so that nothing else decides about its build.
    _run([*pip, "install", "--quiet", "--requirement", str(_PINS[0])])
    version = _run([str(python), "-c", "import torch; print(torch.__version__)"]).strip()
    (folder / "build.txt").write_text(f"torch=={version}\n")
    constraint = ["--constraint", str(folder / "build.txt")]
    _run([*pip, "install", "--quiet", *constraint, "--requirement", str(_PINS[1])])
    stamp.write_text(wanted)
    return python


def _run(words: list[str]) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=INSTALL_S_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoPeerError(f"not installed: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NoPeerError(f"not installed: {said[-1] if said else words}")
    return done.stdout


class PeftLoop:
    """The peft loop in its own process: one step whenever it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.about = self._answer()  # versions and sizes: it is ready

    def step(self, pictures: int, classes: int, *, half: bool = False) -> Timing:
        """
        Take one step on so many pictures; return how long it took.

        Raises:
            NoPeerError: it ended.
        """
        assert self.process.stdin is not None
        asked = {"pictures": pictures, "classes": classes, "half": half}
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise NoPeerError(f"the peft loop ended: {error}") from error
        timing = self._answer()
        return Timing(timing["wall_s"], timing["cpu_s"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise NoPeerError(f"the peft loop ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def peft_loop(
    model: str, settings: Settings, device: str, python: Path | None = None
) -> Iterator[PeftLoop]:
    """
    Give the loop over the twin of a model; it ends with the `with`, or with this process.

    Raises:
        NoPeerError: it has no twin, or cannot be installed or started here.
    """
    if model not in PATCH_SIZES:
        raise NoPeerError(f"Hugging Face has no CLIPModel that is {model}")
    words = [str(python or environment_of()), "-P", str(_HERE / "peft_loop.py")]
    words += ["--patch-size", str(PATCH_SIZES[model]), "--device", device]
    words += ["--rank", str(settings.lora_rank), "--alpha", str(settings.lora_alpha)]
    words += ["--threads", str(settings.worker_threads)]
    ours = ("EVERLENS_", "PYTHON", "MALLOC_")  # what the worker is given is not what it would have
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment |= {"TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        words,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield PeftLoop(process)
    finally:
        process.kill()
        process.communicate()
