"""What the verbs return: frozen records with the service's own names, readable where they print."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from everlens.client.pictures import Picture
from everlens.client.refusals import ApiError

Kind = TypeVar("Kind")


def read(kind: type[Kind], value: Any) -> Kind:
    """
    Return what the service said as a record; a newer service may say more.

    Raises:
        ApiError: it says less, or something else.
    """
    try:
        record: Kind = _adapter(kind).validate_python(value)
        return record
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ApiError(
            200,
            "The answer is not understood",
            f"{place}: {first['msg']}; client and service are of different versions",
        ) from error


def plain(record: object) -> Any:
    """Return a record as values of JSON, without the picture that was sent."""
    return _adapter(type(record)).dump_python(record, mode="json", exclude={"picture"})


_adapters: dict[object, TypeAdapter[Any]] = {}  # each takes milliseconds to make


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of an answer; `samples` is how many labels of that class were learnt."""

    label: str
    score: float
    samples: int


@dataclass(frozen=True, slots=True)
class ExpertShares:
    """How much of a line's score each expert gave; None where there is no such expert."""

    label: str
    zero_shot: float | None
    evidence: float | None
    adapter: float | None


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A labelled picture near the one that was asked about; `image` is a data URI."""

    sample_id: str
    label: str
    similarity: float
    image: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where an answer comes from; without exemplars, `note` says why."""

    experts: tuple[ExpertShares, ...]
    exemplars: tuple[Exemplar, ...] | None
    note: str | None = None

    def _repr_html_(self) -> str:
        from everlens.client import views

        return views.explanation(self)


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """
    The most probable names, the best first, and the version that they rest on.

    `known` is the probability that the picture is of any learnt class among the candidates; None
    before the first is learnt. `picture` is what was asked about: `correct` sends it where the
    service no longer has it.
    """

    predictions: tuple[Prediction, ...]
    known: float | None
    version: int
    learned_through: int
    model: str
    prediction_id: str
    explanation: Explanation | None = None
    picture: Picture | None = field(default=None, compare=False)

    @property
    def best(self) -> Prediction:
        """The most probable name."""
        return self.predictions[0]

    def __repr__(self) -> str:
        return f"<Answer {ranking(self.predictions)}; {by_version(self.known, self.version)}>"

    def _repr_html_(self) -> str:
        from everlens.client import views

        return views.answer(self)


@dataclass(frozen=True, slots=True, repr=False)
class KeptPrediction:
    """
    An answer that the service still has; `at` in seconds since 1970.

    `margin` is between the first and the second name, and `feedback` the id of the sample that a
    correction became.
    """

    prediction_id: str
    at: float
    version: int
    learned_through: int
    predictions: tuple[Prediction, ...]
    known: float | None
    margin: float | None
    feedback: str | None

    def __repr__(self) -> str:
        return (
            f"<KeptPrediction {self.prediction_id} {ranking(self.predictions)}; "
            f"{by_version(self.known, self.version)}>"
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """An accepted entry of the log: it is on disk, and will be learnt."""

    id: str
    seq: int
    status: str


@dataclass(frozen=True, slots=True)
class Forgetting:
    """
    What a forgetting removed, and in sentences what that means.

    `before` and `after` are the accuracy on `held_out` samples of the other classes, `unlearnt`
    where nothing of it is left, `stays` where something is, and how to be rid of that.
    """

    label: str | None
    samples: int
    rejections: int
    exemplars: int
    unlearnt: tuple[str, ...]
    stays: tuple[str, ...]
    held_out: int | None = None
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True)
class SampleState:
    """
    What became of an entry: accepted, learnt (by which version), forgotten, or dead (why).

    `report` is there where it was a wish to forget.
    """

    id: str
    seq: int
    status: str
    version: int | None = None
    reason: str | None = None
    report: Forgetting | None = None


@dataclass(frozen=True, slots=True)
class KnownClass:
    """A learnt class: from how many labels, and how well; None is not known yet."""

    label: str
    samples: int
    recall: float | None = None
    forgetting: float | None = None
    weight: float | None = None
    zero_shot: float | None = None
    evidence: float | None = None
    adapter: float | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """
    What held-out samples said of an adapter: its mean probability of the right names.

    `before` and `after` are None where too few were held out; `error` is the difference's.
    """

    published: bool
    held_out: int
    before: float | None = None
    after: float | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One published version; `published_at` in seconds since 1970, None for version 0."""

    version: int
    published_at: float | None
    learned_through: int
    samples: int
    classes: int
    adapter: str = ""
    gate: Gate | None = None
    restored_from: int | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits to be learnt."""

    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class RefusedVersion:
    """A published version that the service could not use; without a number where the head has none."""

    version: int | None
    reason: str
    tries: int = 1

    @property
    def name(self) -> str:
        """What was refused, as people say it."""
        return "the head" if self.version is None else f"version {self.version}"


@dataclass(frozen=True, slots=True)
class Learning:
    """
    How far learning is. `learner` holds the worker's own figures, for people.

    `paused` is why no sample is taken, `held` why none is learnt, `pinned` the version that answers
    in place of the newest.
    """

    version: int
    learned_through: int
    accepted_through: int
    backlog: Backlog
    paused: str | None
    pinned: int | None
    learner: dict[str, Any]
    held: str | None = None
    refused_versions: tuple[RefusedVersion, ...] = ()


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What a class's recall was while about so many samples of it were learnt, of how many asked."""

    samples: int
    recall: float
    answers: int = 0


@dataclass(frozen=True, slots=True)
class LabelledClass:
    """Whether a class has labels enough, and what the next would bring in points of mean recall."""

    label: str
    samples: int
    recall: float | None
    curve: tuple[CurvePoint, ...]
    enough: bool | None
    expected_gain: float | None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A class to label next, and why."""

    label: str
    why: str


@dataclass(frozen=True, slots=True)
class Labelling:
    """Have I labelled enough? By class, and what to label next, the best first."""

    classes: tuple[LabelledClass, ...]
    suggestions: tuple[Suggestion, ...]
    version: int

    def _repr_html_(self) -> str:
        from everlens.client import views

        return views.labelling(self)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not taken, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class FolderReport:
    """
    What became of a folder of pictures.

    Args:
        taken: how many files are accepted now, those accepted before among them.
        new: how many samples came of them; None where the key may not read.
        skipped: what is no picture that the service takes.
        last: the last receipt, to wait for; None where nothing was taken.
    """

    taken: int
    new: int | None
    skipped: tuple[Skipped, ...]
    last: Receipt | None


Event = VersionRecord | Learning | RefusedVersion


def ranking(predictions: tuple[Prediction, ...], shown: int = 3) -> str:
    """Return the first lines as people read them."""
    lines = [f"{printable(line.label)} {percent(line.score)}" for line in predictions[:shown]]
    return ", ".join(lines + ["…"] * (len(predictions) > shown))


def by_version(known: float | None, version: int) -> str:
    """Return how sure it is that the picture is of a known class, and by which version."""
    return f"version {version}" if known is None else f"known {percent(known)}, version {version}"


def percent(share: float) -> str:
    """Return a share in per cent."""
    return f"{100 * share:.1f} %"


def counted(number: int, thing: str) -> str:
    """Return how many there are: `1 label`, `2 labels`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Return a text that a terminal shows as it is, and does not obey."""
    return text if text.isprintable() else repr(text)
