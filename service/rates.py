"""How often somebody may come: token buckets, and a bounded table of them by address. ①"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

_BURST_S = 2.0  # seconds of the rate that may come at once, after a rest


class Bucket:
    """A token bucket; it begins full."""

    __slots__ = ("_filled_at", "_tokens")

    def __init__(self) -> None:
        self._tokens = float("inf")
        self._filled_at = 0.0

    def take(self, rate_per_s: float, now: float) -> float:
        """
        Take one token; return 0.0, or in how many seconds there will be one.

        Args:
            rate_per_s: tokens that come in a second.
            now: of a monotonic clock, in seconds.
        """
        burst = max(1.0, _BURST_S * rate_per_s)
        tokens = min(burst, self._tokens + (now - self._filled_at) * rate_per_s)
        self._filled_at = now
        taken = tokens >= 1.0
        self._tokens = tokens - taken
        return 0.0 if taken else (1.0 - tokens) / rate_per_s


class AddressBuckets:
    """A bucket for each client address (see `network`), of the addresses that came last."""

    def __init__(self, rate_per_s: float, *, addresses_max: int = 4096) -> None:
        self.rate_per_s = rate_per_s
        self.addresses_max = addresses_max
        self._buckets: OrderedDict[str | bytes, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, address: str, now: float) -> float:
        """Take one token of an address, as `Bucket.take`."""
        whose = network(address)
        bucket = self._buckets.setdefault(whose, Bucket())
        self._buckets.move_to_end(whose)
        if len(self._buckets) > self.addresses_max:
            self._buckets.popitem(last=False)
        return bucket.take(self.rate_per_s, now)


def network(address: str) -> str | bytes:
    """Return who an address is counted for: an IPv6 client has a whole /64 at its command."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a Unix socket, or a name
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    mapped = parsed.ipv4_mapped
    return parsed.packed[:8] if mapped is None else str(mapped)
