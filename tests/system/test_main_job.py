"""
The main job: photographs of classes that nobody has seen come in, while everybody asks.

As a team would use it: everything real, over HTTP, with the starter, on this machine.
"""

from __future__ import annotations

import base64
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
import numpy as np
import pytest

from bench.packs import Pack, read_pack
from tests.packs import PACKS, needs_packs
from tests.system.processes import clean_environment, everlens_up, free_port, started

CLASSES, SHOTS = 31, 8

# By itself, for it measures how long a label takes.
pytestmark = [
    pytest.mark.alone,
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    needs_packs,
]


def encoded(pack: Pack, place: int) -> str:
    """Return one JPEG file of a pack as base64."""
    return base64.b64encode(
        pack.blob[pack.offsets[place] : pack.offsets[place + 1]].tobytes()
    ).decode()


class Asking:
    """Somebody who asks without pause, and remembers every answer."""

    def __init__(self, url: str, bodies: list[dict[str, object]]) -> None:
        self.client = httpx.Client(base_url=url, timeout=60)
        self.bodies = bodies
        self.failures: list[str] = []
        self.versions: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.client.close()

    def _ask(self) -> None:
        turn = 0
        while not self._stop.is_set():
            answer = self.client.post("/classify", json=self.bodies[turn % len(self.bodies)])
            if answer.status_code == 200:
                self.versions.append(answer.json()["version"])
            else:
                self.failures.append(answer.text)
            turn += 1


class Job:
    """The pictures of some classes, and a service to post them to."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = httpx.Client(base_url=url, timeout=60)
        self.train = read_pack(PACKS, "caltech", "train")
        self.test = read_pack(PACKS, "caltech", "test")
        places = np.random.default_rng(7).choice(len(self.train.classes), CLASSES, replace=False)
        self.classes = sorted(places.tolist())
        self.names = [self.train.classes[c] for c in self.classes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def accuracy(self, classes: list[int], **fields: object) -> float:
        """Return the class-mean accuracy of `/classify` on the test pictures of these classes."""
        shares = []
        for c in classes:
            right = [
                self.train.classes[c] == self.ask(encoded(self.test, int(place)), **fields)[0]
                for place in np.flatnonzero(self.test.labels == c)
            ]
            shares.append(statistics.mean(right))
        return statistics.mean(shares)

    def ask(self, image: str, **fields: object) -> list[str]:
        """Return the ranked labels of one answer."""
        answer = self.client.post("/classify", json={"image": image, **fields})
        assert 200 == answer.status_code, answer.text
        return [line["label"] for line in answer.json()["predictions"]]

    def samples(self) -> Iterator[dict[str, str]]:
        """Yield labelled pictures, class by class."""
        for c in self.classes:
            for place in np.flatnonzero(self.train.labels == c)[:SHOTS]:
                image = encoded(self.train, int(place))
                yield {"image": image, "label": self.train.classes[c], "id": f"{c}/{place}"}

    def answers(self) -> list[tuple[object, int]]:
        """Return whole answers to the first test pictures."""
        found = [
            self.client.post("/classify", json={"image": encoded(self.test, place)}).json()
            for place in range(10)
        ]
        return [(answer["predictions"], answer["version"]) for answer in found]


def until_settled(client: httpx.Client) -> None:
    """Wait until the learner has nothing to do: all learnt, its adapter published."""
    deadline, before, since = time.monotonic() + 120, None, time.monotonic()
    while time.monotonic() < deadline:
        learning = client.get("/learning").json()
        now = (learning["version"], learning["learner"].get("version"))
        if now != before or now[0] != now[1] or learning["backlog"]["entries"]:
            before, since = now, time.monotonic()
        elif time.monotonic() > since + 12:  # longer than the learner waits for its idle adapter
            return
        time.sleep(2)
    raise AssertionError("the learner does not settle")


def test_photographs_of_new_classes(tmp_path: Path, tmp_path_factory) -> None:
    """Zero-shot at first, known after eight labels, no failed request, the same after a restart."""
    data_dir = tmp_path_factory.mktemp("job")
    environment = clean_environment(data_dir=str(data_dir), port=str(free_port()))
    url = f"http://127.0.0.1:{environment['EVERLENS_PORT']}"
    with started(everlens_up(), environment, tmp_path / "first.log") as launcher:
        launcher.until_said("Ctrl-C here stops everything", 120)
        with Job(url) as job:
            learn_all(job)
            until_settled(job.client)
            before = job.answers()
    with started(everlens_up(), environment, tmp_path / "second.log") as launcher:
        launcher.until_said("Ctrl-C here stops everything", 120)
        with Job(url) as job:
            assert before == job.answers()


def learn_all(job: Job) -> None:
    """Run the job once and check all that a user would."""
    zero_shot = job.accuracy(job.classes, labels=job.names)
    assert zero_shot >= 0.45

    bodies: list[dict[str, object]] = [
        {"image": encoded(job.test, place), "labels": job.names} for place in range(0, 500, 25)
    ]
    waits_s = []
    with Asking(job.url, bodies) as asking:
        for k, sample in enumerate(job.samples()):
            accepted = job.client.post("/samples", json=sample)
            assert 202 == accepted.status_code, accepted.text
            if k % 4 == 0:
                began = time.monotonic()
                job.ask(sample["image"], wait_for=sample["id"])
                waits_s.append(time.monotonic() - began)
    assert [] == asking.failures
    assert asking.versions == sorted(asking.versions)
    assert asking.versions[-1] > CLASSES / 2
    assert statistics.median(waits_s) <= 2.0

    assert job.accuracy(job.classes) >= 0.80
    assert job.accuracy(job.classes[:1]) >= 0.80
    accepted_through = job.client.get("/learning").json()["accepted_through"]
    for sample in list(job.samples())[:16]:
        assert 200 == job.client.post("/samples", json=sample).status_code
    assert accepted_through <= job.client.get("/learning").json()["accepted_through"]
    samples = {c["label"]: c["samples"] for c in job.client.get("/classes").json()["classes"]}
    assert dict.fromkeys(job.names, SHOTS) == samples
