"""How many retries a process may make: a share of its recent calls, so that retries never multiply an outage. Pure."""

from __future__ import annotations

from collections import deque

RATIO = 0.1
"""Retries that each recent call allows (at most a tenth of recent calls)."""
RESERVE = 32
"""Retries a minute that are free however few the calls are: a whole look-ahead of `map` that loses its instance."""
WINDOW = 60.0
"""Seconds that are recent."""


class RetryBudget:
    """The retries of the last minute."""

    __slots__ = ("_spent", "refused")

    def __init__(self) -> None:
        self._spent: deque[float] = deque()
        self.refused = 0
        """Retries that were not made for want of budget."""

    def __repr__(self) -> str:
        return f"<RetryBudget {len(self._spent)} spent, {self.refused} refused>"

    def spend(self, now: float, calls: int) -> bool:
        """Note a retry and allow it, or count that there was no budget for it; `calls` are those of the last minute."""
        spent = self._spent
        while spent and spent[0] <= now - WINDOW:
            spent.popleft()
        if len(spent) >= max(RESERVE, RATIO * calls):
            self.refused += 1
            return False
        spent.append(now)
        return True
