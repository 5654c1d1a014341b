"""Real processes for system tests: started, waited for by what they say, and always ended."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Of an HTTP client on a machine that does other things beside; httpx's own are five seconds.
PATIENCE_S = 60.0


def free_port() -> int:
    """
    Return a port that nobody listens on now, by chance and not the next one: others look for theirs
    at the same time. Below those that a kernel gives to clients, so that none takes it meanwhile.
    """
    while True:
        port = 10_000 + secrets.randbelow(22_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def until(condition: Callable[[], object], within_s: float, what: str, log: Path) -> None:
    """Return when `condition()` is true; fail with the log when it takes too long."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within_s:g} s\n{_text(log)}")
        time.sleep(0.05)


class Started:
    """One process in a group of its own, like a shell's foreground job."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                words,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        """Return what it printed so far."""
        return _text(self.log)

    def until_said(self, words: str, within_s: float, *, times: int = 1) -> None:
        """Return when it printed these words so often; fail when it ended, or takes too long."""

        def found() -> bool:
            if self.said().count(words) >= times:
                return True
            code = self.process.poll()
            assert code is None, f"ended with {code} before it said {words!r}\n{self.said()}"
            return False

        until(found, within_s, f"to say {words!r}", self.log)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the whole group, as a terminal's Ctrl-C does."""
        os.killpg(self.process.pid, number)

    def wait(self, within_s: float) -> int:
        """Return the exit code; fail when it takes too long."""
        until(lambda: self.process.poll() is not None, within_s, "to end", self.log)
        code = self.process.returncode
        assert code is not None
        return code

    def end(self) -> None:
        """End it whatever it does; its children die with it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def started(words: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Started]:
    """Give a process that is ended afterwards."""
    process = Started(words, environment, log)
    try:
        yield process
    finally:
        process.end()


def clean_environment(**settings: str) -> dict[str, str]:
    """Return this process's environment with these EVERLENS_* settings and no others."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("EVERLENS_", "OMP_"))}
    return kept | {f"EVERLENS_{name.upper()}": value for name, value in settings.items()}


def everlens_up() -> list[str]:
    """Return the command of `everlens up` in the interpreter of the tests."""
    return [sys.executable, "-m", "everlens.cli", "up"]


def processes_naming(text: str) -> list[str]:
    """Return the processes whose command line or environment holds `text`, as `id command`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (
                (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            )
            environment = (entry / "environ").read_bytes().decode("utf-8", "replace")
            if command and (text in command or text in environment):
                found.append(f"{entry.name} {command}")
    return found


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
