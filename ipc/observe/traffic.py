"""What all connections of this process have carried: their tallies, added up, of those that are over, too.

Plain numbers for `snapshot()`, and for the supervisor, to whom workers report them. Counting is protocol.tally's.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref

from smartipc.ipc.control import Traffic
from smartipc.ipc.protocol.connection import Connection
from smartipc.ipc.protocol.tally import BOUNDS, NAMES, Tally

_MEMFD = "smartipc.ipc.transports.memfd"


class Ledger:
    """Connections of one process, by weak reference, and the sums of those that are over. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a connection may be collected while we hold it
        self._live: dict[int, weakref.ref[Connection]] = {}
        self._past = Tally()
        self._past_late = self._past_bytes = 0

    def __repr__(self) -> str:
        return f"<Ledger of {len(self._live)} connections>"

    def opened(self, connection: Connection) -> None:
        """Count a connection from now on."""
        key = id(connection)
        with self._lock:
            self._live[key] = weakref.ref(connection, lambda _gone: self._live.pop(key, None))

    def closed(self, connection: Connection) -> None:
        """Keep the numbers of a connection that is over; twice is fine."""
        with self._lock:
            if self._live.pop(id(connection), None) is not None:
                _add(self._past, connection.tally)
                self._past_late += connection.late_replies
                self._past_bytes += connection.bytes_received

    def forget(self) -> None:
        """Count none of the connections that are over."""
        with self._lock:
            self._past = Tally()
            self._past_late = self._past_bytes = 0

    def traffic(self) -> Traffic:
        """Add everything up."""
        with self._lock:
            live = [one for reference in list(self._live.values()) if (one := reference()) is not None]
            total = Tally()
            _add(total, self._past)
            late, received = self._past_late, self._past_bytes
        for connection in live:
            _add(total, connection.tally)
            late += connection.late_replies
            received += connection.bytes_received
        memfd = sys.modules.get(_MEMFD)
        return Traffic(
            connections=len(live),
            requests_sent=total.sent,
            requests_received=total.received,
            notifies_received=total.notifies,
            messages_received=total.messages,
            errors=dict(total.errors),
            late_replies=late,
            bytes_received=received,
            streams=sum(len(one.streams) for one in live),
            buffers_lent=sum(one.buffers.lent for one in live),
            buffers_borrowed=sum(one.buffers.borrowed for one in live),
            pool_bytes=memfd.pool_size() if memfd is not None else 0,
            round_trips=tuple(zip((*BOUNDS, float("inf")), total.round_trips, strict=True)),
            round_trip_seconds=total.seconds,
        )


def _add(total: Tally, part: Tally) -> None:
    total.sent += part.sent
    total.received += part.received
    total.notifies += part.notifies
    total.messages += part.messages
    total.seconds += part.seconds
    for name, count in list(part.errors.items()):
        key = name if name in total.errors or len(total.errors) < NAMES else "other"
        total.errors[key] = total.errors.get(key, 0) + count
    total.round_trips = [one + other for one, other in zip(total.round_trips, part.round_trips, strict=True)]


ledger = Ledger()
"""Of this process; a forked child begins a new one."""


def _after_fork() -> None:
    global ledger  # noqa: PLW0603 - one per process by nature
    ledger = Ledger()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def traffic() -> Traffic:
    """Return what all connections of this process have carried so far."""
    return ledger.traffic()
