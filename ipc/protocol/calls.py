"""Our own unanswered requests: ids, deadlines, and when to look at them next. Nothing about payloads."""

from __future__ import annotations

from smartipc.ipc.wire.frames import ID_STEP


class Calls:
    """Map of call id to deadline.

    `earliest` is a lower bound of the deadlines, not the exact minimum: a finished call does not move it, so adding
    and removing stay cheap and nothing accumulates; expire() sets it right when it comes.

    Args:
        first: 1 for the connecting side, 2 for the accepting one; ids go up in steps of two and are never reused.
    """

    __slots__ = ("_first", "_next", "earliest", "pending")

    def __init__(self, first: int) -> None:
        self.pending: dict[int, float] = {}
        self.earliest: float | None = None
        self._first = first
        self._next = first

    def __len__(self) -> int:
        return len(self.pending)

    def __repr__(self) -> str:
        return f"<Calls {len(self.pending)} pending, next id {self._next}>"

    def take(self) -> int:
        """Return the next id, for something that is no call."""
        ident = self._next
        self._next = ident + ID_STEP
        return ident

    def add(self, deadline: float) -> int:
        """Register a call and return its id."""
        ident = self._next
        self._next = ident + ID_STEP
        self.pending[ident] = deadline
        if self.earliest is None or deadline < self.earliest:
            self.earliest = deadline
        return ident

    def add_all(self, deadline: float, count: int) -> range:
        """Register several calls and return their ids."""
        ids = range(self._next, self._next + ID_STEP * count, ID_STEP)
        self._next = ids.stop
        self.pending.update(dict.fromkeys(ids, deadline))
        if self.earliest is None or deadline < self.earliest:
            self.earliest = deadline
        return ids

    def remove(self, ident: int) -> bool:
        """Forget a call; return whether it was waiting."""
        return self.pending.pop(ident, None) is not None

    def owns(self, ident: int) -> bool:
        """Tell whether an id is of our parity."""
        return ident % 2 == self._first % 2

    def issued(self, ident: int) -> bool:
        """Tell whether we ever sent a request with this id."""
        return self.owns(ident) and 0 < ident < self._next

    def expire(self, now: float) -> list[int]:
        """Remove and return the calls whose deadline has passed, oldest first."""
        if self.earliest is None or now < self.earliest:
            return []
        due = [ident for ident, deadline in self.pending.items() if deadline <= now]
        for ident in due:
            del self.pending[ident]
        self.earliest = min(self.pending.values(), default=None)
        return due

    def clear(self) -> None:
        """Forget all."""
        self.pending.clear()
        self.earliest = None
