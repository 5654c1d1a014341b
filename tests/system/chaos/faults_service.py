"""Faults that the service must bear: F28 to F31."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.system.chaos.campaign import case
from tests.system.chaos.disk import preload
from tests.system.chaos.ground import Ground, LogServer, must, samples, until
from tests.system.chaos.ledger import sample_of
from tests.system.processes import free_port


@case("F28", needs=["damaged_parts"])
def published_part_damaged(ground: Ground) -> None:
    """A part with other bytes than its digest is refused and reported; the old version answers."""
    ground.start_all()
    ground.post("s1", 1)
    ground.settle()
    until(lambda: ground.get("/readyz").get("version", 0) >= 1, "a version to serve", 10)
    assert ground.service is not None
    ground.service.signal(signal.SIGSTOP)
    ground.admit(samples(6, "more"))
    ground.settle()
    served = _parts(ground)
    damaged = next(name for name in served if name.startswith("evidence/0"))
    ground.client.setrange(ground.keys.part(served[damaged]), 100, b"damage")
    ground.tally.add("damaged_parts")
    ground.service.signal(signal.SIGCONT)
    until(lambda: ground.get("/learning")["refused_versions"], "the damage to be reported", 20)
    answer = ground.ask().json()
    head = int(ground.client.get(ground.keys.head).split()[0])  # type: ignore[union-attr]
    must(0 < answer["version"] < head, f"version {answer['version']} answers, the head is {head}")
    ground.service_starts = 0


def _parts(ground: Ground) -> dict[str, str]:
    head: Any = ground.client.get(ground.keys.head)
    manifest: Any = ground.client.get(ground.keys.manifest(int(head.split()[0])))
    parts: dict[str, str] = json.loads(manifest)["parts"]
    return parts


@case("F29", needs=["clock_jumps"])
def clocks_that_jump(ground: Ground) -> None:
    """A day forth and back on the server's clock, two days between worker and service: nothing."""
    clock = ground.directory / "clock"
    jumping = preload(ground.directory / "disk", clock_file=str(clock))
    ground.server = LogServer(ground.directory / "redis", before=jumping)
    ground.server.start()
    ground.create_log()
    ground.conditions = ["tomorrow"]
    ground.start_worker()
    ground.conditions = ["yesterday"]
    ground.start_service()
    for number, offset_s in enumerate((0, 86_400, -86_400, 0), start=1):
        clock.write_text(str(offset_s))
        now_s = int(ground.client.time()[0])
        ground.tally.add("clock_jumps", abs(offset_s) // 86_400)
        for k in range(3):
            answer = ground.post(f"s{number}-{k}", 3 * number + k)
            must(answer.status_code == 202, f"at {now_s}: {answer.status_code} {answer.text}")
        must(ground.post(f"s{number}-0", 3 * number).status_code == 200, "a repeat is new")
        ground.conditions = ["yesterday" if number % 2 else "tomorrow"]
        assert ground.worker is not None
        ground.worker.kill()
        ground.settle(30)
    ground.conditions = []
    ground.verify()


@case("F30", needs=["started_alone"])
def replica_started_while_the_log_is_down(ground: Ground) -> None:
    """A service that starts without the log answers with the version that it served last."""
    ground.start_all()
    for number in range(1, 7):
        ground.post(f"s{number}", number)
    ground.settle()
    version = int(ground.client.get(ground.keys.head).split()[0])  # type: ignore[union-attr]
    until(lambda: ground.get("/readyz").get("version") == version, "the head to serve", 10)
    before = ground.ask(version=version).json()["predictions"]
    ground.kill_service()
    ground.server.stop()
    ground.service = ground.fork_service()
    ground.tally.add("started_alone")
    until(lambda: ground.is_ready(ground.service), "a service without a log to be ready", 15)
    answer = ground.ask().json()
    must(answer["version"] == version, f"version {answer['version']}, before it was {version}")
    must(answer["predictions"] == before, "the same version answers otherwise")
    ground.server.start()
    until(lambda: ground.post("later", 9).status_code == 202, "a sample to be accepted", 20)
    ground.verify()


@case("F31", needs=["same_id_at_once"])
def same_id_from_two_replicas(ground: Ground) -> None:
    """The same id sent to two services at once is one entry, with one number for both."""
    ground.start_all()
    port = free_port()
    other = ground.fork_service("other", port=str(port))
    until(lambda: ground.is_ready(other, port), "the second service", 30)
    barrier = threading.Barrier(2)

    def send(url: str, number: int) -> httpx.Response:
        body = sample_of(f"both-{number}", number)
        with httpx.Client(base_url=url, timeout=20) as client:
            client.get("/livez")  # connected already when it matters
            barrier.wait()
            return client.post("/samples", json=body)

    urls = (ground.url, f"http://127.0.0.1:{port}")
    with ThreadPoolExecutor(2) as pool:
        for number in range(1, 21):
            answers = list(pool.map(send, urls, [number, number]))
            codes = sorted(answer.status_code for answer in answers)
            must(codes == [200, 202], f"two replicas answered {codes}")
            for answer in answers:
                ground.ledger.note(f"both-{number}", "ok", answer.json()["seq"])
            ground.tally.add("same_id_at_once")
    ground.verify()
