"""Bad input gets its status, a problem document that says what to do, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from skimage import data

from everlens.model.backbone import Backbone
from tests.unit.service.api import Api, as_text, encoded
from tests.unit.service.conftest import lasting, settings_for

pytestmark = pytest.mark.anyio

GOOD = as_text(encoded(data.coffee()))
CUT = as_text(encoded(data.coffee())[:2000])
NO_PICTURE = as_text(b"these bytes are words")
PNG = as_text(encoded(data.coffee(), "PNG")[:20])

JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}


def sample(**fields: Any) -> dict[str, Any]:
    """A request to /samples with one good sample, but for these fields (None leaves one out)."""
    whole = {"image": GOOD, "label": "cup", **fields}
    return {"json": {name: value for name, value in whole.items() if value is not None}}


def query(**fields: Any) -> dict[str, Any]:
    """A request to /classify with one good query, but for these fields."""
    whole = {"image": GOOD, "labels": ["cup"], **fields}
    return {"json": {name: value for name, value in whole.items() if value is not None}}


def text(content: str | bytes, headers: dict[str, str] = JSON) -> dict[str, Any]:
    return {"content": content, "headers": headers}


def form(fields: dict[str, Any], *images: bytes) -> dict[str, Any]:
    files = [("image", ("picture.jpg", image, "image/jpeg")) for image in images]
    return {"data": fields, "files": files}


FILE = encoded(data.coffee())
FORM = {"content-type": "multipart/form-data; boundary=x"}


def multipart(*, image: bytes = FILE, kind: str = "image/jpeg", **fields: bytes) -> Any:
    """A request with a form of these bytes, and with a good picture if nothing else is said."""
    form = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        % (name.encode("latin-1"), value)
        for name, value in ({"label": b"cup"} | fields).items()
    )
    form += b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'
    form += f"Content-Type: {kind}\r\n\r\n".encode() + image + b"\r\n--x--\r\n"
    return text(form, FORM)


SAMPLES = {
    "not an image": (sample(image=NO_PICTURE), 415, "unsupported-image", "image"),
    "no bytes": (sample(image=""), 415, "unsupported-image", "image"),
    "cut off": (sample(image=CUT), 422, "damaged-image", "image"),
    "header only": (sample(image=PNG), 422, "damaged-image", "image"),
    "bad base64": (sample(image="????"), 422, "invalid-fields", "image"),
    "base64 without its end": (sample(image=GOOD[:-3]), 422, "invalid-fields", "image"),
    "letters of no base64": (sample(image="häh"), 422, "invalid-fields", "image"),
    "data URI of text": (sample(image="data:image/png,abc"), 422, "invalid-fields", "image"),
    "image is a number": (sample(image=5), 422, "invalid-fields", "image"),
    "no image": (sample(image=None), 422, "invalid-fields", "image"),
    "no label": (sample(label=None), 422, "invalid-fields", "label"),
    "empty label": (sample(label=""), 422, "invalid-fields", "label"),
    "blank label": (sample(label=" \n\t "), 422, "invalid-fields", "label"),
    "label of control characters": (sample(label="a\u0007b"), 422, "invalid-fields", "label"),
    "label with a zero": (sample(label="a\u0000b"), 422, "invalid-fields", "label"),
    "label that turns its direction": (sample(label="a\u202eb"), 422, "invalid-fields", "label"),
    "label too long": (sample(label="a" * 201), 422, "invalid-fields", "label"),
    "label huge": (sample(label="a" * 1_000_000), 422, "invalid-fields", "label"),
    "label is a list": (sample(label=["a"]), 422, "invalid-fields", "label"),
    "empty id": (sample(id=""), 422, "invalid-fields", "id"),
    "id of control characters": (sample(id="a\nb"), 422, "invalid-fields", "id"),
    "id is a number": (sample(id=7), 422, "invalid-fields", "id"),
    "empty text": (sample(text=""), 422, "invalid-fields", "text"),
    "text too long": (sample(text="a" * 501), 422, "invalid-fields", "text"),
    "unknown field": (sample(lable="cup"), 422, "invalid-fields", "lable"),
    "split": (sample(split="train"), 422, "invalid-fields", "split"),
    "no JSON": (text("{"), 400, "bad-json", None),
    "empty body": (text(""), 400, "bad-json", None),
    "NaN": (text('{"image": NaN}'), 400, "bad-json", None),
    "Infinity": (text('{"image": -Infinity}'), 400, "bad-json", None),
    "a number beyond all": (text('{"image": 1e400}'), 400, "bad-json", None),
    "a number below all": (text('[{"image": [1, -1e400]}]'), 400, "bad-json", None),
    "an integer of 1,000 digits": (text('{"id": -' + "9" * 1000 + "}"), 400, "bad-json", None),
    "the same field twice": (
        text(f'{{"image": "{GOOD}", "label": "a", "label": "b"}}'),
        400,
        "bad-json",
        None,
    ),
    "the same field twice, once escaped": (
        text(f'{{"image": "{GOOD}", "label": "a", "lab\\u0065l": "b"}}'),
        400,
        "bad-json",
        None,
    ),
    "the same field twice, deep in a list": (
        text('[{"a": [{"x": 1}, {"b": 2, "b": 3}]}]'),
        400,
        "bad-json",
        None,
    ),
    "two values": (text("{} {}"), 400, "bad-json", None),
    "a comment": (text("{} // cup"), 400, "bad-json", None),
    "a zero byte": (text(b'{"label": "\0"}'), 400, "bad-json", None),
    "UTF-16": (text('{"label": "cup"}'.encode("utf-16")), 400, "bad-json", None),
    "a byte order mark": (text(b"\xef\xbb\xbf{}"), 400, "bad-json", None),
    "a surrogate in UTF-8": (text(b'{"label": "\xed\xa0\x80"}'), 400, "bad-json", None),
    "a letter in two bytes too many": (text(b'{"label": "\xc0\x80"}'), 400, "bad-json", None),
    "half of a pair of surrogates": (text(rb'{"label": "\ud83d\u0041"}'), 400, "bad-json", None),
    "surrogates in the wrong order": (text(rb'{"label": "\udc00\ud800"}'), 400, "bad-json", None),
    "a million values": (text("[" + "1," * 1_000_000 + "1]"), 400, "bad-json", None),
    "a million quotation marks": (text('"' * 1_000_000), 400, "bad-json", None),
    "thousands of fields": (
        text(json.dumps({str(number): 1 for number in range(50_000)})),
        422,
        "invalid-fields",
        "body",
    ),
    "a field with a name of megabytes": (
        text(json.dumps({"x" * 5_000_000: 1})),
        422,
        "invalid-fields",
        "x" * 200,
    ),
    "half a letter": (text(b'{"image": "\xff"}'), 400, "bad-json", None),
    "unpaired surrogate": (text(rb'{"label": "\ud800"}'), 400, "bad-json", None),
    "deep nesting": (text("[" * 200_000 + "]" * 200_000), 400, "bad-json", None),
    "a little too deep": (text("[" * 33 + "]" * 33), 400, "bad-json", None),
    "huge number": (text('{"id": ' + "9" * 5000 + "}"), 400, "bad-json", None),
    "large number": (text('{"id": ' + "9" * 50 + "}"), 422, "invalid-fields", "id"),
    "body is a text": (text('"cup"'), 422, "invalid-fields", "body"),
    "body is null": (text("null"), 422, "invalid-fields", "body"),
    "empty list": (text("[]"), 422, "invalid-fields", "body"),
    "too many samples": ({"json": [sample()["json"]] * 257}, 422, "invalid-fields", "body"),
    "list of texts": (text('["cup"]'), 422, "invalid-fields", "body"),
    "plain text": (text("cup", {"content-type": "text/plain"}), 415, "unsupported-content", None),
    "no content type": (text(FILE, {}), 415, "unsupported-content", None),
    "raw picture": (
        text(FILE, {"content-type": "image/jpeg"}),
        415,
        "unsupported-content",
        None,
    ),
    "field in the address": (sample() | {"params": {"label": "x"}}, 422, "invalid-fields", "label"),
    "NDJSON with a bad line": (text('{"image": 1}\n{', NDJSON), 400, "bad-json", None),
    "NDJSON of nothing": (text("\n\n", NDJSON), 422, "invalid-fields", "body"),
    "NDJSON of lines alone": (text("\n" * 10_000, NDJSON), 422, "invalid-fields", "body"),
    "form without a file": (form({"label": "cup"}, *[]) | {"files": {"x": b""}}, 422, None, None),
    "form without a label": (form({}, FILE), 422, "invalid-fields", "label"),
    "form with an empty label": (form({"label": " "}, FILE), 422, "invalid-fields", "label"),
    "form with an unknown field": (
        form({"label": "cup", "split": "train"}, FILE),
        422,
        "invalid-fields",
        "split",
    ),
    "form with two labels for three pictures": (
        form({"label": ["a", "b"]}, FILE, FILE, FILE),
        422,
        "invalid-fields",
        "label",
    ),
    "form with words as picture": (
        form({"label": "cup"}, b"words"),
        415,
        "unsupported-image",
        None,
    ),
    "form without its border": (
        text(b"--x", {"content-type": "multipart/form-data"}),
        400,
        "bad-request",
        None,
    ),
    "form cut off": (
        text(
            b'--x\r\nContent-Disposition: form-data; name="label"\r\n\r\nc',
            {"content-type": "multipart/form-data; boundary=x"},
        ),
        422,
        "invalid-fields",
        "image",
    ),
    "form of 1,500 pictures": (form({"label": "cup"}, *[b"x"] * 1500), 400, "bad-request", None),
    "form of 1,500 fields": (
        form({"label": ["cup"] * 1500}, FILE),
        400,
        "bad-request",
        None,
    ),
    "form with a field's name of megabytes": (
        form({"x" * 2_000_000: "cup"}, FILE),
        400,
        "bad-request",
        None,
    ),
    "form with a field's name that is long": (
        form({"x" * 4000: "cup"}, FILE),
        422,
        "invalid-fields",
        "x" * 200,
    ),
    "form with a field of megabytes": (
        form({"label": "x" * 2_000_000}, FILE),
        400,
        "bad-request",
        None,
    ),
    "form with a label in Latin-1": (
        multipart(label="h\xe4h".encode("latin-1")),
        422,
        None,
        "label",
    ),
    "form with a label in Latin-1 that says so": (
        multipart(label=b"h\xe4h")
        | {"headers": {"content-type": FORM["content-type"] + "; charset=latin-1"}},
        422,
        "invalid-fields",
        "label",
    ),
    "form with a label of zero bytes": (multipart(label=b"a\0b"), 422, "invalid-fields", "label"),
    "form with a surrogate in UTF-8": (multipart(label=b"\xed\xa0\x80"), 422, None, "label"),
    "form with a field whose name is no UTF-8": (
        multipart(häh=b"x"),
        422,
        "invalid-fields",
        "body",
    ),
    "form with a label that is a file": (
        {"files": [("image", ("a", FILE)), ("label", ("b", b"cup"))]},
        422,
        "invalid-fields",
        "label",
    ),
    "form within a form": (
        multipart(image=b"--y\r\n\r\n--y--\r\n", kind="multipart/mixed; boundary=y"),
        415,
        "unsupported-image",
        "image",
    ),
    "form with a field without a name": (
        text(b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--\r\n", FORM),
        400,
        "bad-request",
        None,
    ),
    "form with a hundred headers for a field": (
        text(b"--x\r\n" + b"A: b\r\n" * 100 + b"\r\n\r\n--x--\r\n", FORM),
        400,
        "bad-request",
        None,
    ),
    "form with an endless border": (
        text(b"--x--\r\n", {"content-type": "multipart/form-data; boundary=" + "x" * 71}),
        400,
        "bad-request",
        None,
    ),
    "form with a border of quotation marks": (
        text(b"--x--\r\n", {"content-type": 'multipart/form-data; boundary="a\\"b"'}),
        400,
        "bad-request",
        None,
    ),
    "form of the other kind": (
        text(b"label=cup", {"content-type": "application/x-www-form-urlencoded"}),
        415,
        "unsupported-content",
        None,
    ),
    "header id that is not ASCII": (
        sample() | {"headers": {"Idempotency-Key": "h\u00e4h".encode()}},
        422,
        "invalid-fields",
        "Idempotency-Key",
    ),
    "two ids that differ": (
        sample(id="a") | {"headers": {"Idempotency-Key": "b"}},
        422,
        "invalid-fields",
        "id",
    ),
    "header id of control characters": (
        sample() | {"headers": {"Idempotency-Key": "a\u0007"}},
        422,
        "invalid-fields",
        "Idempotency-Key",
    ),
    "one header id for a list": (
        {"json": [sample()["json"]], "headers": {"Idempotency-Key": "a"}},
        422,
        "invalid-fields",
        "Idempotency-Key",
    ),
    "20 MB": (sample(image="A" * 20_000_000), 413, "body-too-large", None),
}

QUERIES = {
    "not an image": (query(image=NO_PICTURE), 415, "unsupported-image", "image"),
    "cut off": (query(image=CUT), 422, "damaged-image", "image"),
    "bad base64": (query(image="?"), 422, "invalid-fields", "image"),
    "unknown field": (query(lables=["a"]), 422, "invalid-fields", "lables"),
    "empty label": (query(labels=["cup", ""]), 422, "invalid-fields", "labels.1"),
    "label of control characters": (query(labels=["\u0001"]), 422, "invalid-fields", "labels.0"),
    "no labels": (query(labels=[]), 422, "invalid-fields", "labels"),
    "labels twice": (query(labels=["cup", " cup"]), 422, "invalid-fields", "labels"),
    "labels twice in Unicode": (query(labels=["é", "e\u0301"]), 422, "invalid-fields", "labels"),
    "too many labels": (query(labels=list(map(str, range(1001)))), 422, "invalid-fields", "labels"),
    "labels is a text": (query(labels="cup"), 422, "invalid-fields", "labels"),
    "top of none": (query(top=0), 422, "invalid-fields", "top"),
    "top as text": (query(top="5"), 422, "invalid-fields", "top"),
    "top as fraction": (query(top=1.5), 422, "invalid-fields", "top"),
    "version below zero": (query(version=-1), 422, "invalid-fields", "version"),
    "unknown version": (query(version=77), 404, "unknown-version", None),
    "unknown version without labels": (
        query(version=77, labels=None),
        404,
        "unknown-version",
        None,
    ),
    "wait beyond the limit": (query(wait_s=301), 422, "invalid-fields", "wait_s"),
    "wait for an unknown id": (query(wait_for="nobody"), 404, "unknown-sample", None),
    "wait for a number not given yet": (query(wait_for=1), 404, "unknown-sample", None),
    "wait for nothing": (query(wait_for=0), 404, "unknown-sample", None),
    "wait for a number below zero": (query(wait_for=-5), 404, "unknown-sample", None),
    "wait for a number far below": (query(wait_for=-(10**300)), 404, "unknown-sample", None),
    "nothing learnt": (query(labels=None), 409, "nothing-learnt", None),
    "nothing learnt, frozen base": (query(labels=None, version=0), 409, "nothing-learnt", None),
    "no JSON": (text("nope"), 400, "bad-json", None),
    "deep nesting": (text('{"a":' * 100_000), 400, "bad-json", None),
    "empty list": (text("[]"), 422, "invalid-fields", "body"),
    "too many pictures": ({"json": [query()["json"]] * 257}, 422, "invalid-fields", "body"),
    "wrong content type": (text("a", {"content-type": "text/html"}), 415, None, None),
    "raw words": (
        text(b"words", {"content-type": "image/jpeg"}) | {"params": {"labels": "cup"}},
        415,
        "unsupported-image",
        None,
    ),
    "raw with an unknown field": (
        text(FILE, {"content-type": "image/jpeg"}) | {"params": {"label": "cup"}},
        422,
        "invalid-fields",
        "label",
    ),
    "raw with top twice": (
        text(FILE, {"content-type": "image/jpeg"}) | {"params": {"top": ["1", "2"]}},
        422,
        "invalid-fields",
        "top",
    ),
    "raw with a wordy top": (
        text(FILE, {"content-type": "image/jpeg"}) | {"params": {"top": "many"}},
        422,
        "invalid-fields",
        "top",
    ),
    "form with two pictures": (form({"labels": "cup"}, FILE, FILE), 400, "bad-request", None),
    "form with an unknown field": (form({"x": "cup"}, FILE), 422, "invalid-fields", "x"),
    "20 MB": (
        text(bytes(20_000_000), {"content-type": "image/jpeg"}),
        413,
        "body-too-large",
        None,
    ),
}


@pytest.fixture(scope="module")
async def unchanged(
    log_url: str, tiny_clip: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Api]:
    """One service that refuses everything; it would take a fifth of a second for each."""
    folder = tmp_path_factory.mktemp("unchanged")
    async with lasting(settings_for(log_url, "test-unchanged", folder), tiny_clip) as api:
        yield api


def cases(table: dict[str, Any]) -> Callable[..., Any]:
    values = [pytest.param(*case, id=name) for name, case in table.items()]
    return pytest.mark.parametrize(("request_", "status", "kind", "field"), values)


def check_problem(response: Any, status: int, kind: str | None, field: str | None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["title"]
    assert len(problem["detail"]) > 10
    assert problem["instance"] == response.request.url.path
    if kind is not None:
        assert problem["type"] == f"/problems/{kind}"
    if field is not None:
        assert field in {error["field"] for error in problem["errors"]}


@cases(SAMPLES)
async def test_bad_sample_is_refused_and_changes_nothing(
    unchanged: Api, request_, status, kind, field
):
    """Each bad sample gets its status and type, names the field, and takes no number."""
    check_problem(await unchanged.client.post("/samples", **request_), status, kind, field)
    assert unchanged.seq == 0


@cases(QUERIES)
async def test_bad_query_is_refused(unchanged: Api, request_, status, kind, field):
    """Each bad query gets its status and type, and names the field."""
    check_problem(await unchanged.client.post("/classify", **request_), status, kind, field)
    assert unchanged.seq == 0


async def test_one_bad_item_refuses_the_whole_list(api: Api):
    """A list is taken whole or not at all, and the problem says which item is to blame."""
    good, bad = sample()["json"], sample(label="")["json"]
    response = await api.client.post("/samples", json=[good, bad, good, bad])
    check_problem(response, 422, "invalid-fields", "label")
    assert [error["index"] for error in response.json()["errors"]] == [1, 3]
    words = sample(image=NO_PICTURE)["json"]
    response = await api.client.post("/samples", json=[good, good, words])
    check_problem(response, 415, "unsupported-image", "image")
    assert [error["index"] for error in response.json()["errors"]] == [2]
    lines = "\n".join(json.dumps(item) for item in (good, bad))
    response = await api.client.post("/samples", **text(lines, NDJSON))
    assert [error["index"] for error in response.json()["errors"]] == [1]
    assert api.seq == 0


async def test_one_bad_query_refuses_the_whole_list(api: Api):
    """A list of queries with a damaged picture is refused, and the problem says which it is."""
    queries = [query()["json"], query(image=CUT)["json"]]
    response = await api.client.post("/classify", json=queries)
    check_problem(response, 422, "damaged-image", "image")
    assert response.json()["errors"][0]["index"] == 1


async def test_the_number_of_an_annotation_cannot_make_a_long_id(api: Api):
    """It becomes a part of the id of a sample, which has an end."""
    event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 10**300}}
    response = await api.client.post("/label-studio/webhook", json=event)
    check_problem(response, 422, "invalid-fields", None)
    assert api.seq == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/samples/nobody", 404),
        ("GET", "/classes/nothing", 404),
        ("GET", "/versions/9", 404),
        ("GET", "/versions/nine", 422),
        ("GET", "/versions?limit=0", 422),
        ("GET", "/versions?limit=1e3", 422),
        ("GET", "/versions/" + "9" * 5000, 422),
        ("GET", "/versions/-1", 422),
        ("GET", "/versions/٣", 422),
        ("GET", "/versions/", 404),
        ("GET", "/samples/", 404),
        ("GET", "/samples/%00", 404),
        ("GET", "/samples/%ff%fe", 404),
        ("GET", "/samples/%ed%a0%80", 404),
        ("GET", "/samples/a%2Fb%2F..%2F..", 404),
        ("GET", "/samples/%0d%0aSet-Cookie:%20a=b", 404),
        ("GET", "/samples/" + "a" * 5000, 422),
        ("GET", "/classes/", 404),
        ("GET", "/classes/%00", 404),
        ("GET", "/classes/" + "%F0%9F%90%A6" * 2000, 404),
        ("GET", "/classes/" + "%F0%9F%90%A6" * 4097, 431),
        ("GET", "/livez?" + "a=b&" * 10_000, 431),
        ("GET", "/docs", 404),
        ("GET", "/samples/../livez/", 404),
        ("OPTIONS", "/samples", 405),
        ("TRACE", "/classify", 405),
        ("PATCH", "/", 405),
        ("BREW", "/livez", 405),
        ("PUT", "/samples", 405),
        ("GET", "/classify", 405),
        ("POST", "/livez", 405),
    ],
)
async def test_wrong_addresses_are_problems_too(unchanged: Api, method, path, status):
    """Unknown routes, methods, and things are problem documents like every other error."""
    response = await unchanged.client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"]
    assert status != 405 or response.headers["allow"] in {"GET", "POST"}


async def test_a_slash_at_the_end_changes_nothing(api: Api):
    """A client that writes /samples/ teaches, and its body is not lost in a redirect."""
    response = await api.client.post("/samples/", **sample(id="a"))
    assert response.status_code == 202
    assert (await api.client.get("/samples/a")).json()["seq"] == 1
    assert (await api.client.post("/classify/", **query())).status_code == 200


@pytest.mark.parametrize(
    "sample_id", ["a\u2028b", "a b", "ä/ö?#%", "../../x", "%0d%0a", "\U0001f426"]
)
async def test_an_id_never_breaks_out_of_its_address(api: Api, sample_id):
    """Whatever an id holds, Location is one ASCII line, and leads to the sample."""
    response = await api.client.post("/samples", **sample(id=sample_id))
    if response.status_code == 422:
        assert "U+2028" in response.json()["detail"]
        return
    location = response.headers["location"]
    assert location.isascii()
    assert location.count("/") == 2
    assert set(location).isdisjoint(" \r\n?#")
    assert (await api.client.get(location)).json()["id"] == sample_id


async def test_names_beyond_the_text_tower_are_refused(api: Api):
    """A name of which the text tower would read only the beginning is refused, not cut."""
    long = "a heron " * 20
    response = await api.client.post("/samples", **sample(label=long))
    check_problem(response, 422, "invalid-fields", "label")
    response = await api.client.post(
        "/samples", json=[sample()["json"], sample(label=long)["json"]]
    )
    assert response.json()["errors"][0]["index"] == 1
    response = await api.client.post("/classify", **query(labels=["heron", long]))
    check_problem(response, 422, "invalid-fields", "labels.1")
    assert api.seq == 0


async def test_no_fault_of_ours_shows_its_inside(api: Api, monkeypatch):
    """An exception that nobody foresaw is a 500 problem without a trace of the code."""

    async def fail():
        raise RuntimeError("secret")

    monkeypatch.setattr(api.service.log, "backlog", fail)
    response = await api.client.get("/learning")
    check_problem(response, 500, "internal", None)
    assert "secret" not in response.text
