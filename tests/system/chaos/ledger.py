"""
Clients over real HTTP, and what they noted: every attempt is ok, refused or *unknown*.

An id is sent until it is acknowledged, always with the same body. What was unknown is settled by
the id: the same number must come back.
"""

from __future__ import annotations

import base64
import io
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import httpx
import numpy as np
from PIL import Image

LABELS = ("circle", "square", "star", "cross", "wave", "ring")
_REQUEST_S = 20.0


def picture(label: int, number: int, side: int = 32) -> np.ndarray:
    """Return a picture of a class, side×side×3 uint8; the same for the same arguments."""
    pattern = np.random.default_rng(label).integers(0, 200, (8, 8, 3))
    noise = np.random.default_rng([label, number]).integers(0, 56, (8, 8, 3))
    small = (pattern + noise).astype(np.uint8)
    return np.kron(small, np.ones((side // 8, side // 8, 1), np.uint8))


def encoded(label: int, number: int) -> str:
    """Return the picture as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(picture(label, number)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Ledger:
    """What all clients noted, in one place."""

    def __init__(self) -> None:
        self.acked: dict[str, set[int]] = defaultdict(set)
        self.unknown: set[str] = set()  # at the last attempt
        self.outcomes: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.violations: list[str] = []
        self._lock = threading.Lock()

    def note(self, id: str, outcome: str, seq: int = 0) -> None:
        """Note one attempt."""
        with self._lock:
            self.outcomes[outcome] += 1
            if outcome == "ok":
                if id in self.unknown:
                    self.outcomes["settled"] += 1
                self.unknown.discard(id)
                self.acked[id].add(seq)
            elif outcome == "unknown":
                self.unknown.add(id)

    def note_answer(self, right: bool, words: str = "") -> None:
        """Note one answer to a question."""
        with self._lock:
            self.asked["right" if right else "failed"] += 1
            if not right and len(self.wrong) < 8:
                self.wrong.append(words)

    @property
    def success(self) -> float:
        """The share of questions that were answered; 1 when none was asked."""
        total = self.asked.total()
        return self.asked["right"] / total if total else 1.0


class Poster(threading.Thread):
    """One client that teaches, a picture at a time, until it is told to stop."""

    def __init__(self, url: str, ledger: Ledger, name: str, seed: int, pause_s: float) -> None:
        super().__init__(daemon=True, name=name)
        self.url = url
        self.ledger = ledger
        self.rng = random.Random(f"{name} {seed}")
        self.pause_s = pause_s
        self.stopping = threading.Event()

    def run(self) -> None:
        """Post until told to stop; the last one is settled before the end."""
        number = 0
        with httpx.Client(base_url=self.url, timeout=_REQUEST_S) as client:
            while not self.stopping.is_set():
                number += 1
                label = self.rng.randrange(len(LABELS))
                sample = sample_of(f"{self.name}-{number}", number, label)
                while not post(client, self.ledger, sample):
                    time.sleep(0.05)
                time.sleep(self.rng.uniform(0, 2 * self.pause_s))


def sample_of(id: str, number: int, label: int = 0) -> dict[str, str]:
    """Return the body of `POST /samples` for one picture."""
    return {"id": id, "label": LABELS[label], "image": encoded(label, number)}


def post(client: httpx.Client, ledger: Ledger, sample: dict[str, str]) -> bool:
    """Send a sample once and note what came of it; return whether it is acknowledged."""
    try:
        answer = client.post("/samples", json=sample)
    except httpx.TransportError:
        ledger.note(sample["id"], "unknown")
        return False
    if answer.status_code in {200, 202}:
        ledger.note(sample["id"], "ok", answer.json()["seq"])
        return True
    kind = answer.json()["type"].rpartition("/")[2]
    if kind == "log-unavailable":
        ledger.note(sample["id"], "unknown")
        return False
    if kind in {"queue-full", "learning-paused", "not-ready", "busy", "body-timeout"}:
        ledger.note(sample["id"], "refused")
        return False
    ledger.violations.append(f"{sample['id']}: {answer.status_code} {answer.text}")
    return True


class Asker(threading.Thread):
    """One client that asks without pause while the service is meant to be up."""

    def __init__(self, url: str, ledger: Ledger, up: Callable[[], int], name: str) -> None:
        super().__init__(daemon=True, name=name)
        self.url = url
        self.ledger = ledger
        self.up = up
        self.stopping = threading.Event()

    def run(self) -> None:
        """Ask until told to stop. What meets a kill of the service itself is not counted."""
        before, last = 0, 0
        question = {"image": encoded(1, 0), "labels": list(LABELS), "top": 1}
        with httpx.Client(base_url=self.url, timeout=_REQUEST_S) as client:
            while not self.stopping.is_set():
                start = self.up()
                if not start:
                    time.sleep(0.02)
                    continue
                try:
                    answer = client.post("/classify", json=question)
                    right, words = answer.status_code == 200, answer.text
                except httpx.TransportError as error:
                    right, words = False, repr(error)
                if right or self.up() == start:
                    self.ledger.note_answer(right, words)
                if right:
                    last = last if before == start else 0
                    before, version = start, answer.json()["version"]
                    if version < last:
                        self.ledger.violations.append(f"version {version} answers after {last}")
                    last = version
                time.sleep(0.01)
