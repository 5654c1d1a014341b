"""The load: what it counts, against a server that answers as told."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bench.load import HOST, Load, LoadError, Stream, http_request, run_load

Reply = Callable[[int, bytes], bytes | None]  # None: hang up


def answered(status: int) -> bytes:
    body = b"%d and why" % status
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@contextmanager
def serving(reply: Reply, pause_s: float = 0.002) -> Iterator[int]:
    """Give the port of a server in a thread; `reply` gets the number of the request and it."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    ports: list[int] = []
    seen = [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                await asyncio.sleep(pause_s)
                seen[0] += 1
                answer = reply(seen[0], head + body)
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, HOST, 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stopped.wait()
        server.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0)  # in which the closed connections are let go

    stopped = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    ready.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


def test_the_rate_is_that_of_the_server() -> None:
    """Four connections and 20 ms an answer are 200 a second at most, and nothing failed."""
    with serving(lambda *_: answered(200), pause_s=0.02) as port:
        outcome = run_load(port, Stream([http_request("GET", "/")], 4), 0.5, 0.1).succeeded()

    assert outcome.rate <= 200
    assert 0.02 <= outcome.p50_s <= outcome.p99_s
    assert outcome.rate == pytest.approx(
        4 / (sum(outcome.latencies_s) / len(outcome.latencies_s)), rel=0.2
    )


def test_requests_arrive_whole_and_in_turn() -> None:
    """Method, path, headers and bodies are what was asked for, one request after the other."""
    seen: list[bytes] = []
    bodies = [bytes([k]) * 100_000 for k in range(3)]

    def reply(_: int, request: bytes) -> bytes:
        seen.append(request)
        return answered(202)

    requests = [http_request("POST", "/samples?x=1", b, {"Content-Type": "a/b"}) for b in bodies]
    with serving(reply) as port:
        run_load(port, Stream(requests), 0.5, 0.1).succeeded()

    assert seen[:4] == [*requests, requests[0]]
    assert seen[0].startswith(b"POST /samples?x=1 HTTP/1.1\r\n")
    assert b"Content-Type: a/b\r\n" in seen[0]


def test_a_broken_server_is_not_a_fast_one() -> None:
    """What is not 2xx is counted apart; it makes neither the rate nor the latencies."""
    with serving(lambda n, _: answered(503 if n % 2 else 200), pause_s=0.01) as port:
        outcome = run_load(port, Stream([http_request("GET", "/")], 2), 0.25, 0.05)

    assert outcome.statuses[503] > 0
    assert outcome.rate < 2 / 0.01 * 0.6
    assert len(outcome.latencies_s) == outcome.statuses[200]
    with pytest.raises(LoadError, match=r"x 503, 0 lost\. 503 and why"):
        outcome.succeeded()


def test_a_server_that_stalls_is_not_a_fast_one() -> None:
    """What is under way when the time is over is waited for, and all of its wait is in the figures."""
    begun = 0.0

    def reply(number: int, _: bytes) -> bytes:
        nonlocal begun
        begun = begun or time.monotonic()
        if 0.15 < time.monotonic() - begun < 0.6:
            time.sleep(0.6)
        return answered(200)

    with serving(reply, pause_s=0.01) as port:
        outcome = run_load(port, Stream([http_request("GET", "/")], 2), 0.5, 0.05).succeeded()

    assert outcome.p99_s > 0.5
    assert outcome.rate < 2 / 0.01 * 0.5


def test_connections_that_end_without_an_answer_are_lost() -> None:
    """A server that hangs up now and then is asked again, and each time it is told."""
    with serving(lambda n, _: None if n % 5 == 0 else answered(200)) as port:
        outcome = run_load(port, Stream([http_request("GET", "/")]), 0.5, 0.05)

    assert outcome.lost > 0
    assert outcome.statuses[200] > 0
    with pytest.raises(LoadError, match="lost"):
        outcome.succeeded()


def test_a_server_that_is_not_there_is_an_error() -> None:
    """Nothing was answered, so there is no figure."""
    with serving(lambda *_: answered(200)) as port:
        pass
    with pytest.raises(LoadError):
        run_load(port, Stream([http_request("GET", "/")]), 0.1, 0.1).succeeded()


def test_what_a_pipe_does_not_take_at_once_is_not_lost() -> None:
    """A write that a signal cuts short goes on, also where output is not buffered."""
    interrupted = (
        "import signal; from bench.load import tell\n"
        "signal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\n"
        "tell({'latencies_s': [0.5] * 100_000})\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
    )
    with subprocess.Popen([sys.executable, "-u", "-c", interrupted], stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        said = one.stdout.read(1)  # and then the pipe is full for a while
        time.sleep(0.1)
        said += one.stdout.read()

    assert one.returncode == 0
    assert len(json.loads(said)["latencies_s"]) == 100_000


def test_two_streams_are_counted_apart_and_one_may_pause() -> None:
    """The stream that pauses asks less often; each has its own outcome."""
    eager = Stream([http_request("GET", "/eager")])
    patient = Stream([http_request("GET", "/patient")], pause_s=0.1)
    with serving(lambda *_: answered(200)) as port:
        fast, slow = Load(port, [eager, patient], 0.4, 0.05).outcomes()

    assert 1 <= slow.statuses[200] <= 5
    assert slow.statuses[200] < fast.statuses[200]
