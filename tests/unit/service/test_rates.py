"""Token buckets, and a bounded table of them."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.rates import AddressBuckets, Bucket


def test_a_burst_then_the_rate():
    """Twice the rate comes at once, then so many a second, and the wait is when the next is there."""
    bucket = Bucket()
    assert [bucket.take(10, 0.0) for _ in range(20)] == [0.0] * 20
    assert bucket.take(10, 0.0) == pytest.approx(0.1)
    assert bucket.take(10, 0.05) == pytest.approx(0.05)
    assert bucket.take(10, 0.11) == 0.0
    assert bucket.take(10, 0.11) > 0


def test_a_slow_rate_takes_one_at_a_time():
    """A rate below one in two seconds still lets one through, and says how long the next takes."""
    bucket = Bucket()
    assert bucket.take(0.01, 5.0) == 0.0
    assert bucket.take(0.01, 5.0) == pytest.approx(100)
    assert bucket.take(0.01, 105.1) == 0.0


@given(
    st.floats(0.1, 1000),
    st.lists(st.floats(0, 10), min_size=1, max_size=200),
)
def test_never_more_than_burst_and_rate(rate, pauses):
    """In any time no more are taken than a burst and the rate times that time, nor many fewer."""
    bucket = Bucket()
    now, taken = 100.0, 0
    for pause in pauses:
        now += pause
        taken += not bucket.take(rate, now)
    assert taken <= max(1, 2 * rate) + rate * (now - 100.0 - pauses[0]) + 1e-6
    assert not bucket.take(rate, now + 1 / rate + 1e-6)


def test_addresses_do_not_share_and_a_network_does():
    """IPv4 addresses count one by one, also when they come as IPv6; of IPv6 a /64 counts as one."""
    for one, other, same in [
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "testclient", False),
    ]:
        buckets = AddressBuckets(0.5)
        assert buckets.take(one, 1.0) == 0.0
        assert (buckets.take(other, 1.0) > 0) == same, (one, other)


def test_the_table_is_bounded_and_forgets_the_oldest():
    """A million addresses cost what a few cost; the one that came last is remembered."""
    buckets = AddressBuckets(0.5, addresses_max=100)
    for number in range(20_000):
        buckets.take(f"10.0.{number // 256}.{number % 256}", 1.0)
        buckets.take("192.0.2.1", 1.0)
    assert len(buckets) == 100
    assert buckets.take("192.0.2.1", 1.0) > 0
    assert buckets.take("10.0.0.0", 1.0) == 0.0
    assert sys.getsizeof(buckets._buckets) < 50_000
