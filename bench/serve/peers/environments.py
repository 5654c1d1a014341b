"""
An environment of its own for each peer: made once, found again by the next run.

The build of torch is that of this interpreter: both sides compute with the same one.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from everlens.errors import EverlensError

_INSTALL_S = 1200.0


class PeerError(EverlensError):
    """A peer cannot be installed or started on this machine."""


def python_with(folder: Path, requirements: Sequence[str]) -> Path:
    """
    Return the interpreter of an environment that has these requirements.

    Raises:
        PeerError: with the last error of pip.
    """
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    torch, vision = (importlib.metadata.version(name) for name in ("torch", "torchvision"))
    wanted = "\n".join([f"torch=={torch}", f"torchvision=={vision}", *requirements])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {requirements[0]} into {folder} ...", file=sys.stderr, flush=True)
    begun = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(f"torch=={torch}\ntorchvision=={vision}\n")
    pip: list[str | Path] = [python, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    pip += ["install", "--quiet"]
    _run([sys.executable, "-m", "venv", folder])
    _run([*pip, f"torch=={torch}"])
    # It asks for one exact build of torch; see requirements-nodeps.txt.
    _run([*pip, "--no-deps", f"torchvision=={vision}"])
    _run([*pip, "--constraint", constraints, *requirements])
    stamp.write_text(wanted)
    print(f"installed in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return python


def _run(words: Sequence[str | Path]) -> None:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_INSTALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"cannot be installed: {error}") from error
    if done.returncode != 0:
        raise PeerError(f"cannot be installed: {last_error(done.stdout + done.stderr)}")


def last_error(said: str) -> str:
    """Return the last line in which pip names an error, else the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["pip said nothing"])[-1]
