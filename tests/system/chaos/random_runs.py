"""Random, by seed: kills and stops of server, worker and service, and a proxy that breaks replies."""

from __future__ import annotations

import hashlib
import random
import signal
import time
from collections.abc import Callable

import httpx

from everlens.bus.scripts import script
from tests.system.chaos.campaign import case
from tests.system.chaos.faults_worker import damage_file
from tests.system.chaos.ground import Ground, until
from tests.system.chaos.points import POINTS
from tests.system.chaos.proxy import MODES, Proxy

ACTIONS = 30
# Every script's call carries its digest. The worker calls most of them, and most often.
_EXCHANGES = [
    hashlib.sha1(script(name).encode()).hexdigest().encode()
    for name in ("admit", "admit", "publish", "store", "trim", "lease")
] + [b""]
_PAUSE_S = 0.35  # at most, between two actions


def kill_worker(ground: Ground, proxy: Proxy) -> None:
    assert ground.worker is not None
    ground.worker.kill()
    ground.tend()


def kill_server(ground: Ground, proxy: Proxy) -> None:
    ground.server.kill()
    ground.tally.add("server_kills")
    # Not started at once: others look for it meanwhile.
    time.sleep(ground.rng.uniform(0, 0.4))
    ground.start_server()


def kill_service(ground: Ground, proxy: Proxy) -> None:
    ground.kill_service()
    ground.start_service()


def stop_worker(ground: Ground, proxy: Proxy) -> None:
    assert ground.worker is not None
    ground.worker.signal(signal.SIGSTOP)
    time.sleep(ground.rng.uniform(0.1, 0.5))
    ground.worker.signal(signal.SIGCONT)
    ground.tally.add("worker_stops")


def stop_server(ground: Ground, proxy: Proxy) -> None:
    ground.server.signal(signal.SIGSTOP)
    time.sleep(ground.rng.uniform(0.1, 0.5))
    ground.server.signal(signal.SIGCONT)
    ground.tally.add("server_stops")


def stop_service(ground: Ground, proxy: Proxy) -> None:
    assert ground.service is not None
    ground.service.signal(signal.SIGSTOP)
    time.sleep(ground.rng.uniform(0.1, 0.3))
    ground.service.signal(signal.SIGCONT)
    ground.tally.add("service_stops")


def break_exchange(ground: Ground, proxy: Proxy) -> None:
    proxy.release()
    proxy.arm(ground.rng.choice(MODES), ground.rng.choice(_EXCHANGES))


def damage_state(ground: Ground, proxy: Proxy) -> None:
    copies = [ground.state_path.with_suffix(f".{k}.db") for k in (1, 2)]
    if not all(copy.exists() for copy in copies):
        return
    assert ground.worker is not None
    ground.worker.kill()
    damage_file(ground, "bytes")
    ground.tend()


def activate(ground: Ground, proxy: Proxy) -> None:
    versions = ground.get("/versions?limit=5").get("versions", [])
    if not versions:
        return
    version = ground.rng.choice(versions)["version"]
    answer = httpx.post(f"{ground.url}/versions/{version}/activate", timeout=20)
    ground.tally.add("activations", int(answer.status_code == 202))


_WEIGHTED: dict[Callable[[Ground, Proxy], None], int] = {
    kill_worker: 10,
    kill_server: 4,
    kill_service: 1,
    stop_worker: 2,
    stop_server: 2,
    stop_service: 1,
    break_exchange: 10,
    damage_state: 2,
    activate: 1,
}


def random_death(rng: random.Random) -> tuple[str, int] | None:
    """Return where the next worker dies by itself, if it does."""
    return (rng.choice(POINTS), rng.randint(1, 4)) if rng.random() < 0.5 else None


@case(needs=["worker_kills", "posts_unknown"])
def random_chaos(ground: Ground) -> None:
    """Whatever is killed, stopped and cut by chance: nothing lost, nothing double, same bits."""
    ground.settings |= {"adapter_every_rounds": "5", "copy_every_entries": "24"}
    proxy = ground.use_proxy()
    ground.start_all()
    ground.next_death = lambda: random_death(ground.rng)
    clients = ground.start_clients(3, 2, pause_s=0.06)
    kinds, weights = list(_WEIGHTED), list(_WEIGHTED.values())
    for action in ground.rng.choices(kinds, weights, k=ACTIONS):
        ground.wait(ground.rng.uniform(0, _PAUSE_S))
        action(ground, proxy)
    proxy.release()
    ground.end_clients(clients)
    ground.next_death = lambda: None
    for mode, count in proxy.broken.items():
        ground.tally.add(f"proxy_{mode}", count)
    ground.verify()
    until(lambda: ground.serves_head(), "the service to serve the head", 20)
