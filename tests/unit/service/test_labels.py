"""Names as clients write them: what is taken is kept in one form, whichever way it came."""

from __future__ import annotations

import unicodedata
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from everlens.records import ID_CHARACTERS_MAX, LABEL_CHARACTERS_MAX
from service.names import NameVectors
from tests.unit.service.api import Api
from tests.unit.service.test_bad_input import check_problem

pytestmark = pytest.mark.anyio

# What Unicode has for hiding, turning and joining, beside everything else that it has.
_ODD = st.sampled_from(
    "\0\t\n\r\x1b\x7f\x85\xa0\xad\u0301\u034f\u061c\u115f\u200b\u200c\u200d\u200e\u202e\u2028\u2066"
    "\u2800\u3000\ufe0f\ufeff\ufffd\uffff\U000e0041\U0001f426\ue000 '\"\\/%#?&=+;{}"
)
NAMES = st.text(_ODD | st.characters(exclude_categories=["Cs"]), max_size=12) | st.text(
    max_size=210
)

_thorough = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    # The first example that fails tells; to shrink it takes minutes of requests.
    phases=[Phase.explicit, Phase.generate],
    # One service for all examples: what it remembers of the others must not matter.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def check_kept(kept: str, sent: str, characters_max: int) -> None:
    assert kept == unicodedata.normalize("NFC", sent).strip()
    assert 0 < len(kept) <= characters_max
    for character in kept:
        bidirectional = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        assert character not in bidirectional
        assert unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"}


def kept_label(response: httpx.Response) -> str | None:
    """Return the one label of an answer; None when it was refused, and rightly so."""
    if response.status_code == 422:
        check_problem(response, 422, "invalid-fields", None)
        assert {error["field"] for error in response.json()["errors"]} <= {"labels.0"}
        return None
    assert response.status_code == 200, response.text
    (line,) = response.json()["predictions"]
    label: str = line["label"]
    return label


@_thorough
@given(name=NAMES)
async def test_a_label_is_the_same_whichever_way_it_comes(api: Api, photo: bytes, name: str):
    """
    JSON, form and address agree on every label: refused by all, or kept by all in one form, which
    is NFC, short, without what hides or turns, and is itself when it is sent again.
    """
    kind = {"content-type": "image/jpeg"}
    kept = kept_label(await api.ask(photo, labels=[name]))
    form: dict[str, Any] = {"data": {"labels": name}, "files": {"image": photo}}
    assert kept == kept_label(await api.client.post("/classify", **form))
    raw: dict[str, Any] = {"params": {"labels": name}, "content": photo, "headers": kind}
    assert kept == kept_label(await api.client.post("/classify", **raw))
    if kept is not None:
        check_kept(kept, name, LABEL_CHARACTERS_MAX)
        assert kept == kept_label(await api.ask(photo, labels=[kept]))


@_thorough
@given(name=NAMES)
async def test_an_id_leads_to_its_sample_or_is_refused(api: Api, photo: bytes, name: str):
    """An id that is taken is found under itself and under Location, and its repeat is no news."""
    taught = await api.teach("cup", photo, id=name)
    if taught.status_code == 422:
        check_problem(taught, 422, "invalid-fields", "id")
        return
    receipt = taught.json()
    check_kept(receipt["id"], name, ID_CHARACTERS_MAX)
    for address in (taught.headers["location"], f"/samples/{quote(name, safe='')}"):
        found = await api.client.get(address)
        assert found.json() == receipt, (address, found.text)
    again = await api.teach("cup", photo, id=receipt["id"])
    assert (again.status_code, again.json()) == (200, receipt)


_SECRET = "zqxj"


@settings(_thorough, max_examples=30)
@given(name=NAMES.map(lambda text: _SECRET + text[:50]))
async def test_no_metric_ever_tells_a_name(api: Api, photo: bytes, name: str):
    """Whatever label, id, field, address or method holds a name, no line of /metrics does."""
    client, address = api.client, quote(name, safe="")
    await api.teach(name, photo, id=name)
    await api.ask(photo, labels=[name], wait_for=name, wait_s=0.001)
    for path in ("/classes/", "/samples/", "/versions/", "/", "/samples?x=", "/livez?"):
        await client.get(path + address)
    await client.post("/samples", json={name: name})
    await client.post("/samples", data={name: name}, files={name: photo})
    await client.post("/samples", content=photo, headers={"content-type": f"x/{_SECRET}"})
    await client.request(_SECRET.upper(), "/livez")
    text = (await client.get("/metrics")).text
    assert "everlens_http_requests_total" in text
    assert _SECRET not in text.lower()


async def test_a_name_stays_out_of_the_metrics_when_it_is_learnt(api: Api, photo: bytes):
    """A learnt class has its figures under /classes, never as a line of /metrics."""
    await api.teach(_SECRET, photo, id=f"{_SECRET}-id")
    await api.served(api.publish({_SECRET: photo}, learned_through=1))
    assert (await api.client.get(f"/classes/{_SECRET}")).json()["samples"] == 1
    assert (await api.ask(photo)).json()["predictions"][0]["label"] == _SECRET
    assert _SECRET not in (await api.client.get("/metrics")).text


async def test_new_names_are_looked_at_by_turns(api: Api, monkeypatch: pytest.MonkeyPatch):
    """Others are answered in between; the first that is too long is found wherever it stands."""
    looked: list[int] = []
    first_unfit = NameVectors.first_unfit

    def watched(names: NameVectors, some: list[str]) -> int | None:
        looked.append(len(some))
        return first_unfit(names, some)

    monkeypatch.setattr(NameVectors, "first_unfit", watched)
    asked = [f"name {number}" for number in range(900)]
    assert await api.model.first_unfit(asked) is None
    asked[700] = f"another {'word ' * 198}"
    assert await api.model.first_unfit(asked) == 700
    assert looked == [256, 256, 256, 132, 256, 256, 256]
