"""Pins and activations over HTTP."""

from __future__ import annotations

import pytest

from everlens.records import DeadLetter, EntryKind
from everlens.wire import decode_activation
from service.serving import KEPT
from tests.unit.service.api import Api
from tests.unit.service.waiting import until

pytestmark = pytest.mark.anyio


async def test_pinned_version_answers_until_it_is_unpinned(api: Api, photos) -> None:
    """Learning goes on under a pin; its end brings the newest version."""
    await api.served(api.publish({"cat": photos["cat"]}, learned_through=1))
    await api.served(api.publish(photos, learned_through=4))
    response = await api.client.post("/versions/1/pin")
    assert (response.status_code, response.json()) == (200, {"pinned": 1})
    await until(lambda: api.model.serving.current.version == 1)
    api.publish(photos, learned_through=5)
    assert (await api.client.get("/learning")).json()["pinned"] == 1
    assert (await api.ask(photos["cat"])).json()["version"] == 1

    assert (await api.client.delete("/versions/2/pin")).json() == {"pinned": 1}
    assert (await api.client.delete("/versions/1/pin")).json() == {"pinned": None}
    await until(lambda: api.model.serving.current.version == 3)
    assert (await api.client.delete("/versions/1/pin")).json() == {"pinned": None}


async def test_pinned_version_is_never_collected(api: Api, photos) -> None:
    """However many versions follow, the pinned one keeps its parts; then they go."""
    await api.served(api.publish({"cat": photos["cat"]}, learned_through=1))
    assert (await api.client.post("/versions/1/pin")).status_code == 200
    pictures = {"cat": photos["cat"], "coffee": photos["coffee"]}
    for count in range(2, KEPT + 4):
        api.publish(pictures, learned_through=count)
    kept = api.stream.client.zrange(api.stream.keys.manifests, 0, -1)
    assert [b"1", b"4"] == kept[:2]
    assert (await api.client.post("/versions/2/pin")).status_code == 410
    await api.client.delete("/versions/1/pin")
    api.publish(pictures, learned_through=99)
    assert api.stream.client.zrange(api.stream.keys.manifests, 0, 0) == [b"5"]
    assert (await api.client.post("/versions/1/pin")).status_code == 410


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/versions/7/pin", 404, "unknown-version"),
        ("/versions/7/activate", 404, "unknown-version"),
        ("/versions/0/pin", 422, "invalid-fields"),
        ("/versions/-1/activate", 422, "invalid-fields"),
        ("/versions/one/activate", 422, "invalid-fields"),
    ],
)
async def test_version_that_is_not_there_is_said(api: Api, path, status, kind) -> None:
    """A wish for a version that never was, or no version at all, is refused."""
    response = await api.client.post(path)
    assert response.status_code == status
    assert response.json()["type"] == f"/problems/{kind}"


async def test_activation_is_an_entry_of_the_log(api: Api, photos) -> None:
    """It is accepted once under its key, and carries where to go back to."""
    await api.served(api.publish({"cat": photos["cat"]}, learned_through=0))
    await api.served(api.publish(photos, learned_through=0))
    key = {"Idempotency-Key": "go-back"}
    first = await api.client.post("/versions/1/activate", headers=key)
    again = await api.client.post("/versions/1/activate", headers=key)
    other = await api.client.post("/versions/2/activate", headers=key)

    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 409)
    assert first.json() == again.json()
    assert first.headers["location"] == "/samples/go-back"
    (entry,) = api.stream.read(0, 9)
    assert entry.kind is EntryKind.ACTIVATE
    activation = decode_activation(entry.payload)
    assert (activation.version, activation.learned_through) == (1, 0)
    assert (await api.client.get("/samples/go-back")).json()["status"] == "accepted"


async def test_waiting_for_a_dead_sample_says_why(api: Api, photos) -> None:
    """A sample that could not be learnt is no success for who waits for it."""
    await api.teach("cat", photos["cat"], id="poor")
    letters = [DeadLetter(api.seq, "poor", "because")]
    await api.served(api.publish(photos, learned_through=api.seq, dead=letters))
    response = await api.ask(photos["cat"], wait_for="poor")
    assert response.status_code == 409
    assert response.json()["type"] == "/problems/sample-dead"
    assert "because" in response.json()["detail"]
