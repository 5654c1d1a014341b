"""What is said while the log is away."""

from __future__ import annotations

import itertools
import logging

import pytest

from everlens.bus.connect import connect
from everlens.bus.keys import Keys
from everlens.bus.server import EmbeddedServer
from everlens.bus.stream import Stream
from everlens.errors import LogUnavailable
from everlens.model.backbone import Backbone
from tests.unit.worker.conftest import Bench, digit_samples, run_to
from worker.outage import Outage


def test_silence_grows_while_the_log_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """Five failures a second for an hour are said some twenty times; the next outage begins anew."""
    now = 0.0
    outage = Outage(lambda: now)
    said_at = []
    for _ in range(2):
        for tick in range(5 * 3600):
            now = tick / 5
            outage.noticed(LogUnavailable("the log does not answer"))
            if caplog.records:
                said_at.append((now, caplog.messages[-1]))
                caplog.clear()
        outage.over()
        outage.over()
        assert caplog.messages == ["the log answers again after 3599.8 s"]
        caplog.clear()

    assert [at for at, _ in said_at[:6]] == [0, 5, 15, 35, 75, 155]
    assert said_at[0][1] == "the log does not answer; trying again"
    assert said_at[2][1] == "the log does not answer; trying again for 15 s already"
    gaps = [after - at for (at, _), (after, _) in itertools.pairwise(said_at)]
    assert max(gaps) <= 300
    assert len(said_at) < 2 * 20
    assert said_at.count(said_at[0]) == 2


def test_stopped_server_is_a_line_and_not_one_for_each_try(
    tiny_clip: Backbone, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A learner whose log goes away says so once, says when it is back, and learns on."""
    directory = tmp_path_factory.mktemp("o")
    server = EmbeddedServer(directory / "log", maxmemory_bytes=64 << 20)
    server.start()
    bench = Bench(server.url, connect(server.url), Keys("t"), tiny_clip, directory)
    Stream(bench.client, bench.keys).create()
    bench.admit(digit_samples(4))
    loop = run_to(bench.loop(), 4)
    server.stop()
    tries, hold = 0, loop.stream.hold

    def counted(*arguments: object) -> bool:
        nonlocal tries
        tries += 1
        return hold(*arguments)  # type: ignore[arg-type]

    loop.stream.hold = counted  # type: ignore[method-assign,assignment]
    with caplog.at_level(logging.WARNING, "everlens.worker"):
        loop.run(lambda: tries >= 4)
        said = [message for message in caplog.messages if "trying again" in message]
        server.start()
        bench.admit(digit_samples(8))
        run_to(loop, 8)
    loop.close()
    bench.client.close()
    server.stop()

    assert len(said) == 1
    assert "the log does not answer" in said[0]
    assert sum("the log answers again" in message for message in caplog.messages) == 1
    assert loop.learner.samples == 8
