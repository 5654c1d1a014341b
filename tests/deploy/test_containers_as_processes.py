"""
The containers of docker-compose.yml as plain processes: their very commands and environments.

Instead of an engine: the log's command line runs the embedded binary, the names of hosts and
places become this machine's, and the model is a small random CLIP instead of one from the hub.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.tiny_clip import write_tiny_clip
from everlens.bus.server import find_binary
from everlens.client import Client
from everlens.launch.greeting import bundled_picture
from tests.deploy.compose import load
from tests.system.processes import Started, clean_environment, free_port, started, until

pytestmark = pytest.mark.system

READY_S = 120.0
STOPPED_S = 20.0


class Containers:
    """The services of the file, started one by one with this machine's names and places."""

    def __init__(self, room: Path) -> None:
        self.room = room
        self.port = free_port()
        self.log_port = free_port()
        model = write_tiny_clip(room / "tiny-vit")
        chosen = {"EVERLENS_MODEL": str(model), "EVERLENS_PRETRAINED": "random"}
        whole = load(chosen)
        self.services: dict[str, Any] = whole["services"]
        self.configs: dict[str, Any] = whole["configs"]
        self.users: str = self.configs["users"]["content"]

    def environment(self, name: str) -> dict[str, str]:
        """Return the container's environment; only names and places are exchanged."""
        given = dict(self.services[name]["environment"])
        given["CREDENTIALS_DIRECTORY"] = str(self.secrets(name))
        given["EVERLENS_PORT"] = str(self.port)
        given["EVERLENS_DATA_DIR"] = str(self.room / "state")
        given["HF_HOME"] = str(self.room / "models")
        return clean_environment() | given

    def secrets(self, name: str) -> Path:
        """Return a folder with the files that the container finds in /run/secrets."""
        folder = self.room / f"secrets-{name}"
        folder.mkdir(exist_ok=True)
        for mounted in self.services[name]["configs"]:
            place, _, file = mounted["target"].rpartition("/")
            assert place == "/run/secrets"
            content: str = self.configs[mounted["source"]]["content"]
            here = content.replace("valkey:6379", f"127.0.0.1:{self.log_port}")
            assert here != content
            (folder / file).write_text(here, encoding="ascii")
        return folder

    def command(self, name: str) -> list[str]:
        """Return the container's command, with the tests' interpreter."""
        words: list[str] = self.services[name]["command"]
        return [sys.executable if word == "python" else word for word in words]

    def start(self, name: str) -> contextlib.AbstractContextManager[Started]:
        """Start one of our two halves."""
        return started(self.command(name), self.environment(name), self.room / f"{name}.log")

    def start_log(self) -> contextlib.AbstractContextManager[Started]:
        """Start the log with the container's command line, in its volume."""
        (self.room / "data").mkdir(exist_ok=True)
        users = self.room / "users.acl"
        users.write_text(self.users, encoding="ascii")
        command = [str(users) if word == "/users.acl" else word for word in self.command("valkey")]
        assert str(users) in command
        words = [str(find_binary()), *command[1:]]
        place = ["--port", str(self.log_port), "--bind", "127.0.0.1"]
        place += ["--dir", str(self.room / "data")]
        return started(words + place, os.environ, self.room / "valkey.log")

    def is_healthy(self, name: str) -> bool:
        """Return what the container's own health check says."""
        test = self.services[name]["healthcheck"]["test"]
        words = [sys.executable if word == "python" else word for word in test[1:]]
        return _succeeds(words, self.environment(name))

    @contextlib.contextmanager
    def up(self) -> Iterator[dict[str, Started]]:
        """Give all three, healthy; they are ended in the reverse order."""
        with self.start_log() as log:
            log.until_said("Ready to accept connections", READY_S)
            with self.start("worker") as worker, self.start("service") as service:
                running = {"valkey": log, "worker": worker, "service": service}
                for name in ("worker", "service"):
                    healthy = functools.partial(self.is_healthy, name)
                    until(healthy, READY_S, f"{name} to be healthy", running[name].log)
                yield running


def _succeeds(words: list[str], environment: Mapping[str, str]) -> bool:
    done = subprocess.run(words, env=environment, capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture
def containers(tmp_path: Path) -> Containers:
    """The file's containers, none of them started."""
    return Containers(tmp_path)


def test_containers_learn_answer_and_go_on(containers: Containers) -> None:
    """
    Started as the file says, all become healthy; a taught picture is known to the answer. After
    SIGTERM, which is how an engine stops them, each ends in order, and started again the same
    volumes give the same answer.
    """
    picture = bundled_picture()
    assert picture is not None
    with containers.up() as running, Client(f"http://127.0.0.1:{containers.port}") as client:
        receipt = client.learn(picture, "cat", id="first")
        answer = client.classify(picture, wait_for="first")
        codes = {}
        for name in ("service", "worker", "valkey"):
            running[name].process.terminate()
            codes[name] = running[name].wait(STOPPED_S)

    assert codes == {"service": 0, "worker": 0, "valkey": 0}
    assert answer.best.label == "cat"
    assert answer.learned_through >= receipt.seq

    with containers.up(), Client(f"http://127.0.0.1:{containers.port}") as client:
        again = client.learn(picture, "cat", id="first")
        after = client.classify(picture, wait_for="first")

    assert again == receipt
    assert after.predictions == answer.predictions


def test_health_checks_tell_when_a_half_is_missing(containers: Containers) -> None:
    """Without log, worker and service both checks fail, quickly and without a traceback."""
    for half in ("worker", "service"):
        done = subprocess.run(
            [sys.executable, "-m", "everlens.launch.health", half],
            env=containers.environment(half),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (1, "")
