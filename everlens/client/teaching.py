"""What is taught: labelled pictures, corrections, and what shall be forgotten."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from everlens.client.batches import in_batches
from everlens.client.folder import ClassFile, class_files, content_id
from everlens.client.pictures import Image, as_text, file_bytes
from everlens.client.progress import bar
from everlens.client.refusals import ApiError, ask
from everlens.client.results import (
    Answer,
    FolderReport,
    KeptPrediction,
    Receipt,
    SampleState,
    Skipped,
    read,
)
from everlens.client.steering import learning
from everlens.client.steps import Pause, Plan, aside

_POLL_S = 0.05  # the first; each next is longer
_POLL_S_MAX = 0.5
_CONFLICT = "id-conflict"


def learn(
    image: Image, label: str, *, id: str | None = None, text: str | None = None
) -> Plan[Receipt]:
    """
    Hand over a labelled picture; return when it is on disk.

    Args:
        image: a path, the bytes of a file, height × width (× 3) pixels, or a Pillow image.
        label: name of its class, as people write it.
        id: makes repeats harmless also across programs; by default a new one.
        text: a caption to learn from instead of the label.

    Raises:
        ApiError: with the service's own words. Status 409: the id was used with another body.
    """
    sample = yield from aside(partial(_sample, image, label, id, text))
    return read(Receipt, (yield from ask("POST", "/samples", sample.body)))


def learn_many(samples: Iterable[tuple[Image, str]]) -> Plan[list[Receipt]]:
    """
    Hand over many labelled pictures, in batches; return a receipt for each, in order.

    Raises:
        ApiError: of the first batch that is refused; those before it hold.
    """
    receipts: list[Receipt] = []

    def send(batch: list[_Sample]) -> Plan[None]:
        receipts.extend((yield from _taken(batch)))

    yield from in_batches((partial(_sample, image, label) for image, label in samples), send)
    return receipts


def learn_folder(path: str | Path, *, progress: bool | None = None) -> Plan[FolderReport]:
    """
    Teach a folder that has a folder a class, named as people say it.

    A sample's id follows from its picture and its label. So what stopped half-way goes on when it
    is called again, and the same folder again changes nothing, as long as the service remembers
    the ids (the last million learnt). A file that is no picture is skipped, and holds up no other.

    Args:
        path: of the folder; `great_heron` is the class "great heron".
        progress: whether a bar is drawn; by default where standard error is a terminal.

    Raises:
        ApiError: with the service's own words; what was sent before holds.
        SettingsError: no such folder, or no picture in it.
    """
    files = yield from aside(partial(class_files, Path(path)))
    before = yield from _accepted_through()
    receipts: list[Receipt] = []
    skipped: list[Skipped] = []
    with bar(len(files), shown=progress) as advance:

        def send(batch: list[_FileSample | _Unread]) -> Plan[None]:
            unread = [each for each in batch if isinstance(each, _Unread)]
            good = [each for each in batch if isinstance(each, _FileSample)]
            skipped.extend(Skipped(str(each.path), each.reason) for each in unread)
            receipts.extend((yield from _taken_but(good, skipped)))
            advance(len(batch))

        yield from in_batches((partial(_file_sample, file) for file in files), send)
    new = None if before is None else len({r.seq for r in receipts if r.seq > before})
    last = max(receipts, key=lambda receipt: receipt.seq, default=None)
    return FolderReport(len(receipts), new, tuple(skipped), last)


def _accepted_through() -> Plan[int | None]:
    """Return the last number that the log gave; None where the key may not ask."""
    try:
        return (yield from learning()).accepted_through
    except ApiError as refused:
        if refused.status != 403:
            raise
        return None


@dataclass(frozen=True, slots=True)
class _Sample:
    body: dict[str, str]

    @property
    def size(self) -> int:
        return len(self.body["image"])


@dataclass(frozen=True, slots=True)
class _FileSample(_Sample):
    path: Path


@dataclass(frozen=True, slots=True)
class _Unread:
    path: Path
    reason: str
    size: int = 0


def _sample(image: Image, label: str, id: str | None = None, text: str | None = None) -> _Sample:
    body = {"image": as_text(file_bytes(image)), "label": label, "id": id or uuid.uuid4().hex}
    return _Sample(body if text is None else body | {"text": text})


def _file_sample(file: ClassFile) -> _FileSample | _Unread:
    try:
        content = file.path.read_bytes()
    except OSError as error:
        return _Unread(file.path, error.strerror or type(error).__name__)
    body = {"image": as_text(content), "label": file.label, "id": content_id(file.label, content)}
    return _FileSample(body, file.path)


def _taken(batch: list[_Sample]) -> Plan[list[Receipt]]:
    return read(list[Receipt], (yield from ask("POST", "/samples", [each.body for each in batch])))


def _taken_but(batch: list[_FileSample], skipped: list[Skipped]) -> Plan[list[Receipt]]:
    """Send a batch again and again, each time without what the service said is no good."""
    while batch:
        try:
            return (yield from _taken([*batch]))
        except ApiError as refused:
            bad = {each.index: each.message for each in refused.errors if each.index is not None}
            if refused.status == 413 and len(batch) == 1:
                bad = {0: refused.detail}
            if not bad:
                raise
            skipped += [Skipped(str(batch[i].path), bad[i]) for i in sorted(bad)]
            batch = [each for i, each in enumerate(batch) if i not in bad]
    return []


def correct(prediction: Answer | KeptPrediction | str, label: str) -> Plan[Receipt]:
    """
    Say what a picture that was asked about really shows.

    Where the service no longer has the prediction, the picture of an `Answer` is sent again, if it
    is still at hand. It goes under the id that the correction would have had, so that the two are
    never both learnt, however often and through whichever replica it is said.

    Args:
        prediction: an answer, or its `prediction_id`.
        label: the right name.

    Raises:
        ApiError: with the service's own words. Status 409: it was corrected to another name.
    """
    prediction_id = _id_of(prediction)
    try:
        body = {"prediction_id": prediction_id, "label": label}
        return read(Receipt, (yield from ask("POST", "/feedback", body)))
    except ApiError as refused:
        picture = prediction.picture if isinstance(prediction, Answer) else None
        # A conflict may be with this very picture, sent before.
        if refused.kind not in {"unknown-prediction", _CONFLICT} or picture is None:
            raise
        content = yield from aside(picture.read)
        if content is None:
            refused.add_note(f"{picture.path} is no longer the picture that was asked about")
            raise
        try:
            return (yield from learn(content, label, id=f"feedback-{prediction_id}"))
        except ApiError as again:
            if again.kind == _CONFLICT and refused.kind == _CONFLICT:
                raise refused from None  # it has the better words
            raise


def reject(prediction: Answer | KeptPrediction | str, name: str) -> Plan[Receipt]:
    """
    Say what a picture that was asked about does not show.

    Args:
        prediction: an answer, or its `prediction_id`.
        name: the wrong name.

    Raises:
        ApiError: with the service's own words. Status 404: it no longer has the prediction, or
            nobody has taught this name, so that there is nothing to correct.
    """
    body = {"prediction_id": _id_of(prediction), "not_label": name}
    return read(Receipt, (yield from ask("POST", "/feedback", body)))


def _id_of(prediction: Answer | KeptPrediction | str) -> str:
    return prediction if isinstance(prediction, str) else prediction.prediction_id


def forget(sample: str | Receipt | SampleState) -> Plan[Receipt]:
    """
    Have a sample forgotten; `wait` says when it is.

    Raises:
        ApiError: 404 when it is not known (any more).
    """
    return read(Receipt, (yield from ask("DELETE", _path(sample))))


def forget_class(name: str) -> Plan[Receipt]:
    """
    Have a class forgotten; the `report` of `wait` says what that removed, and what it did not.

    Raises:
        ApiError: 404 when no such class is learnt.
    """
    # A key, so that what is sent again after a lost answer is done once.
    key = {"Idempotency-Key": uuid.uuid4().hex}
    path = f"/classes/{quote(name, safe='')}"
    return read(Receipt, (yield from ask("DELETE", path, headers=key)))


def sample(sample: str | Receipt) -> Plan[SampleState]:
    """
    Return what became of a sample.

    Raises:
        ApiError: 404 when it is not known (any more).
    """
    return read(SampleState, (yield from ask("GET", _path(sample))))


def wait(sample: str | Receipt, *, within_s: float = 60.0) -> Plan[SampleState]:
    """
    Return when a sample was learnt and answers know it, or when it is dead.

    Behind a load balancer another replica may be a moment behind, and where a version is pinned it
    goes on answering: `classify(..., wait_for=...)` asks for an answer that knows the sample.

    Raises:
        ApiError: 404 when it is not known, 504 when it took longer than `within_s`.
    """
    deadline = time.monotonic() + within_s
    pause_s = _POLL_S
    while True:
        state = read(SampleState, (yield from ask("GET", _path(sample))))
        if state.status != "accepted" and (state.version is None or (yield from _serves(state))):
            return state
        if time.monotonic() > deadline:
            raise ApiError(504, "Not learnt in time", f"{state.id} waits since {within_s:g} s")
        yield Pause(pause_s)
        pause_s = min(1.5 * pause_s, _POLL_S_MAX)


def _serves(state: SampleState) -> Plan[bool]:
    """Return whether the service answers with the sample's version, or a later or pinned one."""
    assert state.version is not None
    now = yield from learning()
    return now.pinned is not None or now.version >= state.version


def _path(sample: str | Receipt | SampleState) -> str:
    return f"/samples/{quote(sample if isinstance(sample, str) else sample.id, safe='')}"
