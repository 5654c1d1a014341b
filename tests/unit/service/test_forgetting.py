"""Forgetting and holding over HTTP: what goes to the log, and what is said of it."""

from __future__ import annotations

import pytest

from everlens.records import DeadLetter, EntryKind, Forgetting
from everlens.settings import Settings
from everlens.wire import decode_forgetting
from tests.unit.service.api import Api
from tests.unit.service.conftest import Start

pytestmark = pytest.mark.anyio

FIGURES = (
    '{"label": %s, "samples": 2, "rejections": 1, "exemplars": 2, "adapter": true, "held_out": 9, '
    '"before": 0.75, "after": 0.875}'
)


async def test_sample_is_forgotten_through_the_log(api: Api, photos) -> None:
    """Accepted once, however often it is asked for; then its own id says by which version."""
    await api.teach("cat", photos["cat"], id="first")
    first = await api.client.delete("/samples/first")
    again = await api.client.delete("/samples/first")
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json() == again.json() == {"id": "forget-sample-1", "seq": 2, "status": "accepted"}
    assert first.headers["location"] == "/samples/forget-sample-1"
    entry = api.stream.read(1, 9)[0]
    assert entry.kind is EntryKind.FORGET
    assert decode_forgetting(entry.payload) == Forgetting(seq=1)
    assert (await api.client.get("/samples/first")).json()["status"] == "accepted"

    api.publish(photos, learned_through=1)
    api.stream.tell_forgotten([1], 2)
    api.stream.tell_reports(
        {2: '{"label": null, "samples": 1, "rejections": 0, "exemplars": 1, "adapter": false}'}
    )
    api.publish(photos, learned_through=2)
    about = (await api.client.get("/samples/first")).json()
    assert (about["status"], about["version"]) == ("forgotten", 2)
    receipt = (await api.client.get("/samples/forget-sample-1")).json()
    assert (receipt["status"], receipt["version"]) == ("learnt", 2)
    report = receipt["report"]
    assert (report["samples"], report["label"]) == (1, None)
    assert not any("adapter" in sentence for sentence in report["stays"])
    assert (await api.teach("cat", photos["cat"], id="first")).status_code == 200


async def test_nobodys_id_keeps_a_sample_from_being_forgotten(api: Api, photos) -> None:
    """Who teaches chooses ids; one like that of a forgetting is in nobody's way."""
    await api.teach("cat", photos["cat"], id="forget-sample-2")
    await api.teach("cat", photos["cat"], id="mine")
    response = await api.client.delete("/samples/mine")
    assert response.status_code == 202, response.text
    assert decode_forgetting(api.stream.read(2, 9)[0].payload) == Forgetting(seq=2)
    assert (await api.client.get(response.headers["location"])).json()["seq"] == 3


async def test_class_is_forgotten_and_its_name_is_new_again(api: Api, photos) -> None:
    """Its report has figures and plain words; a key for known names alone may not bring it back."""
    await api.teach("cat", photos["cat"])
    key = {"Idempotency-Key": "no-cats"}
    first = await api.client.delete("/classes/cat", headers=key)
    again = await api.client.delete("/classes/cat", headers=key)
    assert (first.status_code, again.status_code) == (202, 200)
    assert (await api.client.delete("/classes/cat")).status_code == 404
    receipt = first.json()
    assert receipt == again.json() == {"id": "no-cats", "seq": 2, "status": "accepted"}
    entry = api.stream.read(1, 9)[0]
    assert decode_forgetting(entry.payload) == Forgetting(label="cat")
    assert not await api.service.log.has_class("cat")

    api.stream.tell_reports({2: FIGURES % '"cat"'})
    api.publish(photos, learned_through=2)
    about = (await api.client.get(f"/samples/{receipt['id']}")).json()
    report = about["report"]
    assert (report["label"], report["held_out"]) == ("cat", 9)
    assert (report["before"], report["after"]) == (0.75, 0.875)
    assert any("no candidate" in sentence for sentence in report["unlearnt"])
    assert any("stay bent" in sentence for sentence in report["stays"])
    assert any("frozen model" in sentence for sentence in report["stays"])
    assert any("table of names" in sentence for sentence in report["stays"])


async def test_learnt_class_can_be_forgotten_though_the_log_forgot_its_name(api, photos) -> None:
    """What is served decides, too; a name that nobody knows is refused."""
    await api.served(api.publish(photos, learned_through=1))
    assert (await api.client.delete("/classes/coffee")).status_code == 202
    response = await api.client.delete("/classes/unicorn")
    assert response.json()["type"] == "/problems/unknown-class"
    assert response.status_code == 404


async def test_forgetting_itself_is_nothing_to_forget(api: Api, photos) -> None:
    """The id of its entry is refused at once, whoever chose it, and no entry comes of it."""
    await api.teach("cat", photos["cat"], id="first")
    forgotten = (await api.client.delete("/samples/first")).json()["id"]
    classes = [
        (await api.client.delete("/classes/cat", headers=headers)).json()["id"]
        for headers in ({"Idempotency-Key": "no-cats"}, {})
        if await api.teach("cat", photos["cat"])
    ]
    activated = (await api.client.post("/versions/0/activate")).json()["id"]
    before = api.seq
    for name in (forgotten, *classes, activated):
        response = await api.client.delete(f"/samples/{name}")
        assert (response.status_code, response.json()["type"]) == (409, "/problems/not-a-sample")
        assert (await api.client.get(f"/samples/{name}")).json()["status"] == "accepted"
    assert api.seq == before


async def test_what_cannot_be_forgotten_is_said(api: Api, photos) -> None:
    """An id that nobody knows, and a sample that was never learnt."""
    response = await api.client.delete("/samples/nobody")
    assert (response.status_code, response.json()["type"]) == (404, "/problems/unknown-sample")
    await api.teach("cat", photos["cat"], id="poor")
    api.publish(photos, learned_through=1, dead=[DeadLetter(1, "poor", "because")])
    response = await api.client.delete("/samples/poor")
    assert (response.status_code, response.json()["type"]) == (409, "/problems/sample-dead")
    assert "because" in response.json()["detail"]
    assert api.seq == 1


async def test_learning_is_held_and_samples_are_taken(api: Api, photos) -> None:
    """The reason is shown until learning goes on; the learner hears it with its lease."""
    state = api.stream.state()
    assert state is not None
    response = await api.client.post("/learning/pause", json={"reason": "labels are checked"})
    assert (response.status_code, response.json()) == (200, {"held": "labels are checked"})
    learning = (await api.client.get("/learning")).json()
    assert (learning["held"], learning["paused"]) == ("labels are checked", None)
    assert (await api.teach("cat", photos["cat"])).status_code == 202
    assert api.stream.hold(state.epoch, "test")
    assert api.stream.held == "labels are checked"

    assert (await api.client.post("/learning/resume")).json() == {"held": None}
    assert (await api.client.get("/learning")).json()["held"] is None
    assert api.stream.hold(state.epoch, "test")
    assert api.stream.held == ""
    assert (await api.client.post("/learning/pause")).json() == {"held": "no reason was given"}
    assert (await api.client.post("/learning/pause", json={})).status_code == 200


async def test_forgettings_wait_in_the_queue_of_all(started: Start, settings: Settings, photos):
    """They are entries like others: a full backlog refuses them with a time."""
    async with started(settings.model_copy(update={"max_backlog_samples": 1})) as api:
        await api.teach("cat", photos["cat"], id="first")
        for path in ("/samples/first", "/classes/cat"):
            response = await api.client.delete(path)
            assert (response.status_code, response.json()["type"]) == (429, "/problems/queue-full")
            assert int(response.headers["retry-after"]) > 0
        assert api.seq == 1


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"reason": ""}', "application/json", 422),
        (b'{"reason": 3}', "application/json", 422),
        (b'{"why": "so"}', "application/json", 422),
        (b"[]", "application/json", 422),
        (b"{", "application/json", 400),
        (b"reason=so", "application/x-www-form-urlencoded", 415),
    ],
)
async def test_reason_that_is_none_holds_nothing(api: Api, content, kind, status) -> None:
    """What cannot be read changes nothing."""
    response = await api.client.post(
        "/learning/pause", content=content, headers={"Content-Type": kind}
    )
    assert response.status_code == status
    assert (await api.client.get("/learning")).json()["held"] is None
