"""The event log: every transition with its sequence number, kept in a ring, for commands and tests. No I/O."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import msgspec

from smartipc.ipc.control import Events
from smartipc.supervisor.core.orders import Announce

KEPT = 10_000


class EventLog:
    """Events in order, as ready-made JSON objects (SPEC 8)."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._seq = 0
        self._waiting: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<EventLog {self._seq} events, {len(self._events)} kept>"

    def append(self, announce: Announce) -> dict[str, Any]:
        """Record an announcement and return its event."""
        self._seq += 1
        event: dict[str, Any] = {
            "seq": self._seq,
            "at": iso(time.time()),
            "event": announce.event,
            "instance": announce.instance or None,
            "generation": announce.generation if announce.instance else None,
            "from": announce.from_state,
            "to": announce.to_state,
            "cause": announce.cause,
            "pid": announce.pid,
            "exit": msgspec.to_builtins(announce.exit) if announce.exit is not None else None,
            "attempt": announce.attempt,
            "next_restart_in": announce.next_restart_in,
        }
        self._events.append(event)
        self.wake()
        return event

    def since(self, seq: int) -> Events:
        """Return the events after `seq`, and how many of them are no longer kept."""
        found = [event for event in self._events if event["seq"] > seq]
        first = self._events[0]["seq"] if self._events else self._seq + 1
        return Events(found, max(0, first - seq - 1))

    async def wait(self, seq: int, seconds: float) -> Events:
        """Return the events after `seq`, waiting up to `seconds` for the first. Cancelling it loses nothing."""
        if self._seq <= seq and seconds > 0:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await asyncio.wait({future}, timeout=seconds)
        return self.since(seq)

    def wake(self) -> None:
        """Let every waiting reader look."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


def iso(at: float) -> str:
    """Return epoch seconds as ISO 8601 UTC with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
