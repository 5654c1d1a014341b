"""Connections to the log, with every retry off: a failure is ours to see and to count."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from everlens.errors import LogUnavailable

# redis-py retries by default, which doubles a plain XADD whose reply was lost.
_CONNECT_S = 2.0
_REPLY_S = 5.0
# Of the service: somebody waits for the answer. A script on a slow disk takes half a second.
_ANSWER_S = 2.0
# Of one service at once; whoever comes when all are taken waits for one. All that waited for the same
# version ask what became of their samples at the same moment.
_CONNECTIONS_MAX = 64


def connect(url: str) -> redis.Redis:
    """Return a blocking client (of the learner)."""
    return redis.Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=_CONNECT_S,
        socket_timeout=_REPLY_S,
    )


def connect_async(url: str) -> redis.asyncio.Redis:
    """Return an asyncio client (of the service)."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
        socket_connect_timeout=_ANSWER_S,
        socket_timeout=_ANSWER_S,
        max_connections=_CONNECTIONS_MAX,
        timeout=_ANSWER_S,
    )
    return redis.asyncio.Redis.from_pool(pool)


# How the errors without a class of their own begin that pass, or that the server's owner has to mend: a
# script that takes longer than a reply may, a disk that takes no snapshot, replicas that are away.
_PASSING = ("BUSY ", "MISCONF ", "NOREPLICAS ")
_PASSING_CLASSES = (redis.exceptions.ClusterDownError, redis.exceptions.TryAgainError)


@contextlib.contextmanager
def reaching_the_log() -> Iterator[None]:
    """
    Turn what the client library raises when the server is away, full or refuses its user into
    `LogUnavailable`.

    The last command may or may not have taken effect; only a call with the same id or the same
    cursor may be made again.
    """
    try:
        yield
    except (
        redis.ConnectionError,
        redis.TimeoutError,
        redis.exceptions.NoPermissionError,
        redis.exceptions.OutOfMemoryError,
        redis.exceptions.ReadOnlyError,
        redis.exceptions.NoScriptError,  # restarted between a script's loading and its call
    ) as error:
        raise LogUnavailable(f"the log does not answer: {error}") from error
    except redis.ResponseError as error:
        # These have no class of their own.
        if str(error).startswith("ACL failure"):  # of a script
            raise LogUnavailable(f"the log does not let this user: {error}") from error
        if is_passing(error):
            raise LogUnavailable(f"the log does not answer: {error}") from error
        raise


def is_passing(error: redis.ResponseError) -> bool:
    """Return whether a command may succeed later, as it is: the server cannot do it now."""
    return isinstance(error, _PASSING_CLASSES) or str(error).startswith(_PASSING)
