"""
Who may do what in the log's server: one user for each half, with nothing that it does not use.

`python -m everlens.bus.acl` prints an aclfile with fresh passwords, for a server that both halves
reach over a network; docker-compose.yml has the same rules. The embedded server needs none: its
socket is open to its owner alone. Rules hold inside scripts too.
"""

from __future__ import annotations

import hashlib
import secrets
import sys

from everlens.bus.keys import Keys
from everlens.errors import EverlensError
from everlens.settings import load_settings

SERVICE, WORKER = "everlens-service", "everlens-worker"

# Both: say who they are, and send scripts (not EVAL: those of `everlens.bus.scripts` go by digest).
_BOTH = ("client|setinfo", "evalsha", "ping", "script|load", "select")

# The service follows and admits: it changes no version, trims and deletes nothing.
_SERVICE = (
    "exec", "getrange", "hget", "hgetall", "hincrby", "hmget", "hset", "multi", "sadd", "scard",
    "sismember", "srem", "strlen", "subscribe", "unsubscribe", "xadd", "zrangebyscore",
)  # fmt: skip

# The learner reads the log, publishes, trims, and looks at the server's settings.
_WORKER = (
    "config|get", "exists", "get", "hdel", "hget", "hgetall", "hincrby", "hmget", "hset", "hsetnx",
    "mget", "pttl", "publish", "set", "time", "unlink", "xadd", "xdel", "xrange", "xread", "xtrim",
    "zadd", "zcount", "zrange", "zrem",
)  # fmt: skip


def users(namespace: str, service_password: str, worker_password: str) -> str:
    """
    Return the aclfile of a server for one namespace.

    Args:
        namespace: of both halves' settings.
        service_password, worker_password: as an aclfile takes them: `>` and the password, or `#`
            and its SHA-256 in hex.

    Whoever does not log in may ask whether the server lives, for health checks, and nothing else.
    """
    keys = Keys(namespace)
    admitted = (keys.meta, keys.log, keys.ids, keys.id_order, keys.labels, keys.waiting)
    service = [f"~{key}" for key in admitted] + [f"%R~{_all_of(keys)}"]
    answers = keys.answer("*")
    lines = [
        "user default reset on nopass +ping",
        _user(SERVICE, service_password, service, [keys.head, answers], _BOTH + _SERVICE),
        _user(
            WORKER, worker_password, [f"~{_all_of(keys)}"], [keys.head, answers], _BOTH + _WORKER
        ),
    ]
    # The other way on one channel alone: rights of their own, in brackets.
    lines[1] += f" (&{keys.questions} +publish)"
    lines[2] += f" (&{keys.questions} +subscribe)"
    return "\n".join(lines) + "\n"


def _all_of(keys: Keys) -> str:
    return keys.part("").removesuffix("part:") + "*"


def _user(
    name: str, password: str, patterns: list[str], channels: list[str], commands: tuple[str, ...]
) -> str:
    heard = [f"&{channel}" for channel in channels]
    allowed = [f"+{command}" for command in sorted(commands)]
    return " ".join(["user", name, "reset", "on", password, *patterns, *heard, *allowed])


def main() -> int:
    """Print an aclfile; on the other stream the passwords, which are kept nowhere."""
    try:
        namespace = load_settings().namespace
    except EverlensError as error:
        print(f"everlens.bus.acl: {error}", file=sys.stderr)
        return 2
    passwords = {name: secrets.token_urlsafe(32) for name in (SERVICE, WORKER)}
    hashed = (f"#{hashlib.sha256(word.encode()).hexdigest()}" for word in passwords.values())
    print(users(namespace, *hashed), end="")
    for name, word in passwords.items():
        half = name.removeprefix("everlens-")
        print(f"{half}: EVERLENS_REDIS_URL=redis://{name}:{word}@HOST:6379/0", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
