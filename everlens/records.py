"""What travels between the halves, as plain values: samples, log entries, versions. No torch."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import StrEnum

LABEL_CHARACTERS_MAX = 200
TEXT_CHARACTERS_MAX = 500
ID_CHARACTERS_MAX = 200
TRACE_CHARACTERS_MAX = 55  # of a traceparent, as W3C's Trace Context has it

# Letters and symbols by their category that nobody sees: Hangul fillers and the empty braille cell.
_BLANKS = frozenset("\u115f\u1160\u3164\uffa0\u2800")


class EntryKind(StrEnum):
    """What an entry of the log asks of the learner."""

    SAMPLE = "sample"
    CUT = "cut"  # the batch ends here: written when samples waited long enough
    TUNE = "tune"  # likewise, and the adapter is tuned on what came since it was last
    ADAPTER = "adapter"  # the batch ends here and the adapter is published
    ACTIVATE = "activate"  # alone in its batch: go on from an earlier version
    REJECT = "reject"  # a picture and a name that it is not of; in a batch like a sample
    FORGET = "forget"  # only beside its like in a batch: unlearn a sample, or a class


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture as it was admitted; `image` is our own JPEG at the model's size."""

    id: str
    label: str
    image: bytes
    text: str | None = None  # a caption to train on instead of the class's prompt
    trace: str = ""  # traceparent of the request that brought it, where requests are traced


@dataclass(frozen=True, slots=True)
class Activation:
    """
    The wish to go on from an earlier version, with all that a learner needs to do so.

    Args:
        version: the chosen one; 0 is the frozen base model.
        learned_through: its last entry; samples after it are set aside.
        adapter: its adapter part, empty where it has none.
    """

    version: int
    learned_through: int
    adapter: bytes


@dataclass(frozen=True, slots=True)
class Rejection:
    """A picture of which somebody says what it is not; `image` is like that of a sample."""

    id: str
    label: str  # the refused name
    image: bytes
    trace: str = ""  # likewise


@dataclass(frozen=True, slots=True)
class Forgetting:
    """
    The wish to unlearn one sample, or all of a class that come before it in the log.

    Args:
        seq: of the sample (or rejection); 0 where a class is meant.
        label: of the class; empty where one sample is meant.
    """

    seq: int = 0
    label: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log. `payload` is empty where its kind says all."""

    seq: int
    kind: EntryKind
    payload: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """What admission answers for one sample; `repeated` when the id was there already."""

    id: str
    seq: int
    repeated: bool


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A sample that could not be learnt, and why."""

    seq: int
    id: str
    reason: str


def as_written(text: str) -> str:
    """Return a name in the form in which it is kept: Unicode NFC, no surrounding white space."""
    return unicodedata.normalize("NFC", text).strip()


def clean_name(text: str, *, field: str, characters_max: int = LABEL_CHARACTERS_MAX) -> str:
    """
    Return a class name (or caption, or id) in Unicode NFC without surrounding white space.

    Raises:
        ValueError: empty, too long, or with control, bidirectional or unpaired surrogate
            characters, which would show one name and mean another.
    """
    name = as_written(text)
    if not name:
        raise ValueError(f"{field} is empty; give it at least one visible character")
    if len(name) > characters_max:
        raise ValueError(f"{field} has {len(name)} characters; at most {characters_max} are taken")
    for character in name:
        # Cc control, Cf format (holds the bidirectional ones and the zero-width space),
        # Cs unpaired surrogate, Zl and Zp line and paragraph separator.
        category = unicodedata.category(character)
        # The joiners shape letters in several scripts and emoji; they are no disguise.
        if character not in "\u200c\u200d" and category in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            raise ValueError(
                f"{field} contains the character U+{ord(character):04X}, which is not printable"
            )
    if not any(unicodedata.category(c)[0] in "LNPS" and c not in _BLANKS for c in name):
        raise ValueError(f"{field} shows nothing; give it at least one visible character")
    return name
