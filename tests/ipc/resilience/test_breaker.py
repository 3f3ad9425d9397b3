"""The circuit breaker, by a clock in the hand."""

from __future__ import annotations

import pytest

from smartipc.ipc.errors import (
    CircuitOpen,
    ConnectionLost,
    NoSuchMethod,
    Overloaded,
    RemoteError,
    RequestTimeout,
    WorkerDied,
)
from smartipc.ipc.resilience.breaker import Breaker, BreakerPlan, Breakers, counts

PLAN = BreakerPlan(failures=0.5, of=20, open=10.0)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(PLAN)
    for _ in range(20):
        breaker.record(now, failed=True)
    return breaker


def test_it_opens_at_half_of_twenty_calls_and_not_before() -> None:
    breaker = Breaker(PLAN)
    for _ in range(10):
        assert not breaker.record(0.0, failed=False)
    for _ in range(9):
        assert not breaker.record(1.0, failed=True)
    assert breaker.refuses(1.0) is None
    assert breaker.record(1.0, failed=True)
    assert breaker.state == "open"
    assert breaker.refuses(1.0) == 10.0
    assert breaker.refuses(5.0) == 6.0


def test_few_calls_never_open_it() -> None:
    breaker = Breaker(PLAN)
    for _ in range(19):
        breaker.record(0.0, failed=True)
    assert breaker.state == "closed"


def test_failures_of_more_than_a_minute_ago_are_forgotten() -> None:
    breaker = Breaker(PLAN)
    for _ in range(19):
        breaker.record(0.0, failed=True)
    assert not breaker.record(61.0, failed=True)
    assert repr(breaker) == "<Breaker closed, 1 of 1 failed>"


def test_one_probe_decides() -> None:
    breaker = opened()
    assert breaker.refuses(10.0) is None
    assert breaker.state == "half-open"
    assert breaker.refuses(10.0) == 10.0, "a second call must wait for the probe"
    assert breaker.record(10.5, failed=True)
    assert breaker.refuses(11.0) == 9.5
    assert breaker.refuses(20.5) is None
    assert breaker.record(20.6, failed=False)
    assert breaker.state == "closed"
    assert breaker.refuses(20.6) is None
    assert repr(breaker) == "<Breaker closed, 0 of 0 failed>"


def test_outcomes_of_calls_from_before_it_opened_change_nothing() -> None:
    breaker = opened()
    assert not breaker.record(1.0, failed=False)
    assert breaker.state == "open"


def test_a_cancelled_probe_leaves_room_for_the_next() -> None:
    breaker = opened()
    assert breaker.refuses(10.0) is None
    breaker.abandon()
    assert breaker.refuses(10.0) is None


def test_each_destination_has_its_own() -> None:
    breakers = Breakers(PLAN)
    for _ in range(20):
        breakers.record("a:0", "a.x", 0.0, failed=True)
    breakers.check("a:1", "a.x", 0.0)
    breakers.check("a:0", "a.y", 0.0)
    with pytest.raises(CircuitOpen) as caught:
        breakers.check("a:0", "a.x", 1.0)
    assert caught.value.retry_after == 9.0
    assert caught.value.processed == "no"
    assert breakers.states() == {("a:0", "a.x"): "open"}
    breakers.abandon("a:0", "a.x")
    breakers.abandon("b:0", "b.x")
    breakers.forget("a:0")
    breakers.check("a:0", "a.x", 1.0)


def test_switched_off_it_records_nothing() -> None:
    breakers = Breakers(None)
    for _ in range(50):
        assert not breakers.record("a:0", "a.x", 0.0, failed=True)
    breakers.check("a:0", "a.x", 0.0)


def test_their_number_is_bounded() -> None:
    breakers = Breakers(PLAN)
    for n in range(5000):
        breakers.record(f"a:{n}", "a.x", 0.0, failed=False)
    assert repr(breakers) == "<Breakers of 4096 destinations>"


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (ConnectionLost("a:0"), True),
        (RequestTimeout(1.0), True),
        (WorkerDied("a:0"), True),
        (Overloaded(), True),
        (NoSuchMethod("a.x"), False),
        (RemoteError("ValueError", "no"), False),
        (ValueError("a declared error"), False),
    ],
)
def test_only_what_speaks_against_the_destination_counts(error: Exception, counted: bool) -> None:
    assert counts(error) is counted
