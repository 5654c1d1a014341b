"""What is known can be seen: classes, versions, learning, health, figures, and the routes."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
import torch

from everlens.errors import ModelError
from everlens.model.snapshot import RECORD
from everlens.settings import Settings
from service.app import create_app
from service.problems import KINDS
from tests.unit.service.api import Api

pytestmark = pytest.mark.anyio


async def test_classes_are_listed_with_their_samples(api: Api, photos):
    """Learnt classes stand in the order of their index, each also under its own name."""
    assert (await api.client.get("/classes")).json() == {"classes": [], "total": 0, "version": 0}
    pictures = {"grey heron": photos["cat"], "a/b": photos["coffee"]}
    await api.served(api.publish(pictures, learned_through=2))
    listed = (await api.client.get("/classes")).json()
    nothing = dict.fromkeys(RECORD)
    assert listed == {
        "classes": [
            {"label": "grey heron", "samples": 1, "index": 0, **nothing},
            {"label": "a/b", "samples": 1, "index": 1, **nothing},
        ],
        "total": 2,
        "version": 1,
    }
    one = await api.client.get("/classes/grey heron")
    assert one.json() == {
        "label": "grey heron",
        "samples": 1,
        "index": 0,
        **nothing,
        "prompts": ["a photo of a grey heron.", "a picture of a grey heron.", "grey heron"],
        "version": 1,
    }
    assert (await api.client.get("/classes/a%2Fb")).json()["index"] == 1


async def test_classes_come_in_pages_and_by_a_part_of_their_name(api: Api, photos):
    """Each once, however they are cut; letters large and small are the same, and so is Unicode."""
    names = ["Heron", "grey heron", "Zo\u00eb", "heroine", "stork"]
    await api.served(api.publish(dict.fromkeys(names, photos["cat"]), learned_through=5))

    async def page(**asked: str | int) -> tuple[list[str], int, int]:
        told = (await api.client.get("/classes", params=asked)).json()
        last = told["classes"][-1]["index"] if told["classes"] else -1
        return [known["label"] for known in told["classes"]], told["total"], last

    assert await page() == (names, 5, 4)
    assert await page(search="HERO", limit=2) == (["Heron", "grey heron"], 3, 1)
    assert await page(search="HERO", limit=2, after=1) == (["heroine"], 3, 3)
    assert await page(search="HERO", limit=2, after=3) == ([], 3, -1)
    assert (await page(search="zoe\u0308"))[0] == ["Zo\u00eb"]
    assert (await page(search="a.*"))[:2] == ([], 0)
    found: list[str] = []
    last = -1
    while len(found) < 5:
        labels, total, last = await page(limit=2, **({"after": last} if found else {}))
        assert (total, bool(labels)) == (5, True)
        found += labels
    assert found == names
    for asked in ({"limit": 0}, {"limit": 10_001}, {"after": -1}, {"search": "x" * 4097}):
        response = await api.client.get("/classes", params=asked)
        assert (response.status_code, response.json()["type"]) == (422, "/problems/invalid-fields")


async def test_classes_say_how_they_fare(api: Api, photos):
    """Recall, forgetting, weight and each expert's recall, by name; null where it is not known."""
    pictures = {"cat": photos["cat"], "coffee": photos["coffee"]}
    record_CR = torch.tensor(
        [[0.75, 0.125, 1.5, 0.5, 0.25, 1.0], [float("nan"), float("nan"), 0.5] + [float("nan")] * 3]
    )
    await api.served(api.publish(pictures, learned_through=2, record_CR=record_CR))
    cat, coffee = (await api.client.get("/classes")).json()["classes"]
    assert cat == {
        "label": "cat",
        "samples": 1,
        "index": 0,
        "recall": 0.75,
        "forgetting": 0.125,
        "weight": 1.5,
        "zero_shot": 0.5,
        "evidence": 0.25,
        "adapter": 1.0,
    }
    assert (coffee["recall"], coffee["weight"]) == (None, 0.5)
    one = (await api.client.get("/classes/cat")).json()
    assert {**cat, "prompts": one["prompts"], "version": 1} == one


async def test_a_version_says_what_its_gate_said(api: Api, photos):
    """What held-out samples said of an adapter stands in the lineage; null where none was asked."""
    gate = {"published": False, "held_out": 20, "before": 0.5, "after": 0.25, "error": 0.125}
    await api.served(api.publish({"cat": photos["cat"]}, learned_through=1))
    await api.served(api.publish({"cat": photos["cat"]}, learned_through=2, gate=gate))
    assert (await api.client.get("/versions/2")).json()["gate"] == gate
    assert (await api.client.get("/versions/1")).json()["gate"] is None
    assert (await api.client.get("/versions/0")).json()["gate"] is None
    listed = (await api.client.get("/versions")).json()["versions"]
    assert [record["gate"] for record in listed] == [gate, None]


async def test_metrics_take_over_the_learners_figures(api: Api):
    """What the learner reports are gauges; what it does not know yet is not a number, never zero."""
    text = (await api.client.get("/metrics")).text
    assert "everlens_prequential_accuracy_ratio NaN" in text
    assert "everlens_forgetting_ratio NaN" in text
    assert "\neverlens_learner_samples_total" not in text
    assert "everlens_learner_up 1.0" in text
    api.stream.report(
        {
            "prequential_accuracy": 0.75,
            "prequential_accuracy_recent": 0.875,
            "forgetting": None,
            "class_weight_max": 1.5,
            "reported_at": 1.75e9,
            "counts": {"samples": 8, "gate_passed": 2, "gate_held_back": 1},
            "rounds_owed": "a word",
            "expert_recall": {"zero_shot": 0.5, "evidence": 0.25, "adapter": None},
        }
    )
    text = (await api.client.get("/metrics")).text
    for line in (
        "everlens_prequential_accuracy_ratio 0.75",
        "everlens_prequential_accuracy_recent_ratio 0.875",
        "everlens_forgetting_ratio NaN",
        "everlens_class_weight_max_ratio 1.5",
        'everlens_expert_recall_ratio{expert="zero_shot"} 0.5',
        'everlens_expert_recall_ratio{expert="evidence"} 0.25',
        'everlens_expert_recall_ratio{expert="adapter"} NaN',
        "everlens_learner_samples_total 8.0",
        'everlens_gate_verdicts_total{verdict="held_back"} 1.0',
        "everlens_learner_report_timestamp_seconds 1.75e+09",
        "everlens_rounds_owed NaN",
    ):
        assert line in text


async def test_versions_are_listed_newest_first(api: Api, photos):
    """The lineage says of each version when it came, from which, and what it has learnt."""
    pictures: dict[str, bytes] = {}
    for count, (name, image) in enumerate(photos.items(), start=1):
        pictures[name] = image
        await api.served(api.publish(pictures, learned_through=count))
    listed = (await api.client.get("/versions")).json()
    assert listed["current"] == 4
    assert [record["version"] for record in listed["versions"]] == [4, 3, 2, 1]
    newest, before = listed["versions"][:2]
    assert newest["parent"] == before["digest"]
    assert (newest["samples"], newest["classes"], newest["learned_through"]) == (4, 4, 4)
    assert newest["published_at"] > 1_700_000_000
    assert (await api.client.get("/versions?limit=1")).json()["versions"] == [newest]
    assert (await api.client.get("/versions/4")).json() == newest
    assert (await api.client.get("/versions/0")).json()["version"] == 0
    assert (await api.client.get("/versions/5")).status_code == 404


async def test_learning_says_how_far_it_is(api: Api, photos):
    """What serves, what waits, and the learner's own words stand in one place."""
    for name, image in photos.items():
        await api.teach(name, image)
    api.stream.report({"samples_per_s": 12.5})
    await api.served(api.publish({"cat": photos["cat"]}, learned_through=2))
    learning = (await api.client.get("/learning")).json()
    assert (learning["version"], learning["learned_through"]) == (1, 2)
    assert learning["accepted_through"] == 4
    assert learning["backlog"]["entries"] == 4
    assert learning["backlog"]["bytes"] > 1000
    assert learning["paused"] is None
    assert learning["learner"] == {"samples_per_s": 12.5}
    assert learning["refused_versions"] == []
    api.stream.pause("the state is damaged", "test")
    assert (await api.client.get("/learning")).json()["paused"] == "the state is damaged"


async def test_metrics_count_by_route_and_never_by_name(api: Api, photos):
    """Requests are counted by route template and status; no class name or id shows."""
    await api.teach("secret heron", photos["cat"], id="secret-id")
    await api.client.get("/samples/secret-id")
    await api.client.get("/classes/secret heron")
    await api.client.get("/secret")
    await api.served(api.publish({"secret heron": photos["cat"]}, learned_through=1))
    await api.ask(photos["cat"])
    text = (await api.client.get("/metrics")).text
    assert "secret" not in text
    for line in (
        'everlens_http_requests_total{method="POST",route="/samples",status="202"} 1.0',
        'method="GET",route="/samples/{sample_id:path}",status="200"} 1.0',
        'everlens_http_requests_total{method="GET",route="none",status="404"} 1.0',
        "everlens_samples_accepted_total 1.0",
        "everlens_swap_seconds_count 1.0",
        "everlens_version 1.0",
        "everlens_learned_through 1.0",
        "everlens_backlog_samples 1.0",
        "everlens_batch_pictures_count 1.0",
        "everlens_forward_seconds_count 1.0",
        "everlens_decode_seconds_count 2.0",
        "everlens_admission_seconds_count 1.0",
        "everlens_queued_queries 0.0",
        "everlens_backlog_limit_samples 10000.0",
        "everlens_http_requests_in_flight 1.0",
        "everlens_log_up 1.0",
    ):
        assert line in text


async def test_the_process_lives_while_the_model_loads(settings: Settings, tiny_clip, stream):
    """While the base model loads, /livez answers, and what needs the model is a 503."""
    loading = threading.Event()

    def load():
        assert loading.wait(60)
        return tiny_clip

    app = create_app(settings, load)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://everlens") as client,
    ):
        assert (await client.get("/livez")).status_code == 200
        for route in ("/readyz", "/classes"):
            response = await client.get(route)
            assert response.status_code == 503
            assert response.json()["type"] == "/problems/not-ready"
        for route in ("/samples", "/classify"):
            assert (await client.post(route, json={})).status_code == 503
        loading.set()
        await asyncio.wait_for(app.state.service.settled.wait(), 60)
        assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize("error", [ModelError("no such model"), RuntimeError("out of memory")])
async def test_a_model_that_cannot_be_loaded_says_why(settings: Settings, error, stream):
    """When loading fails the reason is kept for the process's last words, and nothing hangs."""

    def load():
        raise error

    app = create_app(settings, load)
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(app.state.service.settled.wait(), 60)
        assert str(error) in str(app.state.service.failure)
        assert isinstance(app.state.service.failure, ModelError)


async def test_the_root_names_routes_that_exist(api: Api):
    """Every route that GET / names is one."""
    routes = (await api.client.get("/")).json()["routes"]
    api.service.end_waits()  # else the answer of /events would go on for ever
    for route in routes:
        expected = {503} if route == "/events" else {200, 405}
        assert (await api.client.get(route)).status_code in expected


async def test_the_description_names_every_body_and_problem(api: Api):
    """Both routes describe all their content types, and their errors as problem documents."""
    paths = (await api.client.get("/openapi.json")).json()["paths"]
    assert set(paths["/samples"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "application/x-ndjson",
        "multipart/form-data",
    }
    assert "image/jpeg" in paths["/classify"]["post"]["requestBody"]["content"]
    for route, status in (("/samples", "409"), ("/classify", "504"), ("/samples", "429")):
        content = paths[route]["post"]["responses"][status]["content"]
        assert "application/problem+json" in content


async def test_kinds_of_problems_are_words_for_addresses():
    """Each kind is a slug with an error status and a title."""
    for kind, (status, title) in KINDS.items():
        assert kind == kind.lower().replace(" ", "-")
        assert 400 <= status < 600
        assert title
