"""
Real everlens processes for a bench: the log's server, the service, the worker.

On free ports and in a directory of their own. They end with the `with` that started them, also on
Ctrl-C, and the kernel ends them where this process is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.load import HOST
from bench.packs import REPOSITORY
from everlens.bus.server import EmbeddedServer
from everlens.child import start_child, stop_child
from everlens.errors import EverlensError
from everlens.launch.environment import learner_environment
from everlens.launch.health import learner_present, service_ready

READY_S = 120.0
_STOP_S = 10.0
_LOOK_S = 0.05
_TAIL_BYTES = 1500
_MEMORY_BYTES = 6 * 2**30


class StartError(EverlensError):
    """A process of a bench did not start; the message holds its last words."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process that was started, the port it answers on (0: none), and what says it is ready."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    ready: Callable[[], bool]

    def until_ready(self) -> None:
        """
        Return when it is.

        Raises:
            StartError: it ended, or it takes too long.
        """
        until(self, self.ready)

    def pause(self) -> None:
        """Stop its work and its children's at once; nothing where they have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on; nothing where they have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)

    def get(self, path: str) -> Any:
        """Return the JSON that it answers to a GET."""
        with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory that is removed afterwards; its path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="everlens-bench-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def log_server(folder: Path) -> Iterator[EmbeddedServer]:
    """Give a running server of the log, with the durable settings of production."""
    server = EmbeddedServer(folder / "log", maxmemory_bytes=_MEMORY_BYTES)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def service(url: str, folder: Path, *, wait: bool = True, **settings: object) -> Iterator[Process]:
    """
    Give a service that is ready.

    Args:
        url: of the log.
        folder: where its data and its output go.
        wait: until it is ready; else it is given while it starts, and something else beside it.
        settings: EVERLENS_* by their lower-case names.

    Raises:
        StartError: it is not.
    """
    port = free_port()
    words = [sys.executable, "-P", "-m", "service"]
    environment = _environment(url, folder, port=port, **settings)
    with started(
        "service",
        words,
        folder,
        environment,
        port=port,
        ready=lambda: service_ready(f"http://{HOST}:{port}"),
    ) as process:
        if wait:
            process.until_ready()
        yield process


@contextlib.contextmanager
def worker(url: str, folder: Path, *, wait: bool = True, **settings: object) -> Iterator[Process]:
    """Give a worker that holds its log's lease; arguments and errors as of `service`."""
    words = [sys.executable, "-P", "-m", "worker"]
    environment = _environment(url, folder, **settings) | learner_environment(1)
    namespace = str(settings.get("namespace", "everlens"))
    ready = partial(learner_present, url, namespace)
    with started("worker", words, folder, environment, ready=ready) as process:
        if wait:
            process.until_ready()
        yield process


@contextlib.contextmanager
def started(
    name: str,
    words: Sequence[str | Path],
    folder: Path,
    environment: Mapping[str, str],
    *,
    ready: Callable[[], bool],
    port: int = 0,
) -> Iterator[Process]:
    """Give a process that starts, whose output goes to a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.log"
    with path.open("ab") as log:
        child = start_child(words, log=log, env=environment)
    process = Process(child, path, port, ready)
    try:
        yield process
    finally:
        process.resume()  # a stopped one would not hear that it shall end
        stop_child(child, _STOP_S)
        with contextlib.suppress(ProcessLookupError):  # what it left behind is of its group
            os.killpg(child.pid, signal.SIGKILL)


def until(process: Process, ready: Callable[[], bool], within_s: float = READY_S) -> None:
    """
    Return when a process is ready.

    Raises:
        StartError: it ended, or it takes too long.
    """
    deadline = time.monotonic() + within_s
    while (code := process.process.poll()) is not None or not ready():
        if code is not None or time.monotonic() > deadline:
            ended = f"ended with {code}" if code is not None else f"not ready in {within_s:g} s"
            said = process.log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip()
            raise StartError(f"{process.log.stem}: {ended}: {said}")
        time.sleep(_LOOK_S)


def plain_environment() -> dict[str, str]:
    """Return our environment without what we set for ourselves, or somebody for everlens."""
    ours = ("EVERLENS_", "OMP_", "GOMP_", "MKL_", "MALLOC_")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)}


def _environment(url: str, folder: Path, **settings: object) -> dict[str, str]:
    settings = {"redis_url": url, "data_dir": folder / "data", **settings}
    told = {f"EVERLENS_{name.upper()}": str(value) for name, value in settings.items()}
    return plain_environment() | told | {"PYTHONPATH": str(REPOSITORY)}


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """Return the processor's seconds that a process and its children have taken (Linux)."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(map(cpu_s, _children(pid)))


def memory_bytes(pid: int) -> int:
    """Return what a process and its children hold in memory, each its own share (Linux)."""
    own = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                own = 1024 * int(line.split()[1])
    return own + sum(map(memory_bytes, _children(pid)))


def _children(pid: int) -> list[int]:
    children: list[str] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += task.read_text().split()
    return [int(child) for child in children]
