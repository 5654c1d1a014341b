"""
A socket between a client and the server that breaks one exchange on demand.

cut-request: never reaches the server, not executed. drop-reply: executed, the client does not
know. half-reply: executed, the client sees half an answer. stall: executed, the reply is kept back
until `release`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from pathlib import Path

MODES = ("cut-request", "drop-reply", "half-reply", "stall")


class Proxy:
    """Listens at `path` and hands everything on to `upstream`, but for what is armed."""

    def __init__(self, upstream: Path, path: Path) -> None:
        self.upstream = upstream
        self.path = path
        self.broken: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._armed: list[tuple[str, bytes]] = []
        self._released = threading.Event()
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"unix://{self.path}"

    def arm(self, mode: str, match: bytes = b"") -> None:
        """Break the next exchange whose request holds `match`."""
        assert mode in MODES
        self._released.clear()
        with self._lock:
            self._armed.append((mode, match))

    def release(self) -> None:
        """Let stalled replies go on, and break nothing more."""
        with self._lock:
            self._armed.clear()
        self._released.set()

    def close(self) -> None:
        self.release()
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _take(self, request: bytes) -> str:
        with self._lock:
            for place, (mode, match) in enumerate(self._armed):
                if match in request:
                    del self._armed[place]
                    self.broken[mode] += 1
                    return mode
        return ""

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self.upstream))
            except OSError:
                client.close()
                continue
            _Pair(self, client, server)


class _Pair:
    """One client's connection and its continuation."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        self.mode = ""
        for target in (self._upwards, self._downwards):
            threading.Thread(target=target, daemon=True).start()

    def _upwards(self) -> None:
        with contextlib.suppress(OSError):
            while request := self.client.recv(1 << 18):
                mode = self.proxy._take(request)
                if mode == "cut-request":
                    break
                self.mode = mode or self.mode  # before the server can answer
                self.server.sendall(request)
        self._hang_up()

    def _downwards(self) -> None:
        with contextlib.suppress(OSError):
            while reply := self.server.recv(1 << 18):
                if self.mode == "half-reply":
                    self.client.sendall(reply[: max(1, len(reply) // 2)])
                if self.mode in {"drop-reply", "half-reply"}:
                    break
                if self.mode == "stall":
                    self.proxy._released.wait()
                    self.mode = ""
                self.client.sendall(reply)
        self._hang_up()

    def _hang_up(self) -> None:
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()
