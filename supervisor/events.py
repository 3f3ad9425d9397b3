"""The event log: every transition with its sequence number, in a ring in memory and in the app's state directory.

Numbers go on where the last supervisor of the app stopped, so that whoever follows with `--since` misses nothing over
a restart, or is told how much. Files are host/journal.py's business.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import msgspec

from smartipc.ipc.control import Events
from smartipc.supervisor.core.orders import Announce
from smartipc.supervisor.host.journal import Journal

KEPT = 10_000


class EventLog:
    """Events in order, as ready-made JSON objects.

    Args:
        journal: the file behind it; None keeps them in memory only.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal = journal
        earlier = journal.read(KEPT) if journal is not None else []
        self._events: deque[dict[str, Any]] = deque(earlier, maxlen=KEPT)
        self._seq = self.begun_after = earlier[-1]["seq"] if earlier else 0
        self._waiting: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<EventLog {self._seq} events, {len(self._events)} kept>"

    @property
    def seq(self) -> int:
        """The number of the newest event, 0 before the first."""
        return self._seq

    def append(self, announce: Announce, at: float | None = None) -> dict[str, Any]:
        """Record an announcement and return its event.

        Args:
            announce: what happened.
            at: when, in epoch seconds; None for now.
        """
        self._seq += 1
        event: dict[str, Any] = {
            "seq": self._seq,
            "at": iso(time.time() if at is None else at),
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
            **dict(announce.details),
        }
        self._events.append(event)
        if self._journal is not None:
            self._journal.append(event)
        self.wake()
        return event

    def since(self, seq: int | None) -> Events:
        """Return the events after `seq` (None: of this supervisor), and how many of them are no longer kept."""
        after = self.begun_after if seq is None else seq
        found = [event for event in self._events if event["seq"] > after]
        first = self._events[0]["seq"] if self._events else self._seq + 1
        return Events(found, max(0, min(first - 1, self._seq) - after), self._seq)

    def about(self, instance: str, most: int) -> list[dict[str, Any]]:
        """Return the newest events of one instance under this supervisor, oldest first."""
        found: list[dict[str, Any]] = []
        for event in reversed(self._events):
            if event["seq"] <= self.begun_after or len(found) == most:
                break
            if event["instance"] == instance:
                found.append(event)
        return found[::-1]

    async def wait(self, seq: int | None, seconds: float) -> Events:
        """Return the events after `seq`, waiting up to `seconds` for the first. Cancelling it loses nothing."""
        if self._seq <= (self.begun_after if seq is None else seq) and seconds > 0:
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
