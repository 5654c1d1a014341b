"""
Questions about the replay buffer, and what is shown of it, ⇄ bytes. No torch.

The pictures lie with the learner alone. A service asks it for those that are nearest to a picture,
or for one by its number; question and answer are JSON, and nothing in them is believed unseen.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

from everlens.errors import WireError
from everlens.records import ID_CHARACTERS_MAX, LABEL_CHARACTERS_MAX, clean_name

EXHIBITS_MAX = 6

# Of one picture; ours at 1024 x 1024 are smaller.
_IMAGE_BYTES_MAX = 4 << 20
_FEATURE_BYTES_MAX = 1 << 20
_SEQ_MAX = 1 << 53
# A cosine of rounded unit vectors.
_COSINE_MAX = 1.001
_TOKEN = re.compile(r"[0-9a-f]{32}")
_JPEG_BEGINS, _JPEG_ENDS = b"\xff\xd8\xff", b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class Question:
    """
    What a service asks the learner.

    Args:
        token: 32 hexadecimal digits; names the channel that waits for the answer.
        feature: float32 (little endian), to which the nearest exemplars are asked for; or empty.
        seq: else the number of the sample whose exemplar is asked for.
    """

    token: str
    feature: bytes = b""
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One exemplar of the replay buffer; `image` is our own JPEG at the model's size."""

    id: str
    label: str
    similarity: float  # cosine of frozen features
    image: bytes


def encode_question(question: Question) -> bytes:
    """Return a question as bytes."""
    about = {"token": question.token, "seq": question.seq, "feature": _text(question.feature)}
    return json.dumps(about).encode()


def decode_question(content: bytes) -> Question:
    """
    Return the question that `encode_question` wrote.

    Raises:
        WireError: anything else.
    """
    about = _parsed(content)
    if not isinstance(about, dict):
        raise WireError("a question is not an object")
    token, seq = about.get("token"), about.get("seq")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise WireError("a question has no token")
    if type(seq) is not int or not 0 <= seq < _SEQ_MAX:
        raise WireError("a question names no number")
    feature = _bytes(about.get("feature"), _FEATURE_BYTES_MAX)
    if len(feature) % 4:
        raise WireError("a question's feature is not float32")
    return Question(token, feature, seq)


def encode_exhibits(exhibits: list[Exhibit]) -> bytes:
    """Return what answers a question, the nearest first."""
    return json.dumps(
        [
            {
                "id": exhibit.id,
                "label": exhibit.label,
                "similarity": exhibit.similarity,
                "image": _text(exhibit.image),
            }
            for exhibit in exhibits
        ]
    ).encode()


def decode_exhibits(content: bytes) -> list[Exhibit]:
    """
    Return what `encode_exhibits` wrote.

    Raises:
        WireError: anything else: more of them, a name that no sample has, or no JPEG.
    """
    rows = _parsed(content)
    if not isinstance(rows, list) or len(rows) > EXHIBITS_MAX:
        raise WireError(f"an answer is not a list of at most {EXHIBITS_MAX} exhibits")
    return [_exhibit(row) for row in rows]


def _exhibit(row: Any) -> Exhibit:
    if not isinstance(row, dict):
        raise WireError("an exhibit is not an object")
    similarity = row.get("similarity")
    if not isinstance(similarity, float) or not abs(similarity) <= _COSINE_MAX:  # nor NaN
        raise WireError("an exhibit has a similarity that is no cosine")
    image = _bytes(row.get("image"), _IMAGE_BYTES_MAX)
    if not (image.startswith(_JPEG_BEGINS) and image.endswith(_JPEG_ENDS)):
        raise WireError("an exhibit has a picture that is no JPEG")
    return Exhibit(
        id=_name(row, "id", ID_CHARACTERS_MAX),
        label=_name(row, "label", LABEL_CHARACTERS_MAX),
        similarity=min(1.0, max(-1.0, similarity)),
        image=image,
    )


def _name(row: dict[str, Any], field: str, characters_max: int) -> str:
    value = row.get(field)
    if not isinstance(value, str) or len(value) > characters_max:
        raise WireError(f"an exhibit has no {field}")
    try:
        clean = clean_name(value, field=field, characters_max=characters_max)
    except ValueError as error:
        raise WireError(f"an exhibit's {error}") from error
    if clean != value:
        raise WireError(f"an exhibit has a {field} in another form than names are kept in")
    return value


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from error


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bytes(value: Any, bytes_max: int) -> bytes:
    if not isinstance(value, str) or len(value) > 4 * (bytes_max // 3 + 1):
        raise WireError(f"not base64 of at most {bytes_max} bytes")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise WireError(f"not base64: {error}") from error
