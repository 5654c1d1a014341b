"""The log and the head over a real server: numbering, idempotency, limits, fences, publication."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from redis._parsers import BaseParser

from everlens.artifact import Manifest, digest_of
from everlens.bus.admission import Admission, AdmissionLimits, Admittable
from everlens.bus.connect import connect, connect_async, reaching_the_log
from everlens.bus.durability import check_durable
from everlens.bus.keys import Keys
from everlens.bus.server import EmbeddedServer
from everlens.bus.stream import Stream
from everlens.bus.versions import VERSIONS_KEPT, Follower, Publisher
from everlens.bus.witness import Acknowledged, Witness
from everlens.errors import (
    Diverged,
    IdConflict,
    LearningPaused,
    LogBehind,
    LogUnavailable,
    NewClass,
    OtherLog,
    PartError,
    QueueFull,
    ServerError,
    StateError,
    TooManyClasses,
)
from everlens.records import DeadLetter, EntryKind, Receipt

Answer = TypeVar("Answer")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    embedded = EmbeddedServer(tmp_path_factory.mktemp("redis"), maxmemory_bytes=64 << 20)
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    connection = connect(server.url)
    yield connection
    connection.close()


@pytest.fixture
def stream(client: redis.Redis) -> Stream:
    made = Stream(client, Keys(f"bus-{uuid.uuid4().hex}"))
    assert made.hold(made.create(), "learner")
    return made


@pytest.fixture
def witness(tmp_path) -> Iterator[Witness]:
    made = Witness(tmp_path / "acknowledged")
    yield made
    made.close()


@pytest.fixture
def ask(server: EmbeddedServer, stream: Stream, witness: Witness) -> Callable[..., object]:
    """Run one call of the service's half in an event loop of its own."""

    def run(
        call: Callable[[Admission], Awaitable[Answer]],
        samples_max: int = 100,
        bytes_max: int = 1 << 20,
        classes_max: int = 100,
    ) -> Answer:
        async def once() -> Answer:
            connection = connect_async(server.url)
            limits = AdmissionLimits(samples_max, bytes_max, classes_max)
            admission = Admission(connection, stream.keys, limits, witness)
            try:
                return await call(admission)
            finally:
                await connection.aclose()

        return asyncio.run(once())

    return run


def sample(name: str, body: bytes = b"body") -> Admittable:
    return Admittable(name, digest_of(body), body)


# Admission


def test_numbers_are_dense_and_in_order(ask, stream: Stream) -> None:
    """Samples get consecutive numbers, and the log holds them under those."""
    receipts = ask(lambda a: a.admit([sample("a"), sample("b"), sample("c")]))

    assert [Receipt("a", 1, False), Receipt("b", 2, False), Receipt("c", 3, False)] == receipts
    assert [1, 2, 3] == [entry.seq for entry in stream.read(0, 10)]


def test_same_id_and_body_gives_the_first_number(ask, stream: Stream) -> None:
    """A repeat changes nothing and says so, also within one call."""
    ask(lambda a: a.admit([sample("a")]))

    receipts = ask(lambda a: a.admit([sample("a"), sample("b"), sample("b")]))

    assert [(1, True), (2, False), (2, True)] == [(r.seq, r.repeated) for r in receipts]
    assert 2 == len(stream.read(0, 10))


@pytest.mark.parametrize("both_at_once", [True, False])
def test_same_id_with_another_body_is_refused_whole(ask, stream, both_at_once: bool) -> None:
    """A conflict accepts nothing of the call that holds it."""
    first = [sample("a")]
    if not both_at_once:
        ask(lambda a: a.admit(first))
        first = []
    with pytest.raises(IdConflict, match="'a'"):
        ask(lambda a: a.admit([*first, sample("new"), sample("a", b"other")]))

    assert (0 if both_at_once else 1) == len(stream.read(0, 10))


@pytest.mark.parametrize(("samples_max", "bytes_max"), [(2, 1 << 20), (100, 9)])
def test_full_backlog_refuses_all_but_repeats(ask, samples_max: int, bytes_max: int) -> None:
    """Beyond the limits nothing is accepted, with a time to come back; a repeat still is."""
    ask(lambda a: a.admit([sample("a"), sample("b")]), samples_max, bytes_max)

    with pytest.raises(QueueFull) as refusal:
        ask(lambda a: a.admit([sample("c")]), samples_max, bytes_max)
    assert 1 <= refusal.value.retry_after_s <= 60
    assert ask(lambda a: a.admit([sample("a")]), samples_max, bytes_max)[0].repeated


def of_tenant(tenant: str, count: int, name: str = "") -> list[Admittable]:
    return [
        Admittable(f"{tenant}-{name}-{k}", "digest", b"body", tenant=tenant) for k in range(count)
    ]


def test_tenants_that_fill_the_backlog_leave_room_for_another(ask, stream: Stream) -> None:
    """
    However many take all they may, one who waits for little is taken.

    Each may have what is free, so n of them end at max / (1 + n) each.
    """
    refused = 0
    for turn in range(60):
        for greedy in range(8):
            try:
                ask(lambda a, g=greedy, t=turn: a.admit(of_tenant(f"greedy {g}", 1, str(t))))
            except QueueFull:
                refused += 1
    waiting = stream.client.hgetall(stream.keys.waiting)
    assert refused > 300
    assert 8 == len(waiting)
    assert {11, 12} >= {int(count) for count in waiting.values()}
    first = ask(lambda a: a.admit(of_tenant("polite", 5)))[0].seq

    stream.trim(first - 1, first - 1, 1000)
    assert {b"polite": b"5"} == stream.client.hgetall(stream.keys.waiting)
    stream.trim(first + 4, first + 4, 1000)
    assert {} == stream.client.hgetall(stream.keys.waiting)


def test_tenant_alone_may_fill_half(ask) -> None:
    """And nobody in particular, which is everybody where there are no keys, all of it."""
    assert ask(lambda a: a.admit(of_tenant("alone", 49)))
    with pytest.raises(QueueFull, match="your share"):
        ask(lambda a: a.admit(of_tenant("alone", 3, "more")))
    assert ask(lambda a: a.admit(of_tenant("", 51)))


def test_only_so_many_classes_are_accepted(ask) -> None:
    """Beyond the cap a known name is still taken, and a refused call makes no class."""
    first = [Admittable(f"{k}", "d", b"", label=f"bird {k}") for k in range(3)]
    assert 3 == len(ask(lambda a: a.admit(first), classes_max=4))
    more = [Admittable(f"more {k}", "d", b"", label=f"fish {k}") for k in range(2)]
    with pytest.raises(TooManyClasses, match="EVERLENS_MAX_CLASSES"):
        ask(lambda a: a.admit(more), classes_max=4)
    assert ask(lambda a: a.admit(more[:1]), classes_max=4)
    known = [Admittable("known", "d", b"", label="bird 2")]
    assert ask(lambda a: a.admit(known), classes_max=4)


def test_who_may_not_make_a_class_may_teach_known_ones(ask) -> None:
    """A new name is refused with its reason, one that was accepted before is not."""
    ask(lambda a: a.admit([Admittable("1", "d", b"", label="bird")]))
    with pytest.raises(NewClass, match="'fish' is no class yet"):
        ask(lambda a: a.admit([Admittable("2", "d", b"", label="fish", may_be_new=False)]))
    assert ask(lambda a: a.admit([Admittable("3", "d", b"", label="bird", may_be_new=False)]))


def test_forgotten_class_is_known_by_what_came_last(ask, stream: Stream) -> None:
    """Of entries that go to the log together each counts after the one before it."""
    anew: dict[str, Any] = {"label": "bird", "may_be_new": False}

    def forget(name: str) -> Admittable:
        return Admittable(name, "d", b"", label="bird", kind=EntryKind.FORGET)

    def labels() -> set[bytes]:
        found: set[bytes] = stream.client.smembers(stream.keys.labels)  # type: ignore[assignment]
        return found

    ask(lambda a: a.admit([Admittable("1", "d", b"", label="bird")]))
    with pytest.raises(NewClass, match="'bird' is no class yet"):
        ask(lambda a: a.admit([forget("2"), Admittable("3", "d", b"", **anew)]))
    ask(lambda a: a.admit([forget("2"), Admittable("3", "d", b"", label="bird")]))
    assert labels() == {b"bird"}
    ask(lambda a: a.admit([Admittable("4", "d", b"", **anew), forget("5")]))
    assert labels() == set()


def test_learning_goes_on_where_the_log_is_full(ask, stream: Stream) -> None:
    """What waits while learning is held may fill the memory; only a learner frees it again."""
    ask(lambda a: a.hold("labels are being checked"))
    stream.client.config_set("maxmemory", 1)
    try:
        ask(lambda a: a.hold(""))
    finally:
        stream.client.config_set("maxmemory", 64 << 20)
    assert ask(lambda a: a.backlog()).held == ""


def test_log_that_lost_its_end_takes_nothing(ask, stream: Stream, witness: Witness) -> None:
    """What was acknowledged is remembered beside the log; a log that ends before it is refused."""
    ask(lambda a: a.admit([sample("a"), sample("b"), sample("c")]))
    assert witness.read() == Acknowledged(stream.epoch, 3)
    stream.client.hset(stream.keys.meta, mapping={"seq": 2, "admitted": 2})
    with pytest.raises(LogBehind, match="up to entry 2, but 3 was acknowledged"):
        ask(lambda a: a.admit([sample("d")]))
    # The lost number is given again, to an entry of the learner's.
    stream.client.delete(stream.keys.log)
    assert stream.append_control(EntryKind.CUT, 2)
    with pytest.raises(LogBehind):
        ask(lambda a: a.admit([sample("d")]))


def test_witness_only_ever_goes_forward(tmp_path) -> None:
    """Two processes on one file keep the higher number; another epoch begins anew."""
    one, other = Witness(tmp_path / "w"), Witness(tmp_path / "w")
    assert one.read() == Acknowledged()
    one.note("epoch", 7)
    other.note("epoch", 5)
    assert one.read() == other.read() == Acknowledged("epoch", 7)
    other.note("next", 1)
    assert one.read() == Acknowledged("next", 1)
    (tmp_path / "w").write_bytes(b"rubbish")
    assert one.read() == Acknowledged()
    one.close()
    other.close()


@pytest.mark.parametrize("former", ["", "another", "EPOCH another"])
def test_log_of_another_epoch_is_taken_up_only_where_it_names_the_one_before(
    ask, stream: Stream, witness: Witness, former: str
) -> None:
    """A log that was exchanged is refused; one that was reconciled goes on."""
    witness.note("EPOCH", 99)
    stream.client.hset(stream.keys.meta, "former", former)
    if "EPOCH" not in former:
        with pytest.raises(OtherLog):
            ask(lambda a: a.admit([sample("a")]))
        return
    assert 1 == ask(lambda a: a.admit([sample("a")]))[0].seq
    assert witness.read() == Acknowledged(stream.epoch, 1)


def test_service_does_not_follow_a_log_that_was_exchanged(ask, stream: Stream) -> None:
    """Versions of another log are none of those that were served from."""

    async def follow(admission: Admission) -> None:
        follower = Follower(admission.client, stream.keys)
        assert await follower.head() == (0, "")
        stream.client.hset(stream.keys.meta, "epoch", "another")
        with pytest.raises(OtherLog):
            await follower.head()
        stream.client.hset(stream.keys.meta, "former", f"x {stream.epoch}")
        assert await follower.head() == (0, "")
        with pytest.raises(OtherLog):
            await Follower(admission.client, stream.keys, "long ago").head()

    ask(follow)


def test_trim_makes_room_and_keeps_the_ids(ask, stream: Stream) -> None:
    """What is learnt leaves the log and the limits, but its id is still known."""
    ask(lambda a: a.admit([sample("a"), sample("b")]), 2)
    stream.trim(2, 2, 1000)

    assert [] == stream.read(2, 10)
    assert 3 == ask(lambda a: a.admit([sample("c")]), 2)[0].seq
    assert Receipt("a", 1, True) == ask(lambda a: a.admit([sample("a")]), 2)[0]
    assert (3, 2, 4) == ask(lambda a: _backlog(a))


async def _backlog(admission: Admission) -> tuple[int, int, int]:
    backlog = await admission.backlog()
    return backlog.seq, backlog.done, backlog.bytes


def test_ids_are_forgotten_by_count(ask, stream: Stream) -> None:
    """Only the last `id_window` learnt ids are remembered: no clock decides it."""
    ask(lambda a: a.admit([sample(str(k)) for k in range(6)]))
    stream.trim(6, 6, 2)

    assert [None, None, None, None, 5, 6] == [
        ask(lambda a, k=k: a.seq_of(str(k))) for k in range(6)
    ]


def test_all_that_waited_for_one_version_may_ask_at_once(ask) -> None:
    """As many as may wait ask what became of their samples: none hears that the log is away."""

    async def together(admission: Admission) -> list[int]:
        states = await asyncio.gather(*(admission.state_of(seq) for seq in range(1, 257)))
        return [state.seq for state in states]

    assert ask(together) == list(range(1, 257))


def test_paused_learner_takes_repeats_only(ask, stream: Stream) -> None:
    """While learning is paused new samples are refused with the reason."""
    ask(lambda a: a.admit([sample("a")]))
    stream.pause("the state is damaged", "learner")

    with pytest.raises(LearningPaused, match="the state is damaged"):
        ask(lambda a: a.admit([sample("b")]))
    assert ask(lambda a: a.admit([sample("a")]))[0].repeated


def test_admission_before_the_log_exists_asks_to_come_back(server, witness) -> None:
    """A service that is quicker than its learner does not begin a log of its own."""

    async def early() -> None:
        connection = connect_async(server.url)
        keys = Keys(f"none-{uuid.uuid4().hex}")
        try:
            await Admission(connection, keys, AdmissionLimits(9, 99, 9), witness).admit(
                [sample("a")]
            )
        finally:
            await connection.aclose()

    with pytest.raises(LogUnavailable, match="not begun"):
        asyncio.run(early())


def test_exchanged_log_takes_nothing(ask, stream: Stream, client: redis.Redis) -> None:
    """A service that was started for another epoch is refused."""

    async def exchanged(admission: Admission) -> None:
        await admission.admit([sample("a")])
        client.hset(stream.keys.meta, "epoch", "another")
        await admission.admit([sample("b")])

    with pytest.raises(OtherLog):
        ask(exchanged)


def test_reconciled_log_is_taken_up_by_a_service_that_runs(ask, stream: Stream, client) -> None:
    """It names the epoch before, so that samples are taken and learning is held as they were."""

    async def reconciled(admission: Admission) -> list[Receipt]:
        first = await admission.admit([sample("a")])
        for verb in (lambda: admission.hold("lunch"), lambda: admission.admit([sample("b")])):
            client.delete(stream.keys.lease)
            former = stream.state()
            assert former is not None
            stream.reconcile(former.epoch, former.seq, former.done, (0, ""))
            await verb()
        return first + await admission.admit([sample("b")])

    assert [receipt.seq for receipt in ask(reconciled)] == [1, 2]
    assert client.hget(stream.keys.meta, "held") == b"lunch"


def test_lost_sample_is_missed_though_its_number_was_given_again(ask, stream, client) -> None:
    """What was acknowledged must have been admitted; an entry of the learner is no such thing."""

    async def lost(admission: Admission) -> None:
        await admission.admit([sample("a"), sample("b")])
        client.hset(stream.keys.meta, mapping={"seq": 1, "admitted": 1})  # a tail that was cut
        client.hdel(stream.keys.ids, "b")
        client.delete(stream.keys.log)
        assert stream.append_control(EntryKind.CUT, 1)
        await admission.admit([sample("c")])

    with pytest.raises(LogBehind, match=r"up to entry 1, but 2 was acknowledged"):
        ask(lost)


# The stream


def test_control_entry_lands_once(stream: Stream) -> None:
    """Of two writers that saw the same end of the log, one gets its entry in."""
    assert stream.append_control(EntryKind.CUT, 0)
    assert not stream.append_control(EntryKind.CUT, 0)

    assert [EntryKind.CUT] == [entry.kind for entry in stream.read(0, 10)]


def test_hole_in_the_log_is_noticed(ask, stream: Stream, client: redis.Redis) -> None:
    """A missing number stops the reader instead of being skipped."""
    ask(lambda a: a.admit([sample("a"), sample("b"), sample("c")]))
    client.xdel(stream.keys.log, "2-0")

    with pytest.raises(StateError, match="hole"):
        stream.read(0, 10)


def test_trim_beyond_the_end_is_refused(stream: Stream) -> None:
    """A learner that knows more than the log stops: the log is an older copy."""
    with pytest.raises(Exception, match="AHEAD"):
        stream.trim(5, 5, 1000)


def test_lease_is_kept_by_its_holder(stream: Stream, client: redis.Redis) -> None:
    """The same holder renews and takes up again; another waits, then gets a higher fence."""
    assert stream.hold(stream.epoch, "learner")
    other = Stream(client, stream.keys)
    assert not other.hold(stream.epoch, "other")
    client.delete(stream.keys.lease)  # as if it had lapsed
    assert stream.hold(stream.epoch, "learner")
    client.delete(stream.keys.lease)
    assert other.hold(stream.epoch, "other")
    assert other.fence == stream.fence + 1


# Publication


def manifest(version: int, parent: str, parts: dict[str, bytes]) -> Manifest:
    digests = {name: digest_of(part) for name, part in parts.items()}
    return Manifest(version, parent, "b" * 64, 10 * version, 3, 2, 2, digests)


def publish(publisher: Publisher, made: Manifest, parts: dict[str, bytes], dead=()) -> None:
    publisher.store({digest_of(part): part for part in parts.values()})
    publisher.publish(made, dead)


def test_head_follows_the_publication(ask, stream: Stream) -> None:
    """A reader finds the manifest and the parts that were published, and what is in them."""
    parts = {"evidence/0": b"numbers"}
    made = manifest(1, "", parts)
    publish(Publisher(stream), made, parts, [DeadLetter(4, "bad", "not a JPEG")])

    async def read(admission: Admission) -> tuple[object, ...]:
        follower = Follower(admission.client, stream.keys)
        version, digest = await follower.head()
        found = await follower.manifest(version, digest)
        part = await follower.part(found.parts["evidence/0"])
        states = [await admission.state_of(seq) for seq in (3, 4, 11)]
        return found, part, [(s.version, s.dead_reason) for s in states], await follower.lineage()

    found, part, states, lineage = ask(read)
    assert (made, b"numbers") == (found, part)
    assert [(1, None), (None, "not a JPEG"), (None, None)] == states
    assert (1, 10, made.digest) == (
        lineage[0]["version"],
        lineage[0]["learned_through"],
        lineage[0]["digest"],
    )


def test_publishing_twice_is_harmless(stream: Stream) -> None:
    """A learner that did not hear the answer may say it again."""
    made = manifest(1, "", {})
    publish(Publisher(stream), made, {})
    publish(Publisher(stream), made, {})

    assert (1, made.digest) == Publisher(stream).head()


@pytest.mark.parametrize(
    ("version", "parent"), [(1, ""), (3, "first"), (2, "f" * 64)], ids=["same", "gap", "parent"]
)
def test_version_that_does_not_continue_the_head_is_refused(stream, version, parent) -> None:
    """The same number with other bytes, a gap, or another parent stops the learner."""
    first = manifest(1, "", {})
    publish(Publisher(stream), first, {})
    wrong = manifest(version, first.digest if parent == "first" else parent, {"x": b"other"})

    with pytest.raises(Diverged):
        publish(Publisher(stream), wrong, {"x": b"other"})
    assert (1, first.digest) == Publisher(stream).head()


def test_head_does_not_move_without_its_parts(stream: Stream) -> None:
    """A version whose part was not stored never becomes the head."""
    with pytest.raises(Exception, match="PART"):
        Publisher(stream).publish(manifest(1, "", {"x": b"never stored"}), [])
    assert (0, "") == Publisher(stream).head()


def test_a_start_looks_at_all_parts_of_a_version(stream: Stream, client: redis.Redis) -> None:
    """Who made the head looks at what is new; another one believes nothing to be there."""
    publisher, shared = Publisher(stream), {"shared": b"shared"}
    first = manifest(1, "", shared)
    publish(publisher, first, shared)
    client.delete(stream.keys.part(digest_of(b"shared")))
    second = manifest(2, first.digest, {**shared, "own": b"own"})
    publisher.store({digest_of(b"own"): b"own"})

    with pytest.raises(Exception, match="PART"):
        Publisher(stream).publish(second, [])
    publisher.publish(second, [])
    with pytest.raises(Exception, match="PART"):
        publisher.publish(manifest(3, second.digest, {**shared, "own": b"never stored"}), [])
    assert (2, second.digest) == publisher.head()


@pytest.mark.parametrize("restarts", [False, True])
def test_old_versions_go_and_shared_parts_stay(
    stream: Stream, client: redis.Redis, restarts: bool
) -> None:
    """The last versions are kept with all that they name; parts only older ones named are gone."""
    publisher, parent, count = Publisher(stream), "", VERSIONS_KEPT + 3
    for version in range(1, count + 1):
        if restarts:
            publisher = Publisher(stream)
        parts = {"shared": b"shared", "own": b"%d" % version}
        made = manifest(version, parent, parts)
        publish(publisher, made, parts)
        publisher.collect(version)
        parent = made.digest

    kept = range(count - VERSIONS_KEPT + 1, count + 1)
    for version in range(1, count + 1):
        there = version in kept
        assert there == bool(client.exists(stream.keys.manifest(version)))
        assert there == bool(client.exists(stream.keys.part(digest_of(b"%d" % version))))
    assert client.exists(stream.keys.part(digest_of(b"shared")))


def test_damaged_part_is_refused_by_its_reader(ask, stream: Stream, client) -> None:
    """Bytes that do not have the digest they are stored under are not handed out."""
    parts = {"x": b"0123456789"}
    publish(Publisher(stream), manifest(1, "", parts), parts)
    client.setrange(stream.keys.part(digest_of(b"0123456789")), 3, b"!")

    with pytest.raises(PartError, match="damaged"):
        ask(lambda a: Follower(a.client, stream.keys).part(digest_of(b"0123456789")))
    with pytest.raises(PartError, match="no longer stored"):
        ask(lambda a: Follower(a.client, stream.keys).part("0" * 64))


@contextlib.asynccontextmanager
async def slow_line(server: EmbeddedServer, path: Path, bytes_per_s: int) -> AsyncIterator[str]:
    """Give the address of a socket from which the server's replies come at that pace."""

    async def hand_on(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, at: float
    ) -> None:
        with contextlib.closing(writer):
            while passing := await reader.read(1 << 16):
                await asyncio.sleep(len(passing) / at)
                writer.write(passing)

    async def connected(asking: asyncio.StreamReader, answered: asyncio.StreamWriter) -> None:
        replies, requests = await asyncio.open_unix_connection(server.url.removeprefix("unix://"))
        await asyncio.gather(
            hand_on(asking, requests, float("inf")), hand_on(replies, answered, bytes_per_s)
        )

    async with await asyncio.start_unix_server(connected, path):
        yield f"unix://{path}"


def test_a_part_comes_over_a_slow_line(
    server: EmbeddedServer, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole one may take longer than any reply may."""
    answer_s = 1.0
    monkeypatch.setattr("everlens.bus.connect._ANSWER_S", answer_s)
    monkeypatch.setattr("everlens.bus.versions._RANGE_BYTES", 1 << 16)
    part = bytes(range(256)) * (4 << 12)
    publish(Publisher(stream), manifest(1, "", {"x": part}), {"x": part})

    async def read() -> bytes:
        async with slow_line(server, tmp_path / "line", int(len(part) / (2 * answer_s))) as url:
            asked = connect_async(url)
            try:
                return await Follower(asked, stream.keys).part(digest_of(part))
            finally:
                await asked.aclose()

    assert asyncio.run(read()) == part


# The server


def test_acknowledged_writes_are_on_disk(server: EmbeddedServer, client: redis.Redis) -> None:
    """The embedded server runs with the settings that 202 rests on."""
    wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    assert wanted == client.config_get(*wanted)
    with pytest.raises(redis.ResponseError, match="unknown command"):
        client.flushall()


def test_one_directory_has_one_server(server: EmbeddedServer) -> None:
    """A second server on the same directory is refused with a sentence."""
    with pytest.raises(ServerError, match="EVERLENS_DATA_DIR"):
        EmbeddedServer(server.directory, maxmemory_bytes=64 << 20).start()


def test_killed_server_has_all_it_acknowledged(tmp_path) -> None:
    """What was answered before a SIGKILL is there after the next start."""
    first = EmbeddedServer(tmp_path, maxmemory_bytes=64 << 20)
    first.start()
    client = connect(first.url)
    for k in range(50):
        client.xadd("log", {"k": k}, id=f"{k + 1}-0")
    assert first.process is not None
    first.process.kill()
    first.process.wait()

    second = EmbeddedServer(tmp_path, maxmemory_bytes=64 << 20)
    second.start()
    try:
        assert 50 == connect(second.url).xlen("log")
    finally:
        second.stop()


def test_path_that_is_too_long_for_a_socket_is_said(tmp_path) -> None:
    """A data directory that no socket fits in is refused before anything starts."""
    with pytest.raises(ServerError, match="too long"):
        EmbeddedServer(tmp_path / ("x" * 120), maxmemory_bytes=64 << 20).start()


def test_configured_binary_must_be_a_server(tmp_path) -> None:
    """A configured program that is not a Redis server is refused by its version."""
    with pytest.raises(ServerError, match="EVERLENS_REDIS_SERVER"):
        EmbeddedServer(tmp_path, binary="/bin/true", maxmemory_bytes=64 << 20).start()


def test_away_server_is_one_kind_of_error() -> None:
    """A server that does not answer raises what the callers wait on."""
    stream = Stream(connect("unix:///nowhere/redis.sock"), Keys("x"))
    with pytest.raises(LogUnavailable):
        stream.state()


def test_server_that_is_not_durable_is_refused(client: redis.Redis) -> None:
    """Where acknowledged would not mean on disk, one sentence names the setting."""
    client.config_set("appendfsync", "everysec")
    try:
        with pytest.raises(ServerError, match=r"appendfsync 'everysec'.*set `appendfsync always`"):
            check_durable(client)
    finally:
        client.config_set("appendfsync", "always")
    check_durable(client)


def test_the_embedded_server_is_its_owners_alone(tmp_path: Path) -> None:
    """Nobody else may open its socket or read its files, and it listens nowhere else."""
    embedded = EmbeddedServer(tmp_path / "log", maxmemory_bytes=64 << 20)
    embedded.start()
    try:
        assert stat.S_IMODE(embedded.directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(embedded.socket.stat().st_mode) == 0o700
        with contextlib.closing(connect(embedded.url)) as client:
            assert client.config_get("port") == {"port": "0"}
    finally:
        embedded.stop()


def _ping_for_ever(client: redis.Redis) -> None:
    with reaching_the_log():
        while True:
            client.ping()


@contextlib.contextmanager
def busy(server: EmbeddedServer, client: redis.Redis) -> Iterator[None]:
    """Keep the server at an endless script meanwhile, so that it answers nobody else."""
    before = client.config_get("busy-reply-threshold")
    client.config_set("busy-reply-threshold", 10)
    other = connect(server.url)
    try:
        with ThreadPoolExecutor(1) as pool:
            endless = pool.submit(other.eval, "while true do end", 0)
            with pytest.raises(LogUnavailable, match="BUSY"):
                _ping_for_ever(client)
            try:
                yield
            finally:
                client.script_kill()
            with pytest.raises(redis.ResponseError, match="killed"):
                endless.result()
    finally:
        other.close()
        client.config_set("busy-reply-threshold", str(before["busy-reply-threshold"]))


def test_a_busy_server_is_waited_for(server: EmbeddedServer, client: redis.Redis) -> None:
    """The next try may find it free. What it does not say passes no check."""
    with busy(server, client), pytest.raises(LogUnavailable, match="BUSY"):
        check_durable(client)


def test_a_busy_server_spoils_no_version(
    server: EmbeddedServer, client: redis.Redis, stream: Stream
) -> None:
    """That a part cannot be read now is not held against it."""

    async def read() -> None:
        asked = connect_async(server.url)
        try:
            await Follower(asked, stream.keys).part(digest_of(b"anything"))
        finally:
            await asked.aclose()

    with busy(server, client), pytest.raises(LogUnavailable, match="BUSY"):
        asyncio.run(read())


@pytest.mark.parametrize(
    "said",
    [
        "MISCONF Errors writing to the disk",
        "NOREPLICAS Not enough good replicas to write.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
    ],
)
def test_a_server_that_cannot_do_it_now_is_away(said: str) -> None:
    """Its owner has to mend it, or it passes; nothing of it is the fault of a request."""
    with pytest.raises(LogUnavailable), reaching_the_log():
        raise BaseParser.parse_error(said)  # type: ignore[no-untyped-call]


def test_a_server_that_forgot_a_script_is_asked_again(client: redis.Redis) -> None:
    """It was restarted right behind the script's loading."""
    with pytest.raises(LogUnavailable), reaching_the_log():
        client.evalsha("0" * 40, 0)
