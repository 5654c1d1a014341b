"""The client's verbs without a network: what they ask for, and what they make of an answer."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

import everlens
from everlens.client import (
    Answer,
    ApiError,
    AsyncClient,
    Client,
    FieldError,
    KnownClass,
    Prediction,
    Receipt,
    RefusedVersion,
    VersionRecord,
    asking,
    steering,
    teaching,
)
from everlens.client.clients import Verbs
from everlens.client.feed import Feed
from everlens.client.pictures import file_bytes, opened
from everlens.client.progress import bar
from everlens.client.refusals import patiently, problem, unreachable
from everlens.client.results import plain, read
from everlens.client.steps import Aside, Pause, Plan, Reply, Request
from everlens.errors import SettingsError

T = TypeVar("T")

PICTURE = b"the bytes of a picture"
TEXT = base64.b64encode(PICTURE).decode()
ANSWER: dict[str, Any] = {
    "predictions": [{"label": "cat", "score": 0.9, "samples": 3}],
    "known": 0.8,
    "version": 4,
    "learned_through": 17,
    "model": "starter",
    "prediction_id": "p1",
}
RECEIPT = {"id": "x", "seq": 5, "status": "accepted"}


def said(value: object, status: int = 200, retry_after: str = "") -> Reply:
    """Return a reply of the service."""
    return Reply(status, json.dumps(value).encode(), retry_after)


class Course(list[Request | Pause]):
    """
    The steps that a plan asked for, carried out with these replies in turn, the last for ever.

    A function in place of a reply is asked for it.
    """

    def __init__(self, plan: Plan[T], *replies: Reply | Callable[[Request], Reply]) -> None:
        self.result: Any = None
        left = list(replies)
        came: object = None
        try:
            while True:
                step = plan.send(came)
                came = None
                if isinstance(step, Aside):
                    came = step.work()
                    continue
                self.append(step)
                if isinstance(step, Request):
                    reply = left.pop(0) if len(left) > 1 else left[0]
                    came = reply if isinstance(reply, Reply) else reply(step)
        except StopIteration as end:
            self.result = end.value

    @property
    def bodies(self) -> list[Any]:
        """The bodies of its requests."""
        return [step.body for step in self if isinstance(step, Request)]

    @property
    def paths(self) -> list[str]:
        """The methods and paths of its requests."""
        return [f"{step.method} {step.path}" for step in self if isinstance(step, Request)]

    @property
    def waits(self) -> list[float]:
        """How long it paused."""
        return [step.seconds for step in self if isinstance(step, Pause)]


def test_classify_asks_what_was_asked_and_nothing_else() -> None:
    """Fields that were not given are left to the service's defaults."""
    course = Course(asking.classify(PICTURE, ["cat", "dog"], top=1, version=0), said(ANSWER))

    body = {"image": TEXT, "labels": ["cat", "dog"], "top": 1, "version": 0}
    assert list(course) == [Request("POST", "/classify", body)]
    answer = course.result
    assert answer.best == Prediction("cat", 0.9, 3)
    assert (answer.version, answer.learned_through, answer.known) == (4, 17, 0.8)
    assert answer.picture.read() == PICTURE


def test_a_receipt_is_waited_for_by_its_number() -> None:
    """`wait_for` takes what `learn` returned; `explain` is sent when it is asked for."""
    plan = asking.classify(PICTURE, wait_for=Receipt("x", 5, "accepted"), explain=True)

    assert Course(plan, said(ANSWER)).bodies == [
        {"image": TEXT, "top": 5, "wait_for": 5, "explain": True}
    ]


def test_one_name_is_no_list_of_names() -> None:
    """`labels="cat"` would ask for c, a and t."""
    with pytest.raises(TypeError, match=r"write \['cat'\]"):
        Course(asking.classify(PICTURE, "cat"), said(ANSWER))


def test_answer_before_the_first_class_knows_nothing_of_it() -> None:
    """`known` is None where the service says null, and is not taken for zero."""
    assert Course(asking.classify(PICTURE), said(ANSWER | {"known": None})).result.known is None


def test_answer_of_a_newer_service_is_read() -> None:
    """A field that this client does not know is no error; one that is missing is."""
    assert read(Answer, ANSWER | {"mood": "fine"}).model == "starter"
    with pytest.raises(ApiError, match=r"predictions\.0\.label.*different versions"):
        read(Answer, ANSWER | {"predictions": [{"score": 1, "samples": 0}]})


def test_service_cannot_name_a_file_of_ours(tmp_path: Path) -> None:
    """What an answer says of `picture` is not taken: a correction would send that file."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    evil = {"content": "", "path": str(secret), "digest": ""}

    answer = Course(asking.classify(PICTURE), said(ANSWER | {"picture": evil})).result

    assert answer.picture.read() == PICTURE
    assert "picture" not in plain(answer)


def test_later_is_asked_again_with_the_same_id() -> None:
    """After 429 and 503 the sample goes again, under the same id, after the named time."""
    later = [said({"title": "full"}, 429, "7"), said({"title": "away"}, 503)]
    plan = patiently(teaching.learn(PICTURE, "cat"), 60.0)

    course = Course(plan, *later, later[1], said(RECEIPT, 202))

    assert course.result == Receipt("x", 5, "accepted")
    assert course.waits == [7.0, 0.5, 1.0]
    assert len({body["id"] for body in course.bodies}) == 1


def test_patience_ends() -> None:
    """A wait that patience does not last for is not begun: the refusal is raised at once."""
    asked: list[Request] = []

    def full(request: Request) -> Reply:
        asked.append(request)
        return said({"title": "full"}, 429, "30")

    with pytest.raises(ApiError) as refused:
        Course(patiently(steering.classes(), 40.0), full)

    assert refused.value.status == 429
    assert asked == [Request("GET", "/classes")] * 2


def test_restart_in_the_middle_of_long_work_is_waited_for() -> None:
    """No answer at first is an error at once; once there was one, it passes."""
    gone, pictures = unreachable("http://h", "refused"), [(PICTURE, "cat")] * 65
    receipts = [said([RECEIPT] * 64, 202), gone, gone, said([RECEIPT], 202)]

    course = Course(patiently(teaching.learn_many(pictures), 60.0), *receipts)

    assert len(course.result) == 65
    assert course.waits == [0.5, 1.0]
    with pytest.raises(ApiError, match="no answer from http://h: refused; start it with"):
        Course(patiently(steering.classes(), 60.0), gone)


def test_readiness_is_not_waited_for() -> None:
    """503 of /readyz is the answer, as is none at all."""
    for reply in (said({}, 503), unreachable("http://h", "refused")):
        course = Course(patiently(steering.ready(), 60.0), reply)
        assert (course.result, course.waits) == (False, [])


def test_problem_document_becomes_an_error() -> None:
    """Status, title, detail, type and bad fields of a problem document are the error's."""
    fields = [{"field": "a", "message": "no"}, {"field": "b", "message": "neither", "index": 3}]
    about = {"type": "/problems/x", "title": "No class", "detail": "Name some.", "errors": fields}

    error = problem(said(about, 409))

    assert (error.status, error.title, error.detail) == (409, "No class", "Name some.")
    assert (error.type, error.kind, str(error)) == ("/problems/x", "x", "No class: Name some.")
    assert error.errors == (FieldError("a", "no"), FieldError("b", "neither", 3))
    assert error.__notes__ == ["item 3: b: neither"]


@pytest.mark.parametrize(
    ("title", "detail", "said_as"),
    [
        (
            "No class is learnt yet",
            "no class is learnt yet; name candidates",
            "No class is learnt yet; name candidates",
        ),
        ("The log does not answer", "the log does not answer: gone", None),
        ("No class", "", "No class"),
        ("No class", "Name some.", "No class: Name some."),
    ],
)
def test_what_a_detail_repeats_is_said_once(title: str, detail: str, said_as: str | None) -> None:
    """A detail that begins with its title is the sentence; both are there for programs."""
    error = problem(said({"title": title, "detail": detail}, 409))

    assert str(error) == (said_as or "The log does not answer: gone")
    assert (error.title, error.detail) == (title, detail)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"null", b'{"title": 1, "errors": 5}', b""])
def test_answer_of_something_else_becomes_an_error(content: bytes) -> None:
    """A page of a proxy in between is an error with its status, not a crash."""
    error = problem(Reply(502, content))

    assert (error.status, error.title) == (502, "Bad Gateway")


def test_many_samples_go_in_requests_that_the_service_takes() -> None:
    """A long list is cut by number and by bytes; the receipts come in order."""

    def accept(request: Request) -> Reply:
        sizes.append([len(sample["image"]) for sample in request.body])
        numbers = [next(numbered) for _ in request.body]
        return said([RECEIPT | {"seq": number} for number in numbers], 202)

    large, sizes = b"x" * (3 * 2**20), list[list[int]]()
    numbered = itertools.count(1)
    receipts = []
    for picture, count in ((PICTURE, 130), (large, 5)):
        receipts += Course(teaching.learn_many([(picture, "cat")] * count), accept).result

    assert [receipt.seq for receipt in receipts] == list(range(1, 136))
    assert [len(size) for size in sizes] == [64, 64, 2, 2, 2, 1]
    assert max(map(sum, sizes)) <= 8 * 2**20


def test_wait_ends_when_the_sample_is_learnt_or_dead() -> None:
    """The state is asked for again until it is final; ids are quoted in the path."""
    states = [
        {"id": "a/b", "seq": 1, "status": "accepted"},
        {"id": "a/b", "seq": 1, "status": "dead", "reason": "damaged"},
    ]

    course = Course(teaching.wait("a/b"), *map(said, states))

    assert (course.result.status, course.result.reason) == ("dead", "damaged")
    assert course.paths == ["GET /samples/a%2Fb"] * 2


def test_wait_ends_when_answers_know_the_sample() -> None:
    """A version is published a moment before the service answers with it."""
    learnt = {"id": "x", "seq": 1, "status": "learnt", "version": 7}
    waits = {"entries": 0, "bytes": 0}
    serving = {
        "learned_through": 1,
        "accepted_through": 1,
        "backlog": waits,
        "paused": None,
        "pinned": None,
        "learner": {},
        "version": 6,
    }

    for now in (serving | {"version": 7}, serving | {"pinned": 2}):
        answers = (learnt, serving, learnt, now)
        course = Course(teaching.wait("x"), *map(said, answers))
        assert course.result.version == 7
        assert course.paths == ["GET /samples/x", "GET /learning"] * 2


def test_wait_gives_up() -> None:
    """A sample that is not learnt in time is an error with status 504."""
    with pytest.raises(ApiError) as late:
        Course(teaching.wait("x", within_s=-1), said(RECEIPT))

    assert late.value.status == 504


def test_correction_of_a_prediction_that_is_gone_sends_the_picture() -> None:
    """It becomes the sample that the feedback would have been; without a picture it is an error."""
    gone = said({"title": "gone", "type": "/problems/unknown-prediction"}, 404)
    answer = Course(asking.classify(PICTURE), said(ANSWER)).result

    course = Course(teaching.correct(answer, "dog"), gone, said(RECEIPT, 202))

    assert course.paths == ["POST /feedback", "POST /samples"]
    assert course.bodies == [
        {"prediction_id": "p1", "label": "dog"},
        {"image": TEXT, "label": "dog", "id": "feedback-p1"},
    ]
    for asked in ("p1", read(Answer, ANSWER)):
        with pytest.raises(ApiError, match="gone"):
            Course(teaching.correct(asked, "dog"), gone)


def test_correction_is_one_sample_whichever_way_it_went() -> None:
    """Said again after the picture was sent, it is that sample; with another name, it is refused."""
    other = said({"title": "other feedback", "type": "/problems/id-conflict"}, 409)
    used = said({"title": "id used", "type": "/problems/id-conflict"}, 409)
    answer = Course(asking.classify(PICTURE), said(ANSWER)).result

    course = Course(teaching.correct(answer, "dog"), other, said(RECEIPT))

    assert course.result == Receipt("x", 5, "accepted")
    with pytest.raises(ApiError, match="other feedback"):
        Course(teaching.correct(answer, "dog"), other, used)


def test_correction_never_sends_another_picture(tmp_path: Path) -> None:
    """A file that is another one by now is not taught under the name of the old."""
    file = tmp_path / "now.jpg"
    file.write_bytes(PICTURE)
    answer = Course(asking.classify(file), said(ANSWER)).result
    gone = said({"title": "gone", "type": "/problems/unknown-prediction"}, 404)
    assert answer.picture.read() == PICTURE

    file.write_bytes(b"the next picture of a camera")

    assert answer.picture.read() is None
    with pytest.raises(ApiError) as refused:
        Course(teaching.correct(answer, "dog"), gone)
    assert "no longer the picture" in refused.value.__notes__[0]


def test_folder_goes_on_without_what_is_no_picture(tmp_path: Path) -> None:
    """What the service names as bad is left out, and the rest of the batch goes again."""
    for name in ("great_heron/a.jpg", "great_heron/b.JPG", "owl/deep/c.png", "owl/.d.png", "x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "owl" / "notes.txt").touch()
    errors = [{"field": "image", "message": "is no picture", "index": 1}]
    replies = [
        said({"title": "no", "status": 403}, 403),  # a key that may not read
        said({"title": "bad", "errors": errors}, 415),
        said([RECEIPT, RECEIPT | {"seq": 6}], 202),
    ]

    course = Course(teaching.learn_folder(tmp_path, progress=False), *replies)
    again = Course(teaching.learn_folder(tmp_path, progress=False), *replies)

    sent = course.bodies[1]
    assert [sample["label"] for sample in sent] == ["great heron", "great heron", "owl"]
    assert [sent[0], sent[2]] == course.bodies[2]
    assert sent == again.bodies[1]
    assert len({sample["id"] for sample in sent}) == 3
    report = course.result
    assert (report.taken, report.new, report.last.seq) == (2, None, 6)
    assert [(each.path, each.reason) for each in report.skipped] == [
        (str(tmp_path / "great_heron" / "b.JPG"), "is no picture")
    ]


def test_folder_is_not_gone_on_with_where_the_service_refuses_it(tmp_path: Path) -> None:
    """A refusal that names no picture is the caller's; nothing is tried again."""
    (tmp_path / "owl").mkdir()
    (tmp_path / "owl" / "a.jpg").write_bytes(PICTURE)

    with pytest.raises(ApiError, match="not allowed"):
        Course(teaching.learn_folder(tmp_path), said({"title": "not allowed"}, 409))


def test_progress_is_drawn_where_it_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """A bar on standard error where it is asked for; by default none where that is no terminal."""
    for shown in (None, True):
        with bar(2, shown=shown) as advance:
            advance(1)
            advance(1)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("2/2" in err) == bool(shown)


def test_embeddings_are_rows_of_an_array() -> None:
    """Base64 of little-endian floats, in order; pictures go as data URIs."""
    row = np.arange(4, dtype="<f4")
    data = {"data": [{"embedding": base64.b64encode((row + i).tobytes()).decode()} for i in (0, 1)]}

    course = Course(asking.embed([PICTURE, PICTURE]), said(data))

    np.testing.assert_array_equal(course.result, np.stack([row, row + 1]))
    assert course.bodies[0]["input"] == [f"data:image/jpeg;base64,{TEXT}"] * 2


def test_unpin_asks_which_is_pinned() -> None:
    """Without a version it takes off the pin that there is, and none where there is none."""
    about: dict[str, Any] = {"version": 3, "learned_through": 1, "accepted_through": 1}
    about |= {"backlog": {"entries": 0, "bytes": 0}, "paused": None, "learner": {}}

    course = Course(steering.unpin(), said(about | {"pinned": 2}), said({"pinned": None}))
    none = Course(steering.unpin(), said(about | {"pinned": None}))

    assert course.paths == ["GET /learning", "DELETE /versions/2/pin"]
    assert none.paths == ["GET /learning"]


def test_files_are_sent_as_they_are(tmp_path: Path) -> None:
    """Bytes and paths reach the service unchanged."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(PICTURE)

    assert [opened(image)[0] for image in (PICTURE, path, str(path))] == [TEXT] * 3


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_pixels_are_sent_as_a_picture(mode: str) -> None:
    """Pillow images of any mode, and arrays, become a file with nearly the same pixels."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (64, 1))] * 3, axis=2)
    image = PIL.Image.fromarray(pixels).convert(mode)

    files = [file_bytes(image)] + ([file_bytes(np.asarray(image))] if mode in {"RGB", "L"} else [])

    for file in files:
        with PIL.Image.open(io.BytesIO(file)) as received:
            difference = np.asarray(received.convert("RGB"), int) - np.asarray(image.convert("RGB"))
        assert np.abs(difference).mean() <= 2


def test_opened_image_is_sent_as_its_file_would_be_seen(tmp_path: Path) -> None:
    """Upright, and with its transparency: the service knows what to do with that."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (40, 20)).save(tmp_path / "lying.jpg", exif=exif)
    glass = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))

    with PIL.Image.open(tmp_path / "lying.jpg") as image:
        upright = PIL.Image.open(io.BytesIO(file_bytes(image)))
    sent = PIL.Image.open(io.BytesIO(file_bytes(glass)))

    assert upright.size == (20, 40)
    assert sent.getpixel((0, 0)) == (255, 0, 0, 0)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), [PICTURE], None]
)
def test_what_is_no_picture_is_refused(image: Any) -> None:
    """An array of another type or shape, or a list, is the caller's mistake, said before it is sent."""
    with pytest.raises(TypeError, match=r"uint8|classify_many"):
        file_bytes(image)


def test_both_clients_have_every_verb_with_its_words() -> None:
    """A method has the verb's arguments, documentation and result, whoever carries it out."""
    for client in (Client(api_key=""), AsyncClient(api_key="")):
        for name, verb in vars(Verbs).items():
            if name.startswith("__"):
                continue
            method = getattr(client, name)
            assert method.__name__ == name
            assert method.__doc__ == verb.plan.__doc__
            assert not str(verb.signature.return_annotation).startswith("Plan")


def test_the_package_gives_the_client_when_it_is_asked_for() -> None:
    """`from everlens import Client` works; other names are said not to be there."""
    assert everlens.Client is Client
    assert everlens.AsyncClient is AsyncClient
    with pytest.raises(AttributeError, match="no attribute 'Kclient'"):
        _ = everlens.Kclient


@pytest.mark.parametrize("key", ["evl_ä", "evl_a\nHost: b", "evl_\x00"])
def test_what_is_no_key_is_refused_without_being_told(key: str) -> None:
    """Bytes that no header holds are an error before anything is sent, which does not repeat them."""
    with pytest.raises(SettingsError, match="EVERLENS_API_KEY") as refused:
        Client("http://service", api_key=key)
    assert key not in str(refused.value)


VERSION = {"version": 2, "published_at": 1, "learned_through": 3, "samples": 1, "classes": 1}
EVENTS = (
    b": hello\n\n"
    b"id: 2\nevent: version\ndata: " + json.dumps(VERSION).encode() + b"\n\n"
    b"event: later\ndata: {}\n\n"
    b'event: refused\r\ndata: {"version": 3,\r\ndata:  "reason": "a\xe2\x80\xa8b"}\r\n\r\n'
    b"event: version\ndata: " + json.dumps(VERSION).encode() + b"\n\n"
    b"event: version\ndata: {"
)


@given(st.lists(st.integers(1, len(EVENTS) - 1)))
def test_events_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    """Unknown events, comments, what was said already and what is half said are no events."""
    feed = Feed(60.0)
    places = [0, *sorted(cuts), len(EVENTS)]

    events = [
        event for begin, end in itertools.pairwise(places) for event in feed.take(EVENTS[begin:end])
    ]

    assert events == [VersionRecord(2, 1, 3, 1, 1), RefusedVersion(3, "a\u2028b")]
    assert feed.headers["Last-Event-ID"] == "2"


def test_events_go_on_on_the_next_connection() -> None:
    """What was half said is dropped, a cut is waited for, and patience ends."""
    feed, cut = Feed(1.0), unreachable("http://h", "cut")
    feed.opened()
    assert list(feed.take(EVENTS))

    assert feed.pause_s(cut) == 0.5
    feed.opened()
    for version in (9, None):  # a head that cannot be read names none
        about = json.dumps({"version": version, "reason": "r"}).encode()
        assert list(feed.take(b"event: refused\ndata: " + about + b"\n\n")) == [
            RefusedVersion(version, "r")
        ]
    assert feed.pause_s(cut) == 0.5
    with pytest.raises(ApiError, match="cut"):
        feed.pause_s(cut)
    with pytest.raises(ApiError, match="forbidden"):
        Feed(60.0).pause_s(said({"title": "forbidden"}, 403))


def test_classes_are_records() -> None:
    """The learnt classes come with their numbers of labels."""
    body = {"classes": [{"label": "cat", "samples": 2, "index": 0, "recall": 0.5}], "version": 1}

    assert Course(steering.classes(), said(body)).result == [KnownClass("cat", 2, 0.5)]
    for words, path in [
        ({}, "/classes"),
        ({"limit": 3}, "/classes?limit=3"),
        ({"search": "a&b", "limit": 3}, "/classes?search=a%26b&limit=3"),
    ]:
        course = Course(steering.classes(**words), said(body))  # type: ignore[arg-type]
        assert course == [Request("GET", path)]
