"""The two users of the log: each half does its whole work as its own, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError

from everlens.artifact import Manifest, digest_of
from everlens.bus.acl import SERVICE, WORKER, main, users
from everlens.bus.admission import Admission, AdmissionLimits, Admittable
from everlens.bus.connect import connect, connect_async
from everlens.bus.durability import REQUIRED, check_durable
from everlens.bus.exhibits import Answering, Asking
from everlens.bus.keys import Keys
from everlens.bus.server import find_binary
from everlens.bus.stream import Stream
from everlens.bus.versions import VERSIONS_KEPT, Follower, Publisher
from everlens.bus.witness import Witness
from everlens.child import start_child, stop_child
from everlens.errors import LogUnavailable
from everlens.exhibits import Exhibit
from everlens.records import DeadLetter, EntryKind

KEYS = Keys("acl-test")
PASSWORDS = {SERVICE: "admits", WORKER: "learns"}


@dataclass
class Guarded:
    """A server with the two users, and its owner beside them."""

    socket: Path
    owner: redis.Redis

    def url(self, name: str) -> str:
        """Return the address with which one of the users logs in."""
        return f"unix://{name}:{PASSWORDS[name]}@{self.socket}"

    def refused(self) -> list[str]:
        """Return what the server refused since the last call: user, and command or key."""
        rows = self.owner.acl_log()
        self.owner.acl_log_reset()
        return [f"{row['username']} {row['object']}" for row in rows]


@contextlib.contextmanager
def serving(room: Path, users_file: str) -> Iterator[Path]:
    """Give the socket of a real server with this aclfile."""
    (room / "users.acl").write_text(users_file, encoding="ascii")
    words: list[str | Path] = [
        find_binary(),
        "--port",
        "0",
        "--unixsocket",
        room / "socket",
        "--dir",
        room,
    ]
    # So that DEBUG, too, is refused by the rules and not by the server's settings.
    words += ["--aclfile", room / "users.acl", "--save", "", "--enable-debug-command", "yes"]
    words += [word for name, value in REQUIRED.items() for word in (f"--{name}", value)]
    with (room / "server.log").open("wb") as log:
        process = start_child(words, log=log)
    try:
        with contextlib.closing(connect(f"unix://{room / 'socket'}")) as stranger:
            deadline = time.monotonic() + 20
            while True:
                try:
                    assert stranger.ping()  # the one thing that needs no password
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, (room / "server.log").read_text()
                    time.sleep(0.01)
        yield room / "socket"
    finally:
        stop_child(process, 20)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server with the users of one namespace, and an owner who may do all."""
    passwords = (f">{PASSWORDS[name]}" for name in (SERVICE, WORKER))
    file = users(KEYS.namespace, *passwords) + "user owner on nopass ~* &* +@all\n"
    with (
        serving(tmp_path_factory.mktemp("acl"), file) as socket,
        contextlib.closing(connect(f"unix://owner:any@{socket}")) as owner,
    ):
        yield Guarded(socket, owner)


@pytest.fixture
def service(guarded: Guarded) -> Iterator[redis.Redis]:
    """A connection as the service's user."""
    with contextlib.closing(connect(guarded.url(SERVICE))) as client:
        yield client


@pytest.fixture
def worker(guarded: Guarded) -> Iterator[redis.Redis]:
    """A connection as the learner's user, over an empty log."""
    for key in guarded.owner.scan_iter("*"):
        guarded.owner.delete(key)
    with contextlib.closing(connect(guarded.url(WORKER))) as client:
        yield client


async def forget_and_hold(admission: Admission) -> None:
    """Do what the service does besides: forget a class, read what came of things, hold learning."""
    assert (await admission.state_of(2)).forgotten_by is None  # as its id is
    state = await admission.state_of(4)
    assert (state.forgotten_by, state.report) == (2, {"samples": 1})
    assert await admission.has_class("bird")
    await admission.admit([Admittable("gone", "d", b"", label="bird", kind=EntryKind.FORGET)])
    assert not await admission.has_class("bird")
    assert (await admission.learner()) == {"version": 1}
    assert await admission.seq_of("id 1") is None
    await admission.hold("why not")
    assert (await admission.backlog()).held == "why not"


def test_both_halves_do_all_their_work(guarded: Guarded, worker: redis.Redis, tmp_path) -> None:
    """
    Lease, admission with a repeat, a dead letter, cut, versions until old ones are collected,
    trim until ids are forgotten, report, pause, a class forgotten, learning held, and all that the
    service asks: no rule refuses it.
    """
    guarded.refused()
    check_durable(worker)
    stream = Stream(worker, KEYS)
    assert stream.hold(stream.create(), "learner")
    publisher = Publisher(stream)
    witness = Witness(tmp_path / "acknowledged")
    parent = ""

    async def serve() -> None:
        client = connect_async(guarded.url(SERVICE))
        limits = AdmissionLimits(samples_max=100, bytes_max=1 << 20, classes_max=9)
        admission = Admission(client, KEYS, limits, witness)
        follower = Follower(client, KEYS)
        for _ in range(2):
            await admission.admit(
                [
                    Admittable(f"id {k}", "d", b"payload", label="bird", tenant="key")
                    for k in range(3)
                ]
            )
        learn()
        assert (await admission.state_of(1)).version == 1
        await forget_and_hold(admission)
        assert (await admission.state_of(3)).dead_reason == "why"
        assert (await admission.backlog()).done == 4
        heads = follower.heads(0.01)
        async with contextlib.aclosing(heads):
            version, digest = await anext(heads)
            await anext(heads)
        found = await follower.manifest(version, digest)
        assert await follower.part(found.parts["own"]) == b"own %d" % version
        assert len(await follower.lineage()) == version
        assert await follower.pin(version, digest)
        assert await follower.pinned() == version
        await follower.unpin()
        await client.aclose()

    def learn() -> None:
        nonlocal parent
        stream.wait(0, 10)
        assert len(stream.read(0, 10)) == 3
        assert stream.append_control(EntryKind.CUT, 3)
        for version in range(1, VERSIONS_KEPT + 3):
            parts = {"own": b"own %d" % version}
            digests = {name: digest_of(part) for name, part in parts.items()}
            made = Manifest(version, parent, "b" * 64, 4, 3, 2, 2, digests)
            publisher.store({digests[name]: part for name, part in parts.items()})
            assert not publisher.missing(sorted(digests.values()))
            publisher.publish(made, [DeadLetter(3, "id 2", "why")])
            publisher.collect(version)
            parent = made.digest
        stream.tell_forgotten([2, 4], 2)
        stream.tell_reports({4: '{"samples": 1}'})
        stream.trim(4, 4, 2)
        stream.report({"version": 1})
        stream.pause("", "learner")

    asyncio.run(serve())
    assert guarded.refused() == []


def test_both_halves_talk_about_the_replay_buffer(guarded: Guarded, worker: redis.Redis) -> None:
    """The service asks and the learner answers, on channels that are theirs alone."""
    guarded.refused()
    desk = Answering(worker, KEYS)
    with contextlib.closing(desk.questions(0.02)) as questions:
        assert next(questions) is None  # listening by now

        def show() -> None:
            question = next(question for question in questions if question is not None)
            desk.answer(question, [Exhibit("id 0", "bird", 1.0, b"\xff\xd8\xff\xff\xd9")])

        async def ask() -> list[Exhibit]:
            client = connect_async(guarded.url(SERVICE))
            try:
                return await Asking(client, KEYS, wait_s=20).nearest(b"\0\0\x80?")
            finally:
                await client.aclose()

        showing = threading.Thread(target=show)
        showing.start()
        assert [exhibit.id for exhibit in asyncio.run(ask())] == ["id 0"]
        showing.join()
    assert guarded.refused() == []


PART = KEYS.part("a" * 64)

# What only the other half does, or nobody.
SERVICE_MAY_NOT: list[list[str]] = [
    ["SET", KEYS.head, "9 x"],
    ["SET", PART, "x"],
    ["SETRANGE", PART, "0", "x"],
    ["APPEND", KEYS.manifest(1), "x"],
    ["DEL", PART],
    ["UNLINK", PART],
    ["RENAME", PART, KEYS.log],
    ["EXPIRE", KEYS.log, "1"],
    ["XTRIM", KEYS.log, "MAXLEN", "0"],
    ["XDEL", KEYS.log, "1-0"],
    ["HSET", KEYS.lineage, "1", "x"],
    ["HSET", KEYS.learner, "version", "1"],
    ["HDEL", KEYS.ids, "id"],
    ["HDEL", KEYS.meta, "epoch"],
    ["SET", KEYS.lease, "me"],
    ["PUBLISH", KEYS.head, "9"],
    ["PUBLISH", KEYS.answer("a"), "[]"],
    ["SUBSCRIBE", KEYS.questions],
    ["CONFIG", "GET", "*"],
]
WORKER_MAY_NOT: list[list[str]] = [
    ["SUBSCRIBE", KEYS.head],
    ["SUBSCRIBE", KEYS.answer("a")],
    ["PUBLISH", KEYS.questions, "x"],
    ["PUBLISH", "another", "x"],
    ["DEL", KEYS.log],
    ["RENAME", KEYS.log, KEYS.ids],
    ["CONFIG", "REWRITE"],
    ["COPY", KEYS.log, KEYS.ids],
]
NOBODY_MAY: list[list[str]] = [
    ["GET", "{another}:head"],
    ["HGETALL", "{another}:meta"],
    ["HSET", "{another}:meta", "epoch", "x"],
    ["XADD", "{another}:log", "*", "a", "b"],
    ["FLUSHALL"],
    ["FLUSHDB"],
    ["CONFIG", "SET", "appendonly", "no"],
    ["CONFIG", "RESETSTAT"],
    ["KEYS", "*"],
    ["SCAN", "0"],
    ["DEBUG", "SLEEP", "1"],
    ["SHUTDOWN"],
    ["SCRIPT", "FLUSH"],
    ["SCRIPT", "KILL"],
    ["FUNCTION", "FLUSH"],
    ["EVAL", "return 1", "0"],
    ["ACL", "WHOAMI"],
    ["ACL", "SETUSER", SERVICE, "+@all"],
    ["REPLICAOF", "127.0.0.1", "1"],
    ["MODULE", "LIST"],
    ["MONITOR"],
    ["CLIENT", "KILL", "ID", "1"],
    ["CLIENT", "LIST"],
    ["BGREWRITEAOF"],
    ["SAVE"],
    ["SWAPDB", "0", "1"],
    ["RESTORE", KEYS.head, "0", "x"],
    ["MIGRATE", "127.0.0.1", "1", "x", "0", "1"],
    ["WAIT", "1", "0"],
    ["SORT", KEYS.ids],
]


FORBIDDEN = [
    *((SERVICE, words) for words in SERVICE_MAY_NOT + NOBODY_MAY),
    *((WORKER, words) for words in WORKER_MAY_NOT + NOBODY_MAY),
]


def give(client: redis.Redis, words: list[str]) -> None:
    client.execute_command(*words)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("name", "words"),
    FORBIDDEN,
    ids=lambda it: " ".join(it)[:40] if isinstance(it, list) else it.removeprefix("everlens-"),
)
def test_what_is_not_needed_is_refused(guarded: Guarded, name: str, words: list[str]) -> None:
    """The server refuses each by its rules."""
    with contextlib.closing(connect(guarded.url(name))) as client, pytest.raises(NoPermissionError):
        give(client, words)


@pytest.mark.parametrize(
    "line",
    [
        "redis.call('SET', KEYS[1], '9 x')",
        "redis.call('XTRIM', KEYS[1], 'MAXLEN', 0)",
        "redis.call('UNLINK', KEYS[1])",
        "redis.call('CONFIG', 'SET', 'appendonly', 'no')",
        "redis.call('GET', '{another}:head')",
    ],
)
def test_a_script_may_no_more_than_who_sends_it(service: redis.Redis, line: str) -> None:
    """The service may send a script of its own making, and gains nothing by that."""
    script = service.register_script(line)
    with pytest.raises(redis.ResponseError, match=r"ACL failure|ermission|allowed"):
        script(keys=[KEYS.log])


def test_who_does_not_log_in_may_ping_and_no_more(guarded: Guarded) -> None:
    """A health check needs no password; anything else does."""
    with contextlib.closing(connect(f"unix://{guarded.socket}")) as stranger:
        assert stranger.ping()
        for words in (["GET", KEYS.head], ["XADD", KEYS.log, "*", "a", "b"], ["INFO"]):
            with pytest.raises(NoPermissionError):
                give(stranger, words)


def test_a_wrong_password_or_user_is_said_and_waited_for(guarded: Guarded) -> None:
    """Both are `LogUnavailable` with the server's own words: an owner can mend them meanwhile."""
    wrong = guarded.url(WORKER).replace("learns", "guesses")
    for url, said in ((wrong, "password"), (guarded.url(SERVICE), "permission")):
        with (
            contextlib.closing(connect(url)) as client,
            pytest.raises(LogUnavailable, match=f"(?i){said}"),
        ):
            Publisher(Stream(client, KEYS)).store({"a" * 64: b"x"})


def test_the_printed_file_starts_a_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server reads what `python -m everlens.bus.acl` prints; the told passwords open it."""
    monkeypatch.setenv("EVERLENS_NAMESPACE", "printed")
    assert main() == 0
    said = capsys.readouterr()
    told = dict(line.split(": EVERLENS_REDIS_URL=redis://") for line in said.err.splitlines())
    assert set(told) == {"service", "worker"}
    assert not any(user.split(":")[1].split("@")[0] in said.out for user in told.values())

    with serving(tmp_path, said.out) as socket:
        login = told["worker"].replace("HOST:6379/0", "")
        with contextlib.closing(connect(f"unix://{login}{socket}")) as client:
            check_durable(client)
            stream = Stream(client, Keys("printed"))
            assert stream.hold(stream.create(), "learner")
