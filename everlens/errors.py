"""
Every error of our own, in one tree; each leaf says who catches it.

    EverlensError
    ├── SettingsError      the two roots and the command line: one line, exit 2
    ├── ApiError           (of everlens.client) the command line: one line, exit 1
    ├── ModelError         the two roots: one line, exit 2
    ├── KeysError          the two roots and the command line: one line, exit 2;
    │                      service.auth: the keys that were read before still hold
    ├── ServerError        everlens.launch: the embedded server cannot start, exit 2;
    │                      worker.__main__: the log's server is not durable, stops learning
    ├── WireError          worker.batch: the entry goes to the dead letters
    ├── PartError          service.hotswap: the old version goes on answering
    ├── ImageError         service.app: 415 or 422
    ├── StateError         worker.__main__: stops learning, never serving
    │   └── DamagedState   worker.generations: falls back to a copy
    ├── BusError           (of the log and the head)
    │   ├── LogUnavailable service.app: 503; worker.loop: waits and tries again
    │   ├── OtherLog       worker.__main__: stops; service.app: 503
    │   ├── LogBehind      service.app: 503, until somebody restores or reconciles
    │   ├── LearnerSilent  service.explaining: a note; service.app: 503
    │   ├── Fenced         worker.__main__: another learner took over, stops
    │   └── Diverged       worker.__main__: same version, other bytes: stops loudly
    └── Refused            (of admission; service.app)
        ├── IdConflict     409
        ├── QueueFull      429 with Retry-After
        ├── TooManyClasses 409
        ├── NewClass       403
        └── LearningPaused 503 with Retry-After
"""

from __future__ import annotations


class EverlensError(Exception):
    """Base of all errors of our own; `str(error)` is a sentence that says what to do."""


class SettingsError(EverlensError):
    """A setting is missing, unknown or contradicts another."""


class ModelError(EverlensError):
    """The base model cannot be loaded or cannot do what the settings ask of it."""


class KeysError(EverlensError):
    """The file of API keys cannot be read or written, is damaged, or others may read it."""


class ServerError(EverlensError):
    """The Redis-compatible server cannot be started, or does not have the durable settings."""


class WireError(EverlensError):
    """Bytes that are not a record of ours."""


class PartError(EverlensError):
    """A published part or manifest is missing, damaged, or does not fit this base model."""


class ImageError(EverlensError):
    """A client's bytes are not a picture that we take.

    Args:
        message: what is wrong and what to send instead.
        status: 415 when the format is not one of ours, 422 when the picture is damaged.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class StateError(EverlensError):
    """The learner's own state is damaged, foreign, or does not fit the log."""


class DamagedState(StateError):
    """What the state file holds is not what was written."""


class BusError(EverlensError):
    """The log or the head did not do what was asked."""


class LogUnavailable(BusError):
    """The Redis server does not answer. Whether the last command took effect is unknown."""


class OtherLog(BusError):
    """The log has another epoch than the one this process was started for."""


class LogBehind(BusError):
    """The log ends before what was acknowledged: accepted samples are lost, nothing is admitted."""


class LearnerSilent(BusError):
    """The learner does not answer a question about its replay buffer, or not in a usable way."""


class Fenced(BusError):
    """Another learner holds the lease with a higher token."""


class Diverged(BusError):
    """The head already holds this version with other bytes, or another parent."""


class Refused(EverlensError):
    """Admission says no; nothing was accepted."""


class IdConflict(Refused):
    """The id was used before with another body."""


class QueueFull(Refused):
    """More samples wait than the limits allow.

    Args:
        message: a sentence for the client.
        retry_after_s: when to try again, in whole seconds.
    """

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyClasses(Refused):
    """The name would be one class more than the settings allow."""


class NewClass(Refused):
    """The name is not a class yet, and the caller may only teach those that are."""


class LearningPaused(Refused):
    """The learner is paused or the log is not fit to be learnt from; the reason is the message."""
