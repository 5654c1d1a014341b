"""
The Python client and the commands on it, against a running everlens that asks for a key.

A small random model: what is seen here is that each verb does what it says, not how well.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest

from bench.tiny_clip import write_tiny_clip
from everlens import ApiError, AsyncClient, Client
from everlens.cli import main
from everlens.client import Event, Learning, VersionRecord
from everlens.keys import SCOPES, Scope, add_key
from tests.folders import short_folder
from tests.system.processes import clean_environment, everlens_up, free_port, started

pytestmark = pytest.mark.system

READY_S = 240.0  # also on a loaded machine
LEARNT_S = 240.0

Say = Callable[..., tuple[int, str, str]]


class Running(NamedTuple):
    """Where an everlens answers, a key that may do everything, and one that may only ask."""

    url: str
    key: str
    asking: str


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """One `everlens up` for all tests of this file; each teaches classes of its own."""
    with short_folder("client") as data_dir:
        port = free_port()
        model = write_tiny_clip(data_dir / "tiny-vit")
        environment = clean_environment(
            data_dir=str(data_dir), port=str(port), model=str(model), pretrained="random"
        )

        def made(*scopes: Scope) -> str:
            return add_key(data_dir / "keys.json", "test", scopes=scopes, now=datetime.now(UTC))[1]

        keys = made(*SCOPES), made("classify", "learn", "classes")
        with started(everlens_up(), environment, data_dir / "up.log") as launcher:
            launcher.until_said("Ctrl-C here stops everything", READY_S)
            yield Running(f"http://127.0.0.1:{port}", *keys)


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    """A client that may do everything."""
    with Client(running.url, api_key=running.key) as client:
        yield client


@pytest.fixture
def say(
    running: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Say:
    """A function that runs a command with the key; returns its exit code and what it printed."""
    monkeypatch.setenv("EVERLENS_API_KEY", running.key)

    def run(command: str, *words: str) -> tuple[int, str, str]:
        code = main([command, *words, "--url", running.url])
        return code, *capsys.readouterr()

    return run


def picture(seed: int) -> PIL.Image.Image:
    """Return a picture of one colour with some noise; another seed is another class."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 256, 3)
    noise = rng.normal(0, 12, (48, 48, 3))
    return PIL.Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8))


def test_a_label_is_known_in_the_next_answer(client: Client) -> None:
    """Learn, wait, ask: of files, arrays and images alike, one by one and in batches."""
    one, other = picture(1), picture(2)
    first = client.learn(one, "first")
    (second,) = client.learn_many([(np.asarray(other), "second")])
    names = ["first", "second"]
    state = client.wait(first, within_s=LEARNT_S)
    client.wait(second, within_s=LEARNT_S)

    answers = [client.classify(one, names, wait_for=second), *client.classify_many([one, other])]
    frozen = client.classify(one, names, version=0)

    assert [answer.best.label for answer in answers] == ["first", "first", "second"]
    assert answers[0].known is not None
    assert frozen.version == 0
    assert (state.status, state.id) == ("learnt", first.id)
    assert state.version is not None
    assert {known.label for known in client.classes()} >= set(names)
    assert client.class_("first").samples == 1
    assert client.versions(limit=1)[0].version >= state.version
    assert client.learning().accepted_through >= second.seq
    assert client.ready()


def test_the_same_verbs_are_awaited(running: Running, client: Client) -> None:
    """An event loop asks several at once, and gets the same results."""

    async def go() -> list[str]:
        async with AsyncClient(running.url, api_key=running.key) as awaiting:
            receipts = await asyncio.gather(
                *(awaiting.learn(picture(seed), f"awaited {seed}") for seed in (11, 12))
            )
            states = [await awaiting.wait(receipt, within_s=LEARNT_S) for receipt in receipts]
            answers = await asyncio.gather(
                *(awaiting.classify(picture(seed), wait_for=receipts[1]) for seed in (11, 12, 13))
            )
            assert [state.status for state in states] == ["learnt"] * 2
            assert await awaiting.ready()
            with pytest.raises(ApiError, match="no sample with this id"):
                await awaiting.sample("nobody's")
            return [answer.best.label for answer in answers]

    found = asyncio.run(go())

    asked = client.classify_many(picture(seed) for seed in (11, 12, 13))
    assert found == [answer.best.label for answer in asked]


def test_folder_goes_on_where_it_stopped(client: Client, running: Running, tmp_path: Path) -> None:
    """What is there already is not learnt again; what is no picture is skipped, with its reason."""
    for seed in (21, 22, 23):
        place = tmp_path / f"folder_{seed % 2}"
        place.mkdir(exist_ok=True)
        picture(seed).save(place / f"{seed}.png")
    (tmp_path / "folder_1" / "broken.jpg").write_bytes(b"no picture")

    first = client.learn_folder(tmp_path)
    picture(24).save(tmp_path / "folder_0" / "24.png")
    shutil.copy(tmp_path / "folder_0" / "24.png", tmp_path / "folder_0" / "copy.png")
    second, third = client.learn_folder(tmp_path), client.learn_folder(tmp_path)
    assert third.last is not None
    client.wait(third.last, within_s=LEARNT_S)
    client.classify(picture(21), wait_for=third.last)  # so that what serves knows it too
    counts = {known.label: known.samples for known in client.classes()}
    with Client(running.url, api_key=running.asking) as without_read:
        blind = without_read.learn_folder(tmp_path)

    assert [(r.taken, r.new) for r in (first, second, third, blind)] == [
        (3, 3),
        (5, 1),
        (5, 0),
        (5, None),
    ]
    assert [(Path(each.path).name, "not a picture" in each.reason) for each in first.skipped] == [
        ("broken.jpg", True)
    ]
    assert (counts["folder 0"], counts["folder 1"]) == (2, 2)


def test_versions_are_pinned_and_activated(client: Client) -> None:
    """A pin is seen in `learning` and taken off again; an activation becomes a version."""
    version = client.wait(client.learn(picture(31), "pinned"), within_s=LEARNT_S).version
    assert version is not None

    assert client.pin(version) == version
    assert client.learning().pinned == version
    assert client.unpin() is None
    assert client.unpin() is None
    state = client.wait(client.activate(version), within_s=LEARNT_S)

    assert state.status == "learnt"
    assert client.versions()[0].restored_from == version


def test_refusals_have_the_services_words(client: Client, running: Running) -> None:
    """Bad fields, a missing key and a missing scope are errors that say what to do."""
    with pytest.raises(ApiError) as fields:
        client.classify(picture(1), ["a", "a"])
    with Client(running.url, api_key="") as stranger, pytest.raises(ApiError) as no_key:
        stranger.classes()
    with Client(running.url, api_key=running.asking) as asking, pytest.raises(ApiError) as scope:
        asking.pin(1)

    assert (fields.value.status, fields.value.errors[0].field) == (422, "labels")
    assert (no_key.value.status, no_key.value.kind) == (401, "no-key")
    assert (scope.value.status, scope.value.kind) == (403, "scope-missing")
    assert "everlens keys add" in str(scope.value)


def test_service_that_is_not_there_is_status_zero() -> None:
    """A refused connection names the address and what to start; it is not ready either."""
    with Client("http://127.0.0.1:9", api_key="") as client:
        with pytest.raises(ApiError, match=r"http://127\.0\.0\.1:9: .*everlens up") as refused:
            client.classes()
        assert refused.value.status == 0
        assert not client.ready()


def test_commands_teach_and_ask(say: Say, tmp_path: Path) -> None:
    """`learn`, `classify` and `status` say what happened; `--json` is a line a picture."""
    file = tmp_path / "a picture.png"
    picture(41).save(file)

    taught = say("learn", str(file), "com[m]anded", "--id", "command-1", "--wait")
    asked = say("classify", str(file), str(file), "--json")
    shown = say("classify", str(file), "--labels", "com[m]anded, x", "--wait-for", "command-1")
    told = say("status")

    assert taught[0] == 0
    assert "command-1" in taught[1]
    assert "learnt by version" in taught[1]
    lines = [json.loads(line) for line in asked[1].splitlines()]
    assert [line["file"] for line in lines] == [str(file)] * 2
    assert lines[0]["predictions"][0]["label"] == "com[m]anded"
    assert "com[m]anded" in shown[1]
    assert "1 label" in shown[1]
    assert told[0] == 0
    assert ", ready" in told[1]


def test_status_is_a_table_for_people_and_an_object_for_programs(say: Say) -> None:
    """What the learner says of itself is in words in the one, and whole in the other."""
    code, said, _ = say("status")
    assert code == 0
    assert ", ready" in said
    assert "replay buffer" in said
    assert "{" not in said

    code, said, _ = say("status", "--json")
    assert code == 0
    (line,) = said.splitlines()
    about = json.loads(line)
    assert about["ready"] is True
    assert about["learner"].keys() >= {"fusion", "counts", "reported_at"}


def test_command_teaches_a_folder(say: Say, tmp_path: Path) -> None:
    """It counts what is new; a skipped file is named, and makes the exit code 1."""
    (tmp_path / "com_folder").mkdir()
    picture(51).save(tmp_path / "com_folder" / "51.png")

    assert say("learn", "--folder", str(tmp_path), "--wait")[0] == 0
    (tmp_path / "com_folder" / "broken.png").touch()
    code, out, err = say("learn", "--folder", str(tmp_path))

    assert (code, out) == (1, "1 picture accepted, 0 of them new; 1 skipped\n")
    assert f"skipped {tmp_path / 'com_folder' / 'broken.png'}: " in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("classify", "nowhere.jpg"), "nowhere.jpg: No such file"),
        (("learn", "only-a-file.jpg"), "everlens learn FILE LABEL"),
        (("learn", "--folder", "nowhere"), "nowhere is not a folder"),
        (("correct", "p1"), "say the right name"),
        (("forget",), "say the id of a sample"),
    ],
)
def test_commands_said_wrongly_are_a_sentence(
    words: tuple[str, ...], sentence: str, say: Say
) -> None:
    """One line on standard error and exit code 2."""
    code, out, err = say(*words)

    assert (code, out) == (2, "")
    assert sentence in err


def test_an_answer_is_corrected_once(client: Client) -> None:
    """By the answer, by its id and again it is one sample; another name is refused."""
    client.wait(client.learn(picture(61), "right"), within_s=LEARNT_S)
    answer = client.classify(picture(62))

    receipt = client.correct(answer, "corrected")
    again = [client.correct(asked, "corrected") for asked in (answer, answer.prediction_id)]
    with pytest.raises(ApiError, match="other feedback") as refused:
        client.correct(answer, "something else")
    state = client.wait(receipt, within_s=LEARNT_S)

    assert again == [receipt] * 2
    assert refused.value.status == 409
    assert state.status == "learnt"
    assert client.classify(picture(62), ["corrected"], wait_for=receipt).best.samples == 1


def test_correction_of_what_the_service_forgot_sends_the_picture(client: Client) -> None:
    """Again it is one sample; without the picture it is an error, and another name is refused."""
    answer = client.classify(picture(63), ["a", "b"])
    lost = replace(answer, prediction_id="00" * 16)

    receipts = [client.correct(lost, "sent again") for _ in range(2)]
    with pytest.raises(ApiError, match="other feedback"):
        client.correct(lost, "something else")
    with pytest.raises(ApiError) as unknown:
        client.correct("11" * 16, "sent again")

    assert receipts[0] == receipts[1]
    assert receipts[0].id == f"feedback-{lost.prediction_id}"
    assert unknown.value.kind == "unknown-prediction"


def test_uncertain_answers_come_with_their_pictures(client: Client) -> None:
    """What is best labelled next can be looked at, refused and corrected."""
    sent = client.classify(picture(64), ["a", "b"])
    client.wait(client.learn(picture(65), "to refuse"), within_s=LEARNT_S)
    wrong = client.classify(picture(66), ["to refuse", "b"])

    kept = {each.prediction_id: each for each in client.uncertain(100)}

    assert kept[sent.prediction_id].predictions == sent.predictions
    assert sent.picture is not None
    assert client.picture_of(kept[sent.prediction_id]) == sent.picture.read()
    client.correct(kept[sent.prediction_id], "uncertain no more")
    client.reject(wrong, "to refuse")
    left = {each.prediction_id for each in client.uncertain(100)}
    assert not left & {sent.prediction_id, wrong.prediction_id}


def test_samples_and_classes_are_forgotten(client: Client) -> None:
    """The state of the wish has a report; the sample's own says that it is forgotten."""
    sample, _ = client.learn_many([(picture(67), "to forget"), (picture(68), "to forget")])
    client.wait(sample, within_s=LEARNT_S)

    one = client.wait(client.forget(sample), within_s=LEARNT_S)
    whole = client.wait(client.forget_class("to forget"), within_s=LEARNT_S)

    assert one.report is not None
    assert whole.report is not None
    assert (one.report.samples, whole.report.samples, whole.report.label) == (1, 1, "to forget")
    assert one.report.unlearnt
    assert whole.report.stays
    assert client.sample(sample).status == "forgotten"


def test_learning_is_held_and_goes_on(client: Client) -> None:
    """While it is held a sample waits; its reason is there for all to see."""
    try:
        assert client.pause("a test") == "a test"
        assert client.learning().held == "a test"
        receipt = client.learn(picture(68), "held")
        assert client.sample(receipt).status == "accepted"
    finally:
        assert client.resume() is None
    assert client.wait(receipt, within_s=LEARNT_S).status == "learnt"


def test_vectors_have_length_one(client: Client) -> None:
    """Pictures and texts in one space, a row each; the same picture is the same vector."""
    pictures = client.embed([picture(70), picture(70), picture(71)])
    texts = client.embed_texts(["a photo of a heron"])

    assert pictures.shape == (3, texts.shape[1])
    np.testing.assert_allclose(np.linalg.norm(np.vstack([pictures, texts]), axis=1), 1, atol=1e-3)
    np.testing.assert_array_equal(pictures[0], pictures[1])


def test_commands_correct_forget_and_hold(say: Say, tmp_path: Path) -> None:
    """What `classify` names can be corrected; what was learnt so, forgotten; learning, held."""
    file = tmp_path / "picture.png"
    picture(72).save(file)
    prediction = json.loads(say("classify", str(file), "--labels", "x,y", "--json")[1])

    corrected = say("correct", prediction["prediction_id"], "by command")
    refused = say("correct", prediction["prediction_id"], "--not", "by command")
    sample = f"feedback-{prediction['prediction_id']}"
    shown = say("classify", str(file), "--wait-for", sample)
    forgotten = say("forget", sample)
    held, resumed = say("pause", "a [b]test[/b]"), say("resume")

    assert corrected[0] == 0
    assert sample in corrected[1]
    assert refused[0] == 1
    assert "other feedback" in refused[2]
    assert "by command" in shown[1]
    assert forgotten[0] == 0
    assert forgotten[1].startswith("forgotten by version ")
    assert "1 sample, 1 of them kept for replay" in forgotten[1]
    assert held == (0, "learning is held: a [b]test[/b]\n", "")
    assert resumed == (0, "learning goes on\n", "")


def test_events_are_heard_as_they_come(client: Client, running: Running) -> None:
    """The present state first, then each version that is published, awaited or not."""

    async def first() -> Event:
        async with (
            AsyncClient(running.url, api_key=running.key) as awaiting,
            contextlib.aclosing(awaiting.events()) as events,
        ):
            return await anext(events)

    with contextlib.closing(client.events()) as events:
        present = next(event for event in events if isinstance(event, VersionRecord))
        state = next(event for event in events if isinstance(event, Learning))
        receipt = client.learn(picture(81), "heard")
        news = next(
            event
            for event in events
            if isinstance(event, VersionRecord) and event.learned_through >= receipt.seq
        )

    assert state.learned_through >= present.learned_through
    assert news.version > present.version
    assert client.classify(picture(81), ["heard"]).best.samples == 1
    assert isinstance(asyncio.run(first()), VersionRecord)


def test_watching_ends_by_an_interrupt(running: Running, client: Client, tmp_path: Path) -> None:
    """Where there is no terminal it says a line for each change, and Ctrl-C is how it ends."""
    words = [sys.executable, "-m", "everlens.cli", "status", "--watch", "--url", running.url]
    environment = clean_environment(api_key=running.key)
    with started(words, environment, tmp_path / "watch.log") as watching:
        watching.until_said("accuracy", READY_S)
        receipt = client.learn(picture(82), "watched")
        client.classify(picture(82), ["watched"], wait_for=receipt)
        watching.until_said(f"learnt through {client.learning().learned_through}", READY_S)
        watching.signal_group(signal.SIGINT)
        code = watching.wait(READY_S)

    assert code == 0
    assert "Traceback" not in watching.said()


def test_explanations_come_with_exemplars(client: Client) -> None:
    """Shares add up to the score; the nearest labelled picture is there; more than one request."""
    receipt = client.learn(picture(69), "explained")
    client.wait(receipt, within_s=LEARNT_S)

    answers = client.classify_many([picture(69)] * 9, wait_for=receipt, explain=True)

    for answer in answers:
        assert answer.explanation is not None
        line = answer.explanation.experts[0]
        shares = [line.zero_shot or 0.0, line.evidence or 0.0, line.adapter or 0.0]
        assert sum(shares) == pytest.approx(answer.best.score, abs=1e-3)
        assert answer.explanation.exemplars
        assert answer.explanation.exemplars[0].image in answer._repr_html_()
    with PIL.Image.open(io.BytesIO(client.picture_of(receipt))) as kept:
        assert kept.width == kept.height


def test_labelling_names_each_class(client: Client) -> None:
    """Each learnt class stands there; where nothing was scored yet, nothing is claimed."""
    receipt = client.learn(picture(83), "labelled")
    client.wait(receipt, within_s=LEARNT_S)
    client.classify(picture(83), ["labelled"], wait_for=receipt)

    told = client.labelling()

    (mine,) = (each for each in told.classes if each.label == "labelled")
    assert (mine.samples, mine.enough) == (1, None)
    assert len(told.suggestions) <= 5
    assert "labelled" in told._repr_html_()
