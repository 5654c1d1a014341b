"""
`everlens up`: the embedded server, the worker and the service, from start to an orderly stop.

A supervisor without torch. Children that leave are started again with back-off; one that keeps
leaving, or says that its settings are wrong (exit 2), ends everything with its own words. None of
them outlives this process, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

import everlens
from everlens.bus.server import EmbeddedServer
from everlens.errors import ServerError, SettingsError
from everlens.keys import read_ring
from everlens.launch.environment import WAITING, learner_environment
from everlens.launch.greeting import base_url, greeting, without_password
from everlens.launch.health import learner_present, service_ready
from everlens.launch.program import GaveUp, Program
from everlens.launch.tenure import check_port, hold_directory
from everlens.settings import Settings

_STOP_S = 10.0
_LOOK_S = 0.1
_STILL_WAITING_S = 30.0
_SERVER_RESTARTS_S = (0.5, 2.0, 5.0)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stop(BaseException):
    """A signal asked for the end; no `except Exception` on the way may swallow it."""


class Launcher:
    """One run of everlens over one data directory."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.data_dir = settings.data_dir.resolve()
        self.server: EmbeddedServer | None = None
        self.programs: list[Program] = []
        self._server_failures = 0
        self._server_started_at = 0.0

    def run(self) -> int:
        """Start everything, watch it until a signal comes, stop it; return the exit code."""
        lock = hold_directory(self.data_dir)
        try:
            check_port(self.settings.host, self.settings.port)
            for number in _SIGNALS:
                signal.signal(number, _raise_stop)
            try:
                self._start(lock)
                self._wait_ready()
                self._greet()
                while True:
                    self._tend()
                    time.sleep(_LOOK_S)
            except _Stop:
                return 0
            except GaveUp as failure:
                self.say(str(failure))
                return failure.code
            finally:
                self._stop()
        finally:
            os.close(lock)

    def tell_worker(self, *words: str) -> int:
        """Run one command of the worker over the log, and return its exit code."""
        lock = hold_directory(self.data_dir)
        try:
            redis_url = self.settings.redis_url or self._start_server()
            return subprocess.call(
                [sys.executable, "-P", "-m", "worker", *words], env=self._environment(redis_url)
            )
        finally:
            if self.server is not None:
                self.server.stop()
            os.close(lock)

    def back_up(self, target: Path, log_dir: Path | None, serving_dir: Path | None) -> int:
        """Have the worker copy everything to `target`, in use or not; return its exit code."""
        if log_dir is None and self.settings.redis_url:
            raise SettingsError(
                f"the log is at {without_password(self.settings.redis_url)}; name the directory of "
                "that server with --log"
            )
        if target.exists():
            raise SettingsError(f"{target} is there already; give a directory of its own")
        embedded = self.data_dir / "redis"
        words = [target.resolve(), log_dir or embedded, serving_dir or self.data_dir]
        redis_url = self.settings.redis_url or f"unix://{embedded}/redis.sock"
        return subprocess.call(
            [sys.executable, "-P", "-m", "worker", "backup", *map(str, words)],
            env=self._environment(redis_url),
        )

    def say(self, line: str = "") -> None:
        """Print one line as it is, however long: it may be there to be pasted."""
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _start(self, lock: int) -> None:
        self.say(f"everlens {everlens.__version__}, model {self.settings.model}")
        self.say(f"  data      {self.data_dir}")
        redis_url = self.settings.redis_url or self._start_server()
        environment = self._environment(redis_url)
        logs = self.data_dir / "logs"
        learner = environment | learner_environment(self.settings.worker_threads)
        self.programs = [
            Program("worker", learner, logs / "worker.log", lock=lock),
            Program("service", environment, logs / "service.log", lock=lock),
        ]
        for program in self.programs:
            program.start()
            self.say(f"  {program.name:9} started, writes {program.log_path}")

    def _environment(self, redis_url: str) -> dict[str, str]:
        # The children find this very package also where it was not installed, and nothing that
        # happens to lie in the directory `everlens up` was called from (`-P` in Program).
        root = str(Path(everlens.__file__).parent.parent)
        ours = {
            "EVERLENS_REDIS_URL": redis_url,
            "EVERLENS_DATA_DIR": str(self.data_dir),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(
                part for part in (root, os.environ.get("PYTHONPATH", "")) if part
            ),
        }
        return WAITING | os.environ | ours  # the operator knows his machine

    def _start_server(self) -> str:
        began = time.monotonic()
        self.server = EmbeddedServer(
            self.data_dir / "redis",
            binary=self.settings.redis_server,
            # Twice the backlog, since a rewrite of the log on disk copies pages, and room for
            # parts, ids and lineage.
            maxmemory_bytes=2 * self.settings.max_backlog_bytes + 2**30,
        )
        self.server.start()
        self._server_started_at = time.monotonic()
        self.say(f"  redis     ready in {self._server_started_at - began:.1f} s, {self.server.url}")
        return self.server.url

    def _wait_ready(self) -> None:
        began = time.monotonic()
        reported = began
        with self._spinner("loading the model"):
            while not self._ready():
                self._tend()
                time.sleep(_LOOK_S)
                now = time.monotonic()
                if now - reported > _STILL_WAITING_S:
                    reported = now
                    last = self.programs[-1].last_line() or "a first start may fetch the model"
                    self.say(f"  still waiting after {now - began:.0f} s: {last}")
        self.say(f"  ready     in {time.monotonic() - began:.1f} s, {self._base_url()}")

    @contextlib.contextmanager
    def _spinner(self, text: str) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        with self.console.status(text):
            yield

    def _ready(self) -> bool:
        if not service_ready(self._base_url()):
            return False
        if any(program.ended for program in self.programs):
            return True
        redis_url = self.server.url if self.server else self.settings.redis_url
        return learner_present(redis_url, self.settings.namespace)

    def _base_url(self) -> str:
        return base_url(self.settings.host, self.settings.port)

    def _greet(self) -> None:
        guarded = bool(read_ring(self.settings.keys_path))
        for line in greeting(self._base_url(), guarded=guarded):
            self.say(line)

    def _tend(self) -> None:
        self._tend_server()
        for program in self.programs:
            for line in program.new_warnings():
                self.say(f"  {program.name:9} {line}")
            for line in program.tend(time.monotonic()):
                self.say(line)

    def _tend_server(self) -> None:
        if self.server is None or self.server.process is None:
            return
        code = self.server.process.poll()
        if code is None:
            return
        lived_s = time.monotonic() - self._server_started_at
        self._server_failures = 1 if lived_s > _STILL_WAITING_S else self._server_failures + 1
        if self._server_failures > len(_SERVER_RESTARTS_S):
            raise GaveUp(
                f"the embedded server leaves again and again (exit {code}); see "
                f"{self.server.directory / 'server.log'}, and whether the disk is full"
            )
        self.say(f"  redis     left with exit {code}; starting it again")
        time.sleep(_SERVER_RESTARTS_S[self._server_failures - 1])
        # A start that fails leaves a process that ended: counted at the next look.
        with contextlib.suppress(ServerError):
            self.server.start()
        self._server_started_at = time.monotonic()

    def _stop(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._kill)
        self.console.show_cursor(show=True)
        if any(program.running for program in self.programs):
            self.say("stopping (Ctrl-C again to kill)")
        began = time.monotonic()
        for program in reversed(self.programs):
            program.ask_to_stop()
        for program in reversed(self.programs):
            left_s = max(0.0, began + _STOP_S - time.monotonic())
            if not program.stop(left_s):
                self.say(f"  {program.name:9} did not stop in {_STOP_S:.0f} s and was killed")
        if self.server is not None:
            self.server.stop()
        if self.programs:
            took_s = time.monotonic() - began
            self.say(f"stopped in {took_s:.1f} s; the next start goes on from here")
        for number in _SIGNALS:  # nothing is left to kill: a late one changes nothing
            signal.signal(number, signal.SIG_IGN)

    def _kill(self, _number: int, _frame: FrameType | None) -> NoReturn:
        processes = [program.process for program in self.programs]
        if self.server is not None:
            processes.append(self.server.process)
        for process in processes:
            if process is not None:
                process.kill()
        os._exit(130)


def _raise_stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Stop


def up(settings: Settings) -> int:
    """
    Run everlens until SIGINT or SIGTERM; return the exit code.

    Raises:
        SettingsError, ServerError: it cannot start; one sentence says why.
    """
    if settings.redis_url and not settings.redis_url.startswith(("redis", "unix")):
        raise SettingsError(
            f"EVERLENS_REDIS_URL={without_password(settings.redis_url)} is neither redis://, "
            "rediss:// nor unix://"
        )
    return Launcher(settings, Console(file=sys.stdout)).run()


def tell_worker(settings: Settings, *words: str) -> int:
    """
    Run one command of the worker, with the embedded server where there is no other.

    Raises:
        SettingsError, ServerError: it cannot start; one sentence says why.
    """
    return Launcher(settings, Console(file=sys.stdout)).tell_worker(*words)


def back_up(
    settings: Settings, target: Path, *, log_dir: Path | None, serving_dir: Path | None
) -> int:
    """
    Copy everything that must survive, while it is used or not.

    Args:
        settings: with the data directory.
        target: a directory that is not there yet.
        log_dir: of the log's server; None is the embedded one's.
        serving_dir: data directory of the service, where it has one of its own.

    Raises:
        SettingsError: nobody says where the log is.
    """
    return Launcher(settings, Console(file=sys.stdout)).back_up(target, log_dir, serving_dir)
