"""A child that is started again when it leaves: its log, its back-off, when to give up."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import Popen

from everlens.child import start_child, stop_child
from everlens.errors import EverlensError
from everlens.logs import for_people

RESTARTS_S = (0.5, 2.0)  # the third quick failure in a row ends everything
QUICK_S = 30.0
SETTINGS_CODE = 2  # a child's way to say that starting it again cannot help
STATE_CODE = 3  # the worker's, to say that learning must not go on; answering may
_LOG_BYTES_MAX = 10 * 2**20
_TAIL_LINES = 15
_READ_BYTES_MAX = 64 * 1024
_WARNING = re.compile(r"\b(WARNING|ERROR)\b|^Traceback ")  # CRITICAL: its last words, told then


class GaveUp(EverlensError):
    """A child cannot be kept running; the message holds its own last words."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Program:
    """One of our two processes, `python -m <name>`."""

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str],
        log_path: Path,
        *,
        lock: int,
    ) -> None:
        self.name = name
        self.environment = environment
        self.log_path = log_path
        self.lock = lock
        self.process: Popen[bytes] | None = None
        self.failures = 0
        self.ended = False  # for good, by its own decision; the others go on
        self._started_at = 0.0
        self._start_at = 0.0
        self._log_start = 0  # of this start's own lines; the log outlives them
        self._read_to = 0

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process; its output is appended to the log."""
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_BYTES_MAX:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        with self.log_path.open("ab") as log:
            self._log_start = self._read_to = log.tell()
            self._started_at = time.monotonic()
            self.process = start_child(
                [sys.executable, "-P", "-m", self.name],
                log=log,
                env=self.environment,
                keep_open=(self.lock,),
            )

    def tend(self, now: float) -> Iterator[str]:
        """
        Start the process again when it has left and waited; yield what people should know.

        Raises:
            GaveUp: its settings are wrong, or it left quickly three times in a row.
        """
        if self.process is None:
            if now >= self._start_at and not self.ended:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        self.process = None
        if code == STATE_CODE:
            self.ended = True
            yield f"  {self.name:9} {self.last_line()}"
            yield f"  {self.name:9} does not go on; the answers do"
            return
        if code == SETTINGS_CODE:
            raise GaveUp(self.last_line(), code=SETTINGS_CODE)
        self.failures = self.failures + 1 if now - self._started_at < QUICK_S else 1
        if self.failures > len(RESTARTS_S):
            raise GaveUp(
                f"the {self.name} leaves again and again (exit {code}); the end of "
                f"{self.log_path}:\n{self.tail()}"
            )
        wait_s = RESTARTS_S[self.failures - 1]
        self._start_at = now + wait_s
        yield f"  {self.name:9} left with exit {code}; starting it again in {wait_s:g} s"

    def ask_to_stop(self) -> None:
        """Send SIGTERM, without waiting."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def stop(self, within_s: float) -> bool:
        """Wait for the end, then kill; return whether it left by itself."""
        return self.process is None or stop_child(self.process, within_s)

    def new_warnings(self) -> list[str]:
        """Return the lines of warnings and errors that were written since the last call."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._read_to)
                written = log.read(_READ_BYTES_MAX)
        except FileNotFoundError:
            return []
        whole, newline, _ = written.rpartition(b"\n")
        if not newline and len(written) < _READ_BYTES_MAX:
            return []
        self._read_to += len(whole) + len(newline) if newline else len(written)
        told = map(for_people, whole.decode("utf-8", "replace").splitlines())
        lines = (f"{level} {message}".lstrip() for level, message in told)
        return [line for line in lines if _WARNING.search(line)]

    def tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self._last_lines()[-_TAIL_LINES:])

    def last_line(self) -> str:
        """Return the last line of the log that says anything."""
        lines = [line for line in self._last_lines() if line.strip()] or [""]
        level, message = for_people(lines[-1].strip())
        return message.partition(": ")[2] if level else message

    def _last_lines(self) -> list[str]:
        try:
            with self.log_path.open("rb") as log:
                size = self.log_path.stat().st_size
                log.seek(max(self._log_start, size - _READ_BYTES_MAX))
                return log.read().decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return []
