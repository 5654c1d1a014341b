"""Feedback on an answer, from the service that gave it to the learner: scored first, then learnt."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from everlens.settings import Settings
from service.app import create_app
from tests.unit.service.api import as_text
from tests.unit.worker.conftest import Bench, digit_samples

pytestmark = pytest.mark.anyio


@pytest.fixture
def learning(bench: Bench) -> Iterator[None]:
    """A learner that goes on until the test ends."""
    stop = threading.Event()

    def learn() -> None:  # all in one thread, to which the state's connection belongs
        loop = bench.loop(tune="none")
        loop.run(stop.is_set)
        loop.close()

    thread = threading.Thread(target=learn)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture
async def client(bench: Bench, learning: None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service beside the learner."""
    settings = Settings(
        redis_url=bench.url,
        namespace=bench.keys.namespace,
        data_dir=bench.directory / "service",
        decoders=1,
    )
    app = create_app(settings, lambda: bench.backbone)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://everlens") as client,
    ):
        await app.state.service.settled.wait()
        yield client


async def two_digits(client: httpx.AsyncClient) -> tuple[dict[str, str], dict[str, Any]]:
    """Teach two digits; return a query about the second one, and the answer, which is right."""
    samples = {sample.label: sample for sample in digit_samples(20)}
    first, second, *_ = samples
    for label in (first, second):
        body = {"image": as_text(samples[label].image), "label": label, "id": label}
        (await client.post("/samples", json=body)).raise_for_status()
    query = {"image": as_text(samples[second].image)}
    answer: dict[str, Any] = (
        await client.post("/classify", json=query | {"wait_for": second})
    ).json()
    assert answer["predictions"][0]["label"] == second
    return query, answer


async def test_feedback_is_scored_first_and_then_learnt(client: httpx.AsyncClient) -> None:
    """A correction counts the answer as wrong, and a version that has learnt it answers next."""
    query, answer = await two_digits(client)
    second, first = (line["label"] for line in answer["predictions"])
    before = (await client.get("/learning")).json()["learner"]

    body = {"prediction_id": answer["prediction_id"], "label": first}
    receipt = (await client.post("/feedback", json=body)).json()
    learnt = (await client.post("/classify", json=query | {"wait_for": receipt["id"]})).json()
    sample = (await client.get(f"/samples/{receipt['id']}")).json()
    assert sample["status"] == "learnt"
    assert answer["version"] < sample["version"] <= learnt["version"]
    assert {line["label"]: line["samples"] for line in learnt["predictions"]} == {
        first: 2,
        second: 1,
    }
    scored, right = scored_and_right(before)
    assert await next_scored_and_right(client, scored) == (scored + 1, right)


async def test_a_refused_answer_is_scored_first_and_then_learnt(client: httpx.AsyncClient) -> None:
    """To say that the best line is not it counts as a wrong answer, and takes weight from the name."""
    await two_digits(client)
    third = digit_samples(20)[2]  # of neither class, so that no name is certain
    query = {"image": as_text(third.image)}
    answer = (await client.post("/classify", json=query)).json()
    named = answer["predictions"][0]["label"]
    before = (await client.get("/learning")).json()["learner"]

    body = {"prediction_id": answer["prediction_id"], "not_label": named}
    receipt = (await client.post("/feedback", json=body)).json()
    learnt = (await client.post("/classify", json=query | {"wait_for": receipt["id"]})).json()
    sample = (await client.get(f"/samples/{receipt['id']}")).json()
    assert (sample["status"], sample["version"]) == ("learnt", learnt["version"])
    assert score_of(learnt, named) < score_of(answer, named) - 0.01
    scored, right = scored_and_right(before)
    assert await next_scored_and_right(client, scored) == (scored + 1, right)


async def next_scored_and_right(client: httpx.AsyncClient, scored: int) -> tuple[int, int]:
    """Return the learner's next figures: it leaves them a moment after the version."""
    async with asyncio.timeout(60):
        while True:
            found = scored_and_right((await client.get("/learning")).json()["learner"])
            if found[0] > scored:
                return found
            await asyncio.sleep(0.05)


def score_of(answer: dict[str, Any], label: str) -> float:
    (score,) = [line["score"] for line in answer["predictions"] if line["label"] == label]
    assert isinstance(score, float)
    return score


def scored_and_right(report: dict[str, float | None]) -> tuple[int, int]:
    """Return how many samples a learner's report counts as scored, and as answered rightly."""
    scored = int(report["prequential_samples"] or 0)
    return scored, round((report["prequential_accuracy"] or 0) * scored)
