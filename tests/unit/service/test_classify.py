"""Pictures are answered in every form that a client may send, by the version it asks for."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from skimage import data

from everlens.model.fusion import Fusion
from everlens.settings import Settings
from service.schemas import AnswerOut
from tests.unit.service.api import Api, as_text, encoded, pixels_of
from tests.unit.service.conftest import Start

pytestmark = pytest.mark.anyio

LABELS = ["astronaut", "cat", "coffee", "rocket"]


def scores(answer: dict[str, Any]) -> dict[str, float]:
    return {line["label"]: line["score"] for line in answer["predictions"]}


async def test_names_alone_are_ranked_by_the_frozen_model(api: Api, photo):
    """Without any label learnt, the given names are ranked as the snapshot itself ranks them."""
    response = await api.ask(photo, labels=LABELS)
    assert response.status_code == 200
    answer = AnswerOut.model_validate(response.json())
    base = api.model.serving.base
    import torch

    views = base.see([pixels_of(photo, base)])
    text_KE = torch.stack([base.backbone.name_embedding(name) for name in LABELS])
    expected_K = base.answer(views, LABELS, text_KE).probability_BK[0]
    ranked = base.rank(LABELS, expected_K, 5)
    assert [line.label for line in answer.predictions] == [line.label for line in ranked]
    assert [line.score for line in answer.predictions] == pytest.approx(
        [line.score for line in ranked], abs=1e-5
    )
    assert sum(line.score for line in answer.predictions) == pytest.approx(1, abs=1e-4)
    assert (answer.version, answer.learned_through) == (0, 0)
    assert answer.model == base.backbone.name
    assert answer.prediction_id


async def test_an_answer_says_whether_any_learnt_class_fits(api: Api, photos):
    """Before the first class `known` is null; then a probability, high for what was learnt."""
    before = (await api.ask(photos["cat"], labels=LABELS)).json()
    assert before["known"] is None
    # A small random model finds all photographs alike: its cosines are near one.
    strict = Fusion(threshold=0.99, slope=500.0)
    first = api.publish({"cat": photos["cat"]}, learned_through=1, fusion=strict)
    snapshot = await api.served(first)
    seen = (await api.ask(photos["cat"])).json()
    strange = (await api.ask(photos["rocket"])).json()
    assert 0 <= strange["known"] < seen["known"] <= 1
    assert seen["known"] > 0.9
    # Asked for beside other names it is what the learnt ones get, together.
    mixed = (await api.ask(photos["rocket"], labels=["cat", "rocket", "walrus"])).json()
    assert mixed["known"] == pytest.approx(scores(mixed)["cat"], abs=1e-5)
    views = snapshot.see([pixels_of(photos["rocket"], snapshot)])
    expected = snapshot.answer(views, None, snapshot.classes.text_CE).known_B
    assert strange["known"] == pytest.approx(float(expected), abs=1e-5)
    # A version from before the first class cannot say it, and one that knows no such name says 0.
    base = (await api.ask(photos["cat"], labels=LABELS, version=0)).json()
    assert base["known"] is None
    unseen = (await api.ask(photos["cat"], labels=["walrus", "heron"])).json()
    assert unseen["known"] == 0.0


async def test_every_form_of_the_body_gives_the_same_answer(api: Api, photo):
    """JSON, data URI, raw bytes and multipart differ in nothing but the prediction's id."""
    fields = {"labels": LABELS, "top": 3}
    raw = {"content": photo, "params": fields}
    responses = [
        await api.ask(photo, **fields),
        await api.client.post(
            "/classify", json={"image": f"data:image/jpeg;base64,{as_text(photo)}", **fields}
        ),
        await api.client.post("/classify", **raw, headers={"content-type": "image/jpeg"}),
        await api.client.post(
            "/classify", **raw, headers={"content-type": "application/octet-stream"}
        ),
        await api.client.post("/classify", data=fields, files={"image": photo}),
    ]
    answers = [response.json() for response in responses]
    ids = {answer.pop("prediction_id") for answer in answers}
    assert len(ids) == len(answers)
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]["predictions"]) == 3


async def test_a_list_is_answered_in_its_order(api: Api, photos):
    """A JSON list gives a list of answers, each for its own picture and names."""
    queries = [
        {"image": as_text(photos["cat"]), "labels": LABELS},
        {"image": as_text(photos["rocket"]), "labels": LABELS[:2]},
        {"image": as_text(photos["cat"]), "labels": LABELS[::-1], "top": 1},
    ]
    answers = (await api.client.post("/classify", json=queries)).json()
    single = (await api.ask(photos["cat"], labels=LABELS)).json()
    assert scores(answers[0]) == pytest.approx(scores(single), abs=1e-5)
    assert {line["label"] for line in answers[1]["predictions"]} == set(LABELS[:2])
    assert [line["label"] for line in answers[2]["predictions"]] == [
        single["predictions"][0]["label"]
    ]


async def test_learnt_classes_are_the_candidates(api: Api, photos):
    """Without labels the learnt classes are ranked, and each learnt picture is known again."""
    manifest = api.publish(photos, learned_through=4)
    await api.served(manifest)
    for name, image in photos.items():
        answer = (await api.ask(image)).json()
        assert answer["predictions"][0]["label"] == name
        assert answer["predictions"][0]["samples"] == 1
        assert len(answer["predictions"]) == 4
        assert (answer["version"], answer["learned_through"]) == (1, 4)


async def test_learnt_and_unseen_names_stand_together(api: Api, photos):
    """Given names may be learnt or not; only the learnt ones have samples."""
    await api.served(api.publish(photos, learned_through=4))
    answer = (await api.ask(photos["cat"], labels=["cat", "heron"])).json()
    samples = {line["label"]: line["samples"] for line in answer["predictions"]}
    assert samples == {"cat": 1, "heron": 0}


async def test_version_zero_is_the_frozen_base(api: Api, photos):
    """Version 0 ranks the names learnt so far, or the given ones, as before any learning."""
    before = (await api.ask(photos["cat"], labels=LABELS)).json()
    await api.served(api.publish(photos, learned_through=4))
    for fields in ({"version": 0}, {"version": 0, "labels": LABELS}):
        answer = (await api.ask(photos["cat"], **fields)).json()
        assert scores(answer) == pytest.approx(scores(before), abs=1e-5)
        assert (answer["version"], answer["learned_through"]) == (0, 0)


async def test_a_recent_version_can_be_asked_again(api: Api, photos):
    """A version that was served not long ago answers as it did; one never served is a 404."""
    await api.served(api.publish({"cat": photos["cat"]}, learned_through=1))
    before = (await api.ask(photos["coffee"])).json()
    await api.served(api.publish(photos, learned_through=4))
    again = (await api.ask(photos["coffee"], version=1)).json()
    assert again["predictions"] == before["predictions"]
    assert (again["version"], again["learned_through"]) == (1, 1)
    missing = await api.ask(photos["coffee"], version=3)
    assert missing.status_code == 404
    assert "0, 1, 2" in missing.json()["detail"]


async def test_a_query_waits_for_what_was_taught(api: Api, photos):
    """With `wait_for` an id or a seq, the answer comes from a version that has learnt it."""
    for name, image in photos.items():
        await api.teach(name, image, id=name)
    by_id = asyncio.create_task(api.ask(photos["rocket"], wait_for="rocket"))
    by_seq = asyncio.create_task(api.ask(photos["rocket"], wait_for=4))
    raw = asyncio.create_task(
        api.client.post(
            "/classify",
            content=photos["rocket"],
            params={"wait_for": "4"},
            headers={"content-type": "image/jpeg"},
        )
    )
    first = {"astronaut": photos["astronaut"]}
    await api.served(api.publish(first, learned_through=1))
    assert not by_id.done()
    assert not by_seq.done()
    api.publish(photos, learned_through=4)
    for response in (await by_id, await by_seq, await raw):
        answer = response.json()
        assert answer["predictions"][0]["label"] == "rocket"
        assert answer["learned_through"] == 4


async def test_waiting_ends(api: Api, photo):
    """What is not learnt within `wait_s` is a 504 that says how far learning is."""
    await api.teach("heron", photo)
    response = await api.ask(photo, labels=["heron"], wait_for=1, wait_s=0.05)
    assert response.status_code == 504
    assert response.json()["type"] == "/problems/not-learnt-in-time"


async def test_only_so_many_queries_wait(started: Start, settings: Settings, photos):
    """Beyond the limit a query that would wait is a 503 at once; one that need not is answered."""
    async with started(settings.model_copy(update={"max_queued_queries": 2})) as api:
        photo = photos["cat"]
        await api.teach("cat", photo, id="first")
        await api.teach("cat", photo, id="second")
        await api.served(api.publish({"cat": photo}, learned_through=1))
        *waiting, known = await asyncio.gather(
            *(api.ask(photo, wait_for=2, wait_s=1) for _ in range(3)), api.ask(photo, wait_for=1)
        )
        assert sorted(answer.status_code for answer in waiting) == [503, 504, 504]
        assert known.status_code == 200
        assert api.model.serving.waiting == 0


async def test_the_default_wait_is_a_setting(started: Start, settings: Settings, photo):
    """Without `wait_s` the setting decides how long `wait_for` waits."""
    async with started(settings.model_copy(update={"wait_s": 0.05})) as api:
        await api.teach("heron", photo)
        assert (await api.ask(photo, labels=["heron"], wait_for=1)).status_code == 504


async def test_too_many_queries_are_a_503(started: Start, settings: Settings, photo):
    """Beyond the limit of waiting queries the answer is a 503 with Retry-After, at once."""
    async with started(settings.model_copy(update={"max_queued_queries": 4})) as api:
        await api.served(api.publish({"cat": photo}, learned_through=1))
        free = threading.Event()
        busy = asyncio.create_task(api.model.batcher.call(free.wait))
        asking = [asyncio.create_task(api.ask(photo)) for _ in range(5)]
        done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        free.set()
        await busy
        answered = [await answer for answer in waiting]
    (refused,) = (answer.result() for answer in done)
    assert [200] * 4 == [answer.status_code for answer in answered]
    assert refused.status_code == 503
    assert refused.json()["type"] == "/problems/busy"
    assert refused.headers["retry-after"] == "1"


async def test_pictures_of_other_formats_are_answered(api: Api):
    """PNG and WebP are answered as JPEG is."""
    for form in ("PNG", "WEBP"):
        content = encoded(data.chelsea(), form)
        response = await api.client.post(
            "/classify",
            content=content,
            params={"labels": LABELS},
            headers={"content-type": f"image/{form.lower()}"},
        )
        assert response.status_code == 200
