"""
What 202 rests on: the server writes and syncs before it answers, and drops nothing.

With `everysec` a busy disk makes the server put off the write itself and go on answering; a mere
kill then loses what it acknowledged.
"""

from __future__ import annotations

import logging

import redis

from everlens.bus.connect import is_passing, reaching_the_log
from everlens.errors import ServerError

log = logging.getLogger(__name__)

REQUIRED = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}


def check_durable(client: redis.Redis) -> None:
    """
    Return when the server's settings, read back, are the durable ones.

    A hosted server that does not show its settings is taken at its owner's word, with a warning.

    Raises:
        ServerError: a setting is another one.
        LogUnavailable: the server does not answer.
    """
    with reaching_the_log():
        try:
            found = client.config_get(*REQUIRED)
        except redis.ResponseError as error:
            if is_passing(error):
                raise
            log.warning("cannot read the log server's settings (%s); 202 is as durable", error)
            return
    for name, value in REQUIRED.items():
        if found.get(name) != value:
            raise ServerError(
                f"the log's server has {name} {found.get(name)!r}, not {value!r}: what it "
                f"acknowledges would not be on disk; set `{name} {value}` there"
            )
