"""What one run of everlens holds alone: its data directory and its port."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from everlens.errors import SettingsError

_ORPHANS_S = 15.0


def hold_directory(directory: Path) -> int:
    """
    Make `directory` and lock it; return the descriptor that holds the lock.

    Children inherit the descriptor, so that the lock is held until the last of them has gone. A
    predecessor that was killed is waited for; one that lives is not.

    Raises:
        SettingsError: another everlens uses it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "logs").mkdir(exist_ok=True)
        lock = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SettingsError(
            f"cannot write to {directory}: {error.strerror}; set EVERLENS_DATA_DIR to another "
            "directory"
        ) from error
    deadline = time.monotonic() + _ORPHANS_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            if _lives(owner) or time.monotonic() > deadline:
                os.close(lock)
                raise SettingsError(
                    f"process {owner or 'unknown'} already uses {directory}; stop it (Ctrl-C), "
                    "or set EVERLENS_DATA_DIR to another directory"
                ) from None
            time.sleep(0.05)
        else:
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            return lock


def _lives(process_id: str) -> bool:
    if not process_id.isdecimal():
        return False
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_port(host: str, port: int) -> None:
    """
    Return when a service can listen there.

    Raises:
        SettingsError: the port is in use, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            # Linux lets two sockets be bound with SO_REUSEADDR as long as none of them listens.
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} on {host} is in use; stop what listens there, or choose another "
                f"with EVERLENS_PORT={port + 1}"
            ) from error
        raise SettingsError(f"cannot listen on {host} port {port}: {error.strerror}") from error
