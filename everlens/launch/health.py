"""
Whether a half does its work, asked from outside: `python -m everlens.launch.health HALF`.

For the launcher and for health checks of containers; exit code 0 is healthy.
"""

from __future__ import annotations

import http.client
import sys
from urllib.parse import urlsplit

from everlens.bus.connect import connect, reaching_the_log
from everlens.bus.keys import Keys
from everlens.errors import EverlensError, LogUnavailable
from everlens.launch.greeting import base_url
from everlens.settings import load_settings

_REPLY_S = 2.0


def service_ready(url: str) -> bool:
    """Return whether the service at this address answers queries now."""
    parts = urlsplit(url)
    asked = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_REPLY_S)
    try:
        asked.request("GET", "/readyz")
        return asked.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()


def learner_present(redis_url: str, namespace: str) -> bool:
    """Return whether a learner holds the lease of this log."""
    client = connect(redis_url)
    try:
        with reaching_the_log():
            return bool(client.exists(Keys(namespace).lease))
    except LogUnavailable:
        return False
    finally:
        client.close()


def main() -> int:
    """Look at one of the halves, with the settings of its own environment."""
    half = sys.argv[1] if len(sys.argv) == 2 else ""
    if half not in {"service", "worker"}:
        print("usage: python -m everlens.launch.health service|worker", file=sys.stderr)
        return 2
    try:
        settings = load_settings()
    except EverlensError as error:
        print(error, file=sys.stderr)
        return 2
    if half == "service":
        return 0 if service_ready(base_url(settings.host, settings.port)) else 1
    return 0 if learner_present(settings.redis_url, settings.namespace) else 1


if __name__ == "__main__":
    sys.exit(main())
