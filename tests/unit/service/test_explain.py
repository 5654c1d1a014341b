"""An explained answer says what each expert has in it, and shows the nearest labelled pictures."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import torch

from everlens.bus.connect import connect
from everlens.bus.exhibits import Answering
from everlens.exhibits import Exhibit, Question
from everlens.keys import add_key
from everlens.model.fusion import expert_shares
from everlens.settings import Settings
from service.explaining import EXPLAINED_MAX
from service.schemas import AnswerOut
from tests.unit.service.api import Api, as_text, pixels_of
from tests.unit.service.conftest import Start

pytestmark = pytest.mark.anyio

LABELS = ["cat", "coffee", "heron"]


@contextlib.contextmanager
def learner(api: Api, shown: Callable[[Question], list[Exhibit]]) -> Iterator[list[Question]]:
    """Answer questions over the log as a learner does; what lies in its buffer is the test's."""
    client = connect(api.service.settings.redis_url)
    desk = Answering(client, api.stream.keys)
    questions, heard, stopping = desk.questions(0.02), [], threading.Event()
    assert next(questions) is None  # listening by now

    def answer() -> None:
        for question in questions:
            if question is not None:
                heard.append(question)
                desk.answer(question, shown(question))
            if stopping.is_set():
                return

    api.service.asking.wait_s = 20
    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield heard
    finally:
        stopping.set()
        thread.join()
        questions.close()
        client.close()


async def test_the_shares_of_a_line_are_its_score(api: Api, photos):
    """Shares are those of the snapshot, add up to each line's score, and change no answer."""
    await api.served(api.publish({n: photos[n] for n in LABELS[:2]}, learned_through=2))
    plain = (await api.ask(photos["cat"], labels=LABELS)).json()
    answer = (await api.ask(photos["cat"], labels=LABELS, explain=True)).json()
    AnswerOut.model_validate(answer)
    assert "explanation" not in plain
    assert answer["predictions"] == plain["predictions"]
    experts = answer["explanation"]["experts"]
    for line, shares in zip(answer["predictions"], experts, strict=True):
        assert shares["label"] == line["label"]
        assert shares["adapter"] is None  # no version has one here
        assert shares["zero_shot"] + shares["evidence"] == pytest.approx(line["score"], abs=2e-6)
    snapshot = api.model.serving.current
    views = snapshot.see([pixels_of(photos["cat"], snapshot)])
    text_KE = torch.stack([snapshot.backbone.name_embedding(name) for name in LABELS])
    scores = snapshot.scores(views, LABELS, text_KE)
    share_KX = expert_shares(scores, snapshot.fusion)[0]
    for line, shares in zip(answer["predictions"], experts, strict=True):
        expected = share_KX[LABELS.index(line["label"])] * line["score"]
        assert [shares["zero_shot"], shares["evidence"]] == pytest.approx(
            expected[:2].tolist(), abs=1e-5
        )
    heron = next(shares for shares in experts if shares["label"] == "heron")
    assert heron["evidence"] == 0
    # The base is all zero-shot, also among the names that were learnt since.
    base = (await api.ask(photos["cat"], version=0, explain=True)).json()
    for line, shares in zip(base["predictions"], base["explanation"]["experts"], strict=True):
        assert (shares["zero_shot"], shares["evidence"]) == (line["score"], 0.0)


async def test_the_nearest_pictures_lead_to_the_label(api: Api, photos):
    """What the learner shows stands in the answer, for the feature that evidence looked at."""
    manifest = api.publish({n: photos[n] for n in LABELS[:2]}, learned_through=2)
    snapshot = await api.served(manifest)
    kept = [
        Exhibit("first", "cat", 0.98765, photos["cat"]),
        Exhibit("é/1", "x", -1.0, photos["cat"]),
    ]
    with learner(api, lambda question: kept if question.feature else []) as heard:
        raw = await api.client.post(
            "/classify",
            content=photos["cat"],
            params={"explain": "true"},
            headers={"content-type": "image/jpeg"},
        )
        many = await api.client.post(
            "/classify",
            json=[
                {"image": as_text(photos["cat"]), "explain": True},
                {"image": as_text(photos["cat"])},
            ],
        )
    explanation = raw.json()["explanation"]
    AnswerOut.model_validate(raw.json())
    assert explanation["note"] is None
    first, second = explanation["exemplars"]
    assert (first["sample_id"], first["label"], first["similarity"]) == ("first", "cat", 0.9877)
    assert base64.b64decode(first["image"].removeprefix("data:image/jpeg;base64,")) == photos["cat"]
    assert second["sample_id"] == "é/1"
    assert [("explanation" in answer) for answer in many.json()] == [True, False]
    assert len(heard) == 2
    views = snapshot.see([pixels_of(photos["cat"], snapshot)])
    asked = torch.frombuffer(bytearray(heard[0].feature), dtype=torch.float32)
    torch.testing.assert_close(asked, views.feature_BD[0], atol=1e-4, rtol=1e-3)


async def test_without_the_learner_the_answer_comes_with_a_note(api: Api, photos):
    """A learner that is not at work, or has no picture yet, costs the exemplars and no more."""
    answer = (await api.ask(photos["cat"], labels=LABELS, explain=True)).json()
    explanation = AnswerOut.model_validate(answer).explanation
    assert explanation is not None
    assert explanation.exemplars is None
    assert explanation.note == "the learner does not answer: none is at work"
    assert len(explanation.experts) == len(answer["predictions"]) == 3
    with learner(api, lambda _: []):
        answer = (await api.ask(photos["cat"], labels=LABELS, explain=True)).json()
    assert answer["explanation"]["exemplars"] == []
    assert "holds no picture yet" in answer["explanation"]["note"]


async def test_labelled_pictures_are_shown_to_who_may_read_them(
    started: Start, settings: Settings, photos
):
    """A key that may only classify gets the shares, and is told which key sees more."""
    keys = {
        scope: add_key(
            settings.keys_path, scope, now=datetime.now(UTC), scopes=("classify", scope)
        )[1]
        for scope in ("read", "learn")
    }
    async with started(settings) as api:
        kept = [Exhibit("first", "cat", 1.0, photos["cat"])]
        query = {"image": as_text(photos["cat"]), "labels": LABELS, "explain": True}
        answers = {}
        with learner(api, lambda _: kept) as heard:
            for scope, token in keys.items():
                shown = {"Authorization": f"Bearer {token}"}
                response = await api.client.post("/classify", json=query, headers=shown)
                answers[scope] = response.json()["explanation"]
        assert [each["sample_id"] for each in answers["read"]["exemplars"]] == ["first"]
        assert answers["learn"]["exemplars"] is None
        assert "scope `read`" in answers["learn"]["note"]
        assert answers["learn"]["experts"] == answers["read"]["experts"]
        assert len(heard) == 1


async def test_a_request_explains_only_so_many(api: Api, photos):
    """A list that would bring hundreds of pictures is refused, before any is classified."""
    one = {"image": as_text(photos["cat"]), "labels": LABELS, "explain": True}
    refused = await api.client.post("/classify", json=[one] * (EXPLAINED_MAX + 1))
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "explain"
    # Within a list that explains fewer, the others are just answered.
    mixed = [one] * 2 + [one | {"explain": False}] * EXPLAINED_MAX
    assert (await api.client.post("/classify", json=mixed)).status_code == 200


async def test_a_samples_picture_is_shown_while_it_is_kept(api: Api, photos):
    """The learner's JPEG under the sample's id, whatever letters that has; else a sentence."""
    ids = ["first", "a/b", "é", "x/image"]
    for name in ids:
        assert (await api.teach("cat", photos["cat"], id=name)).status_code == 202
    kept = {1: "first", 2: "a/b", 4: "x/image"}

    def shown(question: Question) -> list[Exhibit]:
        name = kept.get(question.seq)
        return [Exhibit(name, "cat", 1.0, photos["cat"])] if name else []

    with learner(api, shown):
        for path in ("first", "a%2Fb", "a/b", "x%2Fimage", "x/image"):
            found = await api.client.get(f"/samples/{path}/image")
            assert found.status_code == 200, found.text
            assert found.content == photos["cat"]
            assert found.headers["content-type"] == "image/jpeg"
            assert found.headers["x-content-type-options"] == "nosniff"
        gone = await api.client.get("/samples/é/image")
        assert (gone.status_code, gone.json()["type"]) == (404, "/problems/no-picture")
        unknown = await api.client.get("/samples/nobody/image")
        assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/unknown-sample")
        # An id that ends like the route is asked for as `Location` writes it.
        status: dict[str, Any] = (await api.client.get("/samples/x%2Fimage")).json()
        assert (status["id"], status["seq"]) == ("x/image", 4)
        # A state of another log has other samples under the same numbers.
        kept[1] = "another"
        assert (await api.client.get("/samples/first/image")).status_code == 404
    silent = await api.client.get("/samples/first/image")
    assert (silent.status_code, silent.json()["type"]) == (503, "/problems/learner-silent")
