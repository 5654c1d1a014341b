"""An answer is corrected or confirmed by its id: the picture becomes a sample, once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import torch

from everlens.keys import SCOPES, add_key
from everlens.records import EntryKind
from everlens.settings import Settings
from everlens.wire import decode_rejection, decode_sample
from service.batcher import Answer, Query
from service.schemas import ReceiptOut
from tests.unit.service.api import Api
from tests.unit.service.conftest import Start

pytestmark = pytest.mark.anyio

LABELS = ["astronaut", "cat", "coffee", "rocket"]


async def asked(api: Api, photo: bytes) -> str:
    """Return the id of an answer about a photograph."""
    answer = (await api.ask(photo, labels=LABELS)).json()
    prediction_id: str = answer["prediction_id"]
    return prediction_id


async def corrected(api: Api, prediction_id: str, label: str) -> httpx.Response:
    body = {"prediction_id": prediction_id, "label": label}
    return await api.client.post("/feedback", json=body)


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Return the problem document of an answer, which has to be this one."""
    assert response.status_code == status, response.text
    about: dict[str, Any] = response.json()
    assert about["type"] == f"/problems/{kind}"
    return about


async def test_feedback_is_the_sample_that_would_have_been_posted(api: Api, photo):
    """What lies in the log is the same picture and label as by POST /samples; it can be asked for."""
    prediction_id = await asked(api, photo)
    response = await corrected(api, prediction_id, " grey heron ")
    assert response.status_code == 202, response.text
    receipt = ReceiptOut.model_validate(response.json())
    assert (receipt.id, receipt.seq) == (f"feedback-{prediction_id}", 1)
    assert response.headers["location"] == f"/samples/{receipt.id}"
    assert (await api.client.get(response.headers["location"])).json()["status"] == "accepted"
    await api.teach("grey heron", photo)
    by_feedback, by_post = (decode_sample(entry.payload) for entry in api.stream.read(0, 10))
    assert (by_feedback.image, by_feedback.label) == (by_post.image, by_post.label)
    assert by_feedback.id == receipt.id
    shown = (await api.client.get(f"/predictions/{prediction_id}")).json()
    assert shown["feedback"] == receipt.id


async def test_the_same_feedback_changes_nothing_and_other_feedback_is_a_conflict(api: Api, photo):
    """Again is a 200 with the first number; another label is a 409 that says what to do."""
    prediction_id = await asked(api, photo)
    first = await corrected(api, prediction_id, "heron")
    again = await corrected(api, prediction_id, "heron")
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == first.json()
    about = problem(await corrected(api, prediction_id, "egret"), 409, "id-conflict")
    assert f"DELETE /samples/feedback-{prediction_id}" in about["detail"]
    assert api.seq == 1


async def refused(api: Api, prediction_id: str, name: str) -> httpx.Response:
    body = {"prediction_id": prediction_id, "not_label": name}
    return await api.client.post("/feedback", json=body)


async def test_a_refused_name_is_an_entry_of_its_own(api: Api, photo):
    """`not_label` puts picture and name into the log as a rejection; it makes no class."""
    prediction_id = await asked(api, photo)
    problem(await refused(api, prediction_id, "heron"), 404, "unknown-class")
    await api.teach("heron", photo)
    response = await refused(api, prediction_id, "heron")
    assert (response.status_code, response.json()["id"]) == (202, f"feedback-{prediction_id}")
    assert (await refused(api, prediction_id, "heron")).status_code == 200
    problem(await corrected(api, prediction_id, "heron"), 409, "id-conflict")
    posted, rejected = api.stream.read(0, 10)
    assert rejected.kind is EntryKind.REJECT
    rejection = decode_rejection(rejected.payload)
    assert (rejection.id, rejection.label) == (f"feedback-{prediction_id}", "heron")
    assert rejection.image == decode_sample(posted.payload).image


async def test_feedback_sent_again_is_known_to_every_replica(
    api: Api, started: Start, settings: Settings, photo, tmp_path
):
    """A service that never had the picture knows feedback that was accepted, and no other."""
    prediction_id = await asked(api, photo)
    first = await corrected(api, prediction_id, "heron")
    unused = await asked(api, photo)
    elsewhere = settings.model_copy(update={"data_dir": tmp_path / "replica"})
    async with started(elsewhere) as replica:
        again = await corrected(replica, prediction_id, "heron")
        assert (again.status_code, again.json()) == (200, first.json())
        problem(await corrected(replica, prediction_id, "egret"), 409, "id-conflict")
        about = problem(await corrected(replica, unused, "heron"), 404, "unknown-prediction")
        assert "another replica, or no longer" in about["detail"]
        assert "/samples" in about["detail"]
    assert api.seq == 1


async def test_feedback_waits_its_turn_like_a_sample(started: Start, settings: Settings, photo):
    """A full queue refuses it with a time, and it may be sent again; the prediction stays."""
    async with started(settings.model_copy(update={"max_backlog_samples": 1})) as api:
        one, other = await asked(api, photo), await asked(api, photo)
        assert (await corrected(api, one, "heron")).status_code == 202
        refused = await corrected(api, other, "heron")
        problem(refused, 429, "queue-full")
        assert int(refused.headers["retry-after"]) > 0
        shown = (await api.client.get(f"/predictions/{other}")).json()
        assert shown["feedback"] is None


async def test_what_is_not_kept_cannot_be_corrected(started: Start, settings: Settings, photo):
    """With a budget of zero, answers are answers and nothing more."""
    async with started(settings.model_copy(update={"keep_predictions_bytes": 0})) as api:
        prediction_id = await asked(api, photo)
        problem(await corrected(api, prediction_id, "heron"), 404, "unknown-prediction")
        assert (await api.client.get("/predictions")).json() == {"predictions": []}


async def test_a_last_class_that_is_forgotten_meanwhile_leaves_no_answer_without_a_line(
    api: Api, photo, photos, monkeypatch: pytest.MonkeyPatch
):
    """Between question and answer: the question hears what it would hear a moment later."""
    snapshot = await api.served(api.publish({"cat": photos["cat"]}, learned_through=1))
    nothing = torch.zeros_like(snapshot.classes.count_C)
    without = replace(snapshot, classes=replace(snapshot.classes, count_C=nothing))
    ask = api.model.batcher.ask

    async def forgotten_first(queries: list[Query]) -> list[Answer]:
        api.model.serving.swap(without)
        return await ask(queries)

    monkeypatch.setattr(api.model.batcher, "ask", forgotten_first)
    problem(await api.ask(photo), 409, "nothing-learnt")
    assert (await api.client.get("/predictions")).json() == {"predictions": []}


async def test_what_the_answer_had_said_is_counted(api: Api, photo):
    """Right when the label is that of the best line, wrong otherwise, and once a prediction."""
    answer = (await api.ask(photo, labels=LABELS)).json()
    best = answer["predictions"][0]["label"]
    for _ in range(2):
        await corrected(api, answer["prediction_id"], best)
    for label in ("heron", answer["predictions"][1]["label"]):
        await corrected(api, await asked(api, photo), label)
    for place in (0, 1):  # of the best line something is said, of the second nothing
        answer = (await api.ask(photo, labels=LABELS)).json()
        name = answer["predictions"][place]["label"]
        assert (await refused(api, answer["prediction_id"], name)).is_success
    text = (await api.client.get("/metrics")).text
    assert 'everlens_feedback_total{verdict="right"} 1.0' in text
    assert 'everlens_feedback_total{verdict="wrong"} 3.0' in text


async def test_bad_fields_are_named(api: Api):
    """A missing, wrong or unknown field is a 422 about it; a form or raw bytes are a 415."""
    for body, field in (
        ({"prediction_id": "x"}, "label"),
        ({"label": "heron"}, "prediction_id"),
        ({"prediction_id": "x", "label": "heron", "not_label": "egret"}, "not_label"),
        ({"prediction_id": "x", "not_label": " "}, "not_label"),
        ({"prediction_id": "x", "not_label": None}, "not_label"),
        ({"prediction_id": "x" * 65, "label": "heron"}, "prediction_id"),
        ({"prediction_id": 7, "label": "heron"}, "prediction_id"),
        ({"prediction_id": "x", "label": "\u202eheron"}, "label"),
        ({"prediction_id": "x", "label": "heron", "text": "a heron"}, "text"),
        ([{"prediction_id": "x", "label": "heron"}], "body"),
    ):
        about = problem(await api.client.post("/feedback", json=body), 422, "invalid-fields")
        assert [error["field"] for error in about["errors"]] == [field]
    response = await api.client.post("/feedback", data={"prediction_id": "x", "label": "heron"})
    assert "application/json" in problem(response, 415, "unsupported-content")["detail"]


async def test_who_corrects_needs_the_id_and_the_scope(started: Start, settings: Settings, photo):
    """One key asks, another that may teach corrects; a new class needs the scope for that."""
    now = datetime.now(UTC)
    _, camera = add_key(settings.keys_path, "camera", scopes=["classify"], now=now)
    _, teacher = add_key(settings.keys_path, "teacher", scopes=["learn"], now=now)
    _, chief = add_key(settings.keys_path, "chief", scopes=SCOPES, now=now)
    async with started(settings) as api:

        def show(token: str) -> None:
            api.client.headers["Authorization"] = f"Bearer {token}"

        show(camera)
        one, other = await asked(api, photo), await asked(api, photo)
        problem(await corrected(api, one, "heron"), 403, "scope-missing")
        show(teacher)
        problem(await corrected(api, one, "heron"), 403, "class-not-allowed")
        show(chief)
        assert (await corrected(api, one, "heron")).status_code == 202
        show(teacher)
        assert (await corrected(api, other, "heron")).status_code == 202
