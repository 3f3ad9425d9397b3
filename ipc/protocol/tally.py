"""What one connection has carried, in plain numbers. No clock, no names of methods: their number is not bounded.

Counting must cost next to nothing, so of the round trips only every 16th is timed, and one-way messages are
counted where they arrive.
"""

from __future__ import annotations

from bisect import bisect_left

from smartipc.ipc.wire.frames import ARRAY

BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of round trips, in seconds; one more bucket holds what takes longer."""
SAMPLED = 30
"""Bits of a call id that are all zero in every 16th one, of either side: those calls are timed."""
NAMES = 32
"""Errors told apart; what comes beyond is "other"."""


class Tally:
    """Numbers that only rise. `errors` counts by name the calls of ours that failed."""

    __slots__ = ("errors", "messages", "notifies", "received", "round_trips", "seconds", "sent", "timed", "timed_at")

    def __init__(self) -> None:
        self.sent = 0
        """Requests that we made."""
        self.received = 0
        """Requests of the peer."""
        self.notifies = 0
        """One-way messages that came."""
        self.messages = 0
        """Published messages that came."""
        self.errors: dict[str, int] = {}
        self.round_trips = [0] * (len(BOUNDS) + 1)
        """Timed requests by bucket, see BOUNDS."""
        self.seconds = 0.0
        """Sum of what was timed."""
        self.timed = 0
        """The request that is being timed, 0 for none."""
        self.timed_at = 0.0

    def __repr__(self) -> str:
        return f"<Tally {self.sent} requests sent, {self.received} received, {sum(self.errors.values())} failed>"

    def answered(self, now: float) -> None:
        """Note that the timed request has its answer."""
        took = now - self.timed_at
        self.timed = 0
        self.seconds += took
        self.round_trips[bisect_left(BOUNDS, took)] += 1

    def failed(self, name: str) -> None:
        """Count a request of ours that failed."""
        if name not in self.errors and len(self.errors) >= NAMES:
            name = "other"
        self.errors[name] = self.errors.get(name, 0) + 1


def count_of(batch: bytes) -> int:
    """Return how many payloads a batch says it has, which is not more than it has bytes."""
    return min(ARRAY.unpack_from(batch)[1], len(batch)) if len(batch) >= ARRAY.size else 0
