"""Our side of the zygote: children by name, their signals and their ends."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.system.processes import ROOT, clean_environment

_START_S = 120.0


class Forked:
    """One child of the zygote."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.code: int | None = None
        self._ended = threading.Event()

    def end_with(self, code: int) -> None:
        self.code = code
        self._ended.set()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a child that has ended takes none."""
        if self.code is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def wait(self, within_s: float) -> int:
        """Return the exit code; fail when it takes too long."""
        if not self._ended.wait(within_s):
            raise AssertionError(f"did not end within {within_s:g} s\n{self.said()[-1500:]}")
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        self.wait(20)

    def stop(self) -> int:
        """Ask it to end; return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(30)

    def said(self) -> str:
        """Return what all processes with its log have said."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""


class Zygote:
    """Starts the process that forks, and asks it for children."""

    def __init__(self, model_folder: Path) -> None:
        quiet = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        self.model_folder = model_folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.chaos.zygote", str(model_folder)],
            cwd=ROOT,
            env=clean_environment() | quiet | {"OMP_WAIT_POLICY": "PASSIVE"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._lock = threading.Lock()
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._children: dict[int, Forked] = {}
        self._early: dict[int, int] = {}
        self._table = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()
        self._answers.get(timeout=_START_S)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "ended" not in message:
                self._answers.put(message)
                continue
            with self._table:
                child = self._children.pop(message["ended"], None)
                if child is None:
                    self._early[message["ended"]] = message["code"]
            if child is not None:
                child.end_with(message["code"])

    def fork(self, role: str, environment: Mapping[str, str], log: Path, **how: Any) -> Forked:
        """Return a new child; `how` as `zygote.become` reads it."""
        request = {"role": role, "environment": dict(environment), "log": str(log), **how}
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            pid = self._answers.get(timeout=60)["pid"]
            child = Forked(pid, log)
            with self._table:
                code = self._early.pop(pid, None)
                if code is None:
                    self._children[pid] = child
        if code is not None:
            child.end_with(code)
        return child

    def close(self) -> None:
        """End it and all its children."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
