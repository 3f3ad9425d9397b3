"""The reconnection machine: every step of its table, its delays, and random lives."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from smartipc.ipc.errors import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionLost,
    RemoteProtocolError,
    SmartIpcError,
)
from smartipc.ipc.protocol.reconnection import (
    FIRST_DELAY,
    LONGEST_DELAY,
    SPREAD,
    STABLE,
    TRANSITIONS,
    Cause,
    ClientState,
    Reconnection,
    in_vain,
    why,
)


def connected(at: float = 0.0) -> Reconnection:
    machine = Reconnection(at + 10)
    assert machine.opened(at)
    return machine


def test_the_table_is_whole_and_ends() -> None:
    for state, cause in itertools.product(ClientState, Cause):
        after = TRANSITIONS.get((state, cause))
        assert after is None or state is not ClientState.CLOSED
        if cause is Cause.ENDED and state is not ClientState.CLOSED:
            assert after is ClientState.CLOSED


def test_delays_double_up_to_the_cap() -> None:
    machine = connected()
    assert machine.lost(1.0, "gone")
    delays = []
    for _ in range(10):
        delays.append(machine.delay(1.0, 0.5))
        assert not machine.failed(1.0, "refused")
    assert delays[:7] == pytest.approx([0.1, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
    assert delays[7:] == [LONGEST_DELAY] * 3


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_jitter_stays_inside_its_share_and_the_cap(jitter: float) -> None:
    machine = connected()
    machine.lost(1.0, "gone")
    assert machine.delay(1.0, jitter) == pytest.approx(FIRST_DELAY * (1 - SPREAD + 2 * SPREAD * jitter))
    for _ in range(200):
        machine.failed(1.0, "refused")
        assert machine.delay(1.0, jitter) <= LONGEST_DELAY


def test_a_connection_that_lasted_sets_the_delay_back() -> None:
    machine = connected()
    machine.lost(1.0, "gone")
    for _ in range(5):
        machine.failed(1.0, "refused")
    machine.opened(2.0)
    machine.lost(2.5, "gone")
    assert machine.delay(2.5, 0.5) > 1.0, "a server that drops us at once is not hammered"
    machine.opened(4.0)
    machine.lost(4.0 + STABLE, "gone")
    assert machine.delay(9.0, 0.5) == pytest.approx(FIRST_DELAY)


def test_the_first_connection_is_given_up_in_time() -> None:
    machine = Reconnection(1.0)
    assert not machine.failed(0.0, "refused")
    assert machine.state is ClientState.CONNECTING
    for _ in range(10):
        assert not machine.failed(0.5, "refused")
    assert machine.delay(0.9, 0.5) == pytest.approx(0.1), "the last try comes at the very end"
    assert machine.failed(1.0, "refused")
    assert machine.state is ClientState.CLOSED
    assert machine.reason == "refused"
    assert not machine.failed(1.0, "refused")


def test_what_is_hopeless_ends_a_first_connection_only() -> None:
    first = Reconnection(10.0)
    assert first.failed(0.0, "wrong token", hopeless=True)
    again = connected()
    again.lost(1.0, "gone")
    assert not again.failed(100.0, "wrong token", hopeless=True)
    assert again.state is ClientState.RECONNECTING


def test_a_descriptor_cannot_be_dialled_again() -> None:
    machine = Reconnection(10.0, again=False)
    machine.opened(0.0)
    assert machine.lost(1.0, "gone")
    assert machine.state is ClientState.CLOSED
    assert Reconnection(10.0, again=False).failed(0.0, "bad descriptor")


def test_closing_is_final_and_told_once() -> None:
    machine = connected()
    assert machine.close()
    assert not machine.close("again")
    assert machine.reason == "closed here"
    assert not machine.lost(1.0, "late news")
    assert not machine.opened(1.0)
    assert "closed" in repr(machine)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (ConnectFailed("unix:///a", "nobody listens"), "nobody listens"),
        (ConnectionLost("the server", "it went"), "it went"),
        (RemoteProtocolError("no hello"), str(RemoteProtocolError("no hello"))),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_failed_try_is_told_without_its_address(failure: SmartIpcError, said: str) -> None:
    assert why(failure) == said


def test_the_first_connection_fails_with_what_another_try_would_not_change() -> None:
    wrong = AuthenticationFailed("wrong token")
    assert in_vain(wrong, "unix:///a") is wrong
    failed = in_vain(ConnectionLost("the server", "it went"), "unix:///a")
    assert isinstance(failed, ConnectFailed)
    assert (failed.address, failed.reason) == ("unix:///a", "it went")


class Lives(RuleBasedStateMachine):
    """Any order of events: no step outside the table, closed stays closed, delays stay bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.machine = Reconnection(10.0)
        self.before = self.machine.state

    def step(self, cause: Cause, news: bool) -> None:
        if news:
            assert TRANSITIONS[self.before, cause] is self.machine.state
        else:
            assert self.machine.state is self.before
        self.before = self.machine.state

    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def opened(self) -> None:
        self.step(Cause.OPENED, self.machine.opened(self.now))

    @rule()
    def lost(self) -> None:
        self.step(Cause.LOST, self.machine.lost(self.now, "gone"))

    @rule(hopeless=st.booleans())
    def failed(self, hopeless: bool) -> None:
        was = self.before
        ended = self.machine.failed(self.now, "refused", hopeless=hopeless)
        assert ended is (was is ClientState.CONNECTING and (hopeless or self.now >= 10.0))
        self.step(Cause.ENDED, ended)

    @rule()
    def close(self) -> None:
        was = self.before
        assert self.machine.close() is (was is not ClientState.CLOSED)
        self.before = self.machine.state
        assert self.before is ClientState.CLOSED

    @rule(jitter=st.floats(0, 1))
    def delay(self, jitter: float) -> None:
        assert 0.0 <= self.machine.delay(self.now, jitter) <= LONGEST_DELAY

    @invariant()
    def a_closed_one_stays_closed(self) -> None:
        assert self.machine.state is self.before


TestLives = Lives.TestCase
