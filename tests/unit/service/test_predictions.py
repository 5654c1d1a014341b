"""What was answered is remembered within a budget, shown to whom it belongs, and put in order."""

from __future__ import annotations

import io
import random
import tracemalloc
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from everlens.keys import SCOPES, add_key
from everlens.keys import Scope as ScopeName
from everlens.settings import Settings
from service.feedback_schemas import KeptPredictionOut, KeptPredictionsOut
from service.predictions import LINES_KEPT, Kept, Predictions, uncertain
from tests.unit.service.api import Api, as_text, encoded
from tests.unit.service.conftest import Start

LABELS = ["astronaut", "cat", "coffee", "rocket"]


def given_answer(*labels: str) -> dict[str, Any]:
    """Return an answer as POST /classify gives it."""
    lines = [{"label": label, "score": round(random.random(), 6), "samples": 1} for label in labels]
    return {
        "predictions": lines,
        "known": random.random(),
        "version": 7_000,
        "learned_through": 100_000,
        "model": "starter",
        "prediction_id": uuid.uuid4().hex,
    }


def test_the_oldest_goes_first() -> None:
    """Beyond the budget the oldest are forgotten, as many as it takes, and the sum follows."""
    predictions = Predictions(100_000)
    answers = [given_answer("heron", "egret") for _ in range(40)]
    for answer in answers:
        predictions.keep("", b"x" * 10_000, answer)
        assert predictions.bytes <= 100_000
    kept = [one.id for one in predictions.of(None)]
    assert kept == [answer["prediction_id"] for answer in answers[-8:]]
    assert predictions.find(answers[0]["prediction_id"]) is None
    predictions.keep("", b"x" * 90_000, given_answer("heron"))
    assert len(predictions) == 1


@pytest.mark.parametrize(("budget", "before"), [(50_000, 1), (0, 0)])
def test_what_is_larger_than_the_budget_pushes_nobody_out(budget: int, before: int) -> None:
    """A picture that would not fit alone is not kept; without a budget nothing is."""
    predictions = Predictions(budget)
    predictions.keep("", b"small", given_answer("heron"))
    predictions.keep("", b"x" * 60_000, given_answer("heron"))
    assert len(predictions) == before


@pytest.mark.parametrize("name", ["heron", "鷺" * 200])
def test_what_is_counted_is_what_is_held(name: str) -> None:
    """The sum is no less than the interpreter allocates, and no more than twice that."""
    predictions = Predictions(64 * 2**20)
    tracemalloc.start()
    try:
        for number in range(500):
            labels = [f"{name[: 200 - 6]}{number} {line}" for line in range(20)]
            predictions.keep("", random.randbytes(100), given_answer(*labels))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held <= predictions.bytes <= 2 * held


def test_a_picture_is_not_copied() -> None:
    """The client's bytes are kept as the object that they came as, with the first lines alone."""
    predictions, image = Predictions(100_000), b"a picture"
    answer = given_answer(*map(str, range(50)))
    predictions.keep("a key", image, answer)
    kept = predictions.find(answer["prediction_id"])
    assert kept is not None
    assert kept.image is image
    assert kept.lines == answer["predictions"][:LINES_KEPT]


def most_uncertain(predictions: list[Kept], count: int) -> list[float]:
    """Return the margins that `uncertain` should choose, picture by picture."""
    margins = []
    for image in {kept.image for kept in predictions}:
        of_it = [kept for kept in predictions if kept.image == image]
        if any(kept.feedback for kept in of_it) or len(of_it[-1].lines) < 2:
            continue
        margins.append(of_it[-1].lines[0]["score"] - of_it[-1].lines[1]["score"])
    return sorted(margins)[:count]


KEPT = st.builds(
    lambda image, scores, feedback: Kept(
        id=uuid.uuid4().hex,
        at=0.0,
        tenant="",
        image=image,
        lines=[{"score": score} for score in sorted(scores, reverse=True)],
        known=None,
        version=0,
        learned_through=0,
        feedback=feedback,
    ),
    st.sampled_from([b"a", b"b", b"c", b"d", b"e"]),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
    st.sampled_from([None, None, None, "feedback-1"]),
)


@given(st.lists(KEPT, max_size=12), st.integers(1, 6))
def test_the_least_certain_pictures_come_first(predictions: list[Kept], count: int) -> None:
    """By the margin of each picture's newest answer, once, without those that have feedback."""
    chosen = uncertain(predictions, count)
    assert [kept.margin for kept in chosen] == most_uncertain(predictions, count)
    images = [kept.image for kept in chosen]
    assert len(set(images)) == len(images)
    assert all(kept in predictions and kept.feedback is None for kept in chosen)


async def listed(api: Api, **parameters: Any) -> list[dict[str, Any]]:
    response = await api.client.get("/predictions", params=parameters)
    assert response.status_code == 200, response.text
    KeptPredictionsOut.model_validate(response.json())
    records: list[dict[str, Any]] = response.json()["predictions"]
    return records


@pytest.mark.anyio
async def test_answers_are_listed_as_they_were_given(api: Api, photos):
    """The newest first; each says what /classify said, when, and how far apart its lines were."""
    assert await listed(api) == []
    assert await listed(api, order="uncertain") == []
    answers = [(await api.ask(photo, labels=LABELS)).json() for photo in photos.values()]
    records = await listed(api)
    assert [record["prediction_id"] for record in records] == [
        answer["prediction_id"] for answer in reversed(answers)
    ]
    for record, answer in zip(reversed(records), answers, strict=True):
        first, second = answer["predictions"][:2]
        assert record["margin"] == pytest.approx(first["score"] - second["score"], abs=1e-6)
        assert abs(record["at"] - datetime.now(UTC).timestamp()) < 60
        assert record["feedback"] is None
        for field in ("predictions", "known", "version", "learned_through"):
            assert record[field] == answer[field], field
        one = await api.client.get(f"/predictions/{answer['prediction_id']}")
        assert one.json() == record
        KeptPredictionOut.model_validate(one.json())
    assert await listed(api, limit=1) == records[:1]
    margins = [record["margin"] for record in await listed(api, order="uncertain")]
    assert margins == sorted(record["margin"] for record in records)
    for bad in ({"limit": 0}, {"limit": 101}, {"order": "best"}):
        assert (await api.client.get("/predictions", params=bad)).status_code == 422


@pytest.mark.anyio
async def test_a_picture_comes_back_as_it_was_sent(api: Api, photo):
    """Every way and format of asking: the same bytes, with their type, and shown as nothing else."""
    small = Image.open(io.BytesIO(photo)).resize((64, 64))
    for kind in ("JPEG", "PNG", "WEBP"):
        image, media = encoded(small, kind), f"image/{kind.lower()}"
        headers = {"content-type": media}
        answers = [
            await api.ask(image, labels=LABELS),
            await api.client.post(
                "/classify", content=image, params={"labels": LABELS}, headers=headers
            ),
            await api.client.post("/classify", data={"labels": LABELS}, files={"image": image}),
        ]
        for prediction_id in [answer.json()["prediction_id"] for answer in answers]:
            picture = await api.client.get(f"/predictions/{prediction_id}/image")
            assert picture.content == image
            assert picture.headers["content-type"] == media
            assert picture.headers["x-content-type-options"] == "nosniff"
            assert picture.headers["cache-control"] == "private, no-store"
            assert "sandbox" in picture.headers["content-security-policy"]
    assert (await api.client.get("/predictions/nowhere/image")).status_code == 404
    assert (await api.client.get("/predictions/nowhere")).status_code == 404


@pytest.mark.anyio
async def test_each_picture_of_a_list_is_kept(api: Api, photos):
    """A list's pictures are remembered one by one, without the text that they came in."""
    queries = [{"image": as_text(photo), "labels": LABELS} for photo in photos.values()]
    answers = (await api.client.post("/classify", json=queries)).json()
    kept = api.service.predictions.of(None)
    assert [one.id for one in kept] == [answer["prediction_id"] for answer in answers]
    assert [one.image for one in kept] == list(photos.values())
    assert api.service.predictions.bytes < sum(map(len, photos.values())) + 4 * 4096


@pytest.mark.anyio
async def test_a_key_sees_what_was_asked_with_it(started: Start, settings: Settings, photos):
    """Own predictions alone, in the list and one by one; with `admin` everybody's."""
    tokens = {}
    scopes: dict[str, list[ScopeName]] = {
        "camera": ["classify", "read"],
        "other": ["classify", "read"],
        "chief": list(SCOPES),
    }
    for name, may in scopes.items():
        _, tokens[name] = add_key(settings.keys_path, name, scopes=may, now=datetime.now(UTC))
    async with started(settings) as api:

        async def whose(name: str) -> list[str]:
            api.client.headers["Authorization"] = f"Bearer {tokens[name]}"
            return [record["prediction_id"] for record in await listed(api)]

        asked = {}
        for name, photo in zip(tokens, photos.values(), strict=False):
            api.client.headers["Authorization"] = f"Bearer {tokens[name]}"
            asked[name] = (await api.ask(photo, labels=LABELS)).json()["prediction_id"]
        assert await whose("camera") == [asked["camera"]]
        assert await whose("other") == [asked["other"]]
        for path in (f"/predictions/{asked['camera']}", f"/predictions/{asked['camera']}/image"):
            hidden = await api.client.get(path)
            unknown = await api.client.get(path.replace(asked["camera"], "0" * 32))
            assert hidden.status_code == 404
            # Not even whether it exists.
            assert hidden.json()["detail"] == unknown.json()["detail"]
        assert await whose("chief") == list(reversed(asked.values()))
        assert (await api.client.get(path)).status_code == 200
