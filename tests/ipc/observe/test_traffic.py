"""The sums over all connections of a process, alive and over."""

from __future__ import annotations

import gc
import os

from smartipc.ipc.observe import traffic
from smartipc.ipc.observe.traffic import Ledger
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.handshake import Identity
from smartipc.ipc.protocol.tally import BOUNDS, NAMES


def connection() -> Connection:
    one = Connection("client", Identity("c"))
    one.start(0.0)
    return one


def test_what_is_over_still_counts() -> None:
    ledger = Ledger()
    first, second = connection(), connection()
    ledger.opened(first)
    ledger.opened(second)
    for one in (first, second):
        one.request("m", b"\xc0", 0.0, timeout=1)
        one.tally.failed("Boom")
        one.tally.timed = 1
        one.tally.answered(0.0004)
        one.late_replies += 2
    assert repr(ledger) == "<Ledger of 2 connections>"
    before = ledger.traffic()
    ledger.closed(first)
    ledger.closed(first)
    after = ledger.traffic()
    assert (before.connections, after.connections) == (2, 1)
    assert before.requests_sent == after.requests_sent == 2
    assert before.errors == after.errors == {"Boom": 2}
    assert after.late_replies == 4
    assert dict(after.round_trips)[0.0005] == 2
    assert sum(count for _bound, count in after.round_trips) == 2
    assert len(after.round_trips) == len(BOUNDS) + 1


def test_a_connection_that_was_dropped_is_not_kept() -> None:
    ledger = Ledger()
    ledger.opened(connection())
    gc.collect()
    assert ledger.traffic().connections == 0


def test_names_stay_bounded_over_many_connections() -> None:
    ledger = Ledger()
    for number in range(NAMES * 2):
        one = connection()
        ledger.opened(one)
        one.tally.failed(f"error {number}")
        ledger.closed(one)
    assert len(ledger.traffic().errors) == NAMES + 1


def test_a_forked_child_begins_anew() -> None:
    one = connection()
    traffic.ledger.opened(one)
    pid = os.fork()
    if not pid:
        os._exit(0 if traffic.traffic().connections == 0 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    traffic.ledger.closed(one)
