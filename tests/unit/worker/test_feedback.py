"""Feedback on an answer, from the service that gave it to the learner: scored first, then learnt."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator

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


async def test_feedback_is_scored_first_and_then_learnt(client: httpx.AsyncClient) -> None:
    """A correction counts the answer as wrong, and a version that has learnt it answers next."""
    samples = {sample.label: sample for sample in digit_samples(20)}
    first, second, *_ = samples
    for label in (first, second):
        body = {"image": as_text(samples[label].image), "label": label, "id": label}
        (await client.post("/samples", json=body)).raise_for_status()

    # A picture that was learnt: the answer to it is right, until somebody says that it is not.
    query = {"image": as_text(samples[second].image)}
    answer = (await client.post("/classify", json=query | {"wait_for": second})).json()
    assert answer["predictions"][0]["label"] == second
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
    after = (await client.get("/learning")).json()["learner"]
    assert scored_and_right(after) == (scored_and_right(before)[0] + 1, scored_and_right(before)[1])


def scored_and_right(report: dict[str, float | None]) -> tuple[int, int]:
    """Return how many samples a learner's report counts as scored, and as answered rightly."""
    scored = int(report["prequential_samples"] or 0)
    return scored, round((report["prequential_accuracy"] or 0) * scored)
