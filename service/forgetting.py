"""
Unlearn a sample or a class: entries of the log, and in plain words what came of them. ②

What deletion does not reach is said as plainly as what it does: nobody should rely on more.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from everlens.bus.admission import Admittable
from everlens.errors import IdConflict
from everlens.records import EntryKind, Forgetting, Receipt
from everlens.wire import encode_forgetting
from service.auth import Caller
from service.context import Service
from service.problems import Problem

_EVIDENCE = (
    "Evidence: its share was subtracted from the sums that answers are made of; they are what they "
    "would be without it, up to the rounding of the fifteenth digit."
)
_REPLAY = "Replay: no picture of it is kept to tune on or to judge by, and no later step of tuning sees one."
_CLASS = (
    "The class: it is no candidate and not listed, and its records are gone; a later label of this "
    "name begins anew."
)
_ADAPTER = (
    "The adapter: weights that were tuned on it stay bent until later rounds bend them further, and "
    "the metric of its closed form stays until it is published next, soon after a pause. To have "
    "nothing of it there, activate a version from before its first sample, which sets aside all "
    "that was learnt since: POST /versions/{version}/activate."
)
_FUSION = (
    "The fusion: how far each expert is believed was learnt from many answers, these among them."
)
_COPIES = (
    "Copies: the last few versions, the service's own copy of one, the copies of the learner's "
    "state, the log's file until it is rewritten, every backup, and, where it came of an answer, "
    "the picture in the service's memory until newer ones push it out."
)
_IDS = "Ids: that there was a sample of this id, and which version forgot it, stays in the state."
_NAME = "The name: it stays in the table of names of every version, without a sample."
_FROZEN_MODEL = (
    "The frozen model: it knows the name as it did before anything was learnt, and answers by that "
    "where `labels` asks for it."
)


async def forget_sample(service: Service, sample_id: str, caller: Caller) -> Receipt:
    """
    Ask the learner to unlearn one sample; asked again, give the first receipt again.

    Raises:
        Problem: 404, no such sample; 409, it was never learnt, or is no sample.
    """
    known = await service.log.accepted(sample_id)
    if known is None:
        raise Problem("unknown-sample", "no sample with this id is remembered; check the id")
    if not known.is_picture:
        raise Problem(
            "not-a-sample",
            "this is the id of a forgetting or of an activation, which has no picture; what a "
            "forgetting took is learnt again if you send it under a new id",
        )
    seq = known.seq
    reason = (await service.log.state_of(seq)).dead_reason
    if reason is not None:
        raise Problem("sample-dead", f"it was never learnt, there is nothing to forget: {reason}")
    forgetting, name = Forgetting(seq=seq), _entry_id(seq)
    try:
        return await _admitted(service, forgetting, name, caller)
    except IdConflict:  # whoever teaches may have called a sample so, and is in nobody's way
        return await _admitted(service, forgetting, f"{name}-{uuid.uuid4().hex}", caller)


async def is_known(service: Service, seq: int) -> bool:
    """Return whether a sample is learnt, or will be: neither dead, nor to be forgotten."""
    if await service.log.seq_of(_entry_id(seq)) is not None:
        return False
    state = await service.log.state_of(seq)
    return state.dead_reason is None and state.forgotten_by is None


def _entry_id(seq: int) -> str:
    """Return the id of the entry by which a sample is forgotten: the same each time."""
    return f"forget-sample-{seq}"


async def forget_class(
    service: Service, label: str, entry_id: str | None, caller: Caller
) -> Receipt:
    """
    Ask the learner to unlearn all samples of a class that were accepted so far.

    Args:
        service: with the log.
        label: the class.
        entry_id: makes a repeat harmless, also once the class is gone.
        caller: whose share of the backlog it takes.

    Raises:
        Problem: 404, there is no such class.
    """
    repeated = entry_id is not None and await service.log.seq_of(entry_id) is not None
    known = service.loaded().serving.current.samples(label) > 0
    if not (repeated or known or await service.log.has_class(label)):
        raise Problem("unknown-class", "no class of this name is known; GET /classes lists them")
    name = entry_id or f"forget-class-{uuid.uuid4().hex}"
    return await _admitted(service, Forgetting(label=label), name, caller)


async def _admitted(
    service: Service, forgetting: Forgetting, entry_id: str, caller: Caller
) -> Receipt:
    payload = encode_forgetting(forgetting)
    entry = Admittable(
        id=entry_id,
        digest=hashlib.sha256(payload).hexdigest(),
        payload=payload,
        label=forgetting.label,
        tenant=caller.id,
        kind=EntryKind.FORGET,
    )
    (receipt,) = await service.admission.admit([entry])
    return receipt


def in_words(report: dict[str, Any]) -> dict[str, Any]:
    """Return the learner's report on a forgetting with what it means."""
    figures = {name: value for name, value in report.items() if name != "adapter"}
    whole = report["label"] is not None
    return figures | {
        "unlearnt": [_EVIDENCE, _REPLAY, *([_CLASS] if whole else [])],
        "stays": [
            *([_ADAPTER] if report["adapter"] else []),
            _FUSION,
            _COPIES,
            _IDS,
            *([_NAME, _FROZEN_MODEL] if whole else []),
        ],
    }
