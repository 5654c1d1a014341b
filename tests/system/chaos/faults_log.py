"""
A log that was lost, is old, cut or another's: F13 to F18.

Always the same must hold: it is noticed, learning stops and takes no sample, answers go on.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from everlens.errors import ServerError
from tests.system.chaos import truth
from tests.system.chaos.campaign import case
from tests.system.chaos.ground import (
    EXIT_STATE,
    Broken,
    Ground,
    LogServer,
    last_line,
    must,
    samples,
    until,
)


def learning_stops(ground: Ground, *, restarted: bool = True) -> None:
    """Fail unless the worker stops for good, no sample is taken, and questions are answered."""
    assert ground.worker is not None
    code = ground.worker.wait(20)
    must(code == EXIT_STATE, f"the worker ended with {code}: {last_line(ground.worker)}")
    must(ground.ask().status_code == 200, "questions are not answered")
    answer = ground.post("new")
    must(answer.status_code == 503, f"a sample is taken into a wrong log: {answer.text}")
    if restarted:
        again = ground.start_worker()
        code = again.wait(20)
        must(code == EXIT_STATE, f"started again, the worker ended with {code}: {last_line(again)}")
        must(ground.post("new").status_code == 503, "a sample is taken after the restart")
    ground.tally.add("wrong_logs_noticed")


@contextlib.contextmanager
def server_away(ground: Ground) -> Iterator[Path]:
    """Give the directory of the append-only file while no server has it."""
    ground.server.stop()
    yield ground.server.directory / "appendonlydir"
    ground.server.start()


@case("F13", needs=["wrong_logs_noticed"])
def log_wiped(ground: Ground) -> None:
    """A log that is gone is not begun anew over a state."""
    ground.start_all()
    ground.teach(6)
    with server_away(ground) as log:
        shutil.rmtree(log)
    learning_stops(ground)


@case("F14", needs=["wrong_logs_noticed"])
def manifest_of_the_log_missing(ground: Ground) -> None:
    """Without its manifest the server starts empty, which is a log that is gone."""
    ground.start_all()
    ground.teach(6)
    with server_away(ground) as log:
        (manifest,) = log.glob("*.manifest")
        manifest.rename(log / "lost")
    learning_stops(ground)


def cut_tail(ground: Ground) -> None:
    """Accept samples while nobody learns, and cut the last of them from the log."""
    ground.start_all()
    ground.teach(6)
    ground.end_worker()  # so that what follows stands in the log alone
    for number in range(1, 4):
        must(ground.post(f"t{number}", number).status_code == 202, "a sample is not accepted")
    with server_away(ground) as log:
        (tail,) = log.glob("*.incr.aof")
        with tail.open("rb+") as file:
            file.truncate(tail.stat().st_size - 200)
    lost = {entry.id for entry in truth.logged(ground.server.directory, ground.namespace)}
    must("t2" in lost and "t3" not in lost, "another sample was cut than the last")


def takes_nothing(ground: Ground) -> None:
    """Fail when a sample is taken, or no question answered."""
    for sample in ("new", "t3"):
        answer = ground.post(sample, 3)
        must(
            answer.status_code == 503, f"{sample} is taken into a log that lost one: {answer.text}"
        )
    must(ground.ask().status_code == 200, "questions are not answered")
    ground.tally.add("wrong_logs_noticed")


@case("F15", needs=["wrong_logs_noticed"])
def tail_of_the_log_cut(ground: Ground) -> None:
    """An acknowledged sample cut from the end of the log is missed, and no other is taken."""
    cut_tail(ground)
    takes_nothing(ground)
    ground.kill_service()
    ground.start_service()
    takes_nothing(ground)


@case("F15", needs=["wrong_logs_noticed"])
def tail_of_the_log_cut_and_its_number_given_again(ground: Ground) -> None:
    """Likewise when a worker's own entry has taken the number of the sample that was lost."""
    cut_tail(ground)
    ground.start_worker()
    until(ground.rests, "the worker to end the batch with an entry of its own", 20)
    takes_nothing(ground)


@case("F16")
def middle_of_the_log_damaged(ground: Ground) -> None:
    """The server refuses a log that is damaged within, and says so; answers go on."""
    ground.start_all()
    ground.teach(6)
    ground.server.stop()
    (tail,) = (ground.server.directory / "appendonlydir").glob("*.incr.aof")
    with tail.open("rb+") as file:
        # Where a command begins: in the middle of a picture it would be the picture's damage.
        content = tail.read_bytes()
        file.seek(content.index(b"\r\n*", len(content) // 2))
        file.write(bytes(40))
    try:
        ground.server.start()
    except ServerError as refusal:
        must("left at its start" in str(refusal), f"it says only: {refusal}")
    else:
        raise Broken("the server started over a damaged log")
    must(ground.ask().status_code == 200, "questions are not answered")
    must(ground.post("new").status_code == 503, "a sample is taken without a log")


def older_log(ground: Ground, *, worker_restarts: bool) -> None:
    """Restore a copy of the log from before the last samples were learnt."""
    ground.start_all()
    ground.teach(6)
    with server_away(ground) as log:
        shutil.copytree(log, ground.directory / "older")
    ground.teach(9, "t")
    assert ground.worker is not None
    if worker_restarts:
        ground.worker.kill()
    with server_away(ground) as log:
        shutil.rmtree(log)
        shutil.copytree(ground.directory / "older", log)
    if worker_restarts:
        ground.start_worker()
    learning_stops(ground)


@case("F17", needs=["wrong_logs_noticed"])
def older_log_restored(ground: Ground) -> None:
    """A worker that starts over a log which ends behind its state stops."""
    older_log(ground, worker_restarts=True)


@case("F17", needs=["wrong_logs_noticed"])
def older_log_restored_under_a_worker(ground: Ground) -> None:
    """A worker that runs while an older log is put under it stops, before it skips a sample."""
    older_log(ground, worker_restarts=False)


@case("F18", needs=["wrong_logs_noticed"])
def log_of_another_learner(ground: Ground) -> None:
    """A log with another epoch takes no sample of this service and teaches this worker nothing."""
    ground.start_all()
    ground.teach(6)
    other = LogServer(ground.directory / "other")
    other.start()
    try:
        own, ground.server = ground.server, other
        del ground.client
        ground.create_log()
        ground.admit(samples(9, "other"))
    finally:
        other.stop()
        ground.server = own
        del ground.client
    ground.ledger.acked.clear()
    with server_away(ground) as log:
        shutil.rmtree(log)
        shutil.copytree(ground.directory / "other" / "appendonlydir", log)
    learning_stops(ground)


@case(needs=["wrong_logs_noticed"])
def server_that_is_not_durable(ground: Ground) -> None:
    """A worker does not learn from a server whose acknowledgement does not mean on disk."""
    ground.server.start()
    ground.create_log()
    ground.client.config_set("appendfsync", "everysec")
    worker = ground.start_worker()
    must(worker.wait(20) == EXIT_STATE, f"the worker ended with {worker.code}")
    must("appendfsync" in last_line(worker), f"it says only: {last_line(worker)}")
    ground.start_service()
    answer = ground.post("s1")
    must(answer.status_code == 503, f"a sample is taken: {answer.status_code}")
    ground.tally.add("wrong_logs_noticed")
