"""How many may stand at the door of one listener without having shown who they are. Counting only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

UNAUTHENTICATED = 64
"""Connections of a listener that may be in their handshake at once."""


class Door(Generic[T]):
    """Connections in their handshake, the oldest first.

    The oldest makes room: whoever holds many connections open without a word cannot keep others out.

    Args:
        limit: how many may stand here.
    """

    def __init__(self, limit: int = UNAUTHENTICATED) -> None:
        self.turned_away = 0
        self._limit = limit
        self._waiting: dict[T, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._waiting))

    def __repr__(self) -> str:
        return f"<Door {len(self)} of {self._limit} waiting, {self.turned_away} turned away>"

    def enter(self, one: T) -> T | None:
        """Take a new connection; return the one that must go for it, if there are too many."""
        self._waiting[one] = None
        if len(self._waiting) <= self._limit:
            return None
        oldest = next(iter(self._waiting))
        del self._waiting[oldest]
        self.turned_away += 1
        return oldest

    def leave(self, one: T) -> None:
        """Forget a connection that is through its handshake, or over; unknown ones are ignored."""
        self._waiting.pop(one, None)
