"""
Load from a process of its own: connections that each ask again once they are answered.

Raw HTTP/1.1 on asyncio, since the load shares the cores with what it measures. Whatever is not 2xx
is counted apart and is no part of the rate: a broken server must never look fast.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httptools
import uvloop

from everlens.errors import EverlensError

HOST = "127.0.0.1"
# Before each connection was answered once, the queue is still being filled; and each is measured at
# least once. So long is waited for both, beyond the seconds that were asked for, and for what is
# under way then.
PATIENCE_S = 30.0
_RECONNECT_S = 0.05
_SAID = 300  # bytes of an answer that are told


class LoadError(EverlensError):
    """The server did not answer as it was measured to; its figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Stream:
    """
    What some connections ask in turn.

    Args:
        requests: whole requests as `http_request` writes them.
        connections: how many ask, each with one request under way.
        pause_s: between an answer and the next request.
    """

    requests: Sequence[bytes]
    connections: int = 1
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What became of one stream.

    Args:
        rate: 2xx answers a second. Of each connection its whole requests are counted over the time
            that they took, so that no edge cuts a batch of answers in two.
        latencies_s: of the 2xx answers, sorted.
        statuses: how often each status came.
        lost: requests whose connection ended before an answer.
        refused: how the first answer begins that was not 2xx.
    """

    rate: float
    latencies_s: Sequence[float]
    statuses: Mapping[int, int]
    lost: int
    refused: str

    @property
    def failed(self) -> int:
        """How many requests were not answered with 2xx."""
        return self.lost + sum(n for status, n in self.statuses.items() if status // 100 != 2)

    @property
    def p50_s(self) -> float:
        """The median latency."""
        return percentile(self.latencies_s, 0.5)

    @property
    def p99_s(self) -> float:
        """The latency that one answer in a hundred exceeds."""
        return percentile(self.latencies_s, 0.99)

    def succeeded(self) -> Outcome:
        """
        Return this when everything was answered with 2xx.

        Raises:
            LoadError: something was not, or nothing was answered at all.
        """
        if self.failed or not self.latencies_s:
            counts = ", ".join(f"{n} x {status}" for status, n in sorted(self.statuses.items()))
            raise LoadError(
                f"not all was answered: {counts or 'no answer'}, {self.lost} lost. {self.refused}"
            )
        return self


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the sorted ones do not exceed; NaN of none."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def http_request(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """Return one request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def form_of(picture: bytes, **fields: str) -> tuple[bytes, dict[str, str]]:
    """Return a form with a file part named image and plain fields, and its headers."""
    border = "everlens-bench-border"
    head = "".join(
        f'--{border}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    head += (
        f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    form = head.encode() + picture + f"\r\n--{border}--\r\n".encode()
    return form, {"Content-Type": f"multipart/form-data; boundary={border}"}


class Load:
    """
    Load that runs in a process of its own until its time is over.

    Attributes:
        cpu_s: the processor's seconds that asking took, warming up included; once it is over.
    """

    def __init__(
        self, port: int, streams: Sequence[Stream], seconds: float, warm_up_s: float = 0.5
    ) -> None:
        plan = {
            "port": port,
            "seconds": seconds,
            "warm_up_s": warm_up_s,
            "streams": [
                {
                    "connections": stream.connections,
                    "pause_s": stream.pause_s,
                    "lengths": [len(request) for request in stream.requests],
                }
                for stream in streams
            ],
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pipe.write(json.dumps(plan).encode() + b"\n")
            for stream in streams:
                pipe.writelines(stream.requests)
        self.cpu_s = math.nan

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.process.poll() is None

    def outcomes(self) -> list[Outcome]:
        """
        Return what became of each stream, once its time is over.

        Raises:
            LoadError: its process failed.
        """
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            said = pipe.read()
        if self.process.wait() != 0:
            raise LoadError("the process that makes the load failed; it said why above")
        told = json.loads(said)
        self.cpu_s = told["cpu_s"]
        return [
            Outcome(
                rate=one["rate"],
                latencies_s=one["latencies_s"],
                statuses={int(status): n for status, n in one["statuses"].items()},
                lost=one["lost"],
                refused=one["refused"],
            )
            for one in told["outcomes"]
        ]


def run_load(port: int, stream: Stream, seconds: float, warm_up_s: float = 0.5) -> Outcome:
    """Return what became of one stream under load for so many seconds."""
    return Load(port, [stream], seconds, warm_up_s).outcomes()[0]


@dataclass(slots=True)
class _Tally:
    """What one stream has counted; `measuring` once it is warm."""

    measuring: bool = False
    stopping: bool = False
    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    refused: str = ""


@dataclass(slots=True)
class _Pace:
    """
    One connection: its whole requests while it was measured; `warm` once it had an answer, and
    `idle` while none that is measured is under way.
    """

    warm: asyncio.Event = field(default_factory=asyncio.Event)
    measured: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    good: int = 0
    begun_at: float = math.nan
    last_at: float = math.nan

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def rate(self) -> float:
        return self.good / (self.last_at - self.begun_at) if self.good else 0.0


class _Connection(asyncio.Protocol):
    """One connection: sends, reads the answer, sends again."""

    def __init__(
        self, requests: Iterator[bytes], pause_s: float, tally: _Tally, pace: _Pace
    ) -> None:
        self.requests, self.pause_s, self.tally, self.pace = requests, pause_s, tally, pace
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.sent_at = 0.0
        self.waiting = self.counted = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        if self.tally.stopping or self.transport is None or self.transport.is_closing():
            return
        self.waiting, self.counted = True, self.tally.measuring
        self.sent_at = time.perf_counter()
        if self.counted:
            self.pace.idle.clear()
            if math.isnan(self.pace.begun_at):
                self.pace.begun_at = self.sent_at
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        if self.parser.get_status_code() // 100 != 2:
            self.tally.refused = self.tally.refused or body[:_SAID].decode(errors="replace")

    def on_message_complete(self) -> None:
        assert self.transport is not None
        now, status = time.perf_counter(), self.parser.get_status_code()
        self.waiting = False
        self.pace.warm.set()
        self.pace.idle.set()
        if self.counted:
            self.pace.measured.set()
        if status // 100 == 2:
            if self.counted:
                self.tally.latencies_s.append(now - self.sent_at)
                self.tally.statuses[status] += 1
                self.pace.good, self.pace.last_at = self.pace.good + 1, now
        else:  # also while warming up
            self.tally.statuses[status] += 1
        if not self.parser.should_keep_alive():
            self.transport.close()
        elif self.pause_s:
            asyncio.get_running_loop().call_later(self.pause_s, self._send)
        else:
            # Not from inside the parser, which is not done with this answer yet.
            asyncio.get_running_loop().call_soon(self._send)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting and (self.counted or not self.tally.stopping):
            self.tally.lost += 1
            self.pace.warm.set()
            self.pace.measured.set()
            self.pace.idle.set()
        if not self.closed.done():
            self.closed.set_result(None)


async def _keep_asking(
    port: int, requests: Iterator[bytes], pause_s: float, tally: _Tally, pace: _Pace
) -> None:
    """Keep one connection up, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(requests, pause_s, tally, pace), HOST, port
            )
            await connection.closed
        except OSError:
            tally.lost += 1
            pace.warm.set()
            pace.measured.set()
        await asyncio.sleep(_RECONNECT_S)


async def _until(events: Iterable[asyncio.Event], at_least_s: float) -> None:
    """Return after some seconds, when all of this has come to pass, or when it takes too long."""
    await asyncio.sleep(at_least_s)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            for event in events:
                await event.wait()


async def _asked(port: int, plan: Mapping[str, Any], streams: Sequence[Stream]) -> list[Outcome]:
    tallies, paces, tasks = [], [], []
    for stream in streams:
        tally, requests = _Tally(), itertools.cycle(stream.requests)
        mine = [_Pace() for _ in range(stream.connections)]
        tallies.append(tally)
        paces.append(mine)
        tasks += [
            asyncio.create_task(_keep_asking(port, requests, stream.pause_s, tally, pace))
            for pace in mine
        ]
    every = list(itertools.chain(*paces))
    await _until([pace.warm for pace in every], plan["warm_up_s"])
    for tally in tallies:
        tally.measuring = True
    await _until([pace.measured for pace in every], plan["seconds"])
    for tally in tallies:
        tally.stopping = True
    # What is under way counts with all of its time: else a server that stalls at the end looks fast.
    await _until([pace.idle for pace in every], 0.0)
    for tally, mine in zip(tallies, paces, strict=True):
        tally.lost += sum(not pace.idle.is_set() for pace in mine)
    for task in tasks:
        task.cancel()
    return [
        Outcome(
            sum(p.rate for p in mine),
            sorted(tally.latencies_s),
            dict(tally.statuses),
            tally.lost,
            tally.refused,
        )
        for tally, mine in zip(tallies, paces, strict=True)
    ]


def main() -> int:
    """Read the plan and the requests from standard input, write the outcomes to its output."""
    plan = json.loads(sys.stdin.buffer.readline())
    streams = [
        Stream(
            [sys.stdin.buffer.read(length) for length in one["lengths"]],
            one["connections"],
            one["pause_s"],
        )
        for one in plan["streams"]
    ]
    begun_s = time.process_time()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcomes = runner.run(_asked(plan["port"], plan, streams))
    described = [asdict(outcome) for outcome in outcomes]
    tell({"outcomes": described, "cpu_s": time.process_time() - begun_s})
    return 0


def tell(outcomes: Mapping[str, Any]) -> None:
    """Write all of it to standard output, as JSON."""
    # Not `print`: with PYTHONUNBUFFERED it asks the kernel once. A write that has filled the pipe,
    # 64 kB, and waits for room may be cut short, and the rest would be lost without an error.
    with os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as output:
        output.write(json.dumps(outcomes).encode())


if __name__ == "__main__":
    sys.exit(main())
