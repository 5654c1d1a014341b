"""New versions are swapped in while queries run; what is damaged leaves the old one serving."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from everlens.bus.versions import Follower
from everlens.errors import LogUnavailable, PartError
from everlens.model.parts import build_snapshot
from everlens.model.snapshot import Snapshot, Views
from everlens.model.tower import Hidden
from everlens.settings import Settings
from service.hotswap import TRIES
from service.probe import Probe
from tests.unit.service.api import Api
from tests.unit.service.conftest import Start
from tests.unit.service.waiting import until

pytestmark = pytest.mark.anyio


async def test_versions_are_swapped_under_load_without_a_failed_answer(api: Api, photos):
    """While versions follow each other, every query is answered and versions never fall."""
    stopped = False

    async def keep_asking() -> list[tuple[int, int]]:
        answers = []
        while not stopped:
            answer = await api.ask(photos["cat"], labels=["cat", "coffee"])
            answers.append((answer.status_code, answer.json()["version"]))
        return answers

    asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
    names = list(photos)
    for count in range(1, 5):
        pictures = {name: photos[name] for name in names[:count]}
        await api.served(api.publish(pictures, learned_through=count))
    stopped = True
    for answers in await asyncio.gather(*asking):
        assert {status for status, _ in answers} == {200}
        assert answers == sorted(answers)
        assert len(set(answers)) > 1
    assert (await api.ask(photos["cat"])).json()["version"] == 4


async def test_unchanged_parts_are_not_fetched_again(api: Api, photos, fetched: list[str]):
    """A second version costs only the parts that differ from the first."""
    first = api.publish(photos, learned_through=4)
    await api.served(first)
    assert sorted(fetched) == sorted(set(first.parts.values()))
    fetched.clear()
    swapped = dict.fromkeys(photos, photos["cat"])
    second = api.publish(swapped, learned_through=5)
    await api.served(second)
    assert fetched == [second.parts["evidence/0"]]


async def test_what_came_before_the_log_went_away_is_not_fetched_again(
    api: Api, photos, fetched: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Over a line that breaks now and then a version comes part by part."""
    part, broken = Follower.part, 0

    async def breaking(self: Follower, digest: str) -> bytes:
        nonlocal broken
        if len(fetched) % 2:
            broken += 1
            fetched.append("broken")
            raise LogUnavailable("gone for a moment")
        return await part(self, digest)

    monkeypatch.setattr(Follower, "part", breaking)
    version = api.publish(photos, learned_through=4)
    await api.served(version)
    assert sorted(set(fetched) - {"broken"}) == sorted(set(version.parts.values()))
    assert len(fetched) == len(set(version.parts.values())) + broken


@pytest.mark.parametrize("damage", ["classes/0", "evidence/0", "evidence/factor", "fusion"])
async def test_a_damaged_part_leaves_the_old_version_serving(api: Api, photos, damage, caplog):
    """A spoilt part is refused, logged once and shown; the next good version is swapped in."""
    await api.served(api.publish({"cat": photos["cat"]}, learned_through=1))
    others = {"coffee": photos["coffee"], "rocket": photos["rocket"]}
    if damage in {"evidence/factor", "fusion"}:
        # The same bytes as before: the service has them already and does not look again.
        api.publish(others, learned_through=2, damage=damage)
        assert await api.model.serving.wait_learned(2, 60)
        return
    with caplog.at_level(logging.ERROR, logger="service.hotswap"):
        bad = api.publish(others, learned_through=2, damage=damage)
        refused = api.model.swaps.refused
        await until(lambda: bad.digest in refused and refused[bad.digest].tries >= TRIES)
    assert len(caplog.records) == 1
    assert (await api.ask(photos["cat"])).json()["version"] == 1
    learning = (await api.client.get("/learning")).json()
    assert [entry["version"] for entry in learning["refused_versions"]] == [2]
    assert "damaged" in learning["refused_versions"][0]["reason"]
    assert (await api.client.get("/readyz")).json()["version"] == 1
    metrics = (await api.client.get("/metrics")).text
    assert f"everlens_versions_refused_total {float(TRIES)}" in metrics
    await asyncio.sleep(1.2)
    assert refused[bad.digest].tries == TRIES, "a bad version is not tried for ever"
    await api.served(api.publish(photos, learned_through=4))
    assert (await api.ask(photos["cat"])).json()["version"] == 3


async def test_what_failed_for_a_while_is_tried_again(api: Api, photos, monkeypatch):
    """A version for which there was no memory is served once there is some, and refused no more."""
    monkeypatch.setattr("service.hotswap.AGAIN_S", 0.1)
    build, tries = build_snapshot, 0

    def short_of_memory(*arguments):
        nonlocal tries
        tries += 1
        if tries <= TRIES + 1:
            raise PartError("no memory")
        return build(*arguments)

    monkeypatch.setattr("service.hotswap.build_snapshot", short_of_memory)
    await api.served(api.publish(photos, learned_through=4))
    assert tries == TRIES + 2
    assert not api.model.swaps.refused


async def test_another_base_model_is_refused(api: Api, photos):
    """A version of another base model is never swapped in, and the reason names both."""
    foreign = api.publish(photos, learned_through=4, fingerprint="f" * 64)
    refused = api.model.swaps.refused
    await until(lambda: foreign.digest in refused)
    assert "base model" in refused[foreign.digest].reason
    assert api.model.serving.current.version == 0


async def test_a_part_collected_meanwhile_is_no_refusal(api: Api, photos, monkeypatch):
    """When the head moves on while its parts are fetched, the new head is taken in silence."""
    manifest = Follower.manifest
    overtaken = False

    async def overtaking(self: Follower, version: int, digest: str):
        nonlocal overtaken
        found = await manifest(self, version, digest)
        if not overtaken:
            overtaken = True
            for part in set(found.parts.values()):
                api.stream.client.delete(api.stream.keys.part(part))
            api.publish(photos, learned_through=4)
        return found

    monkeypatch.setattr(Follower, "manifest", overtaking)
    api.publish({"cat": photos["cat"]}, learned_through=1)
    assert await api.model.serving.wait_learned(4, 60)
    assert api.model.serving.current.version == 2
    assert not api.model.swaps.refused


async def test_a_service_that_starts_takes_the_head_before_it_is_ready(
    api: Api, started: Start, settings: Settings, photos
):
    """A second service over the same log is ready only with the newest version."""
    await api.served(api.publish(photos, learned_through=4))
    async with started(settings) as other:
        ready = (await other.client.get("/readyz")).json()
        assert (ready["version"], ready["learned_through"]) == (1, 4)
        answer = (await other.ask(photos["coffee"])).json()
        assert answer["predictions"] == (await api.ask(photos["coffee"])).json()["predictions"]


async def test_only_the_last_versions_are_kept(api: Api, photos):
    """Of many versions the last eight can be asked, and the frozen base for ever."""
    pictures = dict(photos)
    for count in range(1, 12):
        pictures[f"class {count}"] = photos["cat"]
        await api.served(api.publish(pictures, learned_through=count))
    assert api.model.serving.versions == [0, 4, 5, 6, 7, 8, 9, 10, 11]
    assert (await api.ask(photos["cat"], version=4)).status_code == 200
    assert (await api.ask(photos["cat"], version=3)).status_code == 404


async def test_a_swap_computes_only_what_a_version_brought(api: Api, photos, monkeypatch):
    """The probe picture passes the towers once; a version without a new adapter passes nothing."""
    seen = []
    look = Snapshot.look

    def looking(self: Snapshot, hidden: Hidden, **how: Any) -> Views:
        seen.append(self.version)
        return look(self, hidden, **how)

    monkeypatch.setattr(Snapshot, "look", looking)
    for count in range(1, 4):
        await api.served(api.publish(dict(list(photos.items())[:count]), learned_through=count))
    assert [version for version in seen if version] == [1]  # 0 is what the test itself learns with


async def test_no_query_waits_for_a_version_that_is_made(api: Api, photos, monkeypatch):
    """While the next version answers its probe, the one before answers everybody else."""
    asked, answer = threading.Event(), threading.Event()
    ask = Probe.ask

    def held(self: Probe, snapshot: Snapshot) -> None:
        asked.set()
        assert answer.wait(60)
        ask(self, snapshot)

    await api.served(api.publish({"cat": photos["cat"]}, learned_through=1))
    monkeypatch.setattr(Probe, "ask", held)
    second = api.publish(photos, learned_through=4)
    await until(asked.is_set)
    try:
        assert (await api.ask(photos["cat"])).json()["version"] == 1
    finally:
        answer.set()
    await api.served(second)
    assert (await api.ask(photos["cat"])).json()["version"] == 2
