"""
`everlens up` as a person meets it: it starts, is asked, is stopped, and goes on.

All with the starter model, on a free port, over a data directory of the test's own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from everlens.client import Client
from everlens.launch.greeting import bundled_picture
from tests.folders import short_folder
from tests.system.processes import (
    Started,
    clean_environment,
    everlens_up,
    free_port,
    processes_naming,
    started,
    until,
)

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

READY_S = 120.0  # also on a loaded machine
STOPPED_S = 20.0


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory of this test's own."""
    with short_folder("up") as folder:
        yield folder


def up(data_dir: Path, port: int, **settings: str) -> Any:
    """Give a running `everlens up` that is ended afterwards."""
    environment = clean_environment(data_dir=str(data_dir), port=str(port), **settings)
    return started(everlens_up(), environment, data_dir / "up.log")


def ready(launcher: Started) -> list[str]:
    """Wait until it is ready; return its curl lines: ask, teach, ask again."""
    launcher.until_said("Ctrl-C here stops everything", READY_S)
    return [line for line in launcher.said().splitlines() if line.startswith("curl ")]


def pasted(line: str) -> dict[str, Any]:
    """Return the JSON that a line prints when a shell runs it."""
    said = subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout
    answer: dict[str, Any] = json.loads(said)
    return answer


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_printed_lines_work_when_pasted_and_the_answer_changes(data_dir: Path) -> None:
    """
    The three printed lines run in a shell: the photograph of a cat is a cat by its name alone, is
    taught as Chelsea, and is Chelsea from then on, also after Ctrl-C and a second start. Whoever
    listens to what happens meanwhile hears the end of it, and holds nothing up.
    """
    port = free_port()
    with up(data_dir, port) as launcher:
        ask, teach, ask_again = ready(launcher)
        first, receipt, second = pasted(ask), pasted(teach), pasted(ask_again)
        with httpx.stream("GET", f"http://127.0.0.1:{port}/events", timeout=READY_S) as events:
            told = events.iter_lines()
            begun = next(told)
            launcher.signal_group(signal.SIGINT)
            code = launcher.wait(STOPPED_S)
            list(told)  # to its end: were it cut off, this would raise
        left = processes_naming(str(data_dir))

    assert begun == "event: version"
    assert (first["predictions"][0]["label"], first["version"]) == ("cat", 0)
    assert receipt == {"id": "chelsea-1", "seq": 1, "status": "accepted"}
    assert second["predictions"][0]["label"] == "Chelsea"
    assert second["learned_through"] >= receipt["seq"]
    assert (code, left) == (0, [])

    with up(data_dir, port) as launcher:
        _, teach, ask_again = ready(launcher)
        again = pasted(teach), pasted(ask_again)

    assert again[0] == receipt
    assert again[1]["predictions"] == second["predictions"]


def test_killed_launcher_leaves_no_child_and_the_next_start_answers(data_dir: Path) -> None:
    """After SIGKILL of the launcher its children end, and a start at once after it succeeds."""
    port = free_port()
    with up(data_dir, port) as launcher:
        ready(launcher)
        launcher.process.kill()
        launcher.process.wait()
        until(lambda: not processes_naming(str(data_dir)), STOPPED_S, "no child left", launcher.log)

    with up(data_dir, port) as launcher:
        ready(launcher)
        with Client(f"http://127.0.0.1:{port}") as client:
            assert client.ready()


class Running(NamedTuple):
    """An `everlens up` that is ready."""

    launcher: Started
    data_dir: Path
    port: int


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """One `everlens up` for the tests that leave it running."""
    with short_folder("running") as data_dir:
        port = free_port()
        with up(data_dir, port) as launcher:
            ready(launcher)
            yield Running(launcher, data_dir, port)


def test_second_start_on_the_same_directory_is_refused(running: Running) -> None:
    """A second `everlens up` on a directory in use ends with one line, before anything starts."""
    said = _refused(data_dir=str(running.data_dir), port=str(free_port()))

    assert f"process {running.launcher.process.pid} already uses {running.data_dir}" in said


def test_second_start_on_the_same_port_is_refused(running: Running, data_dir: Path) -> None:
    """A second `everlens up` on a port in use ends with one line that names the setting."""
    said = _refused(data_dir=str(data_dir), port=str(running.port))

    assert f"port {running.port} on 127.0.0.1 is in use" in said
    assert "EVERLENS_PORT=" in said


def _refused(**settings: str) -> str:
    said = subprocess.run(
        everlens_up(),
        env=clean_environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 2, said
    assert said.stdout == ""
    (line,) = said.stderr.splitlines()
    return line


def test_model_that_cannot_be_loaded_is_one_line(data_dir: Path) -> None:
    """A child that says its settings are wrong ends everything with its own sentence, exit 2."""
    with up(data_dir, free_port(), model="no-such-model", pretrained="tag") as launcher:
        code = launcher.wait(READY_S)
        said = launcher.said()

    assert code == 2
    assert "cannot load no-such-model" in said
    assert "Traceback" not in said
    assert processes_naming(str(data_dir)) == []


def test_killed_child_is_started_again(running: Running) -> None:
    """After SIGKILL of the worker, of the server and of the service, all three come back."""
    launcher = running.launcher
    picture = bundled_picture()
    assert picture is not None
    with Client(f"http://127.0.0.1:{running.port}") as client:
        for times, command in enumerate(("-m worker", "valkey-server", "-m service"), start=1):
            (child,) = (p for p in processes_naming(str(running.data_dir)) if command in p)
            os.kill(int(child.split()[0]), signal.SIGKILL)
            launcher.until_said("starting it again", READY_S, times=times)
            until(client.ready, READY_S, "to be ready again", launcher.log)
        receipt = client.learn(picture, "cat")
        state = client.wait(receipt.id, within_s=READY_S)

    assert state.status == "learnt"


def test_second_interrupt_kills(data_dir: Path) -> None:
    """A second Ctrl-C while it stops ends everything at once, and nothing is left."""
    with up(data_dir, free_port()) as launcher:
        launcher.until_said("service   started", READY_S)
        worker_log = data_dir / "logs" / "worker.log"
        # Begun, so that it takes SIGTERM as its own and not as a wrapper that dies of it.
        until(lambda: "learning with" in _said(worker_log), READY_S, "to learn", launcher.log)
        (worker,) = (p for p in processes_naming(str(data_dir)) if "-m worker" in p)
        os.kill(int(worker.split()[0]), signal.SIGSTOP)  # so that it cannot stop in order
        launcher.signal_group(signal.SIGINT)
        launcher.until_said("stopping", STOPPED_S)
        launcher.signal_group(signal.SIGINT)
        code = launcher.wait(STOPPED_S)
        until(lambda: not processes_naming(str(data_dir)), STOPPED_S, "no child left", launcher.log)

    assert code == 130


def _said(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def test_demo_and_status_report_what_was_learnt(running: Running) -> None:
    """`everlens demo` teaches class by class and prints a line for each; status counts them."""
    environment = clean_environment(port=str(running.port))

    def said(*words: str) -> str:
        command = [sys.executable, "-m", "everlens.cli", *words]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    shown = said("demo", "--classes", "2", "--per-class", "3")
    told = said("status")

    rows = [line.split("│")[1:-1] for line in shown.splitlines() if "digit" in line and "│" in line]
    assert [(row[0].strip(), row[1].strip()) for row in rows] == [
        ("digit zero", "3"),
        ("digit one", "3"),
    ]
    assert all("%" in row[2] and "%" in row[3] for row in rows)
    assert f"http://127.0.0.1:{running.port}, ready" in told
