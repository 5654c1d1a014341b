"""Faults of the server and of the way to it: F1 to F12. See the table in docs/faults.md."""

from __future__ import annotations

import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor

from everlens.bus.scripts import script
from tests.system.chaos.campaign import case
from tests.system.chaos.disk import preload
from tests.system.chaos.ground import Ground, LogServer, must, samples, until

REFUSED_WITHIN_S = 3.0


# The way to the server


def broken_exchange(ground: Ground, mode: str, *, executed: bool) -> None:
    """Break the exchange of one admission; the same id then gives one entry."""
    proxy = ground.use_proxy()
    ground.start_all()
    must(ground.post("before").status_code == 202, "a plain sample is not accepted")
    proxy.arm(mode, b"the-one")
    answer = ground.post("the-one")
    must(answer.status_code == 503, f"the broken exchange was answered {answer.status_code}")
    must("same id" in answer.text, f"the client is not told to repeat: {answer.text}")
    again = ground.post("the-one")
    must(again.status_code == (200 if executed else 202), f"the repeat got {again.status_code}")
    must(proxy.broken[mode] == 1, "nothing was broken")
    ground.tally.add(f"proxy_{mode}")
    if executed:
        ground.tally.add("repeats_after_execution")
    ground.verify()


@case("F1")
def request_cut(ground: Ground) -> None:
    """A request that never reached the server is unknown to the client; its repeat is accepted."""
    broken_exchange(ground, "cut-request", executed=False)


@case("F2")
def reply_dropped(ground: Ground) -> None:
    """A reply lost after execution: the repeat gives the same number, and one entry."""
    broken_exchange(ground, "drop-reply", executed=True)


@case("F2", needs=["server_kills", "repeats_after_execution"])
def server_killed_between_disk_and_reply(ground: Ground) -> None:
    """A server that dies with the sample on its disk and the reply unsent: one entry, its number."""
    dies = ground.directory / "dies"
    dying = preload(ground.directory / "disk", die_file=str(dies))
    ground.server = LogServer(ground.directory / "redis", before=dying)
    ground.server.start()
    ground.create_log()
    ground.start_service()
    must(ground.post("before").status_code == 202, "a plain sample is not accepted")
    dies.touch()
    answer = ground.post("the-one")
    must(answer.status_code == 503, f"a dead server, and the answer is {answer.status_code}")
    until(lambda: not ground.server.running, "the server to die", 10)
    ground.tally.add("server_kills")
    dies.unlink()
    ground.server.start()
    again = ground.post("the-one")
    must(again.status_code == 200, f"the repeat got {again.status_code}: it was not on the disk")
    ground.tally.add("repeats_after_execution")
    ground.start_worker()
    ground.verify()


@case("F3")
def reply_halved(ground: Ground) -> None:
    """Half a reply is no reply: the connection is dropped, the repeat gives the same number."""
    broken_exchange(ground, "half-reply", executed=True)


@case("F4")
def reply_stalled(ground: Ground) -> None:
    """A reply that never comes is a 503 in time, and costs no connection for ever."""
    proxy = ground.use_proxy()
    ground.start_all()
    usual_s = max(_timed_post(ground, f"before-{k}", 202) for k in range(5))
    proxy.arm("stall", b"the-one")
    took_s = _timed_post(ground, "the-one", 503)
    said = f"refused after {took_s:.1f} s, where an answer took {usual_s:.2f} s before"
    must(took_s <= REFUSED_WITHIN_S + usual_s, said)
    for _ in range(70):  # more than the service keeps connections
        proxy.arm("stall", b"HGET")
    with ThreadPoolExecutor(70) as pool:
        stalled = list(pool.map(lambda k: ground.get(f"/samples/{k}")["status"], range(70)))
    must(set(stalled) <= {503, 404}, f"stalled look-ups were answered {set(stalled)}")
    proxy.release()
    again = ground.post("the-one")
    must(again.status_code == 200, f"the repeat got {again.status_code}: {again.text}")
    ground.tally.add("proxy_stall", 1 + proxy.broken["stall"])
    ground.verify()


@case(needs=["publications_broken"])
def publication_broken(ground: Ground) -> None:
    """A version whose publication is cut is the head before the next one is made, while samples wait."""
    proxy = ground.use_proxy()
    ground.server.start()
    ground.create_log()
    ground.admit(samples(24))
    ground.client.script_load(script("publish"))  # so that the first call of it is executed
    modes = ("cut-request", "drop-reply", "half-reply")
    for version in range(1, 10):  # of evidence twice, then of an adapter: each meets each mode
        # The first adapter's is cut: whoever goes on then commits a second version over it.
        proxy.arm(modes[(version + version // 3 - 1) % 3], b'"version":%d' % version)
    ground.start_worker()
    ground.verify()
    must(dict.fromkeys(modes, 3) == proxy.broken, f"only {proxy.broken} were broken")
    ground.tally.add("publications_broken", 9)


# The server


@case("F5", needs=["server_kills", "posts_unknown"])
def server_killed_under_load(ground: Ground) -> None:
    """A server killed again and again while clients teach loses nothing that it acknowledged."""
    ground.start_all()
    clients = ground.start_clients(3, 1, pause_s=0.03)
    for _ in range(6):
        ground.wait(ground.rng.uniform(0.1, 0.5))
        ground.kill_server()
    ground.end_clients(clients)
    ground.verify()


@case("F6", when="full", needs=["server_kills", "slow_syncs"])
def server_killed_with_slow_disk(ground: Ground) -> None:
    """Likewise with a disk that takes 400 ms for each sync."""
    slow = preload(ground.directory / "disk", sync_ms="400")
    ground.server = LogServer(ground.directory / "redis", before=slow)
    ground.start_all()
    clients = ground.start_clients(3, 1)
    for _ in range(5):
        ground.wait(ground.rng.uniform(1.0, 3.0))
        ground.kill_server()
    ground.server.kill()
    ground.server.binary = ""  # learnt to the end on the quick disk
    ground.end_clients(clients)
    ground.tally.add("slow_syncs", len(ground.ledger.acked))
    ground.verify()


def stopped_server(ground: Ground, stopped_s: float) -> None:
    """
    Stop the server for a while; answers go on, admission says no in time, nothing is lost.

    In time is 3 s and what an answer takes on this machine, where other cases run beside this one.
    """
    ground.start_all()
    clients = ground.start_clients(2, 3, pause_s=0.1)
    ground.wait(1.0)
    # What an answer takes on this machine with nothing stopped, which is not the server's delay.
    usual_s = max(_timed_post(ground, f"before-{k}", 202) for k in range(5))
    ground.server.signal(signal.SIGSTOP)
    ground.tally.add("server_stops")
    answers: list[Future[float]] = []
    until_s = time.monotonic() + stopped_s
    with ThreadPoolExecutor(4) as pool:
        while time.monotonic() < until_s - REFUSED_WITHIN_S:
            answers += [pool.submit(_timed_post, ground, f"while-{len(answers)}", 503)]
            time.sleep(stopped_s / 25)
        slowest_s = max(answer.result() for answer in answers)
        time.sleep(max(0.0, until_s - time.monotonic()))
    ground.server.signal(signal.SIGCONT)
    ground.wait(2.0)  # what queued meanwhile is worked off first
    for k in range(len(answers)):
        must(ground.post(f"while-{k}").status_code < 300, "a repeat is not accepted")
    ground.end_clients(clients)
    must(
        ground.ledger.success >= 0.999,
        f"{ground.ledger.success:.5f} of the questions answered: "
        f"{ground.ledger.asked} {ground.ledger.wrong}",
    )
    ground.verify()
    said = f"admission was refused after {slowest_s:.2f} s, where it took {usual_s:.2f} s before"
    ground.notes.append(said)
    must(slowest_s <= REFUSED_WITHIN_S + usual_s, said)


def _timed_post(ground: Ground, id: str, expected: int) -> float:
    began = time.monotonic()
    answer = ground.post(id)
    must(answer.status_code == expected, f"{answer.status_code} where {expected} is to be")
    return time.monotonic() - began


@case("F7", when="fast", needs=["server_stops"])
def server_stopped_briefly(ground: Ground) -> None:
    """A server stopped for 4 s: questions are answered, samples refused within 3 s."""
    stopped_server(ground, 4.0)


@case("F7", when="full", needs=["server_stops"])
def server_stopped_for_7_s(ground: Ground) -> None:
    """A server stopped for 7 s: 99.9 % of questions answered, samples refused within 3 s."""
    stopped_server(ground, 7.0)


@case("F7", when="full", needs=["server_stops"])
def server_stopped_for_30_s(ground: Ground) -> None:
    """A server stopped for 30 s, as long as the lease: likewise."""
    stopped_server(ground, 30.0)


@case("F8")
def server_restarted_in_order(ground: Ground) -> None:
    """A restart that forgot all scripts is not seen by clients."""
    ground.start_all()
    must(ground.post("before").status_code == 202, "a plain sample is not accepted")
    ground.server.stop()
    ground.server.start()
    answer = ground.post("after")
    must(answer.status_code == 202, f"after the restart: {answer.status_code} {answer.text}")
    ground.tally.add("server_restarts")
    ground.verify()


@case("F9", needs=["server_exits"])
def log_disk_full(ground: Ground) -> None:
    """No room for the log: the server leaves, clients hear 503, nothing acknowledged is lost."""
    full = "trap '' XFSZ\nulimit -f 200"  # in blocks of 512 bytes
    ground.server = LogServer(ground.directory / "redis", before=full)
    ground.server.start()
    ground.create_log()
    ground.start_service()
    for number in range(1, 400):
        if ground.post(f"s{number}", number).status_code == 503:
            break
    until(lambda: not ground.server.running, "the server to leave", 10)
    ground.tally.add("server_exits")
    must(len(ground.ledger.acked) > 10, "the disk was full from the start")
    must(ground.ask().status_code == 200, "no answer while the log is away")
    ground.server.binary = ""  # somebody made room
    ground.server.start()
    ground.start_worker()
    must(ground.post(f"s{number}", number).status_code < 300, "no sample is taken again")
    ground.verify()


@case("F10", needs=["server_exits"])
def log_disk_fails(ground: Ground) -> None:
    """A sync that fails ends the server before it acknowledges anything more."""
    fails = ground.directory / "fails"
    failing = preload(ground.directory / "disk", fail_file=str(fails))
    ground.server = LogServer(ground.directory / "redis", before=failing)
    ground.start_all()
    for number in range(1, 6):
        ground.post(f"s{number}", number)
    fails.touch()
    answer = ground.post("s6", 6)
    must(answer.status_code == 503, f"acknowledged on a failing disk: {answer.status_code}")
    until(lambda: not ground.server.running, "the server to leave", 10)
    ground.tally.add("server_exits")
    must(ground.ask().status_code == 200, "no answer while the log is away")
    fails.unlink()
    ground.server.start()
    must(ground.post("s6", 6).status_code < 300, "no sample is taken again")
    ground.verify()


@case("F11", needs=["memory_refusals"])
def memory_limit_reached(ground: Ground) -> None:
    """Over maxmemory samples are refused whole, and what waits is still learnt and freed."""
    ground.server.start()
    ground.create_log()
    ground.admit(samples(20))
    ground.start_service()
    before = ground.client.hgetall(ground.keys.meta)
    ground.client.config_set("maxmemory", "1mb")
    answer = ground.post("too-much")
    must(answer.status_code == 503, f"over maxmemory: {answer.status_code}")
    must(ground.client.hgetall(ground.keys.meta) == before, "a refused call wrote something")
    ground.tally.add("memory_refusals")
    ground.start_worker()
    ground.settle(30)
    must(ground.client.hget(ground.keys.meta, "bytes") == b"0", "what was learnt still counts")
    ground.client.config_set("maxmemory", "256mb")
    must(ground.post("too-much").status_code == 202, "no sample is taken again")
    ground.verify()


@case("F12", needs=["queue_refusals"])
def backlog_at_its_limit(ground: Ground) -> None:
    """A full queue is a 429 with a time to come back; what was accepted stays accepted."""
    ground.settings["max_backlog_samples"] = "5"
    ground.server.start()
    ground.create_log()
    ground.start_service()
    answers = [ground.post(f"s{number}", number) for number in range(1, 7)]
    must([a.status_code for a in answers] == [202] * 5 + [429], "the limit is not where it is set")
    must(1 <= int(answers[-1].headers["retry-after"]) <= 60, "no time to come back")
    must(ground.post("s3", 3).status_code == 200, "a repeat is told that the queue is full")
    ground.tally.add("queue_refusals")
    ground.start_worker()
    until(lambda: ground.post("s6", 6).status_code < 300, "room in the queue", 20)
    ground.verify()
