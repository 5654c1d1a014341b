"""Labelled pictures are accepted once, all or none, and can be asked after."""

from __future__ import annotations

import asyncio
import json
import threading
from urllib.parse import quote

import pytest

from everlens.pixels import encode_pixels
from everlens.records import DeadLetter
from everlens.settings import Settings
from everlens.wire import decode_sample
from service.schemas import ReceiptOut, SampleOut
from tests.unit.service.api import Api, as_text, pixels_of
from tests.unit.service.conftest import Start

pytestmark = pytest.mark.anyio


async def test_a_sample_is_accepted_with_its_number_and_place(api: Api, photo):
    """One picture is a 202 with id, dense seq and a Location that can be asked."""
    response = await api.teach("heron", photo)
    assert response.status_code == 202
    receipt = ReceiptOut.model_validate(response.json())
    assert (receipt.seq, receipt.status) == (1, "accepted")
    assert response.headers["location"] == f"/samples/{receipt.id}"
    state = await api.client.get(response.headers["location"])
    assert state.json() == {"id": receipt.id, "seq": 1, "status": "accepted"}


async def test_what_lies_in_the_log_is_the_picture_at_the_models_size(api: Api, photo):
    """The log holds our own JPEG of the picture, with the cleaned label and caption."""
    await api.teach(" grey heron\n", photo, text="a  heron that waits", id="h")
    (entry,) = api.stream.read(0, 10)
    sample = decode_sample(entry.payload)
    assert (sample.id, sample.label, sample.text) == ("h", "grey heron", "a  heron that waits")
    base = api.model.serving.base
    assert sample.image == encode_pixels(pixels_of(photo, base))


async def test_every_way_to_send_a_picture_leaves_the_same_bytes(api: Api, photo):
    """Single, list, lines and forms: in the log lies one and the same JPEG."""
    sample = {"image": as_text(photo), "label": "heron"}
    line = json.dumps(sample)
    lines = {"content-type": "application/x-ndjson"}
    await api.client.post("/samples", json=sample)
    await api.client.post("/samples", json=[sample] * 2)
    await api.client.post("/samples", content=f"{line}\n{line}", headers=lines)
    await api.client.post("/samples", data={"label": "heron"}, files={"image": photo})
    await api.client.post("/samples", data={"label": "heron"}, files=[("image", photo)] * 2)
    images = [decode_sample(entry.payload).image for entry in api.stream.read(0, 10)]
    assert images == [encode_pixels(pixels_of(photo, api.model.serving.base))] * 8


async def test_a_known_name_does_not_wait_for_the_model(api: Api, photo):
    """Samples of a name that was sent before are accepted while the model computes."""
    await api.teach("heron", photo)
    go_on = threading.Event()
    busy = asyncio.create_task(api.model.batcher.call(lambda: go_on.wait(60)))
    await asyncio.sleep(0)
    try:
        assert (await api.teach("heron", photo)).status_code == 202
        assert not busy.done()
    finally:
        go_on.set()
    await busy


async def test_the_same_id_and_body_changes_nothing(api: Api, photo):
    """A repeat is a 200 with the first seq, under either spelling of the picture and the label."""
    first = await api.teach("heron", photo, id="a")
    again = await api.teach(" heron ", photo, id="a")
    uri = {"image": f"data:image/jpeg;base64,{as_text(photo)}", "label": "heron", "id": "a"}
    as_uri = await api.client.post("/samples", json=uri)
    lines = as_text(photo)
    broken = "\n".join(lines[start : start + 76] for start in range(0, len(lines), 76))
    as_lines = await api.client.post(
        "/samples", json={"image": broken, "label": "heron", "id": "a"}
    )
    header = await api.client.post(
        "/samples",
        json={"image": lines, "label": "heron"},
        headers={"Idempotency-Key": "a"},
    )
    for response in (again, as_uri, as_lines, header):
        assert response.status_code == 200, response.text
        assert response.json() == first.json()
    assert api.seq == 1


@pytest.mark.parametrize("other", [{"label": "egret"}, {"text": "a caption"}, {"image": "cat"}])
async def test_the_same_id_with_another_body_is_a_conflict(api: Api, photos, other):
    """An id is never given to another label, caption or picture: 409, and nothing changes."""
    whole = {"image": photos["coffee"], "label": "heron", "id": "a"}
    image = photos[other.get("image", "coffee")]
    fields = whole | other | {"image": image}
    assert (await api.teach(**whole)).status_code == 202
    response = await api.teach(**fields)
    assert response.status_code == 409
    assert response.json()["type"] == "/problems/id-conflict"
    assert api.seq == 1


async def test_a_list_is_accepted_in_its_order(api: Api, photos):
    """A JSON list gives a list of records in the same order; all repeats are a 200."""
    items = [{"image": as_text(image), "label": name, "id": name} for name, image in photos.items()]
    response = await api.client.post("/samples", json=items)
    assert response.status_code == 202
    assert [record["id"] for record in response.json()] == list(photos)
    assert [record["seq"] for record in response.json()] == [1, 2, 3, 4]
    again = await api.client.post("/samples", json=items)
    assert (again.status_code, again.json()) == (200, response.json())
    more = await api.client.post("/samples", json=[*items, {**items[0], "id": "new"}])
    assert more.status_code == 202
    assert [record["seq"] for record in more.json()] == [1, 2, 3, 4, 5]


async def test_lines_of_json_are_a_list(api: Api, photo):
    """NDJSON is taken line by line, empty lines aside."""
    line = json.dumps({"image": as_text(photo), "label": "heron"})
    response = await api.client.post(
        "/samples",
        content=f"{line}\n\n{line}\r\n",
        headers={"content-type": "application/x-ndjson; charset=utf-8"},
    )
    assert response.status_code == 202
    assert [record["seq"] for record in response.json()] == [1, 2]


async def test_a_conflict_in_a_list_accepts_none_of_it(api: Api, photo):
    """One conflicting id refuses the list's new samples too."""
    await api.teach("heron", photo, id="a")
    items = [
        {"image": as_text(photo), "label": "egret", "id": "b"},
        {"image": as_text(photo), "label": "egret", "id": "a"},
    ]
    assert (await api.client.post("/samples", json=items)).status_code == 409
    assert api.seq == 1
    assert (await api.client.get("/samples/b")).status_code == 404


async def test_a_form_with_one_picture_is_one_sample(api: Api, photo):
    """A multipart form with one file gives one record, and repeats like JSON does."""
    fields = {"label": "heron", "id": "a", "text": "a heron"}
    response = await api.client.post("/samples", data=fields, files={"image": photo})
    assert response.status_code == 202
    assert response.json() == {"id": "a", "seq": 1, "status": "accepted"}
    assert response.headers["location"] == "/samples/a"
    assert (await api.teach("heron", photo, id="a", text="a heron")).status_code == 200


async def test_a_form_with_many_pictures_shares_one_label_or_names_each(api: Api, photos):
    """Several files take one label for all, or as many labels and ids as files."""
    files = [("image", (name, image)) for name, image in photos.items()]
    response = await api.client.post("/samples", data={"label": "thing"}, files=files)
    assert [record["seq"] for record in response.json()] == [1, 2, 3, 4]
    named = {"label": list(photos), "id": list(photos)}
    response = await api.client.post("/samples", data=named, files=files)
    assert response.status_code == 202
    labels = [decode_sample(entry.payload).label for entry in api.stream.read(0, 10)]
    assert labels == ["thing"] * 4 + list(photos)


async def test_ids_of_any_kind_can_be_asked_after(api: Api, photo):
    """An id with slashes, spaces and letters of any script has a Location that leads back."""
    for sample_id in ("a/b c", "häher?#", "鷺", "100%"):
        response = await api.teach("heron", photo, id=sample_id)
        state = await api.client.get(response.headers["location"])
        assert state.json()["id"] == sample_id


async def test_what_became_of_a_sample_is_told(api: Api, photos):
    """A sample is accepted, then learnt with its version, or dead with its reason."""
    for name, image in photos.items():
        await api.teach(name, image, id=name)
    manifest = api.publish(
        {"cat": photos["cat"]}, learned_through=3, dead=[DeadLetter(2, "cat", "no picture of ours")]
    )
    states = {
        name: SampleOut.model_validate((await api.client.get(f"/samples/{name}")).json())
        for name in photos
    }
    assert states["astronaut"].status == "learnt"
    assert states["astronaut"].version == manifest.version
    assert (states["cat"].status, states["cat"].reason) == ("dead", "no picture of ours")
    assert states["coffee"].status == "learnt"
    assert states["rocket"].status == "accepted"


async def test_a_full_log_is_a_429_that_says_when(started: Start, settings: Settings, photo):
    """Beyond the backlog new samples are a 429 with Retry-After, and repeats still a 200."""
    async with started(settings.model_copy(update={"max_backlog_samples": 2})) as api:
        for sample_id in ("a", "b"):
            assert (await api.teach("heron", photo, id=sample_id)).status_code == 202
        full = await api.teach("heron", photo, id="c")
        assert full.status_code == 429
        assert full.json()["type"] == "/problems/queue-full"
        assert 1 <= int(full.headers["retry-after"]) <= 60
        assert (await api.teach("heron", photo, id="a")).status_code == 200


async def test_a_paused_learner_is_a_503_with_its_reason(api: Api, photo):
    """While learning is paused new samples are refused with the learner's words."""
    api.stream.pause("the disk is full", "test")
    response = await api.teach("heron", photo)
    assert response.status_code == 503
    assert "the disk is full" in response.json()["detail"]
    assert int(response.headers["retry-after"]) > 0


async def test_many_at_once_get_numbers_without_a_gap(api: Api, photo):
    """Concurrent requests share calls to the log, and each gets a number of its own."""
    responses = await asyncio.gather(*(api.teach("heron", photo, id=f"{k}") for k in range(80)))
    assert {response.status_code for response in responses} == {202}
    assert sorted(response.json()["seq"] for response in responses) == list(range(1, 81))


async def test_a_conflict_does_not_harm_its_neighbours(api: Api, photos):
    """Of requests that went to the log together only the conflicting one is refused."""
    await api.teach("heron", photos["cat"], id="taken")
    requests = [api.teach("heron", photos["coffee"], id=f"{k}") for k in range(20)]
    requests.insert(10, api.teach("heron", photos["coffee"], id="taken"))
    codes = [response.status_code for response in await asyncio.gather(*requests)]
    assert codes == [202] * 10 + [409] + [202] * 10
    assert api.seq == 21


async def test_the_same_id_at_the_same_time_is_accepted_once(api: Api, photos):
    """Of concurrent requests with one id and two bodies, one body wins and is counted once."""
    pictures = [photos["cat"], photos["cat"], photos["coffee"], photos["coffee"]]
    responses = await asyncio.gather(*(api.teach("x", image, id="one") for image in pictures))
    codes = sorted(response.status_code for response in responses)
    assert codes == [200, 202, 409, 409]
    assert api.seq == 1


async def test_an_absent_log_is_a_503_that_says_to_retry(started: Start, settings, tmp_path, photo):
    """Without the log a sample's fate is unknown: 503, with the advice to send the same id."""
    from everlens.bus.connect import connect
    from everlens.bus.keys import Keys
    from everlens.bus.server import EmbeddedServer
    from everlens.bus.stream import Stream

    server = EmbeddedServer(tmp_path / "log", maxmemory_bytes=64 * 2**20)
    server.start()
    client = connect(server.url)
    Stream(client, Keys(settings.namespace)).create()
    async with started(settings.model_copy(update={"redis_url": server.url})) as api:
        assert (await api.teach("heron", photo, id="a")).status_code == 202
        client.close()
        server.stop()
        for response in (
            await api.teach("heron", photo, id="a"),
            await api.client.get("/samples/a"),
            await api.client.get("/learning"),
            await api.client.get("/versions"),
        ):
            assert response.status_code == 503, response.text
            assert response.json()["type"] == "/problems/log-unavailable"
            assert int(response.headers["retry-after"]) > 0
        assert "same id" in (await api.teach("heron", photo, id="a")).json()["detail"]
        assert "ask again" in (await api.client.get("/samples/a")).json()["detail"]
        assert (await api.ask(photo, labels=["heron", "cat"])).status_code == 200
        metrics = (await api.client.get("/metrics")).text
        assert "everlens_log_up 0.0" in metrics
        assert (await api.client.get("/readyz")).status_code == 200


async def test_an_id_is_found_in_any_spelling_of_its_letters(api: Api, photo):
    """What was accepted composed is found decomposed, and with white space around it."""
    await api.teach("heron", photo, id="h\u00e9ron")
    for spelling in ("h\u00e9ron", "he\u0301ron", " h\u00e9ron "):
        found = await api.client.get(f"/samples/{quote(spelling)}")
        assert (found.status_code, found.json().get("id")) == (200, "h\u00e9ron"), spelling


@pytest.mark.parametrize(
    "head", ["data:image/jpeg;charset=utf-8;base64,", "Data:image/jpeg;base64,", "data:;base64,"]
)
async def test_a_data_uri_may_have_parameters_and_capitals(api: Api, photo, head: str):
    """Every data URI that holds base64 is taken."""
    whole = {"image": head + as_text(photo), "label": "heron"}
    assert (await api.client.post("/samples", json=whole)).status_code == 202
