"""Faults of the worker, its state and its entries: F19 to F27. See also `directed`."""

from __future__ import annotations

import contextlib
import json
import signal
import struct
from functools import partial
from pathlib import Path

import httpx

from everlens.wire import encode_sample
from tests.system.chaos.campaign import add, case
from tests.system.chaos.forked import Forked
from tests.system.chaos.ground import (
    EXIT_AGAIN,
    EXIT_STATE,
    Ground,
    last_line,
    must,
    progress_of,
    samples,
    until,
)


def second_learner(ground: Ground) -> tuple[Forked, Forked, Path]:
    """Stop a worker in the middle of its work until another one has its lease."""
    ground.conditions = ["short-lease"]
    ground.server.start()
    ground.create_log()
    ground.admit(samples(8))
    # Stopped before anything is trimmed, else the second one would miss a state.
    first = ground.fork_worker(stops=("before:publish", 1), name="first")
    until(lambda: process_state(first.pid) == "T", "the first learner to stop", 20)
    first_state = ground.state_path
    ground.data_dir = ground.directory / "second"
    ground.data_dir.mkdir()
    second = ground.start_worker()
    return first, second, first_state


def process_state(pid: int) -> str:
    """Return the letter that the kernel has for what a process does."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


@case("F22", needs=["fences_seen"])
def stopped_learner_is_replaced(ground: Ground) -> None:
    """A learner that wakes up after its lease has gone neither publishes nor trims, and stops."""
    first, _, first_state = second_learner(ground)
    ground.settle()
    before = ground.client.get(ground.keys.head), ground.client.hgetall(ground.keys.meta)
    first.signal(signal.SIGCONT)
    code = first.wait(20)
    must(code == EXIT_STATE, f"the old learner ended with {code}")
    must("another learner" in last_line(first), f"it says only: {last_line(first)}")
    after = ground.client.get(ground.keys.head), ground.client.hgetall(ground.keys.meta)
    must(before == after, "the old learner changed the head or the log")
    must(first_state.exists(), "the old learner had no state")
    ground.tally.add("fences_seen")
    ground.admit(samples(6, "later"))
    ground.verify()


@case("F23")
def two_workers_over_one_state(ground: Ground) -> None:
    """The state belongs to one process: the second one stops and says so, the first goes on."""
    ground.server.start()
    ground.create_log()
    ground.start_worker()
    ground.admit(samples(6))
    ground.settle()
    second = ground.fork_worker(name="second")
    must(second.wait(20) == EXIT_STATE, f"the second worker ended with {second.code}")
    must("another learner uses" in last_line(second), f"it says only: {last_line(second)}")
    ground.admit(samples(6, "later"))
    ground.verify()


@case("F24", needs=["full_disks"])
def state_disk_full(ground: Ground) -> None:
    """No room for the state: the worker ends, and with room again goes on to the same bits."""
    ground.server.start()
    ground.create_log()
    ground.admit(samples(6))
    ground.start_worker()
    ground.settle()
    ground.stop_worker()
    ground.admit(samples(40, "more"))
    worker = ground.start_worker(file_bytes_max=ground.state_path.stat().st_size + 200_000)
    code = worker.wait(30)
    must(code != 0, "the worker did not notice that its file cannot grow")
    must(code != EXIT_STATE, f"a full disk stops learning for good: {last_line(worker)}")
    began = progress_of(ground.state_path)
    must(began is not None and began["cursor"] > 6, "the disk was full from the start")
    ground.tally.add("full_disks")
    ground.start_worker()
    ground.verify()


def damaged_state(ground: Ground, damage: str, *, copies: bool = False) -> None:
    """Damage the state file; it must be noticed or mended, and be mended where there are copies."""
    ground.conditions = ["short-lease"]
    ground.settings["copy_every_entries"] = "8" if copies else "100000"
    ground.start_all()
    ground.teach(20 if copies else 10)
    ground.stop_worker()
    if copies:  # and learn a little that no copy has
        ground.settings["copy_every_entries"] = "100000"
        ground.start_worker()
        ground.teach(2, "late")
        ground.stop_worker()
    damage_file(ground, damage)
    head = ground.client.get(ground.keys.head)
    for _ in range(3):  # a worker that is to be started again falls back to a copy
        worker = ground.start_worker()
        until(partial(_ended_or_went_on, ground, worker), "the worker to end, or to go on")
        if worker.code != EXIT_AGAIN:
            break
    if worker.code is None:
        ground.tally.add("damage_mended")
        ground.verify()
        return
    must(not copies, f"there are copies, and the worker ended: {last_line(worker)}")
    must(worker.code == EXIT_STATE, f"ended with {worker.code}: {worker.said()[-600:]}")
    must(ground.client.get(ground.keys.head) == head, "the head moved")
    must(ground.ask().status_code == 200, "questions are not answered")
    answer = ground.post("new")
    must(answer.status_code == 503, f"a sample is taken ({answer.status_code}), and nobody learns")
    ground.tally.add("damage_noticed")


def damage_file(ground: Ground, damage: str) -> None:
    """Write random bytes into the state file, cut it in half, or empty it."""
    content = bytearray(ground.state_path.read_bytes())
    place = ground.rng.randrange(len(content) - 64)
    if damage == "bytes":
        content[place : place + 64] = ground.rng.randbytes(64)
    size = {"bytes": len(content), "half": len(content) // 2, "empty": 0}[damage]
    ground.state_path.write_bytes(bytes(content[:size]))
    ground.tally.add("states_damaged")


def _ended_or_went_on(ground: Ground, worker: Forked) -> bool:
    """Teach one sample more; return whether it is learnt, or the worker gone."""
    if worker.code is not None:
        return True
    with contextlib.suppress(httpx.TransportError):
        return ground.post("more", 99).status_code < 300 and ground.rests()
    return False


@case("F25", needs=["states_damaged"])
def state_with_random_bytes(ground: Ground) -> None:
    """Damage within the state is noticed, mended, or of no effect; never another result."""
    damaged_state(ground, "bytes")


@case("F25", needs=["states_damaged"])
def state_cut_in_half(ground: Ground) -> None:
    """Half a state is noticed or mended."""
    damaged_state(ground, "half")


@case("F25", needs=["states_damaged"])
def state_emptied(ground: Ground) -> None:
    """An empty state over a log that was learnt is noticed or mended."""
    damaged_state(ground, "empty")


for _damage in ("bytes", "half", "empty"):
    add(
        f"copied-state-damaged-{_damage}",
        partial(damaged_state, damage=_damage, copies=True),
        holds=f"A damaged state ({_damage}) with copies goes on from one, to the same bits.",
        fault="F25",
        needs=["damage_mended"],
    )


def poisoned(payload: bytes) -> dict[str, bytes]:
    """Return payloads that are wrong in one way each, by id."""
    _, length = struct.unpack_from(">HI", payload)
    header, image = json.loads(payload[6 : 6 + length]), payload[6 + length :]

    def made(id: str, image: bytes = image, **changed: object) -> bytes:
        text = json.dumps(header | {"id": id} | changed).encode()
        return struct.pack(">HI", 1, len(text)) + text + image

    whole = made("no matter")
    return {
        "empty": b"",
        "short": whole[:3],
        "format": b"\x00\x07" + whole[2:],
        "length": whole[:2] + b"\xff\xff\xff\xff" + whole[6:],
        "json": whole[:6] + b"[" + whole[7:],
        "no-picture": made("no-picture", b"no picture"),
        "cut-picture": made("cut-picture", image[:40]),
        "kind-of-label": made("kind-of-label", label=7),
        "long-label": made("long-label", label="long " * 39),
        "hidden-label": made("hidden-label", label="\u202egnisrever"),
    }


@case("F26", needs=["dead_letters"])
def poison_among_samples(ground: Ground) -> None:
    """Entries that cannot be learnt are dead letters with their reasons; their neighbours live."""
    ground.server.start()
    ground.create_log()
    good = samples(12)
    bad = poisoned(encode_sample(good[0]))
    for sample, (name, payload) in zip(good, bad.items(), strict=False):
        ground.admit([sample])
        ground.inject({name: payload})
    for name in ("empty", "short", "format", "length", "json"):
        del ground.ledger.acked[name]  # the checker cannot read their ids in the log
    ground.start_worker(("inside:commit", 3))
    ground.settle()
    ground.start_service()
    for name in bad:
        about = ground.get(f"/samples/{name}")
        must(about["status"] == "dead", f"{name}: {about}")
        must(len(about["reason"]) > 10, f"{name}: no reason but {about['reason']!r}")
    ground.verify()
    must(ground.tally["dead_letters"] == len(bad), "not every bad entry is a dead letter")


@case("F27", needs=["worker_kills"])
def batch_killed_five_times(ground: Ground) -> None:
    """A batch that five workers died over is learnt by the sixth: a kill condemns nobody."""
    ground.server.start()
    ground.create_log()
    ground.admit(samples(10))
    for _ in range(5):
        worker = ground.start_worker(("after:observe", 1))
        must(worker.wait(20) == -signal.SIGKILL, f"the worker ended with {worker.code}")
        ground.tally.add("worker_kills")
    ground.start_worker()
    ground.verify()
    must(ground.tally["dead_letters"] == 0, "a sample was condemned for a kill")


@case("F27", needs=["worker_kills"])
def worker_killed_while_it_tries_aside(ground: Ground) -> None:
    """A kill while a batch is tried in a child condemns nobody, and keeps no later worker out."""
    ground.server.start()
    ground.create_log()
    ground.admit(samples(10))
    for point in ("after:observe", "after:observe", "before:try-aside"):
        worker = ground.start_worker((point, 1))
        must(worker.wait(20) == -signal.SIGKILL, f"the worker ended with {worker.code}")
        ground.tally.add("worker_kills")
    ground.start_worker()
    ground.verify()
    must(ground.tally["dead_letters"] == 0, "a sample was condemned for a kill")


@case("F27", needs=["worker_kills"])
def steps_killed_five_times(ground: Ground) -> None:
    """The steps on a batch that five workers died over are taken by the sixth, none left out."""
    ground.server.start()
    ground.create_log()
    ground.admit(samples(10))
    for _ in range(5):
        worker = ground.start_worker(("after:tune", 1))
        must(worker.wait(20) == -signal.SIGKILL, f"the worker ended with {worker.code}")
        ground.tally.add("worker_kills")
    ground.start_worker()
    ground.verify()
