"""
What one case stands on: a server, forked workers and services over it, and the checker at the end.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis

from everlens.bus.connect import connect
from everlens.bus.keys import Keys
from everlens.bus.server import EmbeddedServer, find_binary
from everlens.bus.stream import Stream
from everlens.errors import LogUnavailable, ServerError
from everlens.pixels import encode_pixels
from everlens.records import Sample
from everlens.wire import encode_sample
from tests.system.chaos import truth
from tests.system.chaos.forked import Forked, Zygote
from tests.system.chaos.ledger import (
    LABELS,
    Asker,
    Ledger,
    Poster,
    encoded,
    picture,
    sample_of,
)
from tests.system.chaos.proxy import Proxy
from tests.system.chaos.tally import Tally
from tests.system.processes import free_port

SETTLE_S = 90.0
EXIT_AGAIN = 1  # of a worker that is to be started again
EXIT_STATE = 3  # of a worker that must not go on learning

# Small, so that a life of many deaths fits into seconds.
SETTINGS = {
    "model": "",
    "pretrained": "random",
    "batch_size": "4",
    "linger_ms": "20",
    "sit_steps": "1",
    "sit_first_steps": "1",
    "lora_rank": "2",
    "top_blocks": "2",
    "replay_samples": "4",
    "replay_bytes": str(2**20),
    "adapter_every_rounds": "2",
    "adapter_idle_s": "0.1",
    "service_threads": "1",
    "decoders": "1",
    "id_window": "100000",
}


class Broken(AssertionError):
    """Something that must hold does not."""


class NotPossible(Exception):
    """This machine lacks what the case needs; it is not counted as held."""


def until(condition: Callable[[], Any], what: str, within_s: float = SETTLE_S) -> Any:
    """Return the first true value of `condition()`."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Broken(f"{what}: not within {within_s:g} s")
        time.sleep(0.01)
    return value


def must(holds: object, what: str) -> None:
    """Fail when something does not hold."""
    if not holds:
        raise Broken(what)


class LogServer(EmbeddedServer):
    """The embedded server, with odd surroundings where a case asks for them."""

    def __init__(self, directory: Path, *, options: str = "", before: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        binary = ""
        if options or before:
            # The launcher is given this script as its binary; settings on the line come last.
            script = directory / "odd-server"
            real = find_binary()
            script.write_text(
                f'#!/bin/sh\n{before}\n[ "$1" = --version ] && exec {real} --version\n'
                f'exec {real} "$@" {options}\n'
            )
            script.chmod(0o700)
            binary = str(script)
        super().__init__(directory, binary=binary, maxmemory_bytes=256 * 2**20)

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it as a power switch would, but for what the kernel has."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an undisturbed run."""

    state: truth.Learnt
    head: truth.Published | None


class Quiet:
    """Runs logs again with nobody disturbing; remembers the outcome of each."""

    def __init__(self, zygote: Zygote, directory: Path) -> None:
        self.zygote = zygote
        self.directory = directory
        self.server = LogServer(directory / "redis")
        self._known: dict[str, Outcome] = {}
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self.server.stop()

    def outcome(self, entries: list[truth.Logged], settings: dict[str, str], **how: Any) -> Outcome:
        """Return what one worker makes of these entries."""
        name = json.dumps([truth.digest_of_log(entries), settings, how], sort_keys=True)
        if name not in self._known:
            self._known[name] = self._run(entries, settings, how)
        return self._known[name]

    def _run(
        self, entries: list[truth.Logged], settings: dict[str, str], how: dict[str, Any]
    ) -> Outcome:
        namespace = f"quiet-{next(self._numbers)}"
        client = connect(self.server.url)
        write_log(client, namespace, entries)
        directory = self.directory / namespace
        directory.mkdir()
        environment = {f"EVERLENS_{k.upper()}": v for k, v in settings.items()} | {
            "EVERLENS_REDIS_URL": self.server.url,
            "EVERLENS_NAMESPACE": namespace,
            "EVERLENS_DATA_DIR": str(directory),
            # Whatever decided by the time is in the log already.
            "EVERLENS_ADAPTER_IDLE_S": "3600",
        }
        worker = self.zygote.fork("worker", environment, directory / "worker.log", **how)
        path = directory / "state" / "learner.db"
        last = entries[-1].seq if entries else 0

        def at_rest() -> bool:
            must(worker.code is None, f"the worker ended with {worker.code}: {last_line(worker)}")
            return settled(client, namespace, progress_of(path), last)

        try:
            until(at_rest, "the undisturbed run", 300)
            state = truth.learnt(path)
            assert state is not None
            return Outcome(state, truth.published(client, namespace))
        finally:
            worker.kill()
            for key in client.scan_iter(f"{{{namespace}}}:*", count=1000):
                client.unlink(key)
            client.close()


def write_log(client: redis.Redis, namespace: str, entries: list[truth.Logged]) -> None:
    """Write a log as it stood when nothing of it was learnt."""
    keys = Keys(namespace)
    pipe = client.pipeline(transaction=False)
    size = 0
    for entry in entries:
        named = dict(zip(entry.fields[::2], entry.fields[1::2], strict=True))
        size += len(named[b"payload"])
        fields: Any = named
        pipe.xadd(keys.log, fields, id=f"{entry.seq}-0")
    last = entries[-1].seq if entries else 0
    meta: Any = {"epoch": "quiet", "seq": last, "bytes": size, "paused": ""}
    meta |= dict.fromkeys(("done", "kept", "fence"), 0)
    pipe.hset(keys.meta, mapping=meta)
    pipe.execute()


def settled(
    client: redis.Redis, namespace: str, progress: dict[str, Any] | None, last: int
) -> bool:
    """Return whether all up to entry `last` is learnt, tuned, published and trimmed."""
    if (
        progress is None
        or progress["cursor"] < last
        or any(progress[name] for name in ("tunes", "owed", "adapter_due"))
    ):
        return False
    keys = Keys(namespace)
    head: Any = client.get(keys.head)
    done: Any = client.hget(keys.meta, "done")
    named = f"{progress['version']} {progress['digest']}".encode() if progress["version"] else None
    return bool(head == named and int(done or 0) == progress["cursor"])


def progress_of(path: Path) -> dict[str, Any] | None:
    """Return the learner's committed progress, with the rounds `owed`; None before the first commit."""
    with contextlib.suppress(sqlite3.DatabaseError):  # also while it is damaged on purpose
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            row = db.execute("SELECT record, (SELECT count(*) FROM rounds) FROM head").fetchone()
        finally:
            db.close()
        if row is not None:
            progress: dict[str, Any] = json.loads(row[0])["progress"]
            return progress | {"owed": row[1]}
    return None


def last_line(process: Forked) -> str:
    """Return the last thing that a process said."""
    lines = [line for line in process.said().splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was said"


class Ground:
    """One case's own server, state, service and clients, all ended by `close`."""

    def __init__(
        self, zygote: Zygote, quiet: Quiet, directory: Path, seed: int, tally: Tally
    ) -> None:
        self.zygote = zygote
        self.quiet = quiet
        self.directory = directory
        self.seed = seed
        self.tally = tally
        self.rng = random.Random(seed)
        self.ledger = Ledger()
        self.settings = SETTINGS | {"model": str(zygote.model_folder)}
        self.namespace = "chaos"
        self.data_dir = directory
        self.server = LogServer(directory / "redis")
        self.log_url = ""  # another address for worker and service, such as a proxy's
        self.port = free_port()
        self.worker: Forked | None = None
        self.service: Forked | None = None
        self.service_starts = 0  # negative while it is down
        self.mutations: list[str] = []
        self.conditions: list[str] = []
        self.next_death: Callable[[], tuple[str, int] | None] = lambda: None
        self.kinds = ""  # of the log's entries, in their order
        self.notes: list[str] = []  # printed with the verdict
        self.ends: list[Callable[[], object]] = []
        directory.mkdir(parents=True, exist_ok=True)

    # Processes

    @property
    def keys(self) -> Keys:
        return Keys(self.namespace)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state_path(self) -> Path:
        return self.data_dir / "state" / "learner.db"

    @functools.cached_property
    def client(self) -> redis.Redis:
        """A connection to the server itself, closed with the ground."""
        client = connect(self.server.url)
        self.ends.append(client.close)
        return client

    def environment(self, **changed: str) -> dict[str, str]:
        """Return the settings of a process as its environment."""
        settings = self.settings | {
            "redis_url": self.log_url or self.server.url,
            "namespace": self.namespace,
            "data_dir": str(self.data_dir),
            "port": str(self.port),
        }
        return {f"EVERLENS_{k.upper()}": v for k, v in (settings | changed).items()}

    def fork_worker(
        self, dies: tuple[str, int] | None = None, *, name: str = "worker", **how: Any
    ) -> Forked:
        """Return a new worker beside the others."""
        changed = how.pop("changed", {})
        child = self.zygote.fork(
            "worker",
            self.environment(**changed),
            self.directory / f"{name}.log",
            dies=dies,
            mutations=[m for m in self.mutations if m not in _OF_SERVICE],
            conditions=self.conditions,
            **how,
        )
        self.ends.append(child.kill)
        return child

    def start_worker(self, dies: tuple[str, int] | None = None, **how: Any) -> Forked:
        """Start the worker of this ground."""
        self.worker = self.fork_worker(dies, **how)
        return self.worker

    def fork_service(self, name: str = "service", **changed: str) -> Forked:
        """Return a new service beside the others; not yet ready."""
        child = self.zygote.fork(
            "service",
            self.environment(**changed),
            self.directory / f"{name}.log",
            mutations=[m for m in self.mutations if m in _OF_SERVICE],
            conditions=[c for c in self.conditions if c != "short-lease"],
        )
        self.ends.append(child.kill)
        return child

    def start_service(self) -> Forked:
        """Start the service of this ground and wait until it may be asked."""
        self.service = self.fork_service()
        until(lambda: self.is_ready(self.service), "the service to be ready", 60)
        self.service_starts = abs(self.service_starts) + 1
        return self.service

    def is_ready(self, service: Forked | None, port: int = 0) -> bool:
        """Return whether the service may be asked; fail when it has ended."""
        assert service is not None
        must(service.code is None, f"the service ended with {service.code}: {last_line(service)}")
        try:
            answer = httpx.get(f"http://127.0.0.1:{port or self.port}/readyz", timeout=5)
        except httpx.TransportError:
            return False
        return answer.status_code == 200

    def up(self) -> int:
        """Return the number of the service's present start; 0 while it is down."""
        return max(0, self.service_starts)

    def kill_service(self) -> None:
        """Kill the service; clients are not blamed for what they meet until it is back."""
        assert self.service is not None
        self.service_starts = -abs(self.service_starts)
        self.service.kill()
        self.tally.add("service_kills")

    def kill_server(self) -> None:
        """Kill the server and start it again."""
        self.server.kill()
        self.tally.add("server_kills")
        self.start_server()

    def start_server(self) -> None:
        """Start the server, again and again where it leaves at once."""
        for _ in range(3):
            with contextlib.suppress(ServerError):
                self.server.start()
                return
            time.sleep(0.2)
        self.server.start()

    def tend(self) -> None:
        """Start again whatever died by a kill; any other end is a failure."""
        if not self.server.running:
            self.tally.add("server_exits")
            self.start_server()
        if self.worker is not None and self.worker.code is not None:
            code = self.worker.code
            must(
                code in {-signal.SIGKILL, EXIT_AGAIN},
                f"the worker ended with {code}: {last_line(self.worker)}",
            )
            self.tally.add("worker_kills" if code != EXIT_AGAIN else "worker_exits")
            self.start_worker(self.next_death())

    def stop_worker(self) -> None:
        """Let the worker end in order."""
        assert self.worker is not None
        code = self.worker.stop()
        must(code == 0, f"the worker ended with {code} when it was asked to: {self.worker.said()}")
        self.worker = None

    def end_worker(self) -> None:
        """Kill the worker, and start no other."""
        assert self.worker is not None
        self.worker.kill()
        self.worker = None

    def begin_anew(self, name: str) -> None:
        """Go on with another log and another state on the same server."""
        self.namespace = name
        self.data_dir = self.directory / name
        self.data_dir.mkdir()
        self.ledger = Ledger()

    def wait(self, seconds: float) -> None:
        """Let things happen, and start again what died of it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tend()
            time.sleep(0.01)

    # Clients

    def start_clients(self, posters: int, askers: int, pause_s: float = 0.02) -> list[Any]:
        """Start clients of the service; ended by `end_clients`, or with the ground."""
        clients: list[Poster | Asker] = [
            Poster(self.url, self.ledger, f"client{k}", self.seed, pause_s) for k in range(posters)
        ]
        clients += [Asker(self.url, self.ledger, self.up, f"asker{k}") for k in range(askers)]
        for client in clients:
            client.start()
            self.ends.append(client.stopping.set)
        return clients

    def post(self, id: str, number: int = 1) -> httpx.Response:
        """Send one sample and note what came of it."""
        with httpx.Client(base_url=self.url, timeout=20) as client:
            answer = client.post("/samples", json=sample_of(id, number))
        kind = answer.json().get("type", "").rpartition("/")[2]
        outcome = {"": "ok", "log-unavailable": "unknown"}.get(kind, "refused")
        self.ledger.note(id, outcome, answer.json().get("seq", 0))
        return answer

    def teach(self, count: int, prefix: str = "s") -> None:
        """Teach a few samples over HTTP, each accepted at once, and come to rest."""
        for number in range(1, count + 1):
            answer = self.post(f"{prefix}{number}", number)
            must(answer.status_code == 202, f"a sample is not accepted: {answer.text}")
        self.settle()

    def ask(self, **fields: Any) -> httpx.Response:
        """Ask what is in a picture."""
        question = {"image": encoded(1, 0), "labels": list(LABELS)} | fields
        return httpx.post(f"{self.url}/classify", json=question, timeout=20)

    def get(self, path: str) -> Any:
        """Return what the service answers, as JSON."""
        return httpx.get(f"{self.url}{path}", timeout=20).json()

    def beside(self, name: str) -> Ground:
        """Return a ground of its own, with counts of its own; closed with this one."""
        other = Ground(self.zygote, self.quiet, self.directory / name, self.seed, Tally())
        self.ends.append(other.close)
        return other

    def use_proxy(self) -> Proxy:
        """Put a proxy between the server and those who are started after this."""
        proxy = Proxy(self.server.socket, self.directory / "proxy.sock")
        self.log_url = proxy.url
        self.ends.append(proxy.close)
        return proxy

    def start_all(self) -> None:
        """Start server, worker and service."""
        self.server.start()
        self.create_log()
        self.start_worker()
        self.start_service()

    def end_clients(self, clients: list[Any]) -> None:
        """Let every client settle its last sample; tends the processes meanwhile."""
        for client in clients:
            client.stopping.set()

        def ended() -> bool:
            self.tend()
            return not any(client.is_alive() for client in clients)

        until(ended, "the clients to settle what is unknown")

    # Samples put into the log without a service

    def admit(self, samples: Sequence[Sample]) -> None:
        """Put samples into the log, all at once."""
        self.inject({sample.id: encode_sample(sample) for sample in samples})

    def inject(self, payloads: Mapping[str, bytes], kind: str = "sample") -> None:
        """Put payloads of any bytes into the log, by id, as admission would have."""
        inject = self.client.register_script(_INJECT)
        keys = self.keys
        for name, payload in payloads.items():
            digest = hashlib.sha256(payload).hexdigest()
            seq: Any = inject(
                keys=[keys.meta, keys.log, keys.ids, keys.id_order],
                args=[name, digest, payload, kind],
            )
            if kind == "sample":
                self.ledger.note(name, "ok", int(seq))

    def create_log(self) -> None:
        """Begin the log, as the first start of a worker does."""
        Stream(self.client, self.keys).create()

    # The end

    def settle(self, within_s: float = SETTLE_S) -> None:
        """Wait until all that was accepted is learnt and published, and the learner is idle."""

        def at_rest() -> bool:
            self.tend()
            return self.rests()

        until(at_rest, "the learner to come to rest", within_s)

    def begun(self) -> bool:
        """Return whether the worker holds the log."""
        return progress_of(self.state_path) is not None and bool(
            self.client.exists(self.keys.lease)
        )

    def serves_head(self) -> bool:
        """Return whether the service answers with the newest version."""
        head: Any = self.client.get(self.keys.head)
        return head is None or self.get("/readyz").get("version") == int(head.split()[0])

    def rests(self) -> bool:
        """Return whether all that is in the log is learnt and published, and nothing is due."""
        with contextlib.suppress(redis.RedisError, LogUnavailable):
            last: Any = self.client.hget(self.keys.meta, "seq")
            progress = progress_of(self.state_path)
            if progress is None or progress["rounds"] or progress["waiting"]:
                return False
            if progress["cursor"] != int(last):
                return False
            return settled(self.client, self.namespace, progress, int(last))
        return False

    def findings(self, **how: Any) -> truth.Findings:
        """Return what the checker finds, compared with an undisturbed run over the same log."""
        entries = truth.logged(self.server.directory, self.namespace)
        state = truth.learnt(self.state_path)
        assert state is not None
        found = truth.check(self.ledger.acked, entries, state)
        how = {"mutations": [m for m in self.mutations if m not in _OF_SERVICE]} | how
        undisturbed = self.quiet.outcome(entries, self.settings, **how)
        head = truth.published(self.client, self.namespace)
        found.different += truth.compare(state, head, undisturbed.state, undisturbed.head)
        self.tally.add("acked", len(self.ledger.acked))
        self.tally.add("lost", len(found.lost))
        self.tally.add("double", len(found.double))
        self.tally.add("different", len(found.different))
        kinds = [entry.kind for entry in entries]
        self.kinds = " ".join(f"{len(list(run))} {kind}" for kind, run in itertools.groupby(kinds))
        self.tally.add("entries", len(kinds))
        self.tally.add("cut_entries", kinds.count("cut"))
        self.tally.add("adapter_entries", kinds.count("adapter"))
        self.tally.add("set_aside", len(state.aside))
        self.tally.add("dead_letters", len(state.dead))
        self.tally.add("versions", head.version if head else 0)
        for name in ("unknown", "settled", "refused"):
            self.tally.add(f"posts_{name}", self.ledger.outcomes[name])
        return found

    def verify(self) -> None:
        """Come to rest; fail with what the checker finds."""
        self.settle()
        found = self.findings()
        must(not found, f"{found} (log {self.namespace}: {self.kinds})")
        must(not self.ledger.violations, "; ".join(self.ledger.violations[:3]))

    def close(self) -> None:
        """End all that was started, and remove the files."""
        for end in reversed(self.ends):
            with contextlib.suppress(AssertionError, OSError, redis.RedisError):
                end()
        if self.server.running:
            assert self.server.process is not None
            self.server.signal(signal.SIGCONT)
            self.server.process.kill()
            self.server.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


_INJECT = """#!lua
local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
local entry = string.format('%d-0', seq)
redis.call('XADD', KEYS[2], entry, 'kind', ARGV[4], 'payload', ARGV[3])
redis.call('HSET', KEYS[3], ARGV[1], string.format('%d:%s', seq, ARGV[2]))
redis.call('XADD', KEYS[4], entry, 'id', ARGV[1])
redis.call('HSET', KEYS[1], 'admitted', seq)
redis.call('HINCRBY', KEYS[1], 'bytes', #ARGV[3])
return seq
"""

_OF_SERVICE = ("no-idempotency-record", "no-witness", "unknown-is-accepted")


def samples(count: int, prefix: str = "s") -> list[Sample]:
    """Return labelled pictures as admission writes them."""
    return [
        Sample(f"{prefix}{k}", LABELS[k % len(LABELS)], encode_pixels(picture(k % len(LABELS), k)))
        for k in range(1, count + 1)
    ]


@contextlib.contextmanager
def ended(ground: Ground) -> Iterator[Ground]:
    """Give a ground that is closed afterwards."""
    try:
        yield ground
    finally:
        ground.close()
