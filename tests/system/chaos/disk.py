"""The preload library that plays a slow or failing disk, or another wall clock, to the server."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.system.chaos.ground import NotPossible

SOURCE = Path(__file__).with_name("disk.c")


def preload(directory: Path, **settings: str) -> str:
    """
    Return shell lines that make the next program in the shell see another disk or clock.

    Raises:
        NotPossible: this machine cannot compile or preload it.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        raise NotPossible("needs a C compiler and Linux")
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / "disk.so"
    made = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise NotPossible(f"{compiler} does not compile disk.c: {made.stderr[-200:]}")
    lines = [f"export CHAOS_{name.upper()}={value}" for name, value in settings.items()]
    return "\n".join([*lines, f"export LD_PRELOAD={library}"])
