"""The token bucket."""

from __future__ import annotations

import pytest

from smartipc.ipc.trust.rates import TokenBucket


def test_a_burst_of_one_second_then_the_rate() -> None:
    bucket = TokenBucket(10, 0.0)
    assert [bucket.take(0.0) for _ in range(10)] == [None] * 10
    assert bucket.take(0.0) == pytest.approx(0.1)
    assert bucket.take(0.05) == pytest.approx(0.05)
    assert bucket.take(0.11) is None
    assert [bucket.take(100.0) for _ in range(11)].count(None) == 10, "quiet time is not saved up"


def test_less_than_one_a_second_still_lets_one_pass() -> None:
    bucket = TokenBucket(0.5, 0.0)
    assert bucket.take(0.0) is None
    assert bucket.take(1.0) == pytest.approx(1.0)
    assert bucket.take(2.0) is None
    assert repr(bucket) == "<TokenBucket 0.0 of 0.5/s left>"
