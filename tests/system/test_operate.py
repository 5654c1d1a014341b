"""
What a person runs it by: lines, traces, figures, a backup that is restored.

All of one `everlens up` with a small random model, told to write JSON and to send its traces to a
collector of the test's own.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families
from skimage import data

from everlens.cli import main
from tests.folders import short_folder
from tests.system.processes import (
    Started,
    clean_environment,
    everlens_up,
    free_port,
    started,
    until,
)
from tests.unit.service.api import encoded

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(sys.platform != "linux", reason="a child dies with its parent there"),
]

READY_S = 120.0
TAUGHT_MEANWHILE = 5  # the last eight versions can be asked for


class Collector:
    """What OpenTelemetry's collector is, as far as it takes in: traces in protobuf over HTTP."""

    def __init__(self) -> None:
        collected = self.spans = dict[str, list[Span]]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = {a.key: a.value.string_value for a in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        collected.setdefault(about["service.name"], []).extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def find(self, service: str, name: str, **attributes: str) -> Span | None:
        """Return the first span of that name, or None so far."""
        for span in list(self.spans.get(service, [])):
            about = {a.key: a.value.string_value for a in span.attributes}
            if span.name == name and attributes.items() <= about.items():
                return span
        return None


@dataclass
class Everlens:
    """One that is ready."""

    launcher: Started
    data_dir: Path
    url: str
    settings: dict[str, str]
    collector: Collector | None = None
    photos: dict[str, bytes] = field(
        default_factory=lambda: {"cat": encoded(data.chelsea()), "cup": encoded(data.coffee())}
    )

    def teach(self, label: str, sample_id: str, **headers: str) -> int:
        """Teach a picture; return its number, once it is on the log's disk."""
        response = httpx.post(
            f"{self.url}/samples",
            data={"label": label, "id": sample_id},
            files={"image": self.photos["cat" if label == "cat" else "cup"]},
            headers=headers,
            timeout=READY_S,
        )
        assert response.status_code in {200, 202}, response.text
        seq: int = response.json()["seq"]
        return seq

    def ask(self, **fields: Any) -> dict[str, Any]:
        """Return the answer on a picture, without its random id."""
        image = {"image": self.photos["cup"]}
        response = httpx.post(f"{self.url}/classify", data=fields, files=image, timeout=READY_S)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        del answer["prediction_id"]
        return answer

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}", timeout=READY_S).json()

    def lines(self, half: str) -> list[dict[str, Any]]:
        """Return the lines of the log of one half; each has to be JSON."""
        text = (self.data_dir / "logs" / f"{half}.log").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@contextlib.contextmanager
def run(data_dir: Path, **settings: str) -> Iterator[Everlens]:
    """Give an `everlens up` that is ready."""
    port = free_port()
    environment = clean_environment(data_dir=str(data_dir), port=str(port), **settings)
    environment["EVERLENS_WAIT_S"] = str(READY_S)  # also on a loaded machine
    # So that the test need not wait for the collector's share of a span.
    environment["OTEL_BSP_SCHEDULE_DELAY"] = "100"
    with started(everlens_up(), environment, data_dir.with_suffix(".log")) as launcher:
        launcher.until_said("Ctrl-C here stops everything", READY_S)
        yield Everlens(launcher, data_dir, f"http://127.0.0.1:{port}", settings)


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    """A directory of this file's own."""
    with short_folder("operate") as room:
        yield room


@pytest.fixture(scope="module")
def everlens(room: Path, tiny_folder: str) -> Iterator[Everlens]:
    """One that everything here looks at."""
    collector = Collector()
    with run(
        room / "data",
        model=tiny_folder,
        pretrained="random",
        # Each sample one version, and no adapter on its own: the backup counts them.
        tune="none",
        log_format="json",
        log_level="debug",
        otlp_endpoint=collector.url,
        decoders="1",
    ) as running:
        running.collector = collector
        yield running
    collector.server.shutdown()
    collector.server.server_close()


def test_a_sample_is_followed_from_its_request_to_its_batch(everlens: Everlens) -> None:
    """
    The client's trace goes on in the request's span, to which the span of the batch links; the
    request's line has its id and trace, the batch's its place in the log.
    """
    collector = everlens.collector
    assert collector is not None
    client = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seq = everlens.teach("cat", "followed", **{"traceparent": client, "X-Request-Id": "order-17"})
    everlens.ask(wait_for="followed")
    log = everlens.launcher.log

    def request() -> Span | None:
        return collector.find("everlens-service", "POST /samples")

    until(request, READY_S, "the request's span", log)
    until(
        lambda: collector.find("everlens-worker", "learn batch"), READY_S, "the batch's span", log
    )
    span, batch = request(), collector.find("everlens-worker", "learn batch")
    assert span is not None
    assert batch is not None
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == tuple(client.split("-")[1:3])
    assert [(link.trace_id, link.span_id) for link in batch.links] == [
        (span.trace_id, span.span_id)
    ]
    assert batch.trace_id != span.trace_id

    (told,) = [line for line in everlens.lines("service") if line.get("path") == "/samples"]
    assert (told["request_id"], told["status"]) == ("order-17", 202)
    assert told["trace_id"] == span.trace_id.hex()
    (learnt,) = [line for line in everlens.lines("worker") if line.get("first_seq") == seq]
    assert (learnt["batch"], learnt["last_seq"], learnt["samples"]) == (1, seq + 1, 1)
    assert learnt["trace_id"] == batch.trace_id.hex()
    assert collector.find("everlens-service", "GET /readyz") is None


def test_figures_of_a_running_one_are_what_a_person_asks(everlens: Everlens) -> None:
    """Prometheus' own parser reads them; the learner lives, nothing waits, what was taught is there."""
    everlens.teach("cat", "counted")
    everlens.ask(wait_for="counted")
    found: dict[str, float] = {}
    until = time.monotonic() + 60
    # The learner's report follows the version that an answer knows, and counts it in the next.
    while not found.get("everlens_learner_samples_total") and time.monotonic() < until:
        text = httpx.get(f"{everlens.url}/metrics", timeout=READY_S).text
        found = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels
        }

    assert found["everlens_learner_up"] == found["everlens_log_up"] == 1
    assert abs(time.time() - found["everlens_learner_report_timestamp_seconds"]) < 60
    assert found["everlens_backlog_oldest_seconds"] == 0
    assert found["everlens_learnt_samples"] >= 1
    assert found["everlens_learner_samples_total"] >= 1
    assert found["everlens_decode_seconds_count"] >= 2
    assert 0 < found["everlens_disk_free_bytes"] < found["everlens_disk_bytes"]
    assert 0 < found["everlens_learner_disk_free_bytes"]
    assert found["process_resident_memory_bytes"] > 1e7
    assert 'everlens_info{model="' in text


def test_a_backup_made_while_it_runs_goes_on_elsewhere(everlens: Everlens, room: Path) -> None:
    """
    While somebody teaches and asks, `everlens backup` copies; another `everlens up` over the copy
    has every sample that was acknowledged before, comes to the versions of the first by their
    digests, and gives its very answers.
    """
    for number in range(6):
        everlens.teach("cat" if number % 2 else "cup", f"before-{number}")
    before = everlens.teach("cup", "last-before")
    everlens.ask(wait_for="last-before")
    environment = clean_environment(data_dir=str(everlens.data_dir), **everlens.settings)
    command = [sys.executable, "-m", "everlens.cli", "backup", str(room / "copy")]
    backup = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    for number in range(TAUGHT_MEANWHILE):
        everlens.teach("cat", f"meanwhile-{number}")
        everlens.ask(wait_for=f"meanwhile-{number}")
        time.sleep(0.3)
    said, _ = backup.communicate(timeout=READY_S)
    assert backup.returncode == 0
    about = json.loads((room / "copy" / "backup.json").read_text(encoding="utf-8"))
    assert f"through entry {about['admitted']}" in said
    assert about["admitted"] >= before
    lineage = {one["version"]: one["digest"] for one in everlens.get("/versions")["versions"]}

    # As docs/operate.md says it.
    subprocess.run(["cp", "-a", str(room / "copy"), str(room / "elsewhere")], check=True)
    with run(room / "elsewhere", **everlens.settings) as restored:
        last = restored.ask(wait_for=about["admitted"])
        for number in range(6):
            assert restored.get(f"/samples/before-{number}")["status"] == "learnt"
        assert restored.teach("cup", "last-before") == before
        again = restored.get("/versions")["versions"]
        first = everlens.ask(version=last["version"])
        restored.teach("cat", "after")
        assert restored.ask(wait_for="after")["version"] > last["version"]

    environment |= {"EVERLENS_DATA_DIR": str(room / "elsewhere")}
    subprocess.run([*command[:-1], str(room / "stopped")], env=environment, check=True)
    assert (room / "stopped" / "backup.json").exists()
    assert {v["version"]: v["digest"] for v in again}.items() <= lineage.items()
    assert last["version"] == max(v["version"] for v in again) >= about["version"]
    assert last == first


def test_a_backup_says_why_it_cannot_be_made(
    everlens: Everlens, room: Path, capfd: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """A target that is there, a directory without a state, a log that is elsewhere: one line each."""
    for name in list(os.environ):
        if name.startswith("EVERLENS_"):
            monkeypatch.delenv(name)
    (room / "full").mkdir()
    monkeypatch.setenv("EVERLENS_DATA_DIR", str(everlens.data_dir))
    assert main(["backup", str(room / "full")]) == 2
    assert "is there already" in capfd.readouterr().err

    monkeypatch.setenv("EVERLENS_REDIS_URL", "redis://user:word@log:6379")
    assert main(["backup", str(room / "new")]) == 2
    said = capfd.readouterr().err
    assert "--log" in said
    assert "word" not in said
    assert not (room / "new").exists()


def test_every_line_is_json_and_the_launcher_shows_people_words(everlens: Everlens) -> None:
    """Both halves write one JSON object a line, from the first to the last."""
    for half in ("service", "worker"):
        lines = everlens.lines(half)
        assert lines
        for line in lines:
            assert {"time", "level", "logger", "message"} <= set(line)
    assert "{" not in everlens.launcher.said().partition("Ctrl-C")[0].replace("{}", "")
