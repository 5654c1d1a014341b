"""What operators decide while it runs, and what greedy clients may not: pins, activations, floods."""

from __future__ import annotations

import resource
import threading
import time
from datetime import UTC, datetime
from typing import Any

import httpx

from everlens.keys import add_key
from tests.system.chaos.campaign import case
from tests.system.chaos.ground import Ground, must, until
from tests.system.chaos.ledger import sample_of
from tests.system.processes import free_port

FLOOD_S = 12.0
FLOODING = 8
POLITE_SHARE = 0.9
_MEMORY_BYTES = 400 << 20  # of what 8 floods may add to the service: bodies and pictures under way


def lineage_of(url: str) -> dict[int, dict[str, Any]]:
    versions = httpx.get(f"{url}/versions?limit=1000", timeout=20).json()["versions"]
    return {record["version"]: record for record in versions}


def served_by(url: str) -> int:
    return int(httpx.get(f"{url}/readyz", timeout=20).json()["version"])


@case(needs=["pins", "activations"])
def pin_and_activate_under_load(ground: Ground) -> None:
    """Head, learner and two services agree on a pin and on an activation, while others teach."""
    ground.start_all()
    port = free_port()
    second = ground.fork_service("second", port=str(port), data_dir=str(ground.directory / "two"))
    urls = [ground.url, f"http://127.0.0.1:{port}"]
    until(lambda: ground.is_ready(second, port), "the second service to be ready", 60)
    ground.teach(12)
    chosen = served_by(ground.url)
    # Before the load: under it, versions leave the last few within a second.
    pinned = httpx.post(f"{ground.url}/versions/{chosen}/pin", timeout=20)
    must(pinned.status_code == 200, f"it is not pinned: {pinned.text}")
    until(lambda: [served_by(url) for url in urls] == [chosen, chosen], "both to serve the pin", 20)
    clients = ground.start_clients(posters=2, askers=2)
    ground.wait(2)
    must([served_by(url) for url in urls] == [chosen, chosen], "a pin did not hold")
    must(max(lineage_of(ground.url)) > chosen, "learning stopped under a pin")

    answer = httpx.post(f"{ground.url}/versions/{chosen}/activate", timeout=20)
    must(answer.status_code == 202, f"it is not activated: {answer.text}")
    name = answer.json()["id"]
    until(lambda: ground.get(f"/samples/{name}").get("status") == "learnt", "the activation", 30)
    must([served_by(url) for url in urls] == [chosen, chosen], "a pin did not hold")
    httpx.delete(f"{ground.url}/versions/{chosen}/pin", timeout=20)
    until(lambda: min(served_by(url) for url in urls) > chosen, "both to serve the head again", 20)
    ground.tally.add("pins")
    ground.end_clients(clients)
    ground.settle()
    lineage = lineage_of(ground.url)
    descended = ground.get(f"/samples/{name}")["version"]
    must(lineage[descended]["restored_from"] == chosen, f"it descends from {lineage[descended]}")
    must(
        lineage[descended]["samples"] == lineage[chosen]["samples"],
        "what came after the chosen version was not set aside",
    )
    newest = max(lineage)
    until(lambda: [served_by(url) for url in urls] == [newest, newest], "both to agree", 20)
    ground.tally.add("activations")
    ground.verify()


@case(when="full", needs=["shares_refused"])
def flood_leaves_room_for_a_polite_client(ground: Ground) -> None:
    """Eight keys that send without a pause leave a ninth nine of ten samples, in bounded memory."""
    path = ground.data_dir / "keys.json"
    now = datetime.now(UTC)
    tokens = [
        add_key(path, f"client {k}", scopes=["learn", "classes", "read"], now=now)[1]
        for k in range(FLOODING + 1)
    ]
    ground.settings |= {"max_backlog_samples": "60"}
    ground.server.start()
    ground.create_log()
    ground.start_worker()
    service = ground.start_service()
    stopping = threading.Event()
    seen: list[dict[int, int]] = [{} for _ in tokens]

    def send(k: int, pause_s: float) -> None:
        headers = {"Authorization": f"Bearer {tokens[k]}"}
        with httpx.Client(base_url=ground.url, headers=headers, timeout=30) as client:
            number = 0
            while not stopping.is_set():
                number += 1
                code = client.post("/samples", json=sample_of(f"c{k}-{number}", number)).status_code
                seen[k][code] = seen[k].get(code, 0) + 1
                time.sleep(pause_s)

    before = _resident(service.pid)
    greedy = [
        threading.Thread(target=send, args=(k, 0.0), daemon=True)
        for k in range(FLOODING)
        for _ in range(4)
    ]
    polite = threading.Thread(target=send, args=(FLOODING, 0.25), daemon=True)
    for thread in [*greedy, polite]:
        thread.start()
    time.sleep(FLOOD_S)
    grown = _resident(service.pid) - before
    stopping.set()
    for thread in [*greedy, polite]:
        thread.join(40)
    accepted = seen[FLOODING].get(202, 0)
    sent = sum(seen[FLOODING].values())
    refused = sum(codes.get(429, 0) for codes in seen[:FLOODING])
    ground.notes.append(f"polite {accepted} of {sent}, greedy refused {refused}")
    ground.tally.add("shares_refused", refused)
    must(sent >= 10, f"the polite client got only {sent} answers")
    must(accepted >= POLITE_SHARE * sent, f"polite {accepted} of {sent}: {seen[FLOODING]}")
    must(grown < _MEMORY_BYTES, f"the service grew by {grown >> 20} MB")


def _resident(pid: int) -> int:
    """Return the bytes of memory that a process holds (Linux)."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * resource.getpagesize()
