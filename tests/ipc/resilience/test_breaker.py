"""The circuit breaker, by a clock in the hand."""

from __future__ import annotations

import pytest

from smartipc.ipc.control import BreakerPlan
from smartipc.ipc.errors import (
    CircuitOpen,
    ConnectionLost,
    NoSuchMethod,
    Overloaded,
    RemoteError,
    RequestTimeout,
    WorkerDied,
)
from smartipc.ipc.resilience.breaker import Breaker, Breakers, counts

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


def test_a_quick_success_counts_as_any_other() -> None:
    breaker = Breaker(PLAN)
    for second in range(200):
        assert not breaker.passed(float(second))
    assert breaker.total == 60
    for _ in range(30):
        breaker.record(199.0, failed=True)
    assert breaker.state == "closed"
    for _ in range(30):
        breaker.record(199.0, failed=True)
    assert breaker.state == "open"
    assert not breaker.passed(200.0)
    assert breaker.refuses(209.0) is None
    assert breaker.passed(209.0)


LOST = ConnectionLost("a:0")


def test_each_destination_has_its_own() -> None:
    breakers = Breakers(PLAN)
    for number in range(20):
        of = breakers.enter("a:0", 1, "a.x", 0.0)
        assert breakers.failed(of, LOST, 0.0) is (number == 19)
    assert breakers.trouble
    breakers.enter("a:1", 1, "a.x", 0.0)
    breakers.enter("a:0", 1, "a.y", 0.0)
    breakers.enter("a:0", 2, "a.x", 0.0)
    with pytest.raises(CircuitOpen) as caught:
        breakers.enter("a:0", 1, "a.x", 1.0)
    assert caught.value.retry_after == 9.0
    assert caught.value.processed == "no"
    assert breakers.states() == {("a:0", "a.x"): "open"}
    assert not breakers.closed("a:0", 1, "a.x")
    assert breakers.closed("a:0", 2, "a.x")
    assert breakers.closed("b:0", 1, "b.x")
    assert breakers.calls == 20


def test_a_called_worker_may_have_a_plan_of_its_own() -> None:
    breakers = Breakers(PLAN, {"quick": BreakerPlan(of=1), "never": None})
    assert breakers.failed(breakers.enter("quick:0", 1, "quick.x", 0.0), LOST, 0.0)
    assert breakers.enter("never:3", 1, "never.x", 0.0) is None
    assert not breakers.failed(None, LOST, 0.0)


def test_switched_off_it_records_nothing() -> None:
    breakers = Breakers(None)
    for _ in range(50):
        assert breakers.enter("a:0", 1, "a.x", 0.0) is None
    assert breakers.calls == 0


def test_their_number_is_bounded() -> None:
    breakers = Breakers(PLAN)
    for n in range(5000):
        breakers.of(f"a:{n}", 1, "a.x")
    assert repr(breakers) == "<Breakers of 4096 destinations>"


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (ConnectionLost("a:0"), True),
        (RequestTimeout(1.0), True),
        (WorkerDied("a:0"), True),
        (Overloaded(), True),
        (WorkerDied("b:0", processed="yes"), False),
        (NoSuchMethod("a.x"), False),
        (RemoteError("ValueError", "no"), False),
        (ValueError("a declared error"), False),
    ],
)
def test_only_what_speaks_against_the_destination_counts(error: Exception, counted: bool) -> None:
    assert counts(error) is counted
