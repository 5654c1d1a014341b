"""
Label Studio's requests, as its client sends them, with its time limits; what comes of them.

Its own client is a part of its server, which is too much to install for a test: the bodies in
`label_studio.json` are those of a Label Studio 1.23.2 that was connected to an everlens, and the
requests are sent with the library, the sessions and the limits of its `ml/api_connector.py`.
"""

from __future__ import annotations

import base64
import copy
import http.server
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
import requests

from tests.system.processes import PATIENCE_S, until

pytestmark = pytest.mark.system

RECORDED = json.loads(Path(__file__).with_name("label_studio.json").read_text(encoding="utf-8"))
CONNECTION_S, HEALTH_S, SETUP_S, PREDICT_S, WEBHOOK_S = 1.0, 1.0, 3.0, 100.0, 1.0
SLACK = 10  # for a machine with other work


class LabelStudio:
    """One project of a Label Studio that is connected to an everlens."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/label-studio/"
        self.session = requests.Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=2))
        self.project = uuid.uuid4().int % 10**9  # so that it has annotations of its own

    def get(self, path: str, within_s: float) -> Any:
        limits = (CONNECTION_S * SLACK, within_s * SLACK)
        answer = self.session.get(urljoin(self.url, path), timeout=limits)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, asked: dict[str, Any], within_s: float) -> Any:
        limits = (CONNECTION_S * SLACK, within_s * SLACK)
        answer = self.session.post(urljoin(self.url, path), json=asked, timeout=limits)
        answer.raise_for_status()
        return answer.json()

    def predict(self, *images: str) -> list[dict[str, Any]]:
        asked = copy.deepcopy(RECORDED["predict"])
        (task,) = asked["tasks"]
        asked["tasks"] = [{**task, "id": n, "data": {"image": i}} for n, i in enumerate(images)]
        results: list[dict[str, Any]] = self.post("predict", asked, PREDICT_S)["results"]
        return results

    def annotated(self, action: str, number: int, image: str, choices: list[str]) -> Any:
        event = copy.deepcopy(RECORDED["ANNOTATION_CREATED"])
        event["action"] = action
        event["project"]["id"] = self.project
        event["task"]["data"]["image"] = image
        event["annotation"]["id"] = number
        event["annotation"]["result"][0]["value"]["choices"] = choices
        return self._told(event)

    def deleted(self, number: int) -> Any:
        project = {**RECORDED["ANNOTATION_CREATED"]["project"], "id": self.project}
        event = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": number}]}
        return self._told({**event, "project": project})

    def _told(self, event: dict[str, Any]) -> Any:
        (done,) = self.post("webhook", event, WEBHOOK_S)["done"]
        return done


@pytest.fixture
def studio(url: str) -> Iterator[LabelStudio]:
    studio = LabelStudio(url)
    yield studio
    studio.session.close()


def uri(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def until_status(url: str, sample: str, status: str) -> None:
    """Return when this has become of a sample."""

    def found() -> bool:
        answer = httpx.get(f"{url}/samples/{sample}", timeout=PATIENCE_S)
        return bool(answer.json()["status"] == status)

    until(found, 60, f"to be {status}", Path("no log"))


def detail(refused: pytest.ExceptionInfo[requests.HTTPError]) -> str:
    assert refused.value.response is not None
    return str(refused.value.response.json()["detail"])


def test_a_project_connects(studio: LabelStudio) -> None:
    """Health and setup answer within its limits, but for the slack, and name a version."""
    assert "UP" == studio.get("health", HEALTH_S)["status"]
    assert studio.post("setup", RECORDED["setup"], SETUP_S)["model_version"].startswith("everlens-")


def test_an_annotation_is_learnt_and_then_predicted(studio: LabelStudio, url, pictures) -> None:
    """The prediction is one of the project's choices, and the annotated one once it is learnt."""
    image = uri(pictures["rocket"])
    (before,) = studio.predict(image)
    (choice,) = before["result"]
    assert ("choice", "image", "choices") == (
        choice["from_name"],
        choice["to_name"],
        choice["type"],
    )
    assert choice["value"]["choices"][0] in {"cat", "rocket", "coffee"}
    done = studio.annotated("ANNOTATION_CREATED", 1, image, ["rocket"])
    assert "accepted" == done["status"]
    until_status(url, done["id"], "learnt")
    waiting = {"wait_for": done["id"]}
    asked: dict[str, Any] = {"data": waiting, "files": {"image": pictures["rocket"]}}
    httpx.post(f"{url}/classify", **asked, timeout=PATIENCE_S)
    (after,) = studio.predict(image)
    assert ["rocket"] == after["result"][0]["value"]["choices"]
    assert after["model_version"] != before["model_version"]
    # Whoever asks for training is told that there is nothing to be done.
    assert {"done": []} == studio.post("webhook", {"action": "START_TRAINING"}, PREDICT_S)
    assert {"done": []} == studio.post("train", {"annotations": []}, PREDICT_S)


def test_an_annotation_is_one_sample_however_often_it_comes(studio, url, pictures) -> None:
    """The same again is the same sample; changed, it replaces it; deleted, it is forgotten."""
    image = uri(pictures["cat"])
    first = studio.annotated("ANNOTATION_CREATED", 1, image, ["coffee"])
    assert first == studio.annotated("ANNOTATION_UPDATED", 1, image, ["coffee"])
    second = studio.annotated("ANNOTATION_UPDATED", 1, image, ["cat"])
    assert second["id"] != first["id"]
    assert second == studio.annotated("ANNOTATION_UPDATED", 1, image, ["cat"])
    gone = studio.deleted(1)
    assert "forgotten" == gone["status"]
    assert "ignored" == studio.deleted(1)["status"]
    for sample in (first["id"], second["id"]):
        until_status(url, sample, "forgotten")
    again = studio.annotated("ANNOTATION_UPDATED", 1, image, ["cat"])
    assert again["id"] not in {first["id"], second["id"]}


def test_what_is_no_single_choice_is_not_learnt(studio, url, pictures) -> None:
    """Skipped, none or several; where there was one choice before, that is forgotten."""
    image = uri(pictures["cat"])
    assert "ignored" == studio.annotated("ANNOTATION_CREATED", 1, image, [])["status"]
    assert (
        "ignored" == studio.annotated("ANNOTATION_CREATED", 1, image, ["cat", "rocket"])["status"]
    )
    assert "accepted" == studio.annotated("ANNOTATION_UPDATED", 1, image, ["cat"])["status"]
    assert "forgotten" == studio.annotated("ANNOTATION_UPDATED", 1, image, [])["status"]
    sample = f"{url}/samples/label-studio-{studio.project}-1"
    assert 404 == httpx.get(sample, timeout=PATIENCE_S).status_code


class Files(http.server.BaseHTTPRequestHandler):
    """Label Studio's uploads, for who shows the token."""

    picture = b""

    def do_GET(self) -> None:
        good = self.headers["Authorization"] == "Token of-the-tests"
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(self.picture if good else b"")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_uploads_are_fetched_and_foreign_addresses_refused(
    studio: LabelStudio, studio_port: int, pictures
) -> None:
    """A picture that cannot be had costs the others nothing; where none can, it says why."""
    Files.picture = pictures["coffee"]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", studio_port), Files)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        foreign = "http://169.254.169.254/latest/meta-data"
        there, foreign_one, text = studio.predict("/data/upload/5/cup.jpg", foreign, "cup.jpg")
        assert 1 == len(there["result"])
        assert [] == foreign_one["result"] == text["result"]
        assert "refused" == studio.annotated("ANNOTATION_CREATED", 7, foreign, ["cat"])["status"]
        with pytest.raises(requests.HTTPError) as refused:
            studio.predict(foreign)
        assert "EVERLENS_LABEL_STUDIO_URL" in detail(refused)
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def test_a_project_that_chooses_no_name_is_refused(studio: LabelStudio) -> None:
    """At setup already, with a sentence."""
    schema = '<View><Text name="t" value="$t"/><Choices name="c" toName="t"/></View>'
    with pytest.raises(requests.HTTPError) as refused:
        studio.post("setup", {**RECORDED["setup"], "schema": schema}, SETUP_S)
    assert "template for image classification" in detail(refused)


def test_a_project_with_too_many_choices_is_refused(studio: LabelStudio) -> None:
    """Each would be read by the text tower."""
    choices = "".join(f'<Choice value="{number}"/>' for number in range(1001))
    config = (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="choice" toName="image">{choices}</Choices></View>'
    )
    asked = {**RECORDED["predict"], "label_config": config}
    with pytest.raises(requests.HTTPError) as refused:
        studio.post("predict", asked, PREDICT_S)
    assert "at most 1000 are taken" in detail(refused)
