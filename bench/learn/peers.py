"""The peft loop as a child that waits to be asked, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.learn.clock import Timing
from bench.measure import DEFAULT_OUT
from bench.packs import REPOSITORY
from bench.serve.peers.environments import PeerError, python_with
from everlens.settings import Settings

FOLDER = REPOSITORY / DEFAULT_OUT / "peers" / "peft"
REQUIREMENTS = ("peft==0.21.2", "transformers==5.23.0")

# Architectures whose Hugging Face twin the loop can build without a hub, by their patch size.
PATCH_SIZES = {"ViT-B-32": 32, "ViT-B-16": 16}

_SCRIPT = Path(__file__).with_name("peft_loop.py")


class PeftLoop:
    """The peft loop in its own process: one step whenever it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def until_ready(self) -> dict[str, Any]:
        """
        Return once it can be asked; what it says then, versions and sizes.

        Raises:
            PeerError: it ended.
        """
        return self._answer()

    def step(self, pictures: int, classes: int) -> Timing:
        """
        Take one step on so many pictures; return how long it took.

        Raises:
            PeerError: it ended.
        """
        self.ask(pictures, classes)
        return self.answered()

    def ask(self, pictures: int, classes: int) -> None:
        """
        Let it take one step, once it is ready; `answered` waits for that.

        Raises:
            PeerError: it ended.
        """
        assert self.process.stdin is not None
        asked = {"pictures": pictures, "classes": classes}
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise PeerError(f"the peft loop ended: {error}") from error

    def answered(self) -> Timing:
        """
        Return how long the step took that was asked for.

        Raises:
            PeerError: it ended.
        """
        timing = self._answer()
        return Timing(timing["wall_s"], timing["cpu_s"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(f"the peft loop ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def peft_loop(
    model: str, settings: Settings, device: str, python: Path | None = None
) -> Iterator[PeftLoop]:
    """
    Give the loop over the twin of a model, while it starts; it ends with the `with`, or with us.

    Raises:
        PeerError: it has no twin, or cannot be installed here.
    """
    if model not in PATCH_SIZES:
        raise PeerError(f"Hugging Face has no CLIPModel that is {model}")
    words = [str(python or python_with(FOLDER, REQUIREMENTS)), "-P", str(_SCRIPT)]
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
